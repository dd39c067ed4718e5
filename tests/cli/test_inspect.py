"""`ffnskip inspect` shows the blocks that are there, with the sizes that the file's tensors have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest

from ffnskip_cpp import SkipConfig, cli, write_channels
from ffnskip_cpp.gguf_file.quantization import quantize
from ffnskip_cpp.inspection.inspection import inspect
from ffnskip_cpp.ranges import ranges
from support import tiny_models
from support.channel_bytes import KINDS, ffn_bytes, weights_by_kind
from support.running import ours


def tensors_of(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}


@pytest.mark.parametrize(
    ("kind", "ffn", "residual"),
    [
        ("llama", "gated", "sequential"),
        ("moe", "experts", "sequential"),
        ("phi3", "gated", "in place"),
        ("falcon", "plain", "parallel"),
        ("biased", "plain", "sequential"),
    ],
)
def test_blocks_are_of_the_right_kind_and_size(model_file, kind, ffn, residual):
    path = model_file(kind)
    report, tensors = inspect(path), tensors_of(path)
    assert {(layer.kind, layer.residual) for layer in report.layers[:-1]} == {(ffn, residual)}
    assert [layer.layer for layer in report.layers] == list(range(report.n_layer))
    assert [layer.skippable for layer in report.layers] == [True] * (report.n_layer - 1) + [False]
    for layer in report.layers:
        own = {name for name in tensors if name.startswith(f"blk.{layer.layer}.ffn_")}
        assert {w.name for w in layer.weights} >= {name for name in own if "norm" not in name}
        for weight in layer.weights:
            tensor = tensors[weight.name]
            assert (weight.n_elements, weight.bytes) == (tensor.n_elements, tensor.n_bytes)
            assert weight.type.upper() == tensor.tensor_type.name


def test_parameters_add_up_to_those_of_the_file(model_file):
    path = model_file("llama")
    report, tensors = inspect(path), tensors_of(path)
    assert sum(report.parameters.values()) == sum(int(tensor.n_elements) for tensor in tensors.values())
    middle = f"blk.{report.n_layer // 2}."
    counts = {name.removeprefix(middle): int(t.n_elements) for name, t in tensors.items() if name.startswith(middle)}
    assert report.parameters_of_one_layer == counts


def test_experts_count_as_far_as_they_are_read(model_file):
    report = inspect(model_file("moe"))
    for layer in report.layers:
        experts = sum(w.bytes for w in layer.weights if "_exps" in w.name)
        rest = sum(w.bytes for w in layer.weights) - experts
        assert rest < layer.bytes_per_token < rest + experts


def test_ideal_speed_up_is_what_bytes_allow(model_file):
    report = inspect(model_file("llama"))
    for ratio, value in report.ideal_speed_up.items():
        unread = round(ratio * report.n_layer) * report.layers[0].bytes_per_token
        # but for the norm of the block's input, which the two count differently
        assert value == pytest.approx(report.bytes_per_token / (report.bytes_per_token - unread), rel=1e-2)


def test_a_model_that_cannot_skip_says_why(model_file, capsys):
    path = model_file("mamba")
    assert "has no FFN block" in inspect(path).refused
    assert cli.main(["inspect", str(path)]) == 0
    assert "can't skip: architecture 'mamba' has no FFN block" in capsys.readouterr().out


def test_the_text_has_the_answer_first_and_one_line_for_layers_that_are_alike(model_file, capfd):
    path = model_file("llama")
    assert cli.main(["inspect", str(path)]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert lines[0].startswith(f"{path.name}: llama, 16 layers, ")
    assert lines[1] == "can skip  15 of 16 FFN blocks; not layer 15: it is of the last layer, which always runs"
    assert lines[2].strip() == "15 of 16 attention blocks; not layer 15: it is of the last layer, which always runs"
    report = inspect(path)
    x = report.ideal_speed_up
    assert lines[4].startswith(f"speed-up  x{x[0.1]:.2f} with 10 %, x{x[0.25]:.2f} with 25 %, x{x[0.5]:.2f}")
    assert lines[5].startswith("profile   none, so nothing is skipped; ffnskip calibrate ")
    groups = [line for line in lines if " gated " in line]
    assert len(groups) == 1 and groups[0].startswith("0-15 ")
    assert f"{report.layers[0].bytes_per_token:,}" in groups[0] and len(lines) < 21


def test_layers_that_differ_have_a_line_each(tmp_path, capsys):
    """Of mixed types: q4_k_m gives some ffn_down a larger one."""
    source = tiny_models.write_llama(tmp_path / "f32.gguf", n_layer=8, n_embd=256, n_ff=512)
    path = quantize(source, tmp_path / "q.gguf", "q4_k_m", n_threads=1)
    kinds = {}
    for name, tensor in tensors_of(path).items():
        if name.endswith("ffn_down.weight"):
            kinds.setdefault(tensor.tensor_type.name.lower(), []).append(int(name.split(".")[1]))
    assert len(kinds) == 2
    assert cli.main(["inspect", str(path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " gated " in line]
    for kind, layers in kinds.items():
        (line,) = (line for line in lines if f"ffn_down {kind}" in line.lower())
        assert line.split()[0] == ranges(layers)


def test_the_profile_that_is_found_is_named(model_file, tmp_path, capsys):
    path = Path(shutil.copy(model_file("llama"), tmp_path / "m.gguf"))
    with ours(path, SkipConfig(policy="fixed", layers=[3], warm_up_index=0)) as llm:
        llm.save_profile(tmp_path / "m.ffnskip.gguf")
    report = inspect(path)
    assert (report.profile, report.profile_refused) == (str(tmp_path / "m.ffnskip.gguf"), None)
    with ours(model_file("moe"), SkipConfig(policy="fixed", layers=[3], warm_up_index=0)) as llm:
        llm.save_profile(tmp_path / "m.ffnskip.gguf")
    assert cli.main(["inspect", str(path)]) == 0
    assert "m.ffnskip.gguf: can't be used: it is of another model, qwen3moe-" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["llama_q8_0", "moe", "demo"])
def test_the_fingerprint_is_that_of_the_model_as_it_runs(model_file, kind):
    """Whose weights llama.cpp repacks; inspect leaves them in the file."""
    with ours(model_file(kind), None) as llm:
        assert inspect(model_file(kind)).fingerprint == llm.fingerprint


def test_json_is_the_report(model_file, capsys):
    path = model_file("llama")
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(inspect(path).as_dict()))


@pytest.mark.parametrize(
    ("data", "why"), [(b"text", "not a GGUF file"), (b"GGUF\x03\0\0\0", "a truncated GGUF file: 8 bytes")]
)
def test_bad_files_are_refused(tmp_path, capsys, data, why):
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    assert cli.main(["inspect", str(path)]) == 1
    assert why in capsys.readouterr().err
    assert cli.main(["inspect", str(tmp_path / "none.gguf")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_name_that_is_no_utf_8_is_refused_in_one_line(model_file, tmp_path):
    """llama_cpp can't open such a file either."""
    name = os.fsencode(tmp_path) + b"/m\xff.gguf"
    shutil.copy(model_file("llama"), name)
    for words in (["inspect", name], ["quantize", name, name + b".q", "q8_0"], ["profile", "show", name]):
        result = subprocess.run([sys.executable, "-m", "ffnskip_cpp", *words], capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert r"'m\udcff.gguf': the name is no UTF-8" in result.stderr


@pytest.mark.parametrize("kind", ["llama", "llama_q8_0", "phi3", "biased", "demo"])
def test_inputs_are_those_of_the_files_matrices(model_file, kind):
    """All matrices that a product by channel can be made of, each once, under the input that it reads."""
    path = model_file(kind)
    report, tensors = inspect(path), tensors_of(path)
    named = {
        **{w.name: (found.layer, found.kind) for found in report.inputs for w in found.weights},
    }
    assert sum(len(found.weights) for found in report.inputs) == len(named)
    expected = {}
    for name in tensors:
        parts = name.removeprefix("blk.").removesuffix(".weight").split(".")
        if name.startswith("blk.") and name.endswith(".weight") and parts[1] in {*KINDS, "attn_qkv"}:
            expected[name] = (int(parts[0]), KINDS.get(parts[1], "qkv"))
    assert named == expected
    for found in report.inputs:
        assert {int(tensors[w.name].shape[0]) for w in found.weights} == {found.n_channels}
        for w in found.weights:
            assert (w.n_elements, w.bytes) == (tensors[w.name].n_elements, tensors[w.name].n_bytes)


@pytest.mark.parametrize("kind", ["llama", "demo", "moe"])
def test_memory_is_what_the_copies_take(model_file, kind, capsys):
    """At least what products read, and what the core says it has taken."""
    path = model_file(kind)
    report = inspect(path)
    assert all(not found.why_not for found in report.inputs)
    stored = weights_by_kind(path)
    for found in report.inputs:
        read = stored[found.kind][found.layer]
        assert read < found.memory_bytes < 1.3 * read
    for tensors in ("ffn", "all"):
        with ours(path, SkipConfig(policy="channels", tensors=tensors)) as llm:
            # pages that memory comes in
            assert 0 <= llm._controller.weights_bytes - report.memory_bytes[tensors] < 2**22
    assert cli.main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    of_all = f"{2 * report.n_layer} of {2 * report.n_layer} inputs of"
    assert lines[6] == f"channels  {of_all} the FFN's matrices, {of_all} attention's matrices"
    mib = {tensors: f"{size / 2**20:,.1f} MiB" for tensors, size in report.memory_bytes.items()}
    assert lines[7].strip() == f"copies of these matrices take {mib['ffn']} of memory, with attention's {mib['all']}"


def test_the_file_of_copies_that_is_found_is_named(model_file, tmp_path, capsys):
    path = Path(shutil.copy(model_file("llama"), tmp_path / "m.gguf"))
    assert inspect(path).copies is None
    copies = write_channels(path, n_threads=1)
    assert (inspect(path).copies, inspect(path).copies_refused) == (str(copies), None)
    with ours(path, SkipConfig(policy="channels")) as llm:
        core = llm._controller
        assert (core.weights_bytes, core.weights_notes) == (0, []) and core.mapped_weights_bytes > ffn_bytes(path)
    shutil.copy(write_channels(model_file("phi3"), tmp_path / "other.gguf", n_threads=1), copies)
    assert cli.main(["inspect", str(path)]) == 0
    assert f"{copies}: can't be used: it is of another model, phi3-" in capsys.readouterr().out
    with ours(path, SkipConfig(policy="channels")) as llm:
        core = llm._controller
        assert core.weights_bytes > ffn_bytes(path) and core.mapped_weights_bytes == 0
        (note,) = core.weights_notes
        assert note.startswith(f"{copies} is not used: ")


def test_inputs_that_cannot_leave_channels_out_say_why_once(model_file, capsys):
    """Parallel blocks read one input with attention."""
    assert cli.main(["inspect", str(model_file("falcon"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("channels  "))
    reasons = lines[begin + 1 : lines.index("", begin)]
    assert any("up of layer 0-" in line and "is read by" in line for line in reasons)
    assert not any("down of layer" in line for line in reasons)
    assert all(line.startswith("          not ") for line in reasons[:-1]) and len(reasons) < 8
    assert reasons[-1].startswith("          copies of these matrices take ")
    assert cli.main(["inspect", str(model_file("moe"))]) == 0
    of_all = "16 of 16 inputs of"
    assert f"channels  {of_all} the FFN's matrices, {of_all} attention's matrices" in capsys.readouterr().out


def test_the_map_is_an_attribute_of_the_model(model_file):
    with ours(model_file("llama"), 0.25) as llm:
        assert [(block.layer, block.kind) for block in llm.blocks] == [
            (il, kind) for il in range(16) for kind in ("attention", "ffn")
        ]
        assert llm.why_dense is None and "form='gated'" in repr(llm.blocks[1])
