"""Every way in uses the profile beside a model, or else the one inside, and says so; one that is no good is refused."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest

from ffnskip_cpp import SkipConfig, Unsupported
from ffnskip_cpp.cli.run import environment
from ffnskip_cpp.gguf_file.quantization import quantize
from ffnskip_cpp.profile import embed_profile, profile_path, write_profile
from support.running import F32_CACHE, GREEDY, ours, split

N_LAYER = 12
N_TOKENS = 40
MAIN = shutil.which("ffnskip-main") or str(Path(sysconfig.get_path("scripts")) / "ffnskip-main")

# What the profiles of these tests say, in Python and as options. Each makes other tokens than the others do.
CONFIGS = {
    "beside": SkipConfig(sim_threshold=-1.0, warm_up_index=2, max_skip=3, cold_s=3),
    "inside": SkipConfig(policy="fixed", layers=[1, 4, 6, 7, 8], warm_up_index=1),
    "per_layer": SkipConfig(policy="ffn_skip_per_layer", layer_thresholds=[0.93, -1.0] * 6, warm_up_index=1),
    "both": SkipConfig(
        policy="fixed_plus_ffn_skip", layers=[2, 3], sim_threshold=0.93, max_skip=2, check_stride=2, warm_up_index=3
    ),
}
OPTIONS = {
    "beside": ["--sim-threshold", "-1", "--warm-up", "2", "--max-skip", "3", "--cold-s", "3"],
    "inside": ["--skip-layers", "1,4,6-8", "--warm-up", "1"],
    "per_layer": ["--layer-thresholds", ",".join(["0.93", "-1"] * 6), "--warm-up", "1"],
    "both": ["--policy", "fixed_plus_ffn_skip", "--skip-layers", "2,3", "--sim-threshold", "0.93", "--max-skip", "2",
             "--check-stride", "2", "--warm-up", "3"],
    "dense": ["--no-skip"],
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(model_file):
    return model_file("llama", n_layer=N_LAYER)


@pytest.fixture(scope="module")
def profiles(tiny, tmp_path_factory):
    """A profile of the tiny model for each of CONFIGS, by name."""
    folder = tmp_path_factory.mktemp("profiles")
    with ours(tiny, None) as llm:
        for name, config in CONFIGS.items():
            llm.skip = config
            llm.save_profile(folder / f"{name}.gguf")
    return {name: folder / f"{name}.gguf" for name in CONFIGS}


@pytest.fixture(params=["one_file", "split"])
def model(request, tiny, tmp_path):
    """A copy of the tiny model, in a folder of its own."""
    if request.param == "split":
        return split(tiny, tmp_path / "m.gguf")[0]
    return Path(shutil.copy(tiny, tmp_path / "m.gguf"))


# --- the ways in: each gives what it generated, and what it said ------------------------------------------------------


def python(model, options=None, *, caplog, **_):
    skip = "auto" if options is None else _config(options)
    with caplog.at_level(logging.INFO, logger="ffnskip_cpp"), ours(model, skip, n_ctx=4096, **F32_CACHE) as llm:
        return list(llm.generate(list(b"abcde"), max_tokens=N_TOKENS, **GREEDY)), caplog.text


def _config(options):
    return next((CONFIGS[name] for name, given in OPTIONS.items() if given == options and name in CONFIGS), None)


def main(model, options=None, **_):
    command = [MAIN, "-m", model, "-p", "abcde", "-n", N_TOKENS, "--temp", 0, "-t", 1, *(options or [])]
    return _finished(command)


def under_run(model, options=None, *, client, **_):
    command = [sys.executable, "-m", "ffnskip_cpp", "run", *(options or []), "--"]
    return _finished([*command, client("greedy"), model, N_TOKENS])


def _finished(command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, timeout=300, **options)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout, result.stderr.decode()


@pytest.fixture(params=[python, main, under_run], ids=["python", "ffnskip-main", "ffnskip_run"])
def way_in(request, client, caplog):
    def run(model, options=None):
        caplog.clear()
        return request.param(model, options, client=client, caplog=caplog)

    return run


# --- found -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["beside", "inside", "both"])
def test_a_profile_beside_or_else_in_the_model_is_used_and_named(model, profiles, way_in, place):
    beside, used = profile_path(model), profiles["inside" if place == "inside" else "beside"]
    if place != "beside":
        embed_profile(model, profiles["inside"])
    if place != "inside":
        shutil.copy(profiles["beside"], beside)
    made, said = way_in(model)
    assert f"as {model if place == 'inside' else beside} says" in said
    assert made == way_in(model, OPTIONS[used.stem])[0]
    assert made not in [way_in(model, options)[0] for name, options in OPTIONS.items() if name != used.stem]


def test_a_profile_is_not_named_again_where_skipping_goes_on(model, profiles, caplog):
    shutil.copy(profiles["beside"], profile_path(model))
    with caplog.at_level(logging.INFO, logger="ffnskip_cpp"), ours(model, "auto") as llm:
        for context in (llm.dense(), llm.skipping(0.5)):
            with context:
                pass
        assert llm.resolved["max_skip"] == 3
    assert caplog.text.count("says") == 1


@pytest.mark.parametrize("name", ["per_layer", "both"])
def test_every_policy_comes_out_as_it_went_in(model, profiles, way_in, name):
    shutil.copy(profiles[name], profile_path(model))
    made, _ = way_in(model)
    assert made == way_in(model, OPTIONS[name])[0] != way_in(model, OPTIONS["dense"])[0]


def test_a_skip_option_replaces_the_profile(model, profiles, way_in):
    shutil.copy(profiles["beside"], profile_path(model))
    made, said = way_in(model, OPTIONS["inside"])
    profile_path(model).unlink()
    assert made == way_in(model, OPTIONS["inside"])[0]
    assert f"as {profile_path(model)} says" not in said


@pytest.mark.parametrize("skip", [0.25, SkipConfig(), None], ids=str)
def test_a_value_of_skip_replaces_the_profile(model, profiles, skip, caplog):
    shutil.copy(profiles["beside"], profile_path(model))
    with caplog.at_level(logging.DEBUG, logger="ffnskip_cpp"), ours(model, skip) as llm:
        assert llm.skip == (SkipConfig(skip_ratio=skip) if isinstance(skip, float) else skip)
        assert not caplog.records
        llm.skip = "auto"
        assert llm.resolved["max_skip"] == 3


@pytest.mark.parametrize("outtype", ["q8_0", "q4_0"])
def test_quantised_copies_take_the_same_profile(tiny, profiles, tmp_path, way_in, outtype):
    embedded = Path(shutil.copy(tiny, tmp_path / "embedded.gguf"))
    embed_profile(embedded, profiles["inside"])
    quantised = quantize(embedded, tmp_path / "q.gguf", outtype)  # what is in the file comes along
    made, said = way_in(quantised)
    assert f"as {quantised} says" in said and made == way_in(quantised, OPTIONS["inside"])[0]
    shutil.copy(profiles["beside"], profile_path(quantised))
    assert way_in(quantised)[0] == way_in(quantised, OPTIONS["beside"])[0] != made


def test_a_link_to_a_model_has_the_profile_beside_the_link(tiny, profiles, tmp_path, way_in):
    link = tmp_path / "link.gguf"
    link.symlink_to(tiny)
    shutil.copy(profiles["beside"], tmp_path / "link.ffnskip.gguf")
    made, said = way_in(link)
    assert "link.ffnskip.gguf says" in said and made == way_in(tiny, OPTIONS["beside"])[0]


# --- no good ---------------------------------------------------------------------------------------------------------


def spoil(how, profiles, model_file, to):
    if how == "another_model":
        with ours(model_file("phi3"), SkipConfig()) as llm:
            llm.save_profile(to)
    elif how == "truncated":
        to.write_bytes(profiles["beside"].read_bytes()[:100])
    elif how == "no_gguf":
        to.write_text("sim_threshold = 0.9\n")
    elif how == "folder":
        to.mkdir()
    elif how == "does_not_fit":
        with ours(model_file("llama", n_layer=N_LAYER), SkipConfig()) as llm:
            unfit = {"cold_s": 0, "cold_e": N_LAYER, "max_skip": 1}
            write_profile(to, llm.fingerprint, SkipConfig(), unfit)


SPOILED = {
    "another_model": "it is for model 'phi3-",
    "truncated": "is truncated or damaged",
    "no_gguf": "is no GGUF file",
    "folder": "can't be read",
    "does_not_fit": f"cold_e: {N_LAYER} is past {N_LAYER - 1}",
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_profile_that_is_no_good_is_refused_not_passed_over(tiny, profiles, model_file, client, tmp_path, how):
    model = Path(shutil.copy(tiny, tmp_path / "m.gguf"))
    spoil(how, profiles, model_file, profile_path(model))
    message = f"profile {profile_path(model)}: {SPOILED[how]}"

    with pytest.raises(ValueError) as refused, ours(model, "auto"):
        pass
    assert str(refused.value).startswith(message) and not isinstance(refused.value, Unsupported)

    result = subprocess.run([MAIN, "-m", model, "-p", "abc", "-n", "3"], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert message in result.stderr

    command = [sys.executable, "-m", "ffnskip_cpp", "run"]
    program = [client("greedy"), model, str(N_TOKENS)]
    made, said = _finished([*command, "--", *program])
    assert message in said and "this context runs dense" in said
    assert made == _finished(program)[0]
    strict = subprocess.run([*command, "--strict", "--", *program], capture_output=True, text=True)
    assert (strict.returncode, strict.stdout) == (2, "") and message in strict.stderr

    dense, _ = _finished([*command, "--warm-up", "9999", "--", *program])  # an option: the profile is not even read
    assert dense == made


# --- Python ----------------------------------------------------------------------------------------------------------


def test_a_pickled_object_looks_for_the_profile_anew(model, profiles):
    shutil.copy(profiles["beside"], profile_path(model))
    with ours(model, "auto") as llm:
        pickled = pickle.dumps(llm)
        settings = dict(llm.resolved)
    copy = pickle.loads(pickled)
    assert dict(copy.resolved) == settings
    copy.close()
    shutil.copy(profiles["inside"], profile_path(model))
    copy = pickle.loads(pickled)
    assert copy.skip.layers is not None
    copy.close()


def test_two_threads_generate_what_they_generate_alone(model, profiles):
    shutil.copy(profiles["beside"], profile_path(model))
    prompts = [list(b"abcde"), list(b"the weather")]
    made: dict[int, list[int]] = {}

    def generate(i):
        with ours(model, "auto") as llm:
            made[i] = list(llm.generate(prompts[i], max_tokens=100, **GREEDY))

    threads = [threading.Thread(target=generate, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, prompt in enumerate(prompts):
        with ours(model, CONFIGS["beside"]) as llm:
            assert made[i] == list(llm.generate(prompt, max_tokens=100, **GREEDY))


def test_an_embedding_context_and_a_model_without_ffn_have_no_use_for_a_profile(model_file, profiles, tmp_path):
    for kind, options in (("llama", {"embedding": True}), ("mamba", {})):
        model = tmp_path / f"{kind}.gguf"
        model.symlink_to(model_file(kind))
        shutil.copy(profiles["beside"], profile_path(model))
        with ours(model, "auto", **options) as llm:
            assert llm.skip is None and llm.why_dense


# --- ffnskip run -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_greedy(client, tiny):
    """run_greedy(*options, program=None, **subprocess options) of `ffnskip run`."""

    def run(*options, program=None, **kwargs):
        program = program or [client("greedy"), tiny, N_TOKENS]
        return _finished([sys.executable, "-m", "ffnskip_cpp", "run", *options, "--", *program], **kwargs)

    return run


def test_a_given_profile_is_used_whatever_folder_it_is_named_from(profiles, run_greedy):
    expected, _ = run_greedy(*OPTIONS["inside"])
    assert run_greedy("--profile", profiles["inside"])[0] == expected
    relative = os.path.join("..", profiles["inside"].parent.name, "inside.gguf")
    assert run_greedy("--profile", relative, cwd=profiles["inside"].parent)[0] == expected
    given = {**os.environ, "FFNSKIP_PROFILE": str(profiles["inside"])}
    assert run_greedy(env=given)[0] == expected


def test_options_change_single_values_of_a_given_profile(profiles, run_greedy):
    changed, _ = run_greedy("--profile", profiles["beside"], "--warm-up", "9")
    assert changed == run_greedy(*OPTIONS["beside"], "--warm-up", "9")[0]
    same, _ = run_greedy("--profile", profiles["inside"], "--policy", "fixed")  # whose layers are in the profile
    assert same == run_greedy(*OPTIONS["inside"])[0]


def test_options_that_do_not_go_with_the_profile_are_refused_before_the_program_starts(profiles, client, tiny):
    """They were checked without it, and the program ran dense."""
    command = [sys.executable, "-m", "ffnskip_cpp", "run", "--profile", profiles["beside"], "--cold-e", "2", "--"]
    result = subprocess.run([*command, client("greedy"), tiny, "3"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "ffnskip run: cold_s: 3 must be below cold_e = 2\n"
    with pytest.raises(ValueError, match="cold_s: 3 must be below cold_e = 2"):
        environment({"cold-e": "2"}, profiles["beside"])


def test_the_environment_names_the_profile_by_its_whole_path(profiles, monkeypatch):
    monkeypatch.chdir(profiles["beside"].parent)
    variables = environment({"warm-up": "9"}, "beside.gguf")
    assert variables == {"FFNSKIP_WARM_UP": "9", "FFNSKIP_PROFILE": str(profiles["beside"])}
    with pytest.raises(FileNotFoundError, match=r"none\.gguf: no such file"):
        environment({}, "none.gguf")


@pytest.mark.parametrize("how", ["another_model", "truncated"])
def test_a_given_profile_that_is_no_good_is_refused(tiny, profiles, model_file, client, tmp_path, how):
    spoil(how, profiles, model_file, tmp_path / "p.gguf")
    why = {**SPOILED, "truncated": "a truncated or damaged GGUF file"}[how]
    status = 1 if how == "truncated" else 2  # 2: --strict, said by what is preloaded
    command = [sys.executable, "-m", "ffnskip_cpp", "run", "--strict", "--profile", tmp_path / "p.gguf", "--"]
    result = subprocess.run([*command, client("greedy"), tiny, "3"], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert f"profile {tmp_path / 'p.gguf'}: {why}" in result.stderr


def test_a_profile_is_found_and_named_once_by_a_program_with_many_contexts(
    tiny, profiles, run_greedy, client, tmp_path
):
    """Opened by a relative path and llama.cpp's older name, in a folder the program leaves; decoded in two threads."""
    shutil.copy(tiny, tmp_path / "m.gguf")
    shutil.copy(profiles["beside"], tmp_path / "m.ffnskip.gguf")
    made, said = run_greedy(program=[client("contexts"), "m.gguf", N_TOKENS], cwd=tmp_path)
    first, second, again = made.splitlines()
    assert first == again == run_greedy(*OPTIONS["beside"])[0].strip(b"\n")
    assert made == run_greedy(*OPTIONS["beside"], program=[client("contexts"), tiny, N_TOKENS])[0]
    assert second != first
    assert said.count(f"skipping as {tmp_path / 'm.ffnskip.gguf'} says\n") == 1
    assert f"{3 * (N_TOKENS - 1)} generated tokens" in said


def test_a_context_that_only_measures_memory_does_not_use_the_profile_up(tiny, profiles, run_greedy, client, tmp_path):
    model = Path(shutil.copy(tiny, tmp_path / "m.gguf"))
    shutil.copy(profiles["beside"], tmp_path / "m.ffnskip.gguf")
    made, said = run_greedy("--strict", program=[client("greedy"), model, N_TOKENS, "fit"])
    assert made == run_greedy(*OPTIONS["beside"])[0]
    assert said.count("says\n") == 1
