"""A saved profile brings a model's settings back; another model's profile, or a damaged one, is refused."""

from __future__ import annotations

import gguf
import pytest

from ffnskip_cpp import SkipConfig
from ffnskip_cpp.quantize import quantize
from running import ours


def keys_of(path):
    fields = gguf.GGUFReader(str(path)).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("ffnskip.")}


def test_a_profile_holds_the_settings_as_they_apply_to_the_model(model_file, tmp_path):
    with ours(model_file("llama"), SkipConfig(sim_threshold=0.75, skip_ratio=0.25, warm_up_index=3)) as llm:
        llm.save_profile(tmp_path / "a.ffnskip.gguf")
        keys = keys_of(tmp_path / "a.ffnskip.gguf")
        assert keys.pop("ffnskip.model").startswith("llama-")
        resolved = llm._controller.resolved
    assert keys == {f"ffnskip.{key}": value for key, value in resolved.items()}


def test_a_profile_of_fixed_layers_holds_them(model_file, tmp_path):
    with ours(model_file("llama"), SkipConfig(policy="fixed", layers=[2, 5], warm_up_index=0)) as llm:
        llm.save_profile(tmp_path / "a.ffnskip.gguf")
    keys = keys_of(tmp_path / "a.ffnskip.gguf")
    assert (keys["ffnskip.policy"], keys["ffnskip.layers"], keys["ffnskip.warm_up_index"]) == ("fixed", [2, 5], 0)


@pytest.mark.parametrize("skip", [None, SkipConfig(policy="random")])
def test_what_no_profile_holds_is_refused(model_file, tmp_path, skip):
    with ours(model_file("llama"), skip) as llm, pytest.raises(ValueError, match="is not kept in profiles"):
        llm.save_profile(tmp_path / "a.ffnskip.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_file_is_the_same_model_and_another_seed_is_not(model_file, tmp_path):
    def fingerprint(path):
        with ours(path, None) as llm:
            return llm._controller.fingerprint

    path = model_file("llama")
    assert fingerprint(path) == fingerprint(quantize(path, tmp_path / "q8_0.gguf", "q8_0"))
    assert fingerprint(path) != fingerprint(model_file("llama", seed=99))
    assert fingerprint(path) != fingerprint(model_file("phi3"))
