"""`ffnskip channels` writes what policy channels would make: the model's numbers by input, and no file but its own."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from ffnskip_cpp import ChannelsFile, SkipConfig, UnsupportedModelError, cli, write_channels
from ffnskip_cpp.channels import channels
from ffnskip_cpp.probing import probed
from support.running import generate_step_by_step, ours

FFN = re.compile(r"blk\.\d+\.ffn_(gate|up|down)\.weight")
ALL = re.compile(r"blk\.\d+\.(ffn_(gate|up|down)|attn_(q|k|v|output))\.weight")


@pytest.fixture
def model(model_file, tmp_path):
    return Path(shutil.copy(model_file("llama"), tmp_path / "m.gguf"))


def tensors_of(path):
    return {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}


@pytest.mark.parametrize(("tensors", "names"), [("ffn", FFN), ("all", ALL)])
def test_the_file_has_the_columns_of_the_models_matrices(model, tensors, names):
    """In F32 and one tile, as cpp/src/channels/channel_layout.h draws it: for each input the weights of all outputs, in
    groups of 128 and with a gap of 64 bytes, then the norms."""
    written = write_channels(model, tensors=tensors, n_threads=2)
    weights, copies = tensors_of(model), tensors_of(written)
    # Inputs of which channels can be left out: not those of the last layer, whose rows are pruned.
    assert set(copies) <= {name for name in weights if names.fullmatch(name)}
    assert len(copies) == written.n_matrices > 0
    assert {name.split(".", 2)[2] for name in copies} == {
        name.split(".", 2)[2] for name in weights if names.fullmatch(name)
    }
    for name, copy in copies.items():
        weight = weights[name].data
        n_out, n_in = weight.shape
        stride = -(-n_out // 128) * 512 + 64
        columns = copy.data.view(np.uint8)[: n_in * stride].reshape(n_in, stride)
        values = np.ascontiguousarray(columns[:, : 4 * n_out]).view(np.float32)
        assert np.array_equal(values, weight.T)
        assert not columns[:, 4 * n_out :].any()
        norms = copy.data.view(np.uint8)[n_in * stride :][: 4 * n_in].view(np.float32)
        np.testing.assert_allclose(norms, np.linalg.norm(weight, axis=0), rtol=1e-6)


def test_a_model_with_the_file_generates_the_same_and_maps_it(model):
    config = SkipConfig(policy="channels", skip_ratio=0.5, tensors="all", warm_up_index=2)

    def generated():
        with ours(model, config) as llm:
            tokens, logits = generate_step_by_step(llm, range(3, 20), 24)
            assert llm.stats.bytes_left_out > 0
            return tokens, logits, "/m.channels.gguf" in Path("/proc/self/maps").read_text(encoding="utf-8")

    tokens, logits, mapped = generated()
    assert not mapped
    write_channels(model, tensors="all")
    with_file = generated()
    assert with_file[0] == tokens and np.array_equal(with_file[1], logits) and with_file[2]


def test_its_place_is_beside_the_model(model, tmp_path):
    written = write_channels(model)
    assert written.path == tmp_path / "m.channels.gguf" and os.fspath(written) == str(written.path)
    assert written == ChannelsFile(written.path, "ffn", written.n_matrices, written.path.stat().st_size)
    assert f"{written.path}: {written.n_matrices} matrices" in repr(written)
    other = write_channels(model, tmp_path / "o.gguf", n_threads=1)
    assert other.path.read_bytes() == written.path.read_bytes()


def test_an_older_file_is_replaced_and_no_other(model, tmp_path, capsys):
    path = write_channels(model, tensors="all").path
    before = path.read_bytes()
    assert write_channels(model).n_bytes == path.stat().st_size < len(before)
    shutil.copy(model, tmp_path / "other.gguf")
    os.link(model, tmp_path / "hard.gguf")
    for name, why in (("other.gguf", "of another kind"), ("hard.gguf", "is the input itself"), ("m.gguf", "the input")):
        with pytest.raises(ValueError, match=why):
            write_channels(model, tmp_path / name)
        assert (tmp_path / name).read_bytes() == model.read_bytes()


def test_what_is_not_possible_is_refused_and_nothing_is_written(model, model_file, tmp_path):
    with pytest.raises(ValueError, match="'some'"):
        write_channels(model, tensors="some")
    with pytest.raises(ValueError, match="threads: 0"):
        write_channels(model, n_threads=0)
    with pytest.raises(FileNotFoundError):
        write_channels(tmp_path / "none.gguf")
    with pytest.raises(UnsupportedModelError, match="mamba"):
        write_channels(model_file("mamba"), tmp_path / "x.gguf")
    with pytest.raises(UnsupportedModelError, match="no weights whose input channels can be left out"):
        write_channels(model_file("llama", n_embd=256, n_ff=256, quantized="q2_k"), tmp_path / "x.gguf")
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_an_interrupted_run_leaves_the_older_file(model, tmp_path, monkeypatch):
    before = write_channels(model).path.read_bytes()

    def interrupted(*_arguments):
        raise KeyboardInterrupt

    with probed(model) as (controller, _), pytest.raises(KeyboardInterrupt):
        controller.write_channels(str(tmp_path / "part"), "ffn", 1, interrupted)
    (tmp_path / "part").unlink()
    monkeypatch.setattr(channels, "read_header", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_channels(model, tmp_path / "new.gguf")
    assert sorted(os.listdir(tmp_path)) == ["m.channels.gguf", "m.gguf"]
    assert (tmp_path / "m.channels.gguf").read_bytes() == before


def test_the_command(model, tmp_path, capsys):
    out = tmp_path / "o.gguf"
    assert cli.main(["channels", str(model), "-o", str(out), "--tensors", "all", "-t", "1", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {
        "path": str(out),
        "tensors": "all",
        "n_matrices": len(tensors_of(out)),
        "n_bytes": out.stat().st_size,
    }
    assert cli.main(["channels", "-m", str(model), "--no-progress"]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'm.channels.gguf'}: ")
    assert cli.main(["channels", str(model), "-o", "/dev/full"]) == 1
    assert capsys.readouterr().err == "ffnskip channels: /dev/full: the disk is full; nothing was written\n"
