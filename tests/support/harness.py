"""A tiny checkpoint and tasks of our own for the harness, and its classes `hf` and `ffnskip` on them.

harness = pytest.importorskip("support.harness")
checkpoint, path = harness.write_model(tmp_path)
results = harness.evaluated(harness.ffnskip(path), harness.write_tasks(tmp_path, harness.DOCUMENTS))
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")  # all data is local; read by the imports that follow

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model  # noqa: F401
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from ffnskip_cpp import convert
from ffnskip_cpp.harness import FfnSkipLM

from .running import F32_CACHE
from .tiny_checkpoints import random_model, save_checkpoint

MAX_LENGTH = 96
TOLERANCE = 1e-3

SIZES = {
    "vocab_size": 420,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}

TEMPLATE = """\
{% for message in messages %}{% if message.role == 'system' and loop.length > 3 %}{{ raise_exception('no system') }}\
{% endif %}<|{{ message.role }}|>{{ message.content }}<|stop|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
STRIPPING = TEMPLATE.replace("message.content", "message.content | trim")

DOCUMENTS = [
    {"question": "Which of the lamps is out?", "choices": ["the red one", "the green one ", "none"], "gold": 0},
    {"question": "Who sings in the yard ", "choices": ["a", "a bird", "nobody sings"], "gold": 1},
    {"question": "Ärger, naïve, 北京?", "choices": ["ja", "nein", "北京"], "gold": 2},
    {"question": "", "choices": ["nothing", "all"], "gold": 1},
    {"question": "What came of it, " * 20, "choices": ["long " * 9, "short"], "gold": 0},
]

CORPUS = "Which of the lamps in the yard is out? The red one. Who sings there: a bird, the long day, or nobody? " * 3

TASKS = {
    "lamps": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": name} for name in ("acc", "acc_norm")],
    },
    "lines": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity")],
    },
    "tales": {
        "output_type": "generate_until",
        "doc_to_text": "{{question or '-'}}",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["e", "\n\n"], "max_gen_toks": 24, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


# ---- a checkpoint, and tasks ----


def train_tokenizer(begins: bool) -> Any:
    """Bytes and merges, with the tokens of chats; `begins`: texts begin with the start token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|stop|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
        )
    return tokenizer


def write_model(folder: Path, *, begins: bool = False, template: str | None = TEMPLATE) -> tuple[Path, Path]:
    """A checkpoint, and its GGUF file in F32."""
    tokenizer = train_tokenizer(begins)
    ends = {"bos_token_id": tokenizer.token_to_id("<|begin|>"), "eos_token_id": tokenizer.token_to_id("<|stop|>")}
    model = random_model("LlamaForCausalLM", {**SIZES, **ends, "pad_token_id": ends["eos_token_id"]})
    checkpoint = save_checkpoint(folder / "hf", model, tokenizer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": "<|stop|>",
        "clean_up_tokenization_spaces": False,
        **({} if template is None else {"chat_template": template}),
    }
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return checkpoint, convert(checkpoint, folder / "model.gguf", "f32", progress=False).path


def write_tasks(folder: Path, documents: Sequence[dict[str, Any]], **more: Any) -> Path:
    """YAML files of TASKS on a .jsonl of documents; `more` goes into each."""
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    for name, task in TASKS.items():
        source = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(json.dumps({**source, **task, **more}), encoding="utf-8")  # JSON is YAML
    return folder


def hf(checkpoint: Path, **options: Any) -> HFLM:
    given = {"device": "cpu", "dtype": "float32", "max_length": MAX_LENGTH, **options}
    return HFLM(pretrained=str(checkpoint), **given)


def ffnskip(path: Path | str, **options: Any) -> FfnSkipLM:
    given = {"skip": None, "max_length": MAX_LENGTH, "threads": 1, "n_gpu_layers": 0, **F32_CACHE, **options}
    return FfnSkipLM(str(path), **given)


def evaluated(lm: Any, folder: Path, tasks: Sequence[str] = tuple(TASKS), **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with mock.patch("lm_eval.evaluator.add_env_info"):  # which runs half a dozen programs to describe the machine
        return lm_eval.simple_evaluate(lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **options)


def answers(lm: Any, kind: str, *given: tuple[Any, ...], task: str = "made up") -> list[Any]:
    """What the model class has to say to requests of this kind."""
    requests = [
        Instance(request_type=kind, doc={}, arguments=each, idx=i, metadata=(task, i, 1))
        for i, each in enumerate(given)
    ]
    return getattr(lm, kind)(requests, disable_tqdm=True)
