"""Quantising leaves a complete file of the asked type, or an error in one line and nothing else."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp")

from tiny_models import write_llama  # noqa: E402 - needs gguf

SOURCE = Path(__file__).resolve().parents[1] / "python" / "ffnskip_cpp" / "quantize.py"


def load_by_path():
    """The module alone: the package around it needs the compiled extension."""
    spec = importlib.util.spec_from_file_location("ffnskip_quantize", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quantizer = load_by_path()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Rows of 256, so that the k-quants need no fallback."""
    return write_llama(tmp_path_factory.mktemp("model") / "f32.gguf", n_layer=2, n_embd=256, n_ff=512)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.gguf"


def tensor_types(path):
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    quantizer.add_arguments(parser)
    return quantizer.run(parser.parse_args([str(argument) for argument in arguments]))


def test_known_types_are_those_of_the_installed_llama_cpp():
    known = quantizer.known_types()
    assert known["f32"] == llama_cpp.LLAMA_FTYPE_ALL_F32
    assert known["q4_k_m"] == llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    ftypes = {value for name, value in vars(llama_cpp).items() if name.startswith("LLAMA_FTYPE_")}
    assert set(known.values()) == ftypes - {llama_cpp.LLAMA_FTYPE_GUESSED}


@pytest.mark.parametrize(
    ("name", "stored"),
    [("q4_0", "Q4_0"), ("Q4_K_M", "Q4_K"), ("q4_k", "Q4_K"), ("q6_k", "Q6_K"), ("iq4_nl", "IQ4_NL"), ("bf16", "BF16")],
)
def test_matrices_get_the_asked_type_and_norms_stay_f32(name, stored, model, out):
    assert quantizer.quantize(model, out, name, threads=1) == out
    types = tensor_types(out)
    assert types["blk.0.attn_q.weight"] == stored
    assert types["blk.0.ffn_norm.weight"] == "F32"
    assert llama_cpp.Llama(str(out), n_ctx=32, n_threads=1, verbose=False).n_vocab() > 0


def test_q8_0_values_are_within_half_a_step(model, out):
    quantizer.quantize(model, out, "q8_0")
    name = "blk.1.ffn_up.weight"
    source, coded = (next(t for t in gguf.GGUFReader(path).tensors if t.name == name) for path in (model, out))
    values = gguf.quants.dequantize(coded.data, coded.tensor_type).reshape(source.data.shape)
    peak = np.abs(source.data.reshape(-1, 32)).max(axis=1).repeat(32).reshape(source.data.shape)
    assert (np.abs(values - source.data) <= peak * (1 / 254 + 2.0**-11)).all()


def test_bad_arguments_name_value_and_remedy(model, out, tmp_path):
    with pytest.raises(ValueError, match="unknown type 'q4_9'; known: f32, f16, q4_0, "):
        quantizer.quantize(model, out, "q4_9")
    with pytest.raises(ValueError, match="threads is 0; expected at least 1"):
        quantizer.quantize(model, out, "q4_0", threads=0)
    with pytest.raises(FileNotFoundError, match=r"absent\.gguf: no such file"):
        quantizer.quantize(tmp_path / "absent.gguf", out, "q4_0")
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory for the output"):
        quantizer.quantize(model, tmp_path / "nowhere" / "out.gguf", "q4_0")
    with pytest.raises(ValueError, match="is a directory"):
        quantizer.quantize(model, tmp_path, "q4_0")


def test_input_is_never_its_own_output(model, tmp_path):
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    before = model.read_bytes()
    for name in (model, link):
        with pytest.raises(ValueError, match="is the input itself; give another name"):
            quantizer.quantize(model, name, "q4_0")
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "not a GGUF file"),
        (10, "truncated: 10 bytes"),
        (2000, "damaged or truncated .gguf_init"),
        (-1, "is not within the file bounds"),
    ],
)
def test_truncated_input_is_refused_in_one_line(size, message, model, out, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:size])
    with pytest.raises(ValueError, match=message) as caught:
        quantizer.quantize(cut, out, "q4_0")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.gguf"]


def test_file_of_another_kind_or_version_is_refused(model, out, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match=r"not a GGUF file \(it starts with b'PK"):
        quantizer.quantize(other, out, "q4_0")
    other.write_bytes(b"GGUF" + (99).to_bytes(4, "little") + model.read_bytes()[8:])
    with pytest.raises(ValueError, match="GGUF version 99; expected 2 or 3"):
        quantizer.quantize(other, out, "q4_0")


def test_refusal_of_llama_cpp_is_passed_on_and_the_existing_output_survives(model, out, tmp_path):
    quantizer.quantize(model, out, "q4_0")
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"requantizing from type \w+ is disabled"):
        quantizer.quantize(out, tmp_path / "again.gguf", "q8_0")
    with pytest.raises(ValueError, match="imatrix"):
        quantizer.quantize(model, out, "iq1_s")
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


def test_abort_inside_llama_cpp_is_an_error_and_not_the_end_of_this_process(model, out, tmp_path, monkeypatch):
    monkeypatch.setattr(
        quantizer, "_CHILD", "import os, sys; print('last words', file=sys.stderr, flush=True); os.abort()"
    )
    with pytest.raises(ValueError, match=r"llama\.cpp could not quantise it: last words"):
        quantizer.quantize(model, out, "q4_0")
    assert not list(tmp_path.iterdir())


def test_interrupt_ends_the_child_and_leaves_no_file(model, out, tmp_path, monkeypatch, capsys):
    children = []

    def interrupt(child, _progress):
        children.append(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(quantizer, "_follow", interrupt)
    assert run_command(model, out, "q4_0") == 130
    assert capsys.readouterr().err == "ffnskip quantize: interrupted; nothing was written\n"
    assert children[0].poll() is not None
    assert not list(tmp_path.iterdir())


def test_command_writes_the_file_and_reports_errors_with_status_2(model, out, capsys):
    assert run_command(model, out, "Q5_K_M", "--threads", 1, "--no-progress") == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    assert run_command(model, out, "q9", "--no-progress") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ffnskip quantize: unknown type 'q9'")
    assert captured.err.count("\n") == 1


def test_module_in_the_current_directory_does_not_stand_in_for_a_library(model, tmp_path):
    """The child must load what its parent would load, whatever lies in the directory it is started from."""
    (tmp_path / "llama_cpp.py").write_text("raise RuntimeError('wrong module')")
    code = (
        f"import runpy, sys; sys.path[:] = {[path for path in sys.path if path]!r}\n"
        f"runpy.run_path({str(SOURCE)!r})['quantize']({str(model)!r}, {str(tmp_path / 'out.gguf')!r}, 'q4_0')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "out.gguf").is_file()
