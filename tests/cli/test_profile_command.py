"""`ffnskip profile` shows what a profile holds, changes what it is told to, and leaves every other byte as it was."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from ffnskip_cpp import SkipConfig, cli
from ffnskip_cpp.gguf_file.header import read_header
from ffnskip_cpp.gguf_file.quantization import quantize
from ffnskip_cpp.profile import embed_profile, profile_keys, profile_path, read_profile, strip_profile, write_profile
from support.running import bits_equal, feed, ours, plain, split

N_LAYER = 8
TOKENS = np.random.default_rng(3).integers(0, 256, 30).tolist()

LEARNT = {
    "skip_ratio": 0.25,
    "kl": 0.015625,
    "similarity_mean": [0.5, 0.75, 0.9, 0.925, 0.95, 0.875, 0.8, 0.6],
    "block_influence": [0.25] * N_LAYER,
    "candidates": [{"policy": "fixed layers", "layers": [1, 2, 3, 6], "kl": 0.5}, {"policy": "ffn_skip", "kl": 0.25}],
    "text_sha256": "ab" * 32,
    "text_tokens": 4096,
    "seed": 2**40,
    "of_tomorrow": {"a": [1]},
}


@pytest.fixture
def model(model_file, tmp_path):
    """A copy of the tiny model, with nothing beside it."""
    return Path(shutil.copy(model_file("llama", n_layer=N_LAYER), tmp_path / "m.gguf"))


@pytest.fixture
def write(model):
    """write(config): a profile beside the model."""

    def write(config, learnt=LEARNT):
        with ours(model, config) as llm:
            controller = llm._controller
            write_profile(profile_path(model), controller.fingerprint, config, controller.resolved, learnt)
        return profile_path(model)

    return write


@pytest.fixture
def command(capsys):
    """command(*words): what `ffnskip profile` prints."""

    def run(*words):
        assert cli.main(["profile", *map(str, words)]) == 0, capsys.readouterr().err
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


@pytest.fixture
def refusal(capsys):
    """refusal(*words): the one line with which it refuses."""

    def run(*words, status=1):
        assert cli.main(["profile", *map(str, words)]) == status
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("ffnskip profile: ") and err.count("\n") == 1
        return err

    return run


PER_LAYER = SkipConfig(
    policy="ffn_skip_per_layer", layer_thresholds=[0.9, *[0.95] * 6, math.inf], max_skip=2, warm_up_index=7
)
TRIPPING = SkipConfig(sim_threshold=0.9, cold_s=1, cold_e=7, max_skip=2)


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_prints_settings_first_and_a_row_per_layer(command, write):
    path = write(PER_LAYER)
    assert (
        command("show", path)
        == f"""\
{path}
for the model {read_profile(path).model}

settings
  policy         ffn_skip
  cold_s         1
  cold_e         7
  max_skip       2
  warm_up_index  7

learnt
  skip_ratio   0.25
  kl           0.015625
  text_sha256  {"ab" * 32}
  text_tokens  4096
  seed         1099511627776
  of_tomorrow  {{"a": [1]}}

layer  layer_thresholds  similarity_mean  block_influence
    0               0.9              0.5             0.25
    1              0.95             0.75             0.25
    2              0.95              0.9             0.25
    3              0.95            0.925             0.25
    4              0.95             0.95             0.25
    5              0.95            0.875             0.25
    6              0.95              0.8             0.25
    7               inf              0.6             0.25

candidates
      policy  layers    kl
fixed layers   1-3,6   0.5
    ffn_skip          0.25
"""
    )


def test_show_of_a_bare_profile_has_no_empty_sections(command, write):
    path = write(SkipConfig(policy="fixed", layers=[0, 2, 3, 4, 6]), learnt=None)
    assert command("show", path).split("\n\n")[1:] == [
        "settings\n  policy         ffn_skip\n  max_skip       0\n  warm_up_index  30\n  layers         0,2-4,6\n"
    ]


def test_json_holds_every_key(command, write):
    keys = json.loads(command("show", "--json", write(PER_LAYER)), parse_constant=pytest.fail)
    assert keys.pop("model").startswith("llama-8x64-")
    settings = {"policy": "ffn_skip", "layer_thresholds": [0.9, *[0.95] * 6, None], "cold_s": 1, "cold_e": 7,
                "max_skip": 2, "warm_up_index": 7}  # fmt: skip
    assert keys == {**settings, **LEARNT}


def test_show_of_a_model_is_that_of_its_profile_beside_or_else_inside(command, refusal, model, write):
    assert "there is no profile in this model, nor beside it (m.ffnskip.gguf)" in refusal("show", model)
    beside = write(PER_LAYER)
    shown = command("show", model)
    assert shown == command("show", beside)
    embed_profile(model, beside)
    write(TRIPPING)
    assert command("show", model).startswith(f"{beside}\n") and "layer_thresholds" not in command("show", model)
    beside.unlink()
    assert command("show", model) == shown.replace(str(beside), str(model))


# --- set -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["profile", "beside", "inside"])
def test_set_changes_what_it_is_told_to_and_drops_what_was_measured(command, model, write, place):
    path = write(TRIPPING)
    before = dict(profile_keys(path))
    if place == "inside":
        embed_profile(model, path)
        path.unlink()
        path = model
    out = command("set", path if place == "profile" else model, "sim_threshold=0.75", "max_skip=3")
    assert (
        out
        == f"""\
{path}: set sim_threshold=0.75, max_skip=3
dropped skip_ratio, kl, candidates, measured with the settings before
"""
    )
    dropped = {key: value for key, value in before.items() if key not in ("skip_ratio", "kl", "candidates")}
    assert profile_keys(path) == {**dropped, "sim_threshold": 0.75, "max_skip": 3}
    with ours(model, "auto") as llm:
        assert (llm.skip.sim_threshold, llm.resolved["max_skip"]) == (0.75, 3)


def test_set_to_what_is_there_keeps_what_was_measured(command, write):
    path = write(TRIPPING)
    before = path.read_bytes()
    assert command("set", path, "max_skip=2") == f"{path}: these are its settings already\n"
    assert path.read_bytes() == before


CHANGES = {
    "fixed": (["policy=fixed", "layers=2,4-5"],
              {"policy": "ffn_skip", "layers": [2, 4, 5], "max_skip": 0, "warm_up_index": 30}),
    "fixed, as it is kept": (["layers=2", "max_skip=0"],
                             {"policy": "ffn_skip", "layers": [2], "max_skip": 0, "warm_up_index": 30}),
    "fixed, by layers alone": (["layers=2"],
                               {"policy": "ffn_skip", "layers": [2], "max_skip": 0, "warm_up_index": 30}),
    "beside": (["max_skip=2", "layers=3"],
               {"policy": "ffn_skip", "sim_threshold": 0.9, "layers": [3], "cold_s": 1, "cold_e": 7, "max_skip": 2,
                "warm_up_index": 30}),
    "stride": (["check_stride=2", "warm_up_index=0"],
               {"policy": "ffn_skip", "sim_threshold": 0.9, "cold_s": 1, "cold_e": 7, "max_skip": 2,
                "check_stride": 2, "warm_up_index": 0}),
    "interval": (["check_interval=4"],
                 {"policy": "ffn_skip", "sim_threshold": 0.9, "cold_s": 1, "cold_e": 7, "max_skip": 2,
                  "check_interval": 4, "warm_up_index": 30}),
    "skip_decode": (["policy=skip_decode", "min_layers=5", "budget_decay=64"],
                    {"policy": "skip_decode", "cold_s": 1, "cold_e": 7, "min_layers": 5, "budget_decay": 64,
                     "warm_up_index": 30}),
    "both": (["policy=fixed_plus_ffn_skip", "layers=3", "cold_s=2", "cold_e=6"],
             {"policy": "ffn_skip", "sim_threshold": 0.9, "layers": [3], "cold_s": 2,
              "cold_e": 6, "max_skip": 2, "warm_up_index": 30}),
    "per_layer": (["policy=ffn_skip_per_layer", "layer_thresholds=0.5,1,inf,-1,0.5,0.5,0.5,0.5"],
                  {"policy": "ffn_skip", "layer_thresholds": [0.5, 1, math.inf, -1, 0.5, 0.5, 0.5, 0.5],
                   "cold_s": 1, "cold_e": 7, "max_skip": 2, "warm_up_index": 30}),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_policy_leaves_behind_what_the_policy_has_no_use_for(command, model, write, name):
    path = write(TRIPPING, learnt={"text_tokens": 7})
    changes, expected = CHANGES[name]
    assert command("set", path, *changes).count("\n") == 1  # nothing was measured, nothing dropped
    keys = profile_keys(path)
    assert (keys.pop("model"), keys) == (read_profile(path).model, {**expected, "text_tokens": 7})
    with ours(model, "auto") as llm:
        assert llm.skip.policy == expected["policy"]


def test_a_fixed_set_can_be_set_again_by_its_old_name(command, write):
    path = write(SkipConfig(policy="fixed", layers=[3]), learnt=None)
    command("set", path, "policy=fixed", "layers=2,4")
    assert (profile_keys(path)["layers"], profile_keys(path)["max_skip"]) == ([2, 4], 0)


def test_layers_left_behind_take_with_them_that_no_other_is_skipped(command, refusal, write):
    path = write(SkipConfig(policy="fixed", layers=[3]), learnt=None)
    assert "policy: 'ffn_skip' needs sim_threshold, max_skip as well" in refusal("set", path, "policy=ffn_skip", status=2)
    command("set", path, "policy=ffn_skip", "sim_threshold=0.9", "cold_s=1", "cold_e=7", "max_skip=2")
    assert read_profile(path).config == TRIPPING


@pytest.mark.parametrize("place", ["profile", "beside", "inside"])
def test_cold_regions_nobody_gave_are_those_of_the_core(command, model, write, place):
    path = write(SkipConfig(policy="fixed", layers=[3]), learnt=None)
    if place == "inside":
        embed_profile(model, path)
        path.unlink()
        path = model
    command("set", path if place == "profile" else model, "sim_threshold=0.95", "max_skip=2")
    with ours(model, SkipConfig(sim_threshold=0.95, layers=[3], max_skip=2)) as llm:
        expected = llm.resolved
    with ours(model, "auto") as llm:
        assert llm.resolved == expected
        assert (llm.skip.layers, llm.skip.sim_threshold, llm.skip.max_skip) == ((3,), 0.95, 2)


def test_cold_regions_of_a_model_that_is_not_there_are_asked_for(refusal, model, write):
    path = write(SkipConfig(policy="fixed", layers=[3]), learnt=None)
    model.unlink()
    assert "policy: 'ffn_skip' needs cold_s, cold_e as well" in refusal("set", path, "sim_threshold=0.95", "max_skip=2", status=2)


TOO_MUCH = {
    "layers=99 max_skip=0": SkipConfig(layers=[99], max_skip=0),
    "layers=7 max_skip=0": SkipConfig(layers=[7], max_skip=0),
    "cold_e=8": TRIPPING.replace(cold_e=8),
    "max_skip=6": TRIPPING.replace(max_skip=6),
    "layers=3 max_skip=5": TRIPPING.replace(layers=[3], max_skip=5),
    "policy=ffn_skip_per_layer layer_thresholds=0.5,0.5": TRIPPING.replace(layer_thresholds=[0.5, 0.5]),
}


@pytest.mark.parametrize("place", ["profile", "inside"])
@pytest.mark.parametrize("changes", TOO_MUCH)
def test_what_the_core_would_refuse_is_not_written(refusal, model, write, place, changes):
    path = write(TRIPPING)
    if place == "inside":
        embed_profile(model, path)
        path.unlink()
        path = model
    before = path.read_bytes()
    message = refusal("set", path, *changes.split(), status=2)
    assert path.read_bytes() == before
    with pytest.raises(ValueError) as error, ours(model, TOO_MUCH[changes]):
        pass
    what = re.search(r"\w+: \d+ (is|for|too)", str(error.value))[0]  # field and value
    assert what in message


# --- channels ---------------------------------------------------------------------------------------------------------

THRESHOLDS = [0.25, 0.0, 0.5, 0.125] * N_LAYER


def test_thresholds_of_channels_are_shown_by_layer_and_kind(write, model, command):
    write(SkipConfig("channels", channel_thresholds=THRESHOLDS, layers=[2]))
    shown = command("show", model)
    assert re.search(r"^settings\n +policy +channels\n +warm_up_index +30\n +layers +2\n\nlearnt\n", shown, re.M)
    assert re.search(r"^layer .* qkv threshold +o threshold +up threshold +down threshold$", shown, re.M)
    assert len(re.findall(r"^ +\d .* 0\.25 +0 +0\.5 +0\.125$", shown, re.M)) == N_LAYER
    keys = json.loads(command("show", model, "--json"))
    assert keys["channel_thresholds"] == THRESHOLDS and keys["skip_ratio"] == LEARNT["skip_ratio"]


def test_a_profile_of_blocks_becomes_one_of_channels_and_goes_back(write, model, command):
    path = write(SkipConfig(sim_threshold=0.75, warm_up_index=3))
    assert "dropped skip_ratio, kl, " in command("set", model, "policy=channels", "tensors=all", "skip_ratio=0.5")
    wanted = SkipConfig("channels", tensors="all", skip_ratio=0.5, warm_up_index=3)
    assert read_profile(path).config == wanted
    assert "dropped" not in command("set", model, "skip_ratio=0.4")
    assert read_profile(path).config == wanted.replace(skip_ratio=0.4)
    command("set", model, "channel_thresholds=" + ",".join(map(str, THRESHOLDS)), "layers=1-2")
    expected = SkipConfig("channels", channel_thresholds=THRESHOLDS, layers=[1, 2], warm_up_index=3)
    assert read_profile(path).config == expected and "skip_ratio" not in profile_keys(path)
    command("set", model, "policy=ffn_skip", "sim_threshold=0.5", "max_skip=2")
    assert read_profile(path).config == SkipConfig(sim_threshold=0.5, max_skip=2, cold_s=1, cold_e=7, warm_up_index=3)


@pytest.mark.parametrize(
    "change, why",
    [
        (["threshold=1"], "'threshold' is no setting; those that are: policy, sim_threshold, cold_s"),
        (["skip_ratio=0.5"], "skip_ratio: these settings have no use for it; their own are policy, "),
        (["policy=channels", "max_skip=2"], "max_skip: 2 blocks; policy 'channels' leaves out whole blocks"),
        (["policy=channels", "channel_thresholds=0.1,-1"], "channel_thresholds: -1 is no threshold"),
        (["policy=channels", "channel_thresholds=0.1,0.2"], "channel_thresholds: 2 for a model of 8 layers; 32, 4 for"),
        (["policy=channels", "tensors=ffm"], "tensors: 'ffm' is unknown; known are ffn, all"),
        (["model=x"], "'model' is no setting"),
        (["max_skip"], "'max_skip' is no KEY=VALUE"),
        (["max_skip="], "max_skip: '' is not an integer >= 0"),
        (["max_skip=-1"], "max_skip: '-1' is not an integer >= 0"),
        (["sim_threshold=high"], "sim_threshold: 'high' is not a number"),
        (["sim_threshold=nan"], "sim_threshold: nan is not a similarity"),
        (["warm_up_index=x"], "warm_up_index: 'x' is not an integer >= 0"),
        (["check_stride=0"], "check_stride: 0 is no distance"),
        (["check_interval=0"], "check_interval: 0 is no distance"),
        (["policy=skip_decode"], "policy: 'skip_decode' needs min_layers as well"),
        (["policy=skip_decode", "min_layers=1"], "min_layers: 1 is outside"),
        (["cold_e=1"], "cold_s: 1 must be below cold_e = 1"),
        (["policy=random"], "policy: 'random' is not kept in profiles; those that are: ffn_skip"),
        (["policy=nothing"], "policy: 'nothing' is unknown; known are dense, ffn_skip, random"),
        (
            ["max_skip=0", "layers=3", "cold_s=3"],
            "cold_s: these settings have no use for it; their own are policy, layers",
        ),
        (["policy=fixed"], "layers: the list is empty; name some, or leave it out"),
        (
            ["policy=ffn_skip_per_layer"],
            "layer_thresholds: the list is empty; name one for each layer, or leave it out",
        ),
        (["policy=fixed", "layers=5-3"], "layers: '5-3' is not a list of layers such as 3,5-7"),
        (["policy=fixed", "layers=3", "sim_threshold=1"], "sim_threshold: these settings have no use for it"),
        (["policy=ffn_skip_per_layer", "layer_thresholds=1,x"], "layer_thresholds: 'x' is not a number"),
    ],
)
def test_a_bad_change_is_refused_and_nothing_is_written(refusal, write, change, why):
    path = write(TRIPPING)
    before = path.read_bytes()
    assert why in refusal("set", path, "warm_up_index=3", *change, status=2)
    assert path.read_bytes() == before


def test_set_without_a_change_is_bad_usage(write, capsys):
    assert cli.main(["profile", "set", str(write(TRIPPING))]) == 2
    assert "required: FILE KEY=VALUE" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["show"], ["set", "max_skip=3"], ["embed"], ["strip"]], ids=lambda words: words[0])
def test_the_file_may_be_given_as_an_option(command, model, write, words):
    write(TRIPPING)
    action, *changes = words
    assert str(model.with_suffix("")) in command(action, "-m", model, *changes)


# --- embed, strip ----------------------------------------------------------------------------------------------------


def test_embed_then_strip_gives_the_file_back_byte_for_byte(command, model, write):
    before = model.read_bytes()
    path = write(PER_LAYER)
    out = command("embed", model)
    assert out == f"{model}: holds the profile {path} now\n{path} is used in place of it while it is there\n"
    assert profile_keys(model) == profile_keys(path)
    assert command("strip", model) == f"{model}: the profile was taken out\n"
    assert model.read_bytes() == before
    assert command("strip", model) == f"{model}: there was no profile in it\n"
    assert sorted(p.name for p in model.parent.iterdir()) == ["m.ffnskip.gguf", "m.gguf"]


def test_embedding_another_profile_replaces_the_first(command, model, write):
    before = model.read_bytes()
    command("embed", model, "--profile", write(PER_LAYER))
    second = write(SkipConfig(policy="fixed", layers=[3]), learnt=None).rename(model.with_name("second.gguf"))
    assert command("embed", model, "--profile", second) == f"{model}: holds the profile {second} now\n"
    assert profile_keys(model) == profile_keys(second)
    command("strip", model)
    assert model.read_bytes() == before


@pytest.mark.parametrize("outtype", [None, "q4_0"])
def test_logits_of_the_model_do_not_change(model, write, tmp_path, outtype):
    path = write(PER_LAYER)
    if outtype is not None:
        model = quantize(model, tmp_path / "q.gguf", outtype)
    with plain(model) as llm:
        before = feed(llm, TOKENS, 0)
    embed_profile(model, path)
    with plain(model) as llm, ours(model, "auto") as skipping:
        assert bits_equal(feed(llm, TOKENS, 0), before)
        assert bits_equal(feed(skipping, TOKENS, 0), before)  # a prompt runs in full
        assert skipping.skip == read_profile(path).config


def test_a_split_model_holds_it_in_its_first_part(command, model, write, tmp_path):
    path = write(PER_LAYER)
    parts = split(model, tmp_path / "s.gguf", 30)
    before = [part.read_bytes() for part in parts]
    command("embed", parts[0], "--profile", path)
    with ours(parts[0], "auto") as llm:
        assert llm.skip.layer_thresholds is not None
    assert [part.read_bytes() for part in parts[1:]] == before[1:]
    command("strip", parts[0])
    assert parts[0].read_bytes() == before[0]


def test_another_models_profile_is_refused_with_both_fingerprints(refusal, model_file, write, tmp_path):
    other = Path(shutil.copy(model_file("phi3"), tmp_path / "phi3.gguf"))
    before = other.read_bytes()
    message = refusal("embed", other, "--profile", write(PER_LAYER))
    assert "it is for model 'llama-8x64-" in message and "but this is 'phi3-" in message
    assert other.read_bytes() == before


# --- metadata, byte by byte ------------------------------------------------------------------------------------------

U8, BOOL, STRING, ARRAY, F64 = 0, 7, 8, 9, 12


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def array(kind: int, n: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, n) + items


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


# What gguf-py writes wrongly or not at all, or decodes to something else.
STRANGE = [
    entry(b"a.invalid_utf8", STRING, text(b"\xff\xfe\x80")),
    entry(b"a.no_text", STRING, text(b"")),
    entry(b"a.vocabulary", ARRAY, array(STRING, 3, text(b"\xc3") + text(b"") + text("Ġä".encode()))),
    entry(b"a.empty", ARRAY, array(STRING, 0, b"")),
    entry(b"a.empty_bytes", ARRAY, array(U8, 0, b"")),
    entry(b"a.nested", ARRAY, array(ARRAY, 3, array(U8, 2, b"\x01\x02") + array(U8, 0, b"")
                                    + array(ARRAY, 1, array(STRING, 1, text(b"x"))))),
    entry(b"a.yes", BOOL, b"\x01"),
    entry(b"a.bools", ARRAY, array(BOOL, 3, b"\x01\x00\x01")),
    entry(b"a.nan", F64, struct.pack("<Q", 0x7FF8_0000_0000_BEEF)),
    entry(b"general.alignment", 4, struct.pack("<I", 64)),
]  # fmt: skip


def strange_model(path: Path) -> Path:
    """Two tensors of two and four floats, at the alignment that the metadata says, and something after them."""
    entries = [entry(b"general.architecture", STRING, text(b"llama")), *STRANGE]
    tensors = b"".join(
        text(name) + struct.pack("<IQIQ", 1, n, 0, offset) for name, n, offset in ((b"a", 2, 0), (b"b", 4, 64))
    )
    header = struct.pack("<4sIQQ", b"GGUF", 3, 2, len(entries)) + b"".join(entries) + tensors
    header += bytes(-len(header) % 64)
    path.write_bytes(header + os.urandom(64) + os.urandom(16) + b"trailing bytes")
    return path


def metadata_with_weights(path: Path) -> tuple[list[bytes], bytes]:
    """Read by offset alone: each of STRANGE, and everything from the tensors' first byte on."""
    data = path.read_bytes()
    return [raw for raw in STRANGE if data.count(raw) == 1], data[gguf.GGUFReader(path).tensors[0].data_offset :]


def test_all_other_metadata_and_all_weights_stay_as_they_are(tmp_path, write):
    path = strange_model(tmp_path / "strange.gguf")
    before, whole = metadata_with_weights(path), path.read_bytes()
    profile = write(PER_LAYER)
    for _ in range(2):
        embed_profile(path, profile)
        assert metadata_with_weights(path) == before and before[0] == STRANGE
        assert gguf.GGUFReader(path).tensors[0].data_offset % 64 == 0
        raw = [item.raw for item in read_header(profile).entries if item.key.startswith("ffnskip.")]
        assert b"".join(raw) in path.read_bytes()
    assert strip_profile(path) and path.read_bytes() == whole


def test_mode_and_link_of_the_file_are_kept(model, write, tmp_path):
    model.chmod(0o640)
    link = tmp_path / "link.gguf"
    link.symlink_to(model.name)
    embed_profile(link, write(PER_LAYER))
    assert link.is_symlink() and stat.S_IMODE(model.stat().st_mode) == 0o640
    assert profile_keys(model)["max_skip"] == 2


class _FullDisk:
    """open(), but a file written to has room for `room` bytes."""

    def __init__(self, room):
        self.room = room

    def __call__(self, path, mode="r", **options):
        file = open(path, mode, **options)
        if "w" in mode:
            write = file.write

            def limited(data):
                self.room -= len(data)
                if self.room < 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
                return write(data)

            wrapped = _Wrapped(file)
            wrapped.write = limited
            return wrapped
        return file


class _Wrapped:
    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()


@pytest.mark.parametrize("room", [0, 10, 5000, 100_000])
@pytest.mark.parametrize("action", ["embed", "strip", "set"])
def test_a_full_disk_leaves_the_model_as_it_was(refusal, model, write, monkeypatch, room, action):
    profile = write(PER_LAYER)
    embed_profile(model, profile)
    words = {"embed": [model, "--profile", profile], "strip": [model], "set": [model, "max_skip=1"]}[action]
    if action == "set":
        profile.unlink()
    before, files = model.read_bytes(), sorted(model.parent.iterdir())
    assert len(before) > 100_000
    monkeypatch.setattr("ffnskip_cpp.profile.open", _FullDisk(room), raising=False)
    assert f"{model}: the disk is full; it takes 1 MB; nothing was written" in refusal(action, *words)
    assert model.read_bytes() == before and sorted(model.parent.iterdir()) == files


# --- no good ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["show"], ["embed"], ["strip"], ["set", "max_skip=1"]], ids=lambda words: words[0])
def test_files_that_are_missing_or_damaged_are_refused_in_one_line(refusal, model, write, tmp_path, words):
    action, *rest = words
    assert "none.gguf: no such file" in refusal(action, tmp_path / "none.gguf", *rest)
    profile = write(PER_LAYER)
    embed_profile(model, profile)
    whole, given = model.read_bytes(), ["--profile", profile] if action == "embed" else []
    damaged = tmp_path / "damaged.gguf"
    for data in (b"", b"text", whole[:20], whole[:3000], b"GGUF" + whole[4:8] + b"\xff" * 16 + whole[24:], whole[::-1]):
        damaged.write_bytes(data)
        assert "damaged.gguf: " in refusal(action, damaged, *given, *rest)
        assert damaged.read_bytes() == data


def test_a_damaged_profile_is_refused_in_one_line(refusal, model, write):
    profile = write(PER_LAYER)
    whole = profile.read_bytes()
    for data, why in ((b"", "not a GGUF"), (b"text", "not a GGUF"), (whole[:100], "a truncated or damaged GGUF")):
        profile.write_bytes(data)
        for words in (["show", profile], ["show", model], ["embed", model], ["set", profile, "max_skip=1"]):
            assert f"m.ffnskip.gguf: {why} file" in refusal(*words)


def test_a_model_is_no_profile_and_a_profile_no_model(refusal, model, write):
    profile = write(PER_LAYER)
    assert "m.ffnskip.gguf: it is no model, there are no weights in it" in refusal("strip", profile)
    assert "has no ffnskip.model" in refusal("embed", model, "--profile", model)
    assert "m.ffnskip.gguf: " in refusal("embed", profile, "--profile", profile)
    profile.unlink()
    assert "there is no profile beside it (m.ffnskip.gguf); give one with --profile" in refusal("embed", model)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
@pytest.mark.parametrize("words", [["embed"], ["set", "max_skip=1"]], ids=lambda words: words[0])
def test_a_folder_that_cannot_be_written_to_is_named(refusal, model, write, words):
    write(PER_LAYER)
    model.parent.chmod(0o500)
    try:
        assert "Permission denied" in refusal(words[0], model, *words[1:])
    finally:
        model.parent.chmod(0o700)


def test_the_program_prints_one_line_too(tmp_path, write):
    """llama.cpp has a log of its own, which says more than one line about a damaged file."""
    profile = write(PER_LAYER)
    profile.write_bytes(profile.read_bytes()[:100])
    command = [sys.executable, "-m", "ffnskip_cpp", "profile", "show", str(profile)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
