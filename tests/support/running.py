"""The same tokens through plain llama.cpp and through the overlay, in one batch or one by one.

    with plain(path) as expected, ours(path, SkipConfig(policy="fixed", layers=[3], warm_up_index=0)) as llm:
        feed(expected, tokens, 0)               # logits of every row, (n_tokens, n_vocab)
        feed(llm, tokens, 0, SKIPPABLE_ROW)     # the same rows as generated tokens that may skip

Logits of plain llama.cpp come from llama_cpp alone; nothing of the overlay is called.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

import ffnskip_cpp
from ffnskip_cpp._core import Controller, RowKind, Session

PROMPT_ROW, WARM_UP_ROW, SKIPPABLE_ROW = RowKind.prompt, RowKind.warm_up, RowKind.skippable

F32_CACHE = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}

SETTINGS = {
    "one_thread": {},
    "two_threads": {"n_threads": 2, "n_threads_batch": 2},
    "flash_attention": {"flash_attn": True},
    "flash_attention_two_threads": {"flash_attn": True, "n_threads": 2, "n_threads_batch": 2},
}

GREEDY = {"temp": 0.0, "repeat_penalty": 1.0}

# Layers on the GPU, in every comparison of a model with itself: tools/gpu_check.sh sets it.
N_GPU_LAYERS = int(os.environ.get("FFNSKIP_TEST_NGL", "0"))


def options_of(options: dict[str, Any]) -> dict[str, Any]:
    common = {"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1, "n_gpu_layers": N_GPU_LAYERS, "verbose": False}
    return {**common, **options}


@contextlib.contextmanager
def plain(path: Path | str, **options: Any) -> Iterator[llama_cpp.Llama]:
    with contextlib.closing(llama_cpp.Llama(str(path), **options_of(options))) as llm:
        yield llm


@contextlib.contextmanager
def ours(path: Path | str, skip: Any, *, callback: bool = False, **options: Any) -> Iterator[ffnskip_cpp.Llama]:
    """`callback`: with it, where settings could do without too."""
    with contextlib.closing(ffnskip_cpp.Llama(str(path), skip=skip, **options_of(options))) as llm:
        if callback:
            llm._mix_rows(sequences=True)
            assert not llm._controller.hooked
        yield llm


@contextlib.contextmanager
def context_of(path: Path | str, config: Any, **options: Any) -> Iterator[tuple[Any, Session, Controller | None]]:
    """A context of its own, with several sequences or one; and its controller. `config` None: without."""
    model_params = llama_cpp.llama_model_default_params()
    model_params.n_gpu_layers = N_GPU_LAYERS
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # as Llama has it
    given = {"n_ctx": 1024, "n_batch": 64, "n_threads": 1, "n_threads_batch": 1, **F32_CACHE, **options}
    for name, value in given.items():
        setattr(params, name, value)
    controller = None if config is None else Controller()
    if controller is not None:
        params.cb_eval = ctypes.cast(controller.callback, llama_cpp.ggml_backend_sched_eval_callback)
        params.cb_eval_user_data = controller.user_data
    ctx = llama_cpp.llama_init_from_model(model, params)
    try:
        if controller is not None:
            controller.probe(ctx)
            controller.config = config
        yield ctx, Session(ctx, controller), controller
    finally:
        llama_cpp.llama_free(ctx)
        llama_cpp.llama_model_free(model)


@contextlib.contextmanager
def session_of(path: Path | str, config: Any, **options: Any) -> Iterator[tuple[Session, Controller | None]]:
    with context_of(path, config, **options) as (_, session, controller):
        yield session, controller


def last_logits(llm: llama_cpp.Llama, n_rows: int = 1) -> np.ndarray:
    """Logits of the rows that were asked for in the last decode, (n_rows, n_vocab)."""
    return np.ctypeslib.as_array(llm._ctx.get_logits(), shape=(n_rows, llm.n_vocab())).copy()


def feed(
    llm: llama_cpp.Llama, tokens: Sequence[int], position: int, kind: int | Sequence[int] = PROMPT_ROW
) -> np.ndarray:
    """Decodes one batch from `position` on, in place of what was there.

    `kind` is that of all rows, or of each; plain llama.cpp has prompt rows only.
    """
    if isinstance(llm, ffnskip_cpp.Llama):
        kinds = [kind] * len(tokens) if isinstance(kind, int) else list(kind)
        return llm._decoder.session.forward(list(tokens), position, kinds, range(len(kinds)))
    assert kind == PROMPT_ROW
    llm._ctx.kv_cache_seq_rm(-1, position, -1)
    llm._batch.set_batch(batch=list(tokens), n_past=position, logits_all=True)
    llm._ctx.decode(llm._batch)
    return last_logits(llm, len(tokens))


def feed_one_by_one(
    llm: llama_cpp.Llama, tokens: Sequence[int], kind: int | Sequence[int] = PROMPT_ROW, position: int = 0
) -> np.ndarray:
    kinds = [kind] * len(tokens) if isinstance(kind, int) else list(kind)
    return np.concatenate([feed(llm, [token], position + i, kinds[i]) for i, token in enumerate(tokens)])


def generate_step_by_step(llm: llama_cpp.Llama, prompt: Sequence[int], n: int) -> tuple[list[int], np.ndarray]:
    """Greedy generation with the public eval() and sample(): n tokens, and the n rows of logits they come from."""
    tokens, logits = [], []
    llm.reset()
    llm.eval(prompt)
    for _ in range(n):
        logits.append(last_logits(llm)[0])
        tokens.append(llm.sample(temp=0.0, repeat_penalty=1.0))
        llm.eval([tokens[-1]])
    return tokens, np.stack(logits)


def perf(llm: llama_cpp.Llama) -> Any:
    """llama.cpp's own counters: n_eval (batches of one token), n_reused (evaluations of a graph built before)."""
    return llama_cpp.llama_perf_context(llm._ctx.ctx)


# --- comparing -------------------------------------------------------------------------------------------------------


def bits_equal(got: np.ndarray, expected: np.ndarray) -> bool:
    """Bit for bit, NaN included."""
    return got.shape == expected.shape and got.tobytes() == expected.tobytes()


def typical_difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Of the middle token, relative to the largest logit: in a mixture of experts a rounding now and then turns the
    choice of experts, and that token's logits say nothing about arithmetic."""
    return float(np.median(np.abs(got - expected).max(axis=-1)) / np.abs(expected).max())


def trip_layers(trace: ffnskip_cpp.Trace, sim_threshold: float) -> np.ndarray:
    """Layer of each token in which the threshold was reached, -1 where it never was."""
    reached = trace.similarity >= np.float32(sim_threshold)  # False where NaN
    return np.where(reached.any(axis=1), reached.argmax(axis=1), -1)


# --- programs --------------------------------------------------------------------------------------------------------


HEADER = (Path(llama_cpp.__file__).parent.parent / "include" / "llama.h").read_text(encoding="utf-8")
HAVE_LLAMA_PROCESS = " llama_process(" in HEADER  # and batches to go with it
HAVE_LLAMA_LOAD_MODE = " llama_load_mode " in HEADER


def build_program(source: Path, to: Path, flags: Iterable[str] = ()) -> Path:
    """A C++ program, or a library by `flags`, linked to the libllama of llama_cpp, as any program would be."""
    site = Path(llama_cpp.__file__).parent.parent
    lib = site / "llama_cpp" / "lib"
    libraries = [f"-L{lib}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{lib}"]
    compiler = os.environ.get("CXX", "c++")
    command = [
        compiler,
        "-std=c++17",
        "-O1",
        "-pthread",
        *flags,
        *(["-DHAVE_LLAMA_PROCESS"] if HAVE_LLAMA_PROCESS else []),
        *(["-DHAVE_LLAMA_LOAD_MODE"] if HAVE_LLAMA_LOAD_MODE else []),
        f"-I{site / 'include'}",
        str(source),
        "-o",
        str(to),
        *libraries,
    ]
    subprocess.run(command, check=True)
    return to


# --- files -----------------------------------------------------------------------------------------------------------


def without_ffn(path: Path | str, layers: Iterable[int], to: Path) -> Path:
    """A copy in which ffn_down of `layers` is zero: a Q8_0 block of zero bytes is zero too."""
    stems = tuple(f"blk.{il}.ffn_down" for il in layers)
    return with_changed_tensors(path, to, lambda name, data: data.fill(0) if name.startswith(stems) else None)


def without_attention(path: Path | str, layers: Iterable[int], to: Path) -> Path:
    """A copy in which attn_output of `layers` is zero, and its bias."""
    stems = tuple(f"blk.{il}.attn_output." for il in layers)
    return with_changed_tensors(path, to, lambda name, data: data.fill(0) if name.startswith(stems) else None)


def with_changed_tensors(path: Path | str, to: Path, change: Any) -> Path:
    """A copy after change(name, data), called with the raw data of every tensor, a writable array in place."""
    shutil.copyfile(path, to)
    to.chmod(0o644)
    reader = gguf.GGUFReader(str(to), "r+")
    for tensor in reader.tensors:
        change(tensor.name, tensor.data)
    reader.data.flush()
    return to


def in_float32(path: Path | str, to: Path) -> Path:
    """A copy whose weights are the same numbers in F32."""
    reader = gguf.GGUFReader(str(path))
    writer = gguf.GGUFWriter(str(to), reader.fields["general.architecture"].contents())
    _add_metadata_of(reader, writer)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    _write(writer)
    return to


def quantized(path: Path | str, to: Path, type: str) -> Path:
    """A copy whose matrices are of this type, all of them but the embeddings and the output matrix, which are F32."""
    kept = {"output_tensor_type": "f32", "token_embedding_type": "f32"}
    return ffnskip_cpp.quantize(path, to, type, pure=True, n_threads=1, **kept).path


def split(path: Path | str, to: Path, tensors_each: int = 50) -> list[Path]:
    """The same model in files, of at most so many tensors: to-00001-of-00003.gguf and so on."""
    reader = gguf.GGUFReader(str(path))
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(to, architecture, split_max_tensors=tensors_each)
    _add_metadata_of(reader, writer)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _write(writer)
    return sorted(to.parent.glob(f"{to.stem}-0*.gguf"))


def with_chat_template(path: Path | str, to: Path, template: str) -> Path:
    """A copy that says so how chats are written."""
    reader = gguf.GGUFReader(str(path))
    writer = gguf.GGUFWriter(str(to), reader.fields["general.architecture"].contents())
    reader.fields.pop("tokenizer.chat_template", None)
    _add_metadata_of(reader, writer)
    writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _write(writer)
    return to


def _add_metadata_of(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(
                key, entry.contents(), entry.types[0], entry.types[-1] if len(entry.types) > 1 else None
            )


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
