"""Every family of models: converted it is the same model, and its FFN blocks can be skipped.

Each case is a tiny random checkpoint with the structure that makes its architecture what it is, made by transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from ffnskip_cpp.conversion import conversion as converter
from support.running import F32_CACHE, SKIPPABLE_ROW, bits_equal, feed, feed_one_by_one, ours, plain, without_ffn
from support.tiny_checkpoints import (
    LOGIT_TOLERANCE,
    random_model,
    random_tokens,
    relative_logit_error,
    save_checkpoint,
    vocab_size_of,
)

N_LAYER = 4
SKIPPED = (0, 2)  # the last layer never skips
NEVER = 1.5  # above any cosine

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": N_LAYER,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# Names of older configurations; each reads those it knows.
GPT2_SIZES = {"n_embd": 64, "n_head": 4, "n_layer": N_LAYER, "n_positions": 256, "vocab_size": 320}

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.3, 1.2],
    "long_factor": [1.0, 2.5, 4.0, 8.0],
}
WINDOW = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}  # shorter than the prompt
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e3},
}
MIXED_LAYERS = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
SEEING = {
    "text_config": {**SIZES, **WINDOW, "layer_types": MIXED_LAYERS, "rope_parameters": GEMMA3_ROPE},
    "vision_config": VISION,
    "mm_tokens_per_image": 4,
}


def rename_tensors(model_dir: Path, rename: Callable[[str], str], **more: np.ndarray) -> None:
    from safetensors.numpy import load_file, save_file

    path = model_dir / "model.safetensors"
    save_file({**{rename(name): data for name, data in load_file(path).items()}, **more}, path)


def as_first_published_gpt2(model_dir: Path) -> None:
    """Without the name of the head's model, and with the attention mask as if it were a parameter."""
    mask = {f"h.{il}.attn.bias": np.ones((1, 1, 256, 256), np.float32) for il in range(N_LAYER)}
    rename_tensors(model_dir, lambda name: name.replace("transformer.", ""), **mask)


def as_first_published_gemma3(model_dir: Path) -> None:
    """Other names, and settings spelt as before transformers 5; those that have a default are left out."""
    rename_tensors(model_dir, lambda name: name.replace("model.language_model.", "language_model.model."))
    path = model_dir / "config.json"
    config = json.loads(path.read_text())
    text = config["text_config"]
    for key in ("rope_parameters", "max_position_embeddings", "tie_word_embeddings", "layer_types"):
        del text[key]
    text.update(rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=5e3, layer_types=MIXED_LAYERS)
    path.write_text(json.dumps({**config, "tie_word_embeddings": None}))


@dataclass(frozen=True)
class Case:
    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=lambda: SIZES)
    saving: dict[str, Any] = field(default_factory=dict)  # for save_pretrained
    running: dict[str, Any] = field(default_factory=dict)  # for llama.cpp
    alter: Callable[[Path], None] | None = None  # the saved checkpoint


FUSED = {"save_original_format": False}  # experts as transformers 5 has them in memory

CASES = {
    "llama-2": Case("LlamaForCausalLM", {"num_key_value_heads": 4}),
    "llama-3": Case("LlamaForCausalLM", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-biased": Case("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "mistral": Case("MistralForCausalLM", {"head_dim": 32, "sliding_window": None}),
    "mixtral": Case("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "mixtral-fused": Case("MixtralForCausalLM", {"num_local_experts": 4, "num_experts_per_tok": 2}, saving=FUSED),
    "qwen2": Case("Qwen2ForCausalLM"),
    "qwen2-moe": Case("Qwen2MoeForCausalLM", {**EXPERTS, "shared_expert_intermediate_size": 80}),
    "qwen2-moe-fused": Case("Qwen2MoeForCausalLM", {**EXPERTS, "shared_expert_intermediate_size": 80}, saving=FUSED),
    "qwen3": Case("Qwen3ForCausalLM", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-moe": Case("Qwen3MoeForCausalLM", {**EXPERTS, "norm_topk_prob": True, "head_dim": 32}),
    "qwen3-moe-fused": Case("Qwen3MoeForCausalLM", {**EXPERTS, "norm_topk_prob": True}, saving=FUSED),
    "gemma-2": Case("Gemma2ForCausalLM", WINDOW),
    "gemma-3": Case("Gemma3ForCausalLM", {**WINDOW, "layer_types": MIXED_LAYERS}),
    "gemma-3-scaled": Case("Gemma3ForCausalLM", {**WINDOW, "layer_types": MIXED_LAYERS,
                                                 "rope_parameters": GEMMA3_ROPE}),
    "gemma-3-sees": Case("Gemma3ForConditionalGeneration", SEEING, {}),
    "gemma-3-sees-old": Case("Gemma3ForConditionalGeneration", SEEING, {}, alter=as_first_published_gemma3),
    "phi-3": Case("Phi3ForCausalLM"),
    "phi-4-short": Case("Phi3ForCausalLM", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256,
                                            "max_position_embeddings": 1024, "tie_word_embeddings": True}),
    "phi-4-long": Case("Phi3ForCausalLM", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}),
    "olmo-2": Case("Olmo2ForCausalLM"),
    "granite": Case("GraniteForCausalLM", {"embedding_multiplier": 3.0, "attention_multiplier": 0.4,
                                           "residual_multiplier": 0.6, "logits_scaling": 2.5}),
    "stablelm-3b": Case("StableLmForCausalLM", {"num_key_value_heads": 4}),
    "stablelm-2-12b": Case("StableLmForCausalLM", {"use_parallel_residual": True, "qk_layernorm": True}),
    "stablelm-2-1.6b": Case("StableLmForCausalLM", {"use_qkv_bias": True, "tie_word_embeddings": True}),
    "falcon-7b": Case("FalconForCausalLM", {"multi_query": True}),
    "falcon-40b": Case("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b": Case("FalconForCausalLM", {"new_decoder_architecture": True, "num_kv_heads": 2,
                                             "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False}),
    "falcon-many-heads": Case("FalconForCausalLM", {"multi_query": False}),
    "gpt-2": Case("GPT2LMHeadModel", sizes=GPT2_SIZES),
    "gpt-2-old": Case("GPT2LMHeadModel", sizes=GPT2_SIZES, alter=as_first_published_gpt2),
    "gpt-neox": Case("GPTNeoXForCausalLM", {"hidden_act": "gelu"}),
    "gpt-neox-sequential": Case("GPTNeoXForCausalLM", {"use_parallel_residual": False, "tie_word_embeddings": True,
                                                       "rope_parameters": {"rope_type": "default", "rope_theta": 5e4,
                                                                           "partial_rotary_factor": 1.0}}),
    "starcoder-2": Case("Starcoder2ForCausalLM", {"sliding_window": None}),
    "command-r": Case("CohereForCausalLM", {"logit_scale": 0.3}),
    "command-r-plus": Case("CohereForCausalLM", {"use_qk_norm": True, "num_hidden_layers": 64}),
    "smollm-3": Case("SmolLM3ForCausalLM", {"rope_parameters": {**YARN}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes and a few merges: the families differ in their tensors here, not in their tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin|>", "<|stop|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tokenizer):
    """converted(name): the transformers model of a case, and its GGUF in F32."""
    folder = tmp_path_factory.mktemp("families")
    made: dict[str, tuple[Any, Path]] = {}

    def make(name: str) -> tuple[Any, Path]:
        if name not in made:
            case = CASES[name]
            model = random_model(case.architecture, {**case.sizes, **case.options})
            model_dir = save_checkpoint(folder / name, model, tokenizer, **case.saving)
            if case.alter:
                case.alter(model_dir)
            made[name] = model, converter.convert(model_dir, folder / f"{name}.gguf", "f32", progress=False).path
        return made[name]

    return make


def n_layer_of(model) -> int:
    return model.config.get_text_config().num_hidden_layers


@pytest.mark.parametrize("name", CASES)
def test_f32_logits_equal_those_of_transformers(name, converted, record_property):
    model, path = converted(name)
    error = relative_logit_error(model, path, n_tokens=60, **CASES[name].running)
    record_property("relative_logit_error", error)
    assert error < LOGIT_TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_skipping_a_fixed_set_equals_a_file_without_these_blocks_bit_for_bit(name, converted, tmp_path):
    model, path = converted(name)
    tokens = random_tokens(24, vocab_size_of(model))
    zeroed = without_ffn(path, SKIPPED, tmp_path / "zero.gguf")
    config = SkipConfig(policy="fixed", layers=SKIPPED, warm_up_index=0)
    with plain(zeroed, **F32_CACHE) as expected, ours(path, config, **F32_CACHE) as llm:
        whole = feed(expected, tokens, 0)
        assert bits_equal(llm.forward(tokens), whole)
        assert bits_equal(feed_one_by_one(llm, tokens, SKIPPABLE_ROW), feed_one_by_one(expected, tokens))
        assert llm.stats.ffn_skipped == 2 * len(tokens) * len(SKIPPED)
        with llm.dense():
            assert not np.array_equal(llm.forward(tokens), whole)  # or else the test could not tell


@pytest.mark.parametrize("name", CASES)
def test_a_low_threshold_skips_and_one_above_1_changes_no_bit(name, converted):
    model, path = converted(name)
    n_layer = n_layer_of(model)
    tokens = random_tokens(24, vocab_size_of(model))
    adaptive = {"cold_s": 0, "cold_e": n_layer - 1, "max_skip": 2, "warm_up_index": 0}
    with plain(path) as expected:
        dense = feed_one_by_one(expected, tokens)
    with ours(path, SkipConfig(sim_threshold=NEVER, **adaptive)) as llm:
        assert bits_equal(feed_one_by_one(llm, tokens, SKIPPABLE_ROW), dense)
        assert llm.stats.ffn_skipped == 0 and llm.stats.checks > 0
    with ours(path, SkipConfig(sim_threshold=-1.0, **adaptive)) as llm:
        assert not bits_equal(feed_one_by_one(llm, tokens, SKIPPABLE_ROW), dense)
        assert llm.stats.ffn_skipped == 2 * len(tokens)  # layer 0 trips, the next two are skipped


def test_every_known_architecture_has_a_case():
    assert {case.architecture for case in CASES.values()} == set(converter.FAMILIES)
