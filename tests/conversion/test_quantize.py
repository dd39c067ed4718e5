"""Quantising leaves a complete file of the asked type, or an error in one line and nothing else."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import gguf
import llama_cpp
import numpy as np
import pytest

import ffnskip_cpp.gguf_file.quantization as quantizer
from ffnskip_cpp import cli
from ffnskip_cpp.gguf_file.file_type import known_types
from ffnskip_cpp.gguf_file.header import read_header
from ffnskip_cpp.gguf_file.imatrix import read_imatrix
from support.tiny_models import write_llama


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
    return cli.main(["quantize", *map(str, arguments)])


def test_known_types_are_those_of_the_installed_llama_cpp():
    known = known_types()
    assert known["f32"] == llama_cpp.LLAMA_FTYPE_ALL_F32
    assert known["q4_k_m"] == llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    ftypes = {value for name, value in vars(llama_cpp).items() if name.startswith("LLAMA_FTYPE_")}
    assert set(known.values()) == ftypes - {llama_cpp.LLAMA_FTYPE_GUESSED}


def test_a_type_that_the_gguf_package_does_not_know_is_read(model, out):
    """llama.cpp is ahead of it now and then; what it knows itself is enough."""
    quantizer.quantize(model, out, "q2_0", n_threads=1, pure=True)
    header = read_header(out)
    assert {t.type_name for t in header.tensors if t.name.endswith("ffn_up.weight")} == {"q2_0"}
    with_padding = sum(-(-t.n_bytes // 32) * 32 for t in header.tensors)
    assert header.data_offset + with_padding == out.stat().st_size


@pytest.mark.parametrize(
    ("name", "stored"),
    [("q4_0", "Q4_0"), ("Q4_K_M", "Q4_K"), ("q4_k", "Q4_K"), ("q6_k", "Q6_K"), ("iq4_nl", "IQ4_NL"), ("bf16", "BF16")],
)
def test_matrices_get_the_asked_type_and_norms_stay_f32(name, stored, model, out):
    assert quantizer.quantize(model, out, name, n_threads=1).path == out
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
    with pytest.raises(ValueError, match="threads: 0 can't compute anything; 1 to 512"):
        quantizer.quantize(model, out, "q4_0", n_threads=0)
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
        (10, "truncated GGUF file: 10 bytes"),
        (2000, "does not end within its 2000 bytes"),
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
    with pytest.raises(ValueError, match=r"requantizing from type \w+ is disabled.*--allow-requantize") as caught:
        quantizer.quantize(out, tmp_path / "again.gguf", "q8_0")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="imatrix"):
        quantizer.quantize(model, out, "iq1_s")
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


# ---- llama-quantize's options: the same bytes as llama.cpp's own quantiser makes of the same parameters ----


def by_llama_cpp(src, dst, **params):
    """llama_model_quantize itself; `imatrix` is a dict of float32 arrays."""
    c_params = llama_cpp.llama_model_quantize_default_params()
    imatrix = params.pop("imatrix", None)
    for name, value in {"nthread": 1, **params}.items():
        setattr(c_params, name, value)
    if imatrix is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(imatrix) + 1))()
        for entry, (name, values) in zip(entries, imatrix.items()):
            pointer = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entry.name, entry.data, entry.size = name.encode(), pointer, values.size
        c_params.imatrix = entries
    assert llama_cpp.llama_model_quantize(os.fsencode(src), os.fsencode(dst), ctypes.byref(c_params)) == 0
    return dst


def tensors_of(path):
    return {t.name: (t.tensor_type.name, t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


@pytest.fixture(scope="session")
def quantised(model, tmp_path_factory):
    return by_llama_cpp(model, tmp_path_factory.mktemp("q") / "q8_0.gguf", ftype=llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0)


@pytest.mark.parametrize(
    ("options", "params"),
    [
        ({}, {}),
        ({"leave_output_tensor": True}, {"quantize_output_tensor": False}),
        ({"pure": True}, {"pure": True}),
        ({"output_tensor_type": "q8_0"}, {"output_tensor_type": 8}),
        ({"token_embedding_type": "Q5_K"}, {"token_embedding_type": 13}),
    ],
)
def test_options_are_llama_cpps_own(options, params, model, out, tmp_path):
    quantizer.quantize(model, out, "q4_k_m", n_threads=1, **options)
    ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M
    expected = tensors_of(by_llama_cpp(model, tmp_path / "expected.gguf", ftype=ftype, **params))
    assert tensors_of(out) == expected
    if options:
        assert expected != tensors_of(by_llama_cpp(model, tmp_path / "plain.gguf", ftype=ftype))


def test_quantised_matrices_are_quantised_again_where_that_is_allowed(quantised, out, tmp_path):
    quantizer.quantize(quantised, out, "q4_0", n_threads=1, allow_requantize=True)
    ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    expected = by_llama_cpp(quantised, tmp_path / "expected.gguf", ftype=ftype, allow_requantize=True)
    assert tensors_of(out) == tensors_of(expected)


def write_imatrix(path, sums, counts, **metadata):
    """As llama-imatrix writes it: sums of squares [n_mat, n] and tokens [n_mat, 1] by name of the matrix."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type(metadata.get("type", "imatrix"))
    writer.add_array("imatrix.datasets", ["texts/a.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name in sums:
        writer.add_tensor(f"{name}.in_sum2", np.atleast_2d(sums[name]).astype(np.float32))
        if name in counts:
            writer.add_tensor(f"{name}.counts", np.reshape(counts[name], (-1, 1)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def squares(model):
    """Mean squares of each input of each matrix, very unequal."""
    rng = np.random.default_rng(0)
    matrices = [t for t in gguf.GGUFReader(model).tensors if len(t.shape) == 2 and t.name.startswith("blk.")]
    return {t.name: rng.exponential(size=int(t.shape[0])).astype(np.float32) ** 4 for t in matrices}


@pytest.mark.parametrize("name", ["q4_k_m", "iq2_xs", "q4_0"])
def test_an_importance_matrix_is_used_as_llama_cpp_uses_it(name, model, out, tmp_path, squares):
    tokens = {key: 512 for key in squares}
    imatrix = write_imatrix(tmp_path / "imatrix.gguf", {k: 512 * v for k, v in squares.items()}, tokens)
    quantizer.quantize(model, out, name, n_threads=1, imatrix=imatrix)
    ftype = known_types()[name]
    expected = by_llama_cpp(model, tmp_path / "expected.gguf", ftype=ftype, imatrix=squares)
    assert tensors_of(out) == tensors_of(expected)
    fields = gguf.GGUFReader(out).fields
    assert fields["quantize.imatrix.file"].contents() == str(imatrix)
    assert fields["quantize.imatrix.dataset"].contents() == "texts/a.txt"
    assert fields["quantize.imatrix.chunks_count"].contents() == 7
    assert fields["quantize.imatrix.entries_count"].contents() == len(squares)
    if name != "iq2_xs":  # which needs one
        without = by_llama_cpp(model, tmp_path / "without.gguf", ftype=ftype)
        assert tensors_of(out) != tensors_of(without)


def test_an_expert_that_no_token_came_to_counts_evenly(tmp_path):
    sums = {"blk.0.ffn_up_exps.weight": np.array([[2.0, 4.0], [0.0, 0.0], [9.0, 3.0]])}
    path = write_imatrix(tmp_path / "i.gguf", sums, {"blk.0.ffn_up_exps.weight": [2, 0, 3]})
    assert read_imatrix(path)["blk.0.ffn_up_exps.weight"].tolist() == [1.0, 2.0, 1.0, 1.0, 3.0, 1.0]


def test_importance_matrices_that_do_not_fit_are_refused_by_name(model, out, tmp_path, squares):
    def refused(path, why):
        with pytest.raises((ValueError, FileNotFoundError), match=why) as caught:
            quantizer.quantize(model, out, "q4_k_m", n_threads=1, imatrix=path)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)
        assert not out.exists()

    tokens = {key: 1 for key in squares}
    refused(tmp_path / "absent.gguf", "no such file")
    old = tmp_path / "imatrix.dat"
    old.write_bytes((3).to_bytes(4, "little") + bytes(100))
    refused(old, "not a GGUF file.*older format")
    refused(model, "not an importance matrix: its general.type is None")
    refused(write_imatrix(tmp_path / "none.gguf", {}, {}), "there is nothing in it")
    refused(write_imatrix(tmp_path / "o.gguf", {"blk.9.x.weight": [1.0]}, {"blk.9.x.weight": [1]}), "of another model")
    refused(write_imatrix(tmp_path / "c.gguf", squares, {}), "sums and counts")
    wrong = {key: value[:32] for key, value in squares.items()}
    refused(write_imatrix(tmp_path / "w.gguf", wrong, tokens), "of another model: .* has 32 inputs there and 256 here")
    bad = {key: value * np.nan for key, value in squares.items()}
    refused(write_imatrix(tmp_path / "n.gguf", bad, tokens), "finite")


def test_a_picture_encoder_is_quantised_too(out, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "mmproj.gguf", "clip")
    writer.add_type("mmproj")
    writer.add_tensor("mm.0.weight", np.ones((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    quantizer.quantize(tmp_path / "mmproj.gguf", out, "q8_0")
    assert tensor_types(out) == {"mm.0.weight": "Q8_0"}


def test_a_wrong_tensor_type_is_refused_with_those_known(model, out):
    with pytest.raises(ValueError, match="output_tensor_type is 'q4_k_m'; known: f32, f16, q4_0, "):
        quantizer.quantize(model, out, "q4_0", output_tensor_type="q4_k_m")
    with pytest.raises(ValueError, match="token_embedding_type is 'i32'; known: "):
        quantizer.quantize(model, out, "q4_0", token_embedding_type="i32")


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


def test_command_writes_the_file_and_reports_errors_with_status_1(model, out, capsys):
    assert run_command(model, out, "Q5_K_M", "--threads", 1, "--no-progress") == 0
    assert capsys.readouterr().out.startswith(f"{out}: ")
    assert run_command(model, out, "q9", "--no-progress") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("ffnskip quantize: unknown type 'q9'")
    assert captured.err.count("\n") == 1


def test_module_in_the_current_directory_does_not_stand_in_for_a_library(model, tmp_path):
    """The child must load what its parent would load, whatever lies in the directory it is started from."""
    (tmp_path / "llama_cpp.py").write_text("raise RuntimeError('wrong module')")
    code = (
        f"import sys; sys.path[:] = {[path for path in sys.path if path]!r}\n"
        "from ffnskip_cpp.gguf_file.quantization import quantize\n"
        f"quantize({str(model)!r}, {str(tmp_path / 'out.gguf')!r}, 'q4_0')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "out.gguf").is_file()
