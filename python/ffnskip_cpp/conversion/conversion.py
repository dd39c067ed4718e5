"""Convert a Hugging Face checkpoint directory to one GGUF file for llama.cpp.

    from ffnskip_cpp import convert
    convert("./Llama-3.2-1B", "llama-3.2-1b-f16.gguf", "f16")

Reads   config.json, generation_config.json     shape of the model, end tokens
        model.safetensors, or shards + index    F32, F16 or BF16 weights
        pytorch_model.bin, or shards + index    the same, where --allow-pickle allows it
        tokenizer.json and/or tokenizer.model   byte-level BPE, or SentencePiece
        tokenizer_config.json, *.jinja          special tokens, chat template
Writes  one GGUF v3 file: metadata, tokenizer, then every tensor as F32, F16, BF16 or Q8_0.

Order of work: read the settings, check every tensor name and shape, read the tokenizer; only then write, one tensor
at a time and in pieces, to a temporary file that is renamed at the end. What llama.cpp could not reproduce is refused
by name. Needs numpy and gguf; neither PyTorch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from ..files import PathLike, check_output, whole_file
from ..gguf_file.model_file import ModelFile
from ..progress import progress_bar
from .checkpoint import read_checkpoint
from .families import FAMILIES, find_family
from .plan import check_plan
from .settings import expected_form, read_json
from .tokenizer import read_vocabulary
from .writer import OUTTYPES, file_bytes, write_gguf

__all__ = ["FAMILIES", "OUTTYPES", "convert"]


def convert(
    model_dir: PathLike,
    out: PathLike,
    outtype: str = "f16",
    *,
    allow_pickle: bool = False,
    progress: bool | None = None,
) -> ModelFile:
    """Convert the Hugging Face checkpoint in `model_dir` to the GGUF file `out`.

    Nothing is written before settings, tensors and tokenizer have passed their checks. The file appears under its name
    only when complete; on any error or interrupt there is no new file, and an existing `out` is as it was.

    Args:
        model_dir: Directory with config.json, weights and a tokenizer.
        out: The file to write; its directory must exist. An existing file is replaced.
        outtype: f32, f16, bf16 or q8_0, in any case. Norms, biases and routers are always F32.
        allow_pickle: Read .bin files where there are no safetensors; needs PyTorch, which opens them as plain weights.
        progress: Show a progress bar on stderr; None: where that is a terminal.
    Raises:
        FileNotFoundError: A directory, config.json, the weights, a shard or the tokenizer is missing.
        ValueError: An unknown `outtype`, or a checkpoint that llama.cpp could not reproduce; the message says why.
        OSError: The file could not be written, such as on a full disk.
    """
    model_dir, out, outtype = Path(model_dir), Path(out), outtype.lower()
    check_arguments(model_dir, out, outtype)
    config = read_json(model_dir / "config.json", required=True)
    with expected_form("config.json"):
        family = find_family(config)
    checkpoint = read_checkpoint(model_dir, allow_pickle=allow_pickle)
    plan = family.plan(checkpoint.tensors)
    check_plan(plan, checkpoint, family.passed_over)
    with expected_form("tokenizer files"):
        vocab = read_vocabulary(model_dir, config, family.n_vocab)
    total = file_bytes(plan, outtype)
    with (
        whole_file(out, model_dir.iterdir(), size=total) as part,
        progress_bar(out.name, total, unit="B", show=progress) as bar,
    ):
        write_gguf(part, family, vocab, plan, checkpoint, outtype, model_dir.resolve().name, bar.update)
        return ModelFile(out, outtype, part.stat().st_size)


def check_arguments(model_dir: Path, out: Path, outtype: str) -> None:
    if outtype not in OUTTYPES:
        raise ValueError(f"unknown outtype {outtype!r}; known: {', '.join(OUTTYPES)}")
    if not model_dir.is_dir():
        raise FileNotFoundError(f"{model_dir}: no such directory; expected a Hugging Face checkpoint")
    check_output(out, model_dir.iterdir())
