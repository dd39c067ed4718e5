"""A small random model of every architecture that llama.cpp runs, and what skipping does to it.

    python tests/support/architectures.py [ARCHITECTURE ...]  # the table of docs/architectures.md; default: all
    python tests/support/architectures.py --json              # an object per line

Models are made in memory by llama.cpp itself, from hyperparameters alone, so their tensors are those of real models.
llama.cpp may end the process where hyperparameters do not suit it; each model therefore has a process of its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import gguf
import llama_cpp
import numpy as np

from ffnskip_cpp import SkipConfig
from ffnskip_cpp._core import Block, Controller, Session
from ffnskip_cpp.blocks import attention_blocks, ffn_blocks

# Not here: encoders, vision, audio and draft models, which generate no text token by token; arwkv7, rwkv6qwen2, rwkv7,
# qwen4exp and graniteswitch, which this llama.cpp does not make from hyperparameters like these.
DENSE = """
apertus arcee baichuan bitnet bloom chatglm codeshell cogvlm cohere2 command-r deci dream ernie4_5 exaone exaone4
falcon falcon-h1 gemma gemma2 gemma3 gemma3n gemma4 glm4 gpt2 gptneox granite granitehybrid granite_swa hrm_text
hunyuan-dense hunyuan_vl internlm2 jais jais2 jamba lfm2 llada llama maincoder mamba mamba2 minicpm minicpm3 mistral3
mpt muse-glimmer nanbeige nemotron nemotron_h olmo olmo2 openelm orion pangu-embedded phi2 phi3 plamo plamo2 plamo3
plm qwen qwen2 qwen2vl qwen3 qwen35 qwen3vl refact rwkv6 seed_oss smollm3 spark2_5 stablelm starcoder starcoder2
talkie xverse
""".split()
MIXTURES = """
afmoe arctic bailingmoe bailingmoe2 bailingmoe3 cohere2moe dbrx deepseek deepseek2 deepseek32 deepseek4 dots1
dots3note ernie4_5-moe exaone-moe glm-dsa glm4moe glm5-next gpt-oss granite granitemoe grok grovemoe hunyuan-moe hy_v3
hy_v4 kimi-k3 kimi-linear laguna lfm2moe llada-moe llama llama4 maple mellum mimo2 minicpm minimax-01 minimax-m2
minimax-m3 mistral3 mistral4 nemotron_h_moe olmoe paddleocr phimoe qwen2moe qwen35moe qwen3moe qwen3next qwen3vlmoe
rnd1 smallthinker step35
""".split()

MODELS = [(arch, False) for arch in DENSE] + [(arch, True) for arch in MIXTURES]

N_VOCAB = 128
TOKENS = np.random.default_rng(11).integers(1, N_VOCAB, 10).tolist()

MLA = "deepseek2 deepseek32 glm-dsa dots3note kimi-linear bailingmoe3 kimi-k3 glm5-next mistral4 hy_v4".split()
RECURRENT_EVERY_OTHER = "plamo2 jamba granitehybrid lfm2 lfm2moe kimi-linear bailingmoe3 kimi-k3 glm5-next".split()
ATTENTION_STATE_SPACE_FFN = ["nemotron_h", "nemotron_h_moe"]  # each layer is one of them
WINDOW_PATTERN = "cohere2moe mimo2 step35 spark2_5 muse-glimmer granite_swa dots3note maple".split()


@dataclass
class Outcome:
    """What came of one model.

    `status`: "exact" (every oracle holds bit for bit), "refused" (and dense is exact), "wrong", or "not made".
    """

    arch: str
    moe: bool
    status: str
    message: str = ""
    n_layer: int = 0
    skippable: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    residuals: list[str] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)
    attention: dict[str, str] = field(default_factory=dict)
    without_attention: list[int] = field(default_factory=list)


# --- hyperparameters -------------------------------------------------------------------------------------------------


def hyperparameters(arch: str, moe: bool) -> dict[str, Any]:
    """Metadata of a model of this architecture, of the least size that it allows. Far from all keys matter to all."""
    n_layer, n_embd, n_head, n_ff = 6, 256, 4, 384
    if arch in MLA:
        n_embd, n_head, n_ff = 128, 1, 192
    elif arch == "gemma3n":
        n_layer, n_embd, n_head, n_ff = 22, 64, 1, 96
    elif arch == "deepseek4":
        n_embd, n_head, n_ff, n_layer = 512, 8, 1024, 4
    elif arch in ATTENTION_STATE_SPACE_FFN:
        n_layer = 9
    key_length = n_embd // n_head
    every_other = [0 if il % 2 else n_head for il in range(n_layer)]
    of_recurrent = arch in RECURRENT_EVERY_OTHER
    values: dict[str, Any] = {
        "vocab_size": N_VOCAB,
        "context_length": 256,
        "embedding_length": n_embd,
        "features_length": n_embd,
        "block_count": n_layer,
        "leading_dense_block_count": 1,
        "feed_forward_length": n_ff,
        "use_parallel_residual": arch == "gptneox",
        "logit_scale": 1.0,
        "time_mix_extra_dim": 64,
        "time_decay_extra_dim": 128,
        "full_attention_interval": 2,
        "attention.head_count": every_other if of_recurrent and arch != "glm5-next" else n_head,
        "attention.head_count_kv": every_other if of_recurrent else n_head,
        "attention.max_alibi_bias": 8.0,
        "attention.clamp_kqv": 1.0,
        "attention.layer_norm_epsilon": 1e-5,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.group_norm_epsilon": 1e-5,
        "attention.group_norm_groups": 8,
        "attention.q_lora_rank": 512,
        "attention.kv_lora_rank": 512,
        "attention.relative_buckets_count": 8,
        "attention.sliding_window": 32,
        "attention.sliding_window_pattern": 2,
        "attention.indexer.head_count": n_head if arch == "minimax-m3" else 64,
        "attention.indexer.key_length": key_length if arch == "qwen4exp" else 128,
        "attention.indexer.top_k": 131072,
        "attention.indexer.block_size": 4,
        "attention.indexer.kpool": 4,
        "attention.indexer.kpool_select_tail": True,
        "attention.indexer.local_blocks": 1,
        "rope.dimension_sections": [key_length // 4] * 4,
        "ssm.inner_size": 2 * n_embd,
        "ssm.conv_kernel": 4,
        "ssm.state_size": 128,
        "ssm.time_step_rank": n_head,
        "ssm.group_count": 0 if arch == "plamo2" else 2,
        "kda.head_dim": 128,
        "kda.safe_gate": True,
        "kda.gate_lower_bound": -5.0,
        "wkv.head_size": key_length,
        "shortconv.l_cache": 3,
        "residual_scale": 0.5,
        "attn_res.block_size": 12,
        "activation.situ_beta": 4.0,
        "activation.situ_linear_beta": 25.0,
    }
    if arch in WINDOW_PATTERN:
        values["attention.sliding_window_pattern"] = [il % 2 for il in range(n_layer)]
    if arch in ATTENTION_STATE_SPACE_FFN:
        values["attention.head_count"] = [0 if il % 3 == 1 else n_head for il in range(n_layer)]
        values["attention.head_count_kv"] = values["attention.head_count"]
        values["feed_forward_length"] = [n_ff if il % 3 == 2 else 0 for il in range(n_layer)]
    if arch in MLA:
        values |= {
            "attention.key_length": 512 if arch == "glm5-next" else 576,
            "attention.value_length": 512,
            "rope.dimension_count": 0 if arch == "glm5-next" else 64,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
        }
    values |= special_hyperparameters(arch, n_layer, n_embd, n_head)
    if moe:
        values |= {
            "expert_feed_forward_length": n_ff,
            "expert_shared_feed_forward_length": n_ff // 2,
            "expert_latent_length": n_ff,
            "interleave_moe_layer_step": 2 if arch == "llama4" else 1,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_shared_count": 1,
            "expert_gating_func": 4 if arch == "deepseek4" else 2,
            "expert_group_scale": 1.0,
            "experts_per_group": 1,
        }
    return {f"{arch}.{key}": value for key, value in values.items()} | {
        "xielu.alpha_n": 1.0,
        "xielu.alpha_p": 1.0,
        "xielu.beta": 1.0,
        "xielu.eps": 1e-7,
        "tokenizer.ggml.model": "test",
        "tokenizer.ggml.tokens": [f"tok_{i}" for i in range(N_VOCAB)],
        "tokenizer.ggml.scores": [0.0] * N_VOCAB,
    }


def special_hyperparameters(arch: str, n_layer: int, n_embd: int, n_head: int) -> dict[str, Any]:
    """What one architecture alone asks for."""
    every_other = [0 if il % 2 else 1 for il in range(n_layer)]
    hyper_connections = {
        "hyper_connection.count": 4,
        "hyper_connection.sinkhorn_iterations": 2,
        "hyper_connection.epsilon": 1e-6,
        "hyper_connection.magnitude": 2.0,
        "hyper_connection.low_rank": 8,
        "swiglu_clamp_exp": 10.0,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
    }
    if arch == "deepseek4":
        return hyper_connections | {
            "attention.head_count_kv": 1,
            "attention.key_length": n_embd // n_head,
            "attention.value_length": n_embd // n_head,
            "rope.dimension_count": n_embd // n_head // 2,
            "attention.q_lora_rank": 64,
            "attention.output_group_count": 8,
            "attention.output_lora_rank": 32,
            "attention.compress_ratios": [0, 0, 4, 128],
            "attention.compress_rope_freq_base": 160000.0,
            "hash_layer_count": 0,
        }
    if arch == "hy_v4":
        return hyper_connections | {"attention.indexer.types": every_other}
    if arch == "glm5-next":
        return hyper_connections | {"attention.compress_ratios": [4] * n_layer}
    if arch == "dots3note":
        return {
            "attention.kv_lora_rank_swa": 512,
            "attention.key_length_swa": 576,
            "attention.value_length_swa": 512,
            "attention.key_length_mla_swa": 192,
            "attention.value_length_mla_swa": 128,
            "rope.freq_base_swa": 10000.0,
            "attention.indexer.types": every_other,
        }
    if arch == "gemma4":
        return {
            "embedding_length_per_layer_input": n_embd // 2,
            "attention.shared_kv_layers": 0,
            "attention.key_length_swa": n_embd // n_head,
            "attention.value_length_swa": n_embd // n_head,
            "rope.freq_base_swa": 10000.0,
            "attention.sliding_window_pattern": [0 if il % 5 == 4 else 1 for il in range(n_layer)],
        }
    if arch == "minimax-m3":
        return {"rope.dimension_count": 64}
    if arch == "maple":
        return {"swiglu_clamp_exp": 7.0}
    if arch == "hrm_text":
        return {"hrm.layers_per_stack": 1, "hrm.h_cycles": 2, "hrm.l_cycles": 2}
    if arch == "bailingmoe3":
        return {
            "rope.dimension_sections": [8, 12, 12, 0],
            "swiglu_clamp_exp": [4.0] * n_layer,
            "swiglu_clamp_shexp": [5.0] * n_layer,
        }
    return {}


# --- models ----------------------------------------------------------------------------------------------------------

# The library that llama_cpp has loaded; looking a name up there finds those of ggml, on which it depends, too.
LLAMA = llama_cpp.llama_cpp._lib


def declare(name: str, result: Any, *arguments: Any) -> Any:
    return ctypes.CFUNCTYPE(result, *arguments)((name, LLAMA))


class GgufParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


SetTensor = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
read_gguf = declare("gguf_init_from_file", ctypes.c_void_p, ctypes.c_char_p, GgufParams)
tensor_name = declare("ggml_get_name", ctypes.c_char_p, ctypes.c_void_p)
n_elements = declare("ggml_nelements", ctypes.c_int64, ctypes.c_void_p)
set_tensor = declare(
    "ggml_backend_tensor_set", None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t
)
init_from_user = declare(
    "llama_model_init_from_user",
    ctypes.c_void_p,
    ctypes.c_void_p,
    SetTensor,
    ctypes.c_void_p,
    llama_cpp.llama_model_params,
)

TYPES = {0: np.float32, 1: np.float16}  # ggml_type, the first field of a tensor


def make_model(arch: str, moe: bool, without_ffn: tuple[int, ...] = (), without_attention: tuple[int, ...] = ()) -> int:
    """A model with random weights; those of the FFN blocks of some layers are zero, norms and routers aside, and
    attention's output matrix of others."""
    zero = (*(f"blk.{il}.ffn_" for il in without_ffn), *(f"blk.{il}.attn_output." for il in without_attention))

    def fill(tensor: int, _: Any) -> None:
        name = tensor_name(tensor).decode()
        size = n_elements(tensor)
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
        values = rng.normal(0.0, 0.1, size)
        if "ssm_a" in name:  # a decay
            values = -np.abs(values)
        if name.startswith(zero) and "norm" not in name and "gate_inp" not in name:
            values[:] = 0
        data = values.astype(TYPES[ctypes.cast(tensor, ctypes.POINTER(ctypes.c_int32))[0]])
        set_tensor(tensor, data.ctypes.data, 0, data.nbytes)

    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metadata.gguf")
        write_metadata(path, arch, hyperparameters(arch, moe))
        metadata = read_gguf(os.fsencode(path), GgufParams(True, None))
    model = init_from_user(metadata, SetTensor(fill), None, params)
    if not model:
        raise RuntimeError("llama.cpp refused the hyperparameters")
    return model


def write_metadata(path: Path, arch: str, values: dict[str, Any]) -> None:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Decoder:
    """A context of a model, and its logits: through plain llama.cpp, or through a controller."""

    def __init__(self, model: int, controller: Controller | None = None, *, n_rs_seq: int = 0):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_rs_seq = 64, n_rs_seq
        params.n_threads = params.n_threads_batch = 1
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if controller is not None:
            params.cb_eval = ctypes.cast(controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
            params.cb_eval_user_data = controller.user_data
        self.ctx = llama_cpp.llama_init_from_model(model, params)
        if not self.ctx:
            raise RuntimeError("llama.cpp made no context")
        self.address = ctypes.cast(self.ctx, ctypes.c_void_p).value
        self.session = None if controller is None else Session(self.address, controller)

    def logits(self, step: int) -> np.ndarray:
        """Of TOKENS, decoded `step` at a time; every row is one that may skip."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.ctx), True)
        batch = llama_cpp.llama_batch_init(step, 0, 1)
        rows = []
        for first in range(0, len(TOKENS), step):
            batch.n_tokens = step
            for i in range(step):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = TOKENS[first + i], first + i, 1
                batch.seq_id[i][0], batch.logits[i] = 0, 1
            if self.session is not None:
                self.session.decode_batch(ctypes.addressof(batch), True)
            elif llama_cpp.llama_decode(self.ctx, batch) != 0:
                raise RuntimeError("llama_decode failed")
            rows.append(np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.ctx), shape=(step, N_VOCAB)).copy())
        llama_cpp.llama_batch_free(batch)
        return np.concatenate(rows)


# --- oracles ---------------------------------------------------------------------------------------------------------


STEPS = (len(TOKENS), 1, 2)
ROUNDING = 1e-3  # of logits, relative to the largest; models are float32


def same_bits(a: Decoder, b: Decoder) -> bool:
    return all([a.logits(step).tobytes() == b.logits(step).tobytes() for step in STEPS])


def examine(arch: str, moe: bool) -> Outcome:
    """Makes the model and puts it to the tests."""
    try:
        model = make_model(arch, moe)
        plain = Decoder(model)
        finite = bool(np.isfinite(plain.logits(1)).all())
    except Exception as error:
        return Outcome(arch, moe, "not made", str(error))
    controller = Controller()
    ours = Decoder(model, controller)
    outcome = Outcome(arch, moe, "exact")
    try:
        controller.probe(ours.address)
    except ValueError as refusal:
        outcome.status, outcome.message = "refused", str(refusal)
    outcome.n_layer = controller.n_layer
    ffns, attention = ffn_blocks(controller.blocks), attention_blocks(controller.blocks)
    outcome.skippable = [block.layer for block in ffns if block.skippable]
    outcome.kinds = sorted({block.form for block in ffns})
    outcome.residuals = sorted({block.residual for block in ffns if block.layer < outcome.n_layer - 1})
    outcome.layers = blocks_by_layer(ffns)
    outcome.attention = blocks_by_layer(attention)
    outcome.without_attention = [block.layer for block in attention if block.skippable]
    problems = [] if finite else ["logits are not finite"]
    if not same_bits(ours, plain):
        problems.append("dense is not llama.cpp's")
    if outcome.status == "exact":
        problems += skipping_problems(arch, moe, controller, ours, plain, outcome.skippable)
        if outcome.without_attention:
            problems += attention_problems(arch, moe, controller, ours, plain, outcome.without_attention)
    if problems:
        outcome.status, outcome.message = "wrong", "; ".join(problems)
    return outcome


def blocks_by_layer(blocks: Sequence[Block]) -> dict[str, str]:
    """What is in each layer, equal neighbours as one: {"0-4": "gated, sequential", "5": "gated, in place: reason"}."""
    runs: list[tuple[int, int, str]] = []
    for block in blocks:
        text = f"{block.form}, {block.residual}" + ("" if block.skippable else f": {block.why_not}")
        if runs and runs[-1][1:] == (block.layer - 1, text):
            runs[-1] = (runs[-1][0], block.layer, text)
        else:
            runs.append((block.layer, block.layer, text))
    return {str(first) if first == last else f"{first}-{last}": text for first, last, text in runs}


def skipping_problems(
    arch: str, moe: bool, controller: Controller, ours: Decoder, plain: Decoder, skippable: list[int]
) -> Iterator[str]:
    controller.config = SkipConfig(sim_threshold=1.5, warm_up_index=0, max_skip=0)
    if not same_bits(ours, plain):
        yield "checks change the result"
    some = tuple(skippable[1:3] or skippable)
    controller.config = SkipConfig(policy="fixed", layers=list(some), warm_up_index=0)
    controller.reset_stats()
    if not same_bits(ours, Decoder(make_model(arch, moe, without_ffn=some))):
        yield f"skipping the FFN of layers {some} is not what zero weights give"
    if controller.stats.ffn_skipped != len(STEPS) * len(TOKENS) * len(some):
        yield f"{controller.stats.ffn_skipped} blocks were skipped, not {len(STEPS) * len(TOKENS) * len(some)}"
    if same_bits(ours, plain):
        yield "skipping changes nothing"
    controller.config = SkipConfig(sim_threshold=-1.0, warm_up_index=0, cold_s=1, cold_e=max(skippable) + 1, max_skip=1)
    controller.reset_stats()
    ours.logits(1)
    if len(skippable) > 1 and controller.stats.tokens_never_tripped != 0:
        yield "the lowest threshold does not trip"
    yield from channel_problems(controller, ours, plain)
    controller.config = SkipConfig(policy="dense")
    if not same_bits(ours, plain):
        yield "dense after skipping is not llama.cpp's"


def attention_problems(
    arch: str, moe: bool, controller: Controller, ours: Decoder, plain: Decoder, skippable: list[int]
) -> Iterator[str]:
    """Left out of every row, and of these rows, which all may skip, but for keys and values."""
    some = tuple(skippable[1:3] or skippable)
    zeroed = Decoder(make_model(arch, moe, without_attention=some))
    for every_row in (True, False):
        controller.config = SkipConfig(max_skip=0, attention_layers=some, every_row=every_row, warm_up_index=0)
        controller.reset_stats()
        if not same_bits(ours, zeroed):
            yield f"leaving out attention of layers {some} is not what zero weights give (every_row={every_row})"
        if controller.stats.attention_skipped != len(STEPS) * len(TOKENS) * len(some):
            yield f"attention was left out {controller.stats.attention_skipped} times"
    if same_bits(zeroed, plain):
        yield "attention changes nothing"
    controller.config = SkipConfig(policy="dense")
    if not same_bits(ours, plain):
        yield "dense after leaving attention out is not llama.cpp's"


def channel_problems(controller: Controller, ours: Decoder, plain: Decoder) -> Iterator[str]:
    """Of the FFN's channels: all of them are llama.cpp; without some, a token alone and two at once are the same."""
    if not any(found.kind in ("up", "down") and not found.why_not for found in controller.channel_inputs):
        return

    def leave_out(up: float, down: float) -> list[np.ndarray]:
        thresholds = [0.0, 0.0, up, down] * controller.n_layer
        controller.config = SkipConfig(policy="channels", channel_thresholds=thresholds, warm_up_index=0)
        return [ours.logits(step) for step in (1, 2)]

    all_kept = leave_out(1e-30, 1e-30)
    if max(difference(got, plain.logits(step)) for got, step in zip(all_kept, (1, 2))) > ROUNDING:
        yield "products by channel are not llama.cpp's"
    controller.reset_stats()
    # Where llama.cpp's own rounding depends on the number of rows, a channel may lie just at one of the thresholds.
    apart = [difference(*leave_out(up, up / 3)) for up in (0.3, 0.27, 0.33)]
    if controller.stats.bytes_left_out == 0:
        yield "no channel is left out"
    if min(apart) > ROUNDING:
        yield "which channels are left out of a token hangs on its neighbour"


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


# --- a process each --------------------------------------------------------------------------------------------------


def _examine_to(pipe: Any, arch: str, moe: bool) -> None:
    llama_cpp.llama_log_set(quiet, None)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # assertions write to it
    pipe.send(asdict(examine(arch, moe)))


@llama_cpp.llama_log_callback
def quiet(level: int, text: bytes, user_data: Any) -> None:
    pass


def outcomes(models: list[tuple[str, bool]]) -> Iterator[Outcome]:
    """Of each model, made in a process of its own."""
    fork = multiprocessing.get_context("fork")
    for arch, moe in models:
        ours, theirs = fork.Pipe(duplex=False)
        process = fork.Process(target=_examine_to, args=(theirs, arch, moe))
        process.start()
        theirs.close()
        try:
            yield Outcome(**ours.recv())
        except EOFError:
            yield Outcome(arch, moe, "not made", "llama.cpp ended the process")
        process.join()


def name_of(outcome: Outcome) -> str:
    return f"{outcome.arch}, experts" if outcome.moe and outcome.arch in DENSE else outcome.arch


def table_row(outcome: Outcome) -> str:
    """Of docs/architectures.md."""
    name = name_of(outcome)
    if outcome.status == "refused":
        reason = outcome.message.removeprefix(f"architecture '{outcome.arch}'").lstrip(" ,")
        return f"| {name} | {', '.join(outcome.kinds) or '-'} | - | refused: {reason} | - |"
    return (
        f"| {name} | {', '.join(outcome.kinds)} | {', '.join(outcome.residuals)} | {outcome.status} | "
        f"{attention_cell(outcome)} |"
    )


def attention_cell(outcome: Outcome) -> str:
    """Of how many layers attention can be left out, the last one aside, and the first reason why not of others."""
    reasons = [text.split(": ", 1)[1] for text in outcome.attention.values() if ": " in text]
    others = [why for why in reasons if "last layer" not in why]
    n = len(outcome.without_attention)
    if not others:
        return "every layer" if n == outcome.n_layer - 1 else f"{n} layers" if n else "-"
    return f"{n} layers; not others: {others[0]}" if n else f"none: {others[0]}"


def main(arguments: list[str]) -> None:
    names = [argument for argument in arguments if argument != "--json"]
    for outcome in outcomes([(arch, moe) for arch, moe in MODELS if not names or arch in names]):
        print(json.dumps(asdict(outcome)) if "--json" in arguments else table_row(outcome), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
