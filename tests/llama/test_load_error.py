"""A model that can't be loaded is refused with llama.cpp's own reason, and never ends the process."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import sys
import threading

import gguf
import llama_cpp
import numpy as np
import pytest

import ffnskip_cpp
from ffnskip_cpp import cli
from ffnskip_cpp.gguf_file.header import read_header
from ffnskip_cpp.gguf_file.header_check import check_header
from ffnskip_cpp.gguf_file.quantization import quantize
from ffnskip_cpp.load_error import explained
from support import running

# What llama.cpp itself says of a file, or aborts on; an older release was seen to differ.
of_this_release = pytest.mark.skipif(not running.HAVE_LLAMA_PROCESS, reason="written for a newer llama.cpp")

FORMATS = {4: "<I", 5: "<i", 6: "<f", 10: "<Q"}


def with_value(path, to, key, value):
    """A copy of the model with another number under `key`."""
    data = bytearray(path.read_bytes())
    entry = next(entry for entry in read_header(path).entries if entry.key.endswith(key))
    at = len(entry.key.encode()) + 8
    (kind,) = struct.unpack_from("<I", entry.raw, at)
    struct.pack_into(FORMATS[kind], data, data.find(entry.raw) + at + 4, value)
    to.write_bytes(data)
    return to


def tiny(path, architecture, tensors, **metadata):
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    for name in tensors:
        writer.add_tensor(name, np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ABORTING = [
    *(("llama", "block_count", n, "1 to 512 layers") for n in (0, 513, 10**6, 2**31, 2**32 - 1)),
    *(("moe", "expert_count", n, "0 to 1024 experts") for n in (1025, 10**6, 2**32 - 1)),
    ("moe", "expert_used_count", 0, "1 to "),
    ("moe", "expert_used_count", 10**6, "1 to "),
    ("moe", "expert_count", 0, "0 to 0 experts per token"),
    ("phi3", "rope.dimension_count", 7, "an even number"),
    ("phi3", "rope.dimension_count", 10**6, "0 to 16 dimensions of a head"),
    ("llama", "layer_norm_rms_epsilon", -1.0, "a number, 0 or more"),
    ("falcon", "layer_norm_epsilon", float("nan"), "a number, 0 or more"),
]


@pytest.mark.parametrize(("kind", "key", "value", "why"), ABORTING)
def test_numbers_that_llama_cpp_aborts_on_are_refused_by_name(model_file, tmp_path, kind, key, value, why):
    path = with_value(model_file(kind), tmp_path / "m.gguf", key, value)
    for use in (check_header, lambda path: ffnskip_cpp.Llama(str(path), verbose=False)):
        with pytest.raises(ValueError, match=f"{why}") as caught:
            use(path)
        assert f"{path}: " in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=why):
        quantize(path, tmp_path / "q.gguf", "q8_0")


@of_this_release
@pytest.mark.parametrize(("kind", "key", "value", "_why"), ABORTING)
def test_llama_cpp_does_abort_on_them(model_file, tmp_path, kind, key, value, _why):
    """What no longer ends the process need not be refused here."""
    path = with_value(model_file(kind), tmp_path / "m.gguf", key, value)
    code = f"import llama_cpp; llama_cpp.Llama({str(path)!r}, n_ctx=32, verbose=False).eval([1, 2])"
    env = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, env=env).returncode < 0


@pytest.mark.parametrize("text", ["", "twice"])
def test_two_tokens_with_one_text_are_refused_by_name(model_file, tmp_path, text):
    """llama.cpp aborts on them, but for those without a text."""
    reader = gguf.GGUFReader(model_file("demo"))
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value = field.contents()
            if key == "tokenizer.ggml.tokens":
                value[50] = value[51] = text
            writer.add_key_value(key, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    code = f"import llama_cpp; llama_cpp.Llama({str(tmp_path / 'm.gguf')!r}, n_ctx=32, verbose=False)"
    env = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    aborts = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env).returncode < 0
    assert aborts == bool(text)
    if aborts:
        with pytest.raises(ValueError, match=r"m\.gguf: tokenizer\.ggml\.tokens has 'twice' twice"):
            ffnskip_cpp.Llama(str(tmp_path / "m.gguf"), verbose=False)
    else:
        check_header(tmp_path / "m.gguf")


@of_this_release
@pytest.mark.parametrize("verbose", [False, True])
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p, _: tiny(p, "foo", ["a"]), "Failed to load model from file: .*: unknown model architecture: 'foo'"),
        (lambda p, _: tiny(p, "llama", ["a"]), "key not found in model: llama.context_length"),
        (lambda p, _: tiny(p, "clip", ["a"]), "CLIP cannot be used as main model"),
        (lambda p, m: p.write_bytes(m.read_bytes()[:-5000]), "tensor 'blk.15.*data is not within the file bounds"),
        (
            lambda p, m: p.write_bytes(m.read_bytes().replace(b"0.attn_norm", b"0.attn_nurm")),
            "attn_norm.weight' not found",
        ),
        (lambda p, _: tiny(p, "llama", ["a"], general__type="adapter"), "not a model but an adapter; give it beside"),
        (lambda p, _: tiny(p, "clip", ["a"], general__type="mmproj"), "not a model but a picture or sound encoder"),
        (lambda p, _: tiny(p, "x", ["a"], general__type="imatrix"), "not a model but an importance matrix"),
        (lambda p, _: tiny(p, "ffnskip", []), "not a model but a skip profile"),
    ],
)
def test_the_reason_is_in_the_error(model_file, tmp_path, make, why, verbose):
    path = tmp_path / "m.gguf"
    make(path, model_file("llama"))
    with pytest.raises(ValueError, match=why) as caught:
        ffnskip_cpp.Llama(str(path), verbose=verbose)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_commands_say_it_in_one_line(tmp_path, capsys):
    path = tiny(tmp_path / "m.gguf", "foo", ["a"])
    text = tmp_path / "t.txt"
    text.write_text("a few words " * 500)
    for words in (["inspect", path], ["calibrate", path, "--text", text], ["bench", "-m", path, "-t", "1"]):
        assert cli.main([str(word) for word in words]) != 0
        err = capsys.readouterr().err
        assert "unknown model architecture: 'foo'" in err and err.count("\n") == 1


def test_an_adapter_that_does_not_fit_has_its_reason(model_file, tmp_path):
    adapter = tiny(tmp_path / "a.gguf", "llama", ["a"])
    with pytest.raises(RuntimeError, match=r"Failed to initialize LoRA adapter.*a\.gguf: .*adapter") as caught:
        ffnskip_cpp.Llama(str(model_file("llama")), n_ctx=32, lora_path=str(adapter), verbose=False)
    assert "\n" not in str(caught.value)


def log_address():
    callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
    return ctypes.cast(callback, ctypes.c_void_p).value


def test_the_log_is_given_back_and_goes_on_meanwhile(tmp_path):
    before = log_address()
    heard = []

    @llama_cpp.llama_log_callback
    def mine(_level, text, _data):
        heard.append(text)

    try:
        llama_cpp.llama_log_set(mine, ctypes.c_void_p(0))
        with pytest.raises(ValueError, match="unknown model architecture"):
            ffnskip_cpp.Llama(str(tiny(tmp_path / "m.gguf", "foo", ["a"])), verbose=False)
        assert log_address() == ctypes.cast(mine, ctypes.c_void_p).value
        assert any(b"unknown model architecture: 'foo'" in text for text in heard)
    finally:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(before), ctypes.c_void_p(0))


def test_each_thread_hears_its_own_reason_and_the_last_gives_the_log_back(tmp_path):
    before = log_address()
    names = [f"unknown{i}" for i in range(4)]
    paths = [tiny(tmp_path / f"{name}.gguf", name, ["a"]) for name in names]
    messages = {}

    def load(name, path):
        for _ in range(5):
            with pytest.raises(ValueError) as caught:
                ffnskip_cpp.Llama(str(path), verbose=True)
            messages.setdefault(name, set()).add(str(caught.value))

    threads = [threading.Thread(target=load, args=pair) for pair in zip(names, paths)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert all(f"unknown model architecture: '{name}'" in message for message in messages[name])
    assert log_address() == before


def test_what_another_thread_hears_meanwhile_is_no_reason(tmp_path):
    path = os.fsencode(tiny(tmp_path / "m.gguf", "foo", ["a"]))
    params = llama_cpp.llama_model_default_params()
    other = threading.Thread(target=llama_cpp.llama_model_load_from_file, args=(path, params))
    with pytest.raises(ValueError) as caught, explained(quiet=True):
        other.start()
        other.join()
        raise ValueError("Failed to load model from file: mine")
    assert str(caught.value) == "Failed to load model from file: mine"


def test_other_errors_pass_unchanged():
    for error in (ValueError("mine"), KeyError("mine"), RuntimeError("mine")):
        with pytest.raises(type(error)) as caught, explained():
            raise error
        assert caught.value is error
