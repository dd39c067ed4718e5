"""A profile brings a model's settings back, whatever the policy; another model's, or a damaged one, is refused."""

from __future__ import annotations

import math

import gguf
import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from ffnskip_cpp.gguf_file.quantization import quantize
from ffnskip_cpp.profile import locate_profile, profile_keys, profile_path, read_profile, write_profile
from support.running import ours

# One setting of each policy that profiles keep, for a model of 16 layers; and the values that the model fills in.
KEPT = {
    "ffn_skip": SkipConfig(sim_threshold=0.75, skip_ratio=0.25, warm_up_index=3),
    "ffn_skip_per_layer": SkipConfig(
        policy="ffn_skip_per_layer", layer_thresholds=[0.5, -1.0, math.inf, 2.0] * 4, cold_s=1, max_skip=5
    ),
    "fixed": SkipConfig(policy="fixed", layers=[2, 5], warm_up_index=0),
    "fixed_plus_ffn_skip": SkipConfig(
        policy="fixed_plus_ffn_skip", layers=[0, 14], sim_threshold=0.5, cold_e=12, max_skip=2, check_stride=2
    ),
    "every_third_token": SkipConfig(sim_threshold=0.75, cold_e=12, max_skip=2, check_interval=3),
    "skip_decode": SkipConfig("skip_decode", skip_ratio=0.2, cold_s=3, budget_decay=20),
}
ALL_KEYS = {
    "ffn_skip": {"policy": "ffn_skip", "sim_threshold": 0.75, "cold_s": 2, "cold_e": 14, "max_skip": 4,
                 "warm_up_index": 3},
    "ffn_skip_per_layer": {"policy": "ffn_skip", "layer_thresholds": [0.5, -1.0, math.inf, 2.0] * 4,
                           "cold_s": 1, "cold_e": 14, "max_skip": 5, "warm_up_index": 30},
    "fixed": {"policy": "ffn_skip", "layers": [2, 5], "max_skip": 0, "warm_up_index": 0},
    "fixed_plus_ffn_skip": {"policy": "ffn_skip", "sim_threshold": 0.5, "layers": [0, 14], "cold_s": 2,
                            "cold_e": 12, "max_skip": 2, "check_stride": 2, "warm_up_index": 30},
    "every_third_token": {"policy": "ffn_skip", "sim_threshold": 0.75, "cold_s": 2, "cold_e": 12, "max_skip": 2,
                          "check_interval": 3, "warm_up_index": 30},
    "skip_decode": {"policy": "skip_decode", "cold_s": 3, "cold_e": 14, "min_layers": 10, "budget_decay": 20,
                    "warm_up_index": 30},
}  # fmt: skip

TOKENS = np.random.default_rng(5).integers(0, 256, 40).tolist()


def keys_of(path):
    fields = gguf.GGUFReader(str(path)).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("ffnskip.")}


@pytest.fixture
def saved(model_file, tmp_path):
    """saved(config): the profile of the llama model with it."""

    def save(config):
        with ours(model_file("llama"), config) as llm:
            llm.save_profile(tmp_path / "a.ffnskip.gguf")
        return tmp_path / "a.ffnskip.gguf"

    return save


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", KEPT)
def test_a_profile_holds_what_the_policy_needs_as_it_applies_to_the_model(saved, policy):
    keys = keys_of(saved(KEPT[policy]))
    assert keys.pop("ffnskip.model").startswith("llama-16x64-")
    assert keys == {f"ffnskip.{key}": value for key, value in ALL_KEYS[policy].items()}


@pytest.mark.parametrize("policy", KEPT)
def test_a_profile_skips_as_the_settings_did_that_it_was_made_from(model_file, saved, policy):
    path, profile = model_file("llama"), saved(KEPT[policy])
    runs = []
    for skip in (KEPT[policy], profile, str(profile), read_profile(profile).config):
        with ours(path, skip) as llm:
            logits = llm.forward(TOKENS)
            runs.append((logits.tobytes(), llm.stats.ffn_skipped, llm.stats.checks, dict(llm.resolved)))
    assert runs[0][1] > 0 and all(run == runs[0] for run in runs)
    for key, value in ALL_KEYS[policy].items():
        found = getattr(read_profile(profile).config, key)
        assert (list(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize("skip", [None, SkipConfig(policy="random"), SkipConfig(policy="random_adaptive_region")])
def test_what_no_profile_holds_is_refused(model_file, tmp_path, skip):
    with ours(model_file("llama"), skip) as llm, pytest.raises(ValueError, match="is not kept in profiles"):
        llm.save_profile(tmp_path / "a.ffnskip.gguf")
    assert list(tmp_path.iterdir()) == []


def test_what_was_learnt_comes_back_with_its_type(tmp_path):
    learnt = {
        "text": "a", "count": 7, "share": 0.25, "seed": 2**40, "below": -1, "texts": ["a", "b"],
        "counts": [0, 2**32 - 1], "shares": [0.5, -0.25, math.inf], "mixed": [1, 0.5], "flag": True, "nothing": [],
        "none": None, "rows": [{"kl": 0.5, "layers": [1, 2]}], "odd": [1, "a"],
    }  # fmt: skip
    config = KEPT["fixed"]
    write_profile(tmp_path / "a.gguf", "m", config, {"cold_s": 0, "cold_e": 1, "max_skip": 1}, learnt)
    keys = profile_keys(tmp_path / "a.gguf")
    as_json = {"nothing": "[]", "none": "null", "rows": '[{"kl": 0.5, "layers": [1, 2]}]',
               "odd": '[1, "a"]'}  # fmt: skip
    assert {key: keys[key] for key in learnt} == {**learnt, **as_json}
    assert list(keys) == ["model", *ALL_KEYS["fixed"], *learnt]


def test_a_profile_survives_the_failure_to_write_another(saved):
    profile = saved(KEPT["ffn_skip"])
    before = profile.read_bytes()
    with pytest.raises(TypeError):
        write_profile(profile, "m", KEPT["fixed"], {"cold_s": 0, "cold_e": 1, "max_skip": 1}, {"x": object()})
    assert profile.read_bytes() == before
    assert [path.name for path in profile.parent.iterdir()] == [profile.name]


# --- channels --------------------------------------------------------------------------------------------------------

THRESHOLDS = [0.0, 0.0, 0.25, 0.5] * 16
OF_CHANNELS = {
    "thresholds": (
        SkipConfig("channels", channel_thresholds=THRESHOLDS, layers=[3], warm_up_index=2),
        {"channel_thresholds": THRESHOLDS, "layers": [3], "warm_up_index": 2},
    ),
    "ratio": (
        SkipConfig("channels", skip_ratio=0.5, tensors="all", cold_s=2),
        {"skip_ratio": 0.5, "tensors": "all", "cold_s": 2, "warm_up_index": 30},
    ),
    "default": (SkipConfig("channels"), {"skip_ratio": 1 / 3, "tensors": "ffn", "warm_up_index": 30}),
}


@pytest.mark.parametrize("which", OF_CHANNELS)
def test_a_profile_of_channels_leaves_out_what_its_settings_did(model_file, saved, which):
    config, expected = OF_CHANNELS[which]
    profile = saved(config)
    keys = keys_of(profile)
    assert keys.pop("ffnskip.model").startswith("llama-16x64-")
    assert keys == {"ffnskip.policy": "channels", **{f"ffnskip.{key}": value for key, value in expected.items()}}
    runs = []
    for skip in (config, profile, read_profile(profile).config):
        with ours(model_file("llama"), skip) as llm:
            runs.append((llm.forward(TOKENS).tobytes(), llm.stats.bytes_left_out, llm.stats.ffn_skipped))
    assert runs[0] == runs[1] == runs[2]
    assert which == "default" or runs[0][1] > 0


def test_what_was_measured_does_not_change_what_thresholds_leave_out(tmp_path):
    """`skip_ratio` is a setting only where there are none."""
    config = OF_CHANNELS["thresholds"][0]
    write_profile(tmp_path / "a.gguf", "m", config, {}, {"skip_ratio": 0.125, "tensors_tried": "all"})
    assert read_profile(tmp_path / "a.gguf").config == config
    assert profile_keys(tmp_path / "a.gguf")["skip_ratio"] == 0.125


# --- whose it is -----------------------------------------------------------------------------------------------------


def test_a_quantised_file_is_the_same_model_and_another_seed_is_not(model_file, tmp_path):
    def fingerprint(path):
        with ours(path, None) as llm:
            return llm.fingerprint

    path = model_file("llama")
    assert fingerprint(path) == fingerprint(quantize(path, tmp_path / "q8_0.gguf", "q8_0"))
    assert fingerprint(path) != fingerprint(model_file("llama", seed=99))
    assert fingerprint(path) != fingerprint(model_file("phi3"))


def test_another_models_profile_is_refused_with_its_name_and_both_fingerprints(model_file, saved):
    profile = saved(KEPT["ffn_skip"])
    with pytest.raises(ValueError, match=rf"profile {profile}: it is for model 'llama-16x64-.*', but this is 'phi3-"):
        with ours(model_file("phi3"), profile):
            pass


def test_settings_that_do_not_fit_the_model_are_refused_with_the_name_of_the_file(model_file, tmp_path):
    profile = tmp_path / "a.gguf"
    with ours(model_file("llama"), None) as llm:
        resolved = {"cold_s": 2, "cold_e": 14, "max_skip": 13}
        write_profile(profile, llm.fingerprint, KEPT["ffn_skip"], resolved)
    with pytest.raises(ValueError, match=rf"profile {profile}: max_skip: 13 is too many"):
        with ours(model_file("llama"), profile):
            pass


# --- damage ----------------------------------------------------------------------------------------------------------


def write_keys(path, **keys):
    writer = gguf.GGUFWriter(str(path), "ffnskip")
    for key, (value, *types) in keys.items():
        writer.add_key_value(f"ffnskip.{key}", value, *types)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


TEXT, U32, F32, LIST = (getattr(gguf.GGUFValueType, name) for name in ("STRING", "UINT32", "FLOAT32", "ARRAY"))
GOOD = {"model": ("m", TEXT), "policy": ("fixed", TEXT), "layers": ([1], LIST, U32), "warm_up_index": (0, U32)}


@pytest.mark.parametrize(
    "keys, why",
    [
        ({"model": None}, "has no ffnskip.model"),
        ({"layers": None}, "has no ffnskip.layers"),
        ({"warm_up_index": None}, "has no ffnskip.warm_up_index"),
        ({"warm_up_index": (3.0, F32)}, "ffnskip.warm_up_index is a f32, not a u32"),
        ({"layers": (1, U32)}, "ffnskip.layers is a u32, not a arr"),
        ({"layers": ([0.5], LIST, F32)}, "ffnskip.layers is no list of u32"),
        ({"policy": ("of_tomorrow", TEXT)}, "policy: 'of_tomorrow' is unknown; known are dense"),
        ({"policy": ("fixed_plus_ffn_skip", TEXT)}, "has no ffnskip.sim_threshold"),
        ({"policy": ("ffn_skip", TEXT)}, "has no ffnskip.sim_threshold"),
        ({"policy": ("ffn_skip_per_layer", TEXT)}, "has no ffnskip.layer_thresholds"),
        ({"policy": (1, U32)}, "ffnskip.policy is a u32, not a str"),
        ({"policy": ("channels", TEXT)}, "has no ffnskip.skip_ratio"),
        (
            {"policy": ("channels", TEXT), "channel_thresholds": ([1], LIST, U32)},
            "ffnskip.channel_thresholds is no list of f64",
        ),
    ],
)
def test_a_key_that_is_missing_or_wrong_is_named_with_the_file(tmp_path, keys, why):
    assert read_profile(write_keys(tmp_path / "good.gguf", **GOOD)).config == SkipConfig(
        "fixed", layers=[1], warm_up_index=0
    )
    path = write_keys(tmp_path / "a.gguf", **{key: value for key, value in {**GOOD, **keys}.items() if value})
    with pytest.raises(ValueError, match=f"^profile {path}: {why}"):
        read_profile(path)


OLD_PROFILES = {
    "fixed": (GOOD, SkipConfig("fixed", layers=[1], warm_up_index=0)),
    "ffn_skip": (
        {"policy": ("ffn_skip", TEXT), "sim_threshold": (0.9, F32)},
        SkipConfig(sim_threshold=0.9, cold_s=1, cold_e=6, max_skip=2, warm_up_index=7),
    ),
    "fixed_plus_ffn_skip": (
        {"policy": ("fixed_plus_ffn_skip", TEXT), "sim_threshold": (0.95, F32), "layers": ([3, 2], LIST, U32)},
        SkipConfig("ffn_skip", 0.95, layers=[3, 2], cold_s=1, cold_e=6, max_skip=2, warm_up_index=7),
    ),
    "ffn_skip_per_layer": (
        {"policy": ("ffn_skip_per_layer", TEXT), "layer_thresholds": ([0.9, 0.123456, math.inf], LIST, F32)},
        SkipConfig(layer_thresholds=[0.9, 0.123456, math.inf], cold_s=1, cold_e=6, max_skip=2, warm_up_index=7),
    ),
}


@pytest.mark.parametrize("policy", OLD_PROFILES)
def test_a_profile_of_an_older_version_means_what_it_did(tmp_path, policy):
    """Which named seven policies and kept numbers as float32."""
    keys, config = OLD_PROFILES[policy]
    region = {"cold_s": (1, U32), "cold_e": (6, U32), "max_skip": (2, U32), "warm_up_index": (7, U32)}
    path = write_keys(tmp_path / "a.gguf", **{"model": ("m", TEXT), **({} if policy == "fixed" else region), **keys})
    assert read_profile(path).config == config


def test_every_truncation_is_refused_with_the_name_of_the_file(saved):
    path = saved(KEPT["fixed_plus_ffn_skip"])
    whole = path.read_bytes()
    end = whole.index(b"ffnskip.warm_up_index") + len(b"ffnskip.warm_up_index") + 4 + 4  # the rest is padding
    for length in range(0, end, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"profile {path}: "):
            read_profile(path)


# --- where it lies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, profile",
    [
        ("a.gguf", "a.ffnskip.gguf"),
        ("a", "a.ffnskip.gguf"),
        ("dir.gguf/a.gguf", "dir.gguf/a.ffnskip.gguf"),
        ("a-00001-of-00003.gguf", "a.ffnskip.gguf"),
        ("x/a-00003-of-00003.gguf", "x/a.ffnskip.gguf"),
        ("a-0001-of-0003.gguf", "a-0001-of-0003.ffnskip.gguf"),
        ("a-00001-of-00003-q8.gguf", "a-00001-of-00003-q8.ffnskip.gguf"),
        ("00001-of-00003.gguf", "00001-of-00003.ffnskip.gguf"),
        ("a.gguf.gguf", "a.gguf.ffnskip.gguf"),
    ],
)
def test_the_profile_of_a_model_is_named_after_it(model, profile):
    assert str(profile_path(model)) == profile


def test_a_profile_is_located_beside_a_model_or_is_the_file_itself(model_file, saved, tmp_path):
    profile = saved(KEPT["fixed"])
    model = tmp_path / "a.gguf"
    model.symlink_to(model_file("llama"))
    assert locate_profile(profile) == locate_profile(model) == profile
    profile.rename(tmp_path / "b.gguf")
    with pytest.raises(ValueError, match=r"there is no profile in this model, nor beside it \(a.ffnskip.gguf\)"):
        locate_profile(model)
    with pytest.raises(FileNotFoundError, match=r"c\.gguf: no such file"):
        locate_profile(tmp_path / "c.gguf")


def test_a_profile_with_any_byte_changed_is_read_or_refused_by_its_name(tmp_path, capfd):
    path = tmp_path / "m.ffnskip.gguf"
    config = SkipConfig(policy="fixed_plus_ffn_skip", layers=[1, 2], sim_threshold=0.9, cold_s=1, cold_e=5, max_skip=2)
    given = {"cold_s": 1, "cold_e": 5, "max_skip": 2}
    write_profile(path, "llama-6x64-0123456789abcdef", config, given, {"kl": [0.5, 0.25], "text": "ä", "rows": [{}]})
    whole = path.read_bytes()
    for at in range(len(whole)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            for read in (read_profile, profile_keys, locate_profile):
                try:
                    read(path)
                except ValueError as error:
                    assert type(error) is ValueError and "\n" not in str(error)  # no UnicodeDecodeError
                    assert str(path) in str(error)
    assert capfd.readouterr() == ("", "")  # gguf's own reader has a log


def test_bytes_that_are_no_text_are_refused_by_key(tmp_path):
    path = tmp_path / "m.ffnskip.gguf"
    config = SkipConfig(policy="fixed", layers=[1], warm_up_index=0)
    write_profile(path, "llama-6x64-0123456789abcdef", config, {}, {"text": "nothing"})
    path.write_bytes(path.read_bytes().replace(b"nothing", b"no\xff\xfe\x80ng"))
    with pytest.raises(ValueError, match=r"m\.ffnskip\.gguf: 'ffnskip\.text' has bytes in it that are no text"):
        read_profile(path)
