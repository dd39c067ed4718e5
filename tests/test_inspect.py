"""`ffnskip inspect` shows the blocks that are there, with the sizes that the file's tensors have."""

from __future__ import annotations

import json

import gguf
import pytest

from ffnskip_cpp import cli
from ffnskip_cpp.inspect_model import inspect
from running import ours


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
    assert {(layer["kind"], layer["residual"]) for layer in report["layers"][:-1]} == {(ffn, residual)}
    assert [layer["layer"] for layer in report["layers"]] == list(range(report["n_layer"]))
    assert [layer["skippable"] for layer in report["layers"]] == [True] * (report["n_layer"] - 1) + [False]
    for layer in report["layers"]:
        own = {name for name in tensors if name.startswith(f"blk.{layer['layer']}.ffn_")}
        assert {w["name"] for w in layer["weights"]} >= {name for name in own if "norm" not in name}
        for weight in layer["weights"]:
            tensor = tensors[weight["name"]]
            assert (weight["n_elements"], weight["bytes"]) == (tensor.n_elements, tensor.n_bytes)
            assert weight["type"].upper() == tensor.tensor_type.name


def test_parameters_add_up_to_those_of_the_file(model_file):
    path = model_file("llama")
    report, tensors = inspect(path), tensors_of(path)
    assert sum(report["parameters"].values()) == sum(int(tensor.n_elements) for tensor in tensors.values())
    middle = f"blk.{report['n_layer'] // 2}."
    counts = {name.removeprefix(middle): int(t.n_elements) for name, t in tensors.items() if name.startswith(middle)}
    assert report["parameters_of_one_layer"] == counts


def test_experts_count_as_far_as_they_are_read(model_file):
    report = inspect(model_file("moe"))
    for layer in report["layers"]:
        experts = sum(w["bytes"] for w in layer["weights"] if "_exps" in w["name"])
        rest = sum(w["bytes"] for w in layer["weights"]) - experts
        assert rest < layer["bytes_per_token"] < rest + experts


def test_ideal_speed_up_is_what_bytes_allow(model_file):
    report = inspect(model_file("llama"))
    for ratio, value in report["ideal_speed_up"].items():
        unread = round(ratio * report["n_layer"]) * report["layers"][0]["bytes_per_token"]
        # but for the norm of the block's input, which the two count differently
        assert value == pytest.approx(report["bytes_per_token"] / (report["bytes_per_token"] - unread), rel=1e-2)


def test_a_model_that_cannot_skip_says_why(model_file, capsys):
    path = model_file("mamba")
    assert "has no FFN block" in inspect(path)["refused"]
    assert cli.main(["inspect", str(path)]) == 0
    assert "skipping is refused: architecture 'mamba' has no FFN block" in capsys.readouterr().out


def test_json_is_the_report(model_file, capsys):
    path = model_file("llama")
    assert cli.main(["inspect", str(path), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(inspect(path)))


@pytest.mark.parametrize(
    ("data", "why"), [(b"text", "not a GGUF file"), (b"GGUF\x03\0\0\0", "a truncated GGUF file: 8 bytes")]
)
def test_bad_files_are_refused(tmp_path, capsys, data, why):
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    assert cli.main(["inspect", str(path)]) == 2
    assert why in capsys.readouterr().err
    assert cli.main(["inspect", str(tmp_path / "none.gguf")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_the_map_is_an_attribute_of_the_model(model_file):
    with ours(model_file("llama"), 0.25) as llm:
        assert [block.layer for block in llm.ffn_map] == list(range(16))
        assert llm.why_dense is None and "kind='gated'" in repr(llm.ffn_map[0])
