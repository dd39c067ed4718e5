"""`ffnskip run`: programs that know nothing of it (tests/cpp/clients) skip, and otherwise do what they do alone."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ffnskip_cpp import SkipConfig
from support import running
from support.channel_bytes import NO_CHANNELS, ffn_bytes
from support.running import F32_CACHE, ours

N_LAYER = 12
N_TOKENS = 200
WARM_UP = 5

# Rows decoded together differ from rows decoded alone in the order of sums. A decision closer than this may go the
# other way (a difference of 1e-6 or so was seen).
CLOSE_CALL = 2e-5

# The second kind of batch of newer versions.
EXT = pytest.param("ext", marks=pytest.mark.skipif(not running.HAVE_LLAMA_PROCESS, reason="no llama_process"))

ALWAYS_TRIPS = ["--sim-threshold", "-1", "--warm-up", str(WARM_UP)]


@pytest.fixture(scope="module")
def model(model_file):
    return model_file("llama", n_layer=N_LAYER)


def run(*words: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, **options)


def under_ffnskip(options, *program, **kwargs) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "ffnskip_cpp", "run", *options, "--", *program, **kwargs)


def tokens_of(result) -> list[list[int]]:
    assert result.returncode == 0, result.stderr
    return [[int(word) for word in line.split()] for line in result.stdout.splitlines() if line[0].isdigit()]


def prompt_of(seq: int) -> list[int]:
    """As tests/cpp/clients/client.h makes it."""
    return [(7919 * (seq + 1) + 104729 * i) % 256 for i in range(5 + seq % 7)]


def expected(path: Path, seq: int, n: int, config: SkipConfig) -> tuple[list[int], object]:
    """Greedy tokens of the sequence alone, from Python, where rows are told what they are; and the trace."""
    with ours(path, config, n_ctx=4096, **F32_CACHE) as llm, llm.trace() as trace:
        tokens = list(llm.generate(prompt_of(seq), max_tokens=n, temp=0.0, repeat_penalty=1.0))
    return tokens, trace


# --- nothing is skipped: nothing changes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [["--no-skip"], ["--sim-threshold", "1.5", "--warm-up", "0"], ["--warm-up", "9999"]]
)
@pytest.mark.parametrize("api", ["decode", EXT, "callback"])
def test_output_is_that_of_the_program_alone(client, model, options, api):
    program = [client("callback"), model, 60] if api == "callback" else [client("greedy"), model, 60, api]
    alone = run(*program)
    assert alone.returncode == 0 and alone.stdout
    assert under_ffnskip(options, *program).stdout == alone.stdout


NO_PROFILE = (
    'ffnskip: no skip profile for this model: nothing is skipped; "ffnskip calibrate MODEL --text FILE" makes one, '
    '"ffnskip try MODEL" says what skipping would cost\n'
)
UNCALIBRATED = 'ffnskip: these values are not calibrated for this model; "ffnskip try MODEL" says what they cost\n'


@pytest.mark.parametrize("name", ["greedy", "callback", "contexts"])
def test_without_a_profile_or_an_option_the_program_runs_as_if_alone(client, model, name):
    """Its contexts have no callback but the program's own; it says once why nothing is skipped."""
    result = under_ffnskip([], client(name), model, 30)
    assert (result.returncode, result.stderr) == (0, NO_PROFILE)
    assert result.stdout == run(client(name), model, 30).stdout
    strict = under_ffnskip(["--strict"], client(name), model, 30)
    assert (strict.returncode, strict.stdout) == (2, "")
    assert strict.stderr == NO_PROFILE.replace("\n", "; stopped (--strict)\n")


def test_settings_without_a_profile_are_said_to_be_uncalibrated(client, model):
    for options in (["--skip-ratio", "0.3"], ["--skip-layers", "3,4"], ["--policy", "random"], ["--warm-up", "3"]):
        result = under_ffnskip(options, client("contexts"), model, 30)
        assert result.returncode == 0 and result.stderr.startswith(UNCALIBRATED)
        assert result.stderr.count("not calibrated") == 1
    assert under_ffnskip(["--no-skip"], client("contexts"), model, 30).stderr == ""


def test_recurrent_models_are_left_alone(client, model_file):
    path = model_file("mamba")
    result = under_ffnskip(["--strict"], client("greedy"), path, 20)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == run(client("greedy"), path, 20).stdout


# --- what is skipped -------------------------------------------------------------------------------------------------


# A context of a model that was never allocated must not be decoded with: every program on llama.cpp's common makes one.
@pytest.mark.parametrize("api", ["decode", EXT, "fit"])
def test_tokens_are_those_of_the_python_class(client, model, api):
    tokens, trace = expected(model, 0, N_TOKENS, SkipConfig(sim_threshold=-1, warm_up_index=WARM_UP))
    result = under_ffnskip(ALWAYS_TRIPS, client("greedy"), model, N_TOKENS, api)
    assert tokens_of(result) == [tokens]
    assert f"{trace.skipped.sum()} of {trace.skipped.size}" in result.stderr


CHANNELS = ["--policy", "channels", "--warm-up", str(WARM_UP)]


@pytest.mark.parametrize("api", ["decode", EXT, "fit"])
def test_channels_are_left_out_as_by_the_python_class(client, model, api, tmp_path):
    config = SkipConfig(policy="channels", warm_up_index=WARM_UP)
    with ours(model, config, n_ctx=4096, **F32_CACHE) as llm:
        tokens = list(llm.generate(prompt_of(0), max_tokens=60, temp=0.0, repeat_penalty=1.0))
        stats = llm.stats
    file = tmp_path / "stats.json"
    result = under_ffnskip([*CHANNELS, "--stats-file", file], client("greedy"), model, 60, api)
    assert tokens_of(result) == [tokens]
    written = json.loads(file.read_text())
    assert written["tokens"] == stats.tokens == 59
    assert written["bytes_total"] == stats.bytes_total == 59 * ffn_bytes(model)
    assert written["bytes_left_out"] == stats.bytes_left_out
    assert written["skip_ratio"] == pytest.approx(stats.bytes_left_out / stats.bytes_total, rel=1e-5)
    assert written["channels_kept"] == stats.channels_kept.tolist()
    assert written["channels_total"] == stats.channels_total.tolist()


def test_channels_of_several_contexts_are_summed(client, model, tmp_path):
    """One after the other, or at once; copies are shared."""
    result = under_ffnskip(CHANNELS, client("contexts"), model, 40)
    assert result.returncode == 0, result.stderr
    assert re.search(r"% of their FFN weight bytes left out \(up \d+ %, down \d+ % of channels kept\)", result.stderr)


def test_a_model_whose_channels_cannot_be_left_out_runs_dense(client, model_file):
    program = [client("greedy"), model_file(**NO_CHANNELS), 30]
    why = "policy 'channels': this model has no weights whose input channels can be left out"
    result = under_ffnskip(["--policy", "channels"], *program)
    assert result.stdout == run(*program).stdout
    assert why in result.stderr and "this context runs dense" in result.stderr
    strict = under_ffnskip(["--policy", "channels", "--strict"], *program)
    assert (strict.returncode, strict.stdout) == (2, "") and why in strict.stderr


def test_a_callback_of_the_programs_own_goes_on_seeing_everything(client, model):
    alone = run(client("callback"), model, N_TOKENS).stdout.splitlines()[1].split()
    watched = under_ffnskip(ALWAYS_TRIPS, client("callback"), model, N_TOKENS)
    asked, shown = (watched.stdout.splitlines()[1].split()[i] for i in (1, 3))
    assert (asked, shown) == (alone[1], alone[3])
    assert tokens_of(watched)[0] == tokens_of(under_ffnskip(ALWAYS_TRIPS, client("greedy"), model, N_TOKENS))[0]


def test_programs_started_by_the_program_skip_too(client, model):
    result = under_ffnskip(ALWAYS_TRIPS, "sh", "-c", f"{client('greedy')} {model} 20; true")
    assert result.stderr.startswith(UNCALIBRATED + "ffnskip: 19 generated tokens") and result.stderr.count("\n") == 2


# --- many sequences at once ------------------------------------------------------------------------------------------


def margins(path: Path, tokens: list[int], seq: int, config: SkipConfig) -> float:
    """How far the closest choice of a token, or of a layer to trip at, was from going the other way."""
    with ours(path, config, n_ctx=4096, **F32_CACHE) as llm, llm.trace() as trace:
        _, logits = running.generate_step_by_step(llm, prompt_of(seq), len(tokens))
    best = np.sort(logits, axis=1)[:, -2:]
    similarity = np.abs(trace.similarity - config.sim_threshold)
    return min(float((best[:, 1] - best[:, 0]).min()), float(np.nanmin(similarity, initial=np.inf)))


@pytest.fixture(scope="module")
def alone(model):
    """A threshold that no similarity comes close to, and what each of ten sequences gets with it alone."""
    for sim_threshold in np.arange(0.95, 0.96, 0.0005):
        config = SkipConfig(sim_threshold=float(sim_threshold), warm_up_index=WARM_UP)
        results = [expected(model, seq, N_TOKENS, config) for seq in range(10)]
        if min(margins(model, tokens, seq, config) for seq, (tokens, _) in enumerate(results)) > CLOSE_CALL:
            return config.sim_threshold, results
    raise AssertionError("every threshold tried is close to some similarity")


@pytest.mark.parametrize("n_ubatch", [512, 3])
@pytest.mark.parametrize("cache", ["unified", "split"])
@pytest.mark.parametrize("n_sequences", [1, 3, 8, 10])
def test_sequences_together_get_the_tokens_they_get_alone(client, model, alone, tmp_path, n_sequences, cache, n_ubatch):
    """Ten sequences share eight slots, so that the last ones take over slots that others have left."""
    sim_threshold, results = alone
    options = ["--sim-threshold", repr(sim_threshold), "--warm-up", WARM_UP, "--stats-file", tmp_path / "stats.json"]
    together = under_ffnskip(options, client("parallel"), model, N_TOKENS, cache, n_ubatch, *range(n_sequences))
    assert tokens_of(together) == [tokens for tokens, _ in results[:n_sequences]]
    assert together.stderr == UNCALIBRATED

    skipped = np.sum([trace.skipped.sum(axis=0) for _, trace in results[:n_sequences]], axis=0)
    checks = sum(np.isfinite(trace.similarity).sum() for _, trace in results[:n_sequences])
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["skipped_per_layer"] == skipped.tolist()
    assert stats["tokens"] == n_sequences * (N_TOKENS - 1)  # the last one is not fed back
    assert stats["ffn_total"] == stats["tokens"] * N_LAYER
    assert (stats["ffn_skipped"], stats["checks"]) == (skipped.sum(), checks)
    assert stats["skip_ratio"] == pytest.approx(stats["ffn_skipped"] / stats["ffn_total"], abs=1e-5)


@pytest.mark.parametrize("policy", ["random", "random_adaptive_region"])
def test_random_choices_are_those_of_the_sequence_alone(client, model, policy):
    options = ["--policy", policy, "--skip-ratio", "0.3", "--warm-up", "2", "--skip-seed", "7"]
    config = SkipConfig(policy=policy, skip_ratio=0.3, warm_up_index=2, seed=7)
    together = under_ffnskip(options, client("parallel"), model, 60, "split", 512, *range(8))
    assert tokens_of(together) == [expected(model, seq, 60, config)[0] for seq in range(8)]


# --- what can't skip -------------------------------------------------------------------------------------------------


def test_bad_usage_names_what_is_wrong(client, model, tmp_path):
    program = [client("greedy"), model, 5]
    channels = ["--policy", "channels"]
    for status, options, command, message in (
        (2, ["--sim-threshold", "high"], program, "sim-threshold: 'high' is not a number"),
        (2, ["--skip-ratio", "1.5"], program, "skip_ratio: 1.5 is outside [0, 1]"),
        (2, ["--skip-layers", "3-1"], program, "skip-layers: '3-1' is not a list of layers such as 3,5-7"),
        (2, ["--policy", "none"], program, "policy: 'none' is unknown"),
        (2, [*channels, "--sim-threshold", "0.8"], program, "sim_threshold: policy 'channels' has no use for it"),
        (2, [*channels, "--check-stride", "2"], program, "check_stride: policy 'channels' has no use for it"),
        (2, [*channels, "--region", "adaptive"], program, "region: policy 'channels' has no use for it"),
        (1, ["--profile", tmp_path / "none.gguf"], program, "none.gguf"),
        (1, ["--stats-file", tmp_path / "no" / "x.json"], program, "can't be written"),
        (1, [], ["no-such-program"], "no-such-program: no such program"),
        (1, [], [model], "is not executable"),
        (2, [], [], "give a program"),
    ):
        result = under_ffnskip(options, *command)
        assert (result.returncode, result.stdout) == (status, "")
        assert message in result.stderr and result.stderr.count("\n") == 1


def test_settings_that_do_not_fit_the_model_leave_it_dense(client, model):
    program = [client("greedy"), model, 30]
    result = under_ffnskip(["--max-skip", "11"], *program)
    assert result.stdout == run(*program).stdout
    assert "max_skip: 11 is too many" in result.stderr and "runs dense" in result.stderr
    strict = under_ffnskip(["--max-skip", "11", "--strict"], *program)
    assert (strict.returncode, strict.stdout) == (2, "") and "max_skip: 11" in strict.stderr


def test_a_program_with_llama_cpp_linked_in_runs_dense(tmp_path):
    source = tmp_path / "static.cpp"
    source.write_text('#include <cstdio>\nint main() { std::puts("llama_decode"); }\n')
    program = tmp_path / "static"
    subprocess.run(["c++", source, "-o", program], check=True)
    result = under_ffnskip([], program)
    assert (result.returncode, result.stdout) == (0, "llama_decode\n") and "linked into" in result.stderr
    assert (under_ffnskip(["--strict"], program).returncode, under_ffnskip(["--strict"], program).stdout) == (2, "")


def test_a_program_on_another_llama_cpp_runs_dense(tmp_path):
    (tmp_path / "llama.cpp").write_text("""
        extern "C" const char * llama_version() { return "0.4.0"; }
        extern "C" const char * ggml_version() { return "0.20.0"; }
        extern "C" int llama_decode() { return 7; }
    """)
    (tmp_path / "program.cpp").write_text("""
        #include <cstdio>
        #include <cstdlib>
        extern "C" int llama_decode();
        int main(int argc, char ** argv) {
            const char * preloaded = std::getenv("LD_PRELOAD");
            std::printf("%d %s %s\\n", llama_decode(), argv[argc - 1], preloaded == nullptr ? "(null)" : preloaded);
            return 3;
        }
    """)
    library, program = tmp_path / "libllama.so", tmp_path / "program"
    subprocess.run(["c++", "-shared", "-fPIC", tmp_path / "llama.cpp", "-o", library], check=True)
    link = [f"-L{tmp_path}", "-lllama", f"-Wl,-rpath,{tmp_path}"]
    subprocess.run(["c++", tmp_path / "program.cpp", "-o", program, *link], check=True)

    preloaded = tmp_path / "libother.so"
    (tmp_path / "other.cpp").write_text("")
    subprocess.run(["c++", "-shared", "-fPIC", tmp_path / "other.cpp", "-o", preloaded], check=True)
    result = under_ffnskip([], program, "a b", env={**os.environ, "LD_PRELOAD": str(preloaded)})
    assert (result.returncode, result.stdout) == (3, f"7 a b {preloaded}\n")
    result = under_ffnskip([], program, "a b")
    assert (result.returncode, result.stdout) == (3, "7 a b (null)\n")
    assert "0.4.0 (ggml 0.20.0); it runs dense" in result.stderr and result.stderr.count("\n") == 1
    strict = under_ffnskip(["--strict"], program, "a b")
    assert (strict.returncode, strict.stdout) == (2, "") and "not started" in strict.stderr


# --- libllama comes later --------------------------------------------------------------------------------------------


def python_program(model):
    """It says something before it loads the model, and the text after."""
    lines = (
        "import llama_cpp; print('begin', flush=True)",
        f"llm = llama_cpp.Llama({str(model)!r}, n_ctx=64, verbose=False)",
        "print(list(zip(range(4), llm.generate([1, 2, 3], temp=0.0))))",
    )
    return [sys.executable, "-c", "\n".join(lines)]


def test_a_program_that_asks_libllama_for_functions_by_name_is_told_that_it_cannot_be_reached(model):
    """It ran dense with exit status 0, --strict or not."""
    program = python_program(model)
    result = under_ffnskip([], *program)
    assert (result.returncode, result.stdout) == (0, run(*program).stdout)
    assert "opened libllama by itself" in result.stderr and "ffnskip_cpp.Llama" in result.stderr
    assert result.stderr.count("\n") == 1
    strict = under_ffnskip(["--strict"], *program)
    assert (strict.returncode, strict.stdout) == (2, "begin\n")  # before it has generated anything
    assert "opened libllama by itself" in strict.stderr and strict.stderr.count("\n") == 1


def test_ffnskip_cpp_skips_by_itself_under_ffnskip_run_too(model):
    program = [sys.executable, "-c", "import ffnskip_cpp\n" + python_program(model)[2]]
    result = under_ffnskip(["--strict"], *program)
    assert (result.returncode, result.stdout, result.stderr) == (0, run(*program).stdout, "")


def test_a_plug_in_that_is_linked_with_libllama_skips(client, model, tmp_path):
    source = Path(__file__).parents[1] / "cpp" / "clients" / "greedy.cpp"
    plug_in = running.build_program(source, tmp_path / "greedy.so", ["-shared", "-fPIC"])
    (tmp_path / "host.cpp").write_text("""
        #include <dlfcn.h>
        int main(int argc, char ** argv) {
            void * plug_in = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
            return reinterpret_cast<int (*)(int, char **)>(dlsym(plug_in, "main"))(argc - 1, argv + 1);
        }
    """)
    host = tmp_path / "host"
    subprocess.run(["c++", tmp_path / "host.cpp", "-o", host, "-ldl"], check=True)
    result = under_ffnskip([*ALWAYS_TRIPS, "--strict"], host, plug_in, model, N_TOKENS)
    assert tokens_of(result) == tokens_of(under_ffnskip(ALWAYS_TRIPS, client("greedy"), model, N_TOKENS))
    assert f"{N_TOKENS - 1} generated tokens" in result.stderr


# --- the statistics --------------------------------------------------------------------------------------------------


@pytest.fixture
def with_statistics(client, model):
    """with_statistics(file, **options): the program, with its statistics in `file`."""

    def start(file, *program, **options):
        words = [*ALWAYS_TRIPS, "--stats-file", file]
        return under_ffnskip(words, *(program or (client("greedy"), model, 20)), **options)

    return start


def test_statistics_follow_links_and_replace_nothing_but_files(with_statistics, tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to("target.json")
    for _ in range(2):  # what the link leads to is not there yet, and then it is
        assert with_statistics(link).returncode == 0
        assert link.is_symlink() and json.loads(target.read_text())["tokens"] == 19
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.json", "target.json"]


def test_statistics_keep_the_permissions_of_what_they_replace(with_statistics, tmp_path):
    (tmp_path / "stats.json").touch(0o640)
    (tmp_path / "stats.json").chmod(0o640)
    with_statistics(tmp_path / "stats.json")
    assert stat.S_IMODE((tmp_path / "stats.json").stat().st_mode) == 0o640 and (tmp_path / "stats.json").read_text()


def test_statistics_are_written_into_devices_and_pipes(with_statistics, tmp_path):
    """The device was replaced by a file."""
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    before = os.stat("/dev/null")
    assert with_statistics(null).returncode == 0 and null.is_symlink()
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and os.stat("/dev/null").st_ino == before.st_ino

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    assert with_statistics(pipe).returncode == 0
    assert json.loads(reader.communicate(timeout=60)[0])["tokens"] == 19


@pytest.mark.parametrize("into", ["pipe", "file"])
def test_statistics_follow_the_output_of_the_program(client, model, tmp_path, into):
    command = [sys.executable, "-m", "ffnskip_cpp", "run", *ALWAYS_TRIPS, "--stats-file", "/dev/stdout"]
    command += ["--", str(client("greedy")), str(model), "20"]
    with open(tmp_path / "out", "wb") as file:
        result = subprocess.run(command, stdout=file if into == "file" else subprocess.PIPE, check=True, timeout=300)
    tokens, _, statistics = (result.stdout or (tmp_path / "out").read_bytes()).partition(b"{")
    assert len(tokens.split()) == 20 and json.loads(b"{" + statistics)["tokens"] == 19


def test_statistics_are_not_written_over_an_input(with_statistics, client, model, tmp_path):
    copy, link = tmp_path / "m.gguf", tmp_path / "link.json"
    copy.write_bytes(model.read_bytes())
    link.symlink_to(copy)
    for file, program in (
        (copy, (client("greedy"), copy, 20)),
        (link, (client("greedy"), copy, 20)),
        (link, (client("greedy"), model, 20)),  # a model of another program
        (tmp_path / "text", ("sh", "-c", "true", f"--file={tmp_path / 'text'}")),
    ):
        (tmp_path / "text").write_text("abc")
        result = with_statistics(file, *program)
        assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
        assert str(file) in result.stderr
    assert copy.read_bytes() == model.read_bytes() and (tmp_path / "text").read_text() == "abc"

    # Where the command line does not show it, the program's end does.
    result = with_statistics(
        tmp_path / "new.gguf", "sh", "-c", f"cp {model} {tmp_path}/new.gguf; {client('greedy')} {model} 20"
    )
    assert "is a GGUF file" in result.stderr and (tmp_path / "new.gguf").read_bytes() == model.read_bytes()


def test_what_a_killed_run_left_is_removed_by_the_next(with_statistics, tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / f".s.json.{gone.pid}.part"
    others = [
        tmp_path / f".s.json.{os.getpid()}.part",
        tmp_path / ".s.json.x.part",
        tmp_path / f".t.json.{gone.pid}.part",
    ]
    for path in (left, *others):
        path.write_text("half")
    assert with_statistics(tmp_path / "s.json").returncode == 0
    assert not left.exists() and all(path.read_text() == "half" for path in others)


@pytest.mark.parametrize("sequences", [[0], [0, 1, 5]], ids=len)
@pytest.mark.parametrize("reuse", ["all", "full"])
def test_a_second_prompt_builds_on_what_skipped_or_has_it_computed_again(client, model, reuse, sequences):
    n = 40
    words = [*ALWAYS_TRIPS, "--reuse", reuse]
    lines = tokens_of(under_ffnskip(words, client("turns"), model, n, *sequences))
    config = SkipConfig(sim_threshold=-1.0, warm_up_index=WARM_UP)
    for seq, first_turn, second_turn in zip(sequences, lines[::2], lines[1::2]):
        with ours(model, config, n_ctx=4096, reuse=reuse, **F32_CACHE) as llm:
            prompt, expected = prompt_of(seq), []
            for _ in range(2):
                expected.append(list(llm.generate(prompt, max_tokens=n, temp=0.0, repeat_penalty=1.0)))
                prompt = [*prompt, *expected[-1], *prompt_of(3)]
        assert [first_turn, second_turn] == expected
        with ours(model, config, n_ctx=4096, **F32_CACHE) as fresh:
            prompt = [*prompt_of(seq), *first_turn, *prompt_of(3)]
            alone = list(fresh.generate(prompt, max_tokens=n, temp=0.0, repeat_penalty=1.0))
        assert (second_turn == alone) == (reuse == "full")


def test_what_cannot_be_computed_again_is_decoded_dense(client, model):
    """The decode that was asked for was left out, with status 0."""
    program = [client("turns"), model, 40, "shift", 0]
    built_on = tokens_of(under_ffnskip([*ALWAYS_TRIPS, "--reuse", "all"], *program))
    dense = under_ffnskip([*ALWAYS_TRIPS, "--reuse", "full"], *program)
    assert "can't be computed again: their tokens are not known; this context runs dense" in dense.stderr
    n_in_full = 1 + WARM_UP  # tokens of the second turn that come from the same memory, in full
    lines = tokens_of(dense)
    assert lines[0] == built_on[0] and lines[1][:n_in_full] == built_on[1][:n_in_full]


def test_a_token_decoded_again_after_its_batch_was_refused_counts_as_generated(client, model, tmp_path):
    """As servers do when the cache is full: nobody reads outputs in between."""
    n = 40
    options = [*ALWAYS_TRIPS, "--stats-file", tmp_path / "stats.json"]
    retried = under_ffnskip(options, client("retry"), model, n)
    assert tokens_of(retried) == tokens_of(under_ffnskip(ALWAYS_TRIPS, client("greedy"), model, n))
    assert json.loads((tmp_path / "stats.json").read_text())["tokens"] == n - 1


def test_reuse_is_refused_where_it_is_unknown(client, model):
    refused = under_ffnskip(["--reuse", "some"], client("greedy"), model, 5)
    assert refused.returncode == 2 and "some" in refused.stderr
    environment = {**os.environ, "FFNSKIP_REUSE": "some"}
    dense = under_ffnskip(ALWAYS_TRIPS, client("greedy"), model, 20, env=environment)
    assert "reuse: 'some' is unknown; known are all, full" in dense.stderr
    assert dense.stdout == run(client("greedy"), model, 20).stdout


# --- drafts alone ----------------------------------------------------------------------------------------------------


DRAFT_LAYER = ["--skip-layers", 5, "--max-skip", 0, "--warm-up", 10]


def drafting(client, model, draft, *, n=100, sequences=(0, 1, 2)) -> list[object]:
    return [client("drafting"), model, draft, n, 4, 10, *sequences]


@pytest.mark.parametrize("sequences", [[0], [0, 1, 2, 3, 4, 5, 6, 7]], ids=len)
def test_drafts_skip_and_the_text_is_that_of_the_model_alone(client, model, tmp_path, sequences):
    """In the draft's context all rows past a warm-up skip, those that were drafted and those that were verified."""
    dense = run(*drafting(client, model, "-", sequences=sequences))
    program = drafting(client, model, model, sequences=sequences)
    options = ["--draft-only", *DRAFT_LAYER, "--stats-file", tmp_path / "stats.json"]
    result = under_ffnskip(options, *program)
    assert tokens_of(result) == tokens_of(dense)
    counted = re.search(r"(\d+) drafted, (\d+) accepted, (\d+) past", result.stderr)
    drafted, accepted, past_warm_up = map(int, counted.groups())
    assert 0 < accepted < drafted
    assert json.loads((tmp_path / "stats.json").read_text())["ffn_skipped"] == past_warm_up
    seen = re.search(r"ffnskip: ([\d.]+) % of (\d+) drafted tokens accepted", result.stderr)
    # The fate of the last drafts is not seen.
    assert drafted - 4 * len(sequences) <= int(seen[2]) <= drafted
    assert abs(float(seen[1]) / 100 * int(seen[2]) - accepted) <= 4 * len(sequences) + 1


def test_a_program_that_loads_no_draft_model_is_left_alone(client, model):
    result = under_ffnskip(["--draft-only", *ALWAYS_TRIPS], client("greedy"), model, 30)
    assert result.stderr == "ffnskip: the program loaded no draft model; nothing was skipped (--draft-only)\n"
    assert result.stdout == run(client("greedy"), model, 30).stdout


def test_drafts_without_a_profile_are_said_to_skip_nothing(client, model):
    result = under_ffnskip(["--draft-only"], *drafting(client, model, model, n=20))
    assert result.stderr.startswith(NO_PROFILE)
    assert result.stdout == run(*drafting(client, model, "-", n=20)).stdout
