"""`ffnskip-main` generates what `Llama` generates, and takes bad input, pipes, terminals and Ctrl-C as it should."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sysconfig
import time
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

import ffnskip_cpp
import tiny_models
from ffnskip_cpp import SkipConfig
from running import F32_CACHE, GREEDY, ours

PROGRAM = shutil.which("ffnskip-main") or str(Path(sysconfig.get_path("scripts")) / "ffnskip-main")

# As running.options_of has them.
ONE_THREAD = ["-t", "1", "-c", "256", "-fa", "off"]
TEXT_ONLY = [*ONE_THREAD, "--no-display-prompt", "--temp", "0"]
PROMPT = "Herno Jotsen"

DEADLINE = 60.0  # seconds; on an idle machine nothing here takes one


def run(*arguments, stdin=b"", **options):
    """The finished program, its outputs in bytes; the terminal of the test is none of its business."""
    command = [PROGRAM, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=DEADLINE, **options)


def output_of(*arguments, **options):
    result = run(*arguments, **options)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode(errors="replace")


def refusal_of(*arguments, **options):
    """The one line with which the program refuses its input."""
    result = run(*arguments, **options)
    message = result.stderr.decode()
    assert (result.returncode, result.stdout) == (2, b""), message
    assert message.startswith("ffnskip-main: ") and message.endswith("\n") and message.count("\n") == 1, message
    return message


@pytest.fixture(scope="module")
def tiny(model_file):
    return model_file("llama", n_layer=12)


# --- the text --------------------------------------------------------------------------------------------------------

SETTINGS = {
    "dense": (["--no-skip"], None),
    "default": ([], SkipConfig()),
    "early": (
        ["--warm-up", 2, "--sim-threshold", 0.85, "--max-skip", 4],
        SkipConfig(warm_up_index=2, sim_threshold=0.85, max_skip=4),
    ),
    "ratio": (["--skip-ratio", 0.4, "--warm-up", 0], SkipConfig(skip_ratio=0.4, warm_up_index=0)),
    "region": (
        ["--cold-s", 3, "--cold-e", 9, "--warm-up", 5, "--skip-ratio", 0.3],
        SkipConfig(cold_s=3, cold_e=9, warm_up_index=5, skip_ratio=0.3),
    ),
    "random": (
        ["--policy", "random", "--skip-seed", 7, "--warm-up", 3],
        SkipConfig(policy="random", seed=7, warm_up_index=3),
    ),
    "fixed": (
        ["--skip-layers", "3,5-7", "--warm-up", 0],
        SkipConfig(policy="fixed", layers=[3, 5, 6, 7], warm_up_index=0),
    ),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_greedy_text_is_that_of_the_python_package(model, setting, model_file, tiny):
    path = model_file("demo") if model == "demo" else tiny
    arguments, skip = SETTINGS[setting]
    with ours(path, skip) as llm:
        expected = "".join(llm.generate(PROMPT, max_tokens=60, **GREEDY))
    assert output_of("-m", path, "-p", PROMPT, "-n", 60, *TEXT_ONLY, *arguments) == expected + "\n"


@pytest.mark.parametrize("setting", ["flash attention", "F32 cache", "small batches"])
def test_greedy_text_is_that_of_the_python_package_with_context_options(setting, tiny):
    arguments, options = {
        "flash attention": (["-fa", "on"], {"flash_attn": True}),
        "F32 cache": (["-ctk", "f32", "-ctv", "f32"], F32_CACHE),
        "small batches": (["-b", "5", "-ub", "2"], {"n_batch": 5, "n_ubatch": 2}),
    }[setting]
    with ours(tiny, SkipConfig(warm_up_index=4, sim_threshold=0.85), **options) as llm:
        expected = "".join(llm.generate(PROMPT, max_tokens=50, **GREEDY))
    skip = ["--warm-up", 4, "--sim-threshold", 0.85]
    assert output_of("-m", tiny, "-p", PROMPT, "-n", 50, *TEXT_ONLY, *skip, *arguments) == expected + "\n"


def test_lora_adapter_is_applied(tiny, tmp_path):
    adapter = tiny_models.write_lora(tmp_path / "lora.gguf", n_layer=12)
    with ours(tiny, None, lora_path=str(adapter)) as llm:
        expected = "".join(llm.generate(PROMPT, max_tokens=30, **GREEDY))
    arguments = ["-m", tiny, "-p", PROMPT, "-n", 30, "--no-skip", *TEXT_ONLY]
    assert output_of(*arguments, "--lora", adapter) == expected + "\n"
    assert output_of(*arguments, "--lora-scaled", f"{adapter}:1.0") == expected + "\n"
    assert output_of(*arguments, "--lora-scaled", f"{adapter}:0") == output_of(*arguments) != expected + "\n"


def test_the_prompt_comes_first_and_escapes_stand_for_what_they_name(tiny):
    assert output_of("-m", tiny, "-p", r"a\n\tb\x41\q", "-n", 0) == "a\n\tbA\\q\n"
    assert output_of("-m", tiny, "-p", r"a\n\tb", "-n", 0, "--no-escape") == "a\\n\\tb\n"


def test_a_file_and_a_pipe_give_the_prompt(tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(PROMPT + "\n")
    expected = output_of("-p", PROMPT, "-n", 8, "--temp", "0")
    assert expected.startswith(PROMPT)
    assert output_of("-f", file, "-n", 8, "--temp", "0") == expected
    assert output_of("-n", 8, "--temp", "0", stdin=PROMPT.encode() + b"\n") == expected
    assert output_of("-f", file, "-n", 8, "--temp", "0", stdin=b"not read") == expected


def test_a_file_is_not_unescaped(tiny, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text(r'printf("\n")')
    assert output_of("-m", tiny, "-f", file, "-n", 0) == 'printf("\\n")\n'


def test_an_empty_prompt_begins_with_the_models_first_token():
    with ours(ffnskip_cpp.demo_model(), None) as llm:
        expected = "".join(llm.generate("", max_tokens=8, **GREEDY))
    assert output_of("-n", 8, "--no-skip", *TEXT_ONLY) == expected + "\n"


def test_sampling_is_reproducible_and_the_seed_matters():
    arguments = ["-p", PROMPT, "-n", 30, *ONE_THREAD, "--temp", "1.5", "--top-k", "0", "--min-p", "0", "--top-p", "1"]
    texts = [output_of(*arguments, "-s", seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    "options",
    [
        ["--repeat-penalty", "1.3", "--repeat-last-n", "20"],
        ["--presence-penalty", "1.5", "--frequency-penalty", "0.5"],
        ["--dry-multiplier", "2", "--dry-base", "2", "--dry-allowed-length", "1", "--dry-penalty-last-n", "100"],
        ["--ignore-eos"],
    ],
    ids=lambda options: options[0],
)
def test_options_of_the_samplers_change_the_text(options):
    arguments = ["-p", PROMPT, "-n", 100, *TEXT_ONLY]
    assert output_of(*arguments, *options) != output_of(*arguments)


@pytest.mark.parametrize("options", [["--top-k", "1"], ["--top-p", "0"], ["--min-p", "1"]], ids=lambda o: o[0])
def test_what_leaves_only_the_most_probable_token_is_greedy(options):
    arguments = ["-p", PROMPT, "-n", 30, *ONE_THREAD]
    assert output_of(*arguments, "-s", "5", *options) == output_of(*arguments, "--temp", "0")


@pytest.mark.parametrize("version", ["1", "2"])
def test_mirostat_generates_and_is_reproducible(version):
    arguments = ["-p", PROMPT, "-n", 20, *ONE_THREAD, "-s", "1", "--mirostat", version]
    arguments += ["--mirostat-lr", "0.2", "--mirostat-ent", "3"]
    assert output_of(*arguments) == output_of(*arguments)


# --- where it ends ---------------------------------------------------------------------------------------------------


def test_a_reverse_prompt_ends_the_text():
    whole = output_of("-p", PROMPT, "-n", 60, *TEXT_ONLY)
    end = whole[60:].split()[1]  # a word in the middle, whatever the model says there
    text = output_of("-p", PROMPT, "-n", 60, *TEXT_ONLY, "-r", "nowhere", "-r", end)
    assert text == whole[: whole.index(end) + len(end)] + "\n"


def test_a_full_context_ends_the_text_with_a_note(tiny):
    result = run("-m", tiny, "-p", "hello", "-c", "256", "--ignore-eos", "-n", "-2")
    assert result.returncode == 0
    assert b"ffnskip-main: note: context full (n_ctx = 256)\n" in result.stderr
    assert re.search(rb"eval time = .* 251 runs ", result.stderr)  # after the 5 of the prompt


def test_grammar_is_followed(tmp_path):
    grammar = 'root ::= " was born " ("on" | "in") " the " [a-z]+ "."'
    file = tmp_path / "grammar.gbnf"
    file.write_text(grammar)
    text = output_of("-p", PROMPT, "-n", 40, *TEXT_ONLY, "--grammar", grammar)
    assert re.fullmatch(r" was born (on|in) the [a-z]+\.\n", text)
    assert output_of("-p", PROMPT, "-n", 40, *TEXT_ONLY, "--grammar-file", file) == text


def test_a_complete_grammar_ends_the_text_even_where_eos_is_ignored():
    assert output_of("-p", PROMPT, *TEXT_ONLY, "--grammar", 'root ::= " abc"', "--ignore-eos") == " abc\n"


def test_greedy_text_under_a_grammar_is_that_of_the_python_package():
    grammar = 'root ::= [a-z ]+ "."'
    with ours(ffnskip_cpp.demo_model(), SkipConfig(warm_up_index=0)) as llm:
        parsed = llama_cpp.LlamaGrammar.from_string(grammar, verbose=False)
        expected = "".join(llm.generate(PROMPT, max_tokens=40, grammar=parsed, **GREEDY))
    arguments = ["-p", PROMPT, "-n", 40, *TEXT_ONLY, "--warm-up", "0", "--grammar", grammar]
    assert output_of(*arguments) == expected + "\n"


# --- bad input -------------------------------------------------------------------------------------------------------

BAD_INPUT = {
    "unknown option": (["--tmep", "0"], ["'--tmep'", "--temp"]),
    "unknown option like no other": (["--frobnicate"], ["'--frobnicate'", "--help"]),
    "text without an option": (["hello"], ["'hello'", "-p"]),
    "missing value": (["-p"], ["-p", "a value is missing"]),
    "not an integer": (["-n", "many"], ["-n", "'many'", ">= -2"]),
    "negative number of tokens": (["-n", "-3"], ["-n", "'-3'", ">= -2"]),
    "negative context": (["-c", "-1"], ["-c", "'-1'", ">= 0"]),
    "negative batch": (["--batch-size", "-5"], ["--batch-size", "'-5'", ">= 1"]),
    "no micro-batch": (["-ub", "0"], ["-ub", "'0'", ">= 1"]),
    "no threads": (["-t", "0"], ["-t", "'0'", "from 1"]),
    "seed too large": (["-s", "99999999999"], ["-s", "'99999999999'", "4294967295"]),
    "number out of range": (["--top-p", "1.5"], ["--top-p", "'1.5'", "from 0 to 1"]),
    "not a number": (["--temp", "nan"], ["--temp", "'nan'", "a number >= 0"]),
    "trailing characters": (["--min-p", "0.1x"], ["--min-p", "'0.1x'"]),
    "penalty of nothing": (["--repeat-penalty", "0"], ["--repeat-penalty", "'0'", "above 0"]),
    "unknown mirostat": (["--mirostat", "3"], ["--mirostat", "'3'", "from 0 to 2"]),
    "unknown cache type": (["-ctk", "q9_9"], ["-ctk", "'q9_9'", "q8_0"]),
    "quantised values without flash attention": (["-ctv", "q8_0", "-fa", "off"], ["q8_0", "flash attention"]),
    "unknown choice": (["-fa", "maybe"], ["-fa", "'maybe'", "on, off, auto"]),
    "unknown numa type": (["--numa", "all"], ["--numa", "'all'", "distribute"]),
    "empty reverse prompt": (["-r", ""], ["-r", "''"]),
    "model that is not there": (["-m", "nothing.gguf"], ["--model", "'nothing.gguf'", "No such file"]),
    "model that is a directory": (["-m", "."], ["--model", "'.'", "directory"]),
    "prompt file that is not there": (["-f", "nothing.txt"], ["--file", "'nothing.txt'", "No such file"]),
    "prompt file that is a directory": (["-f", "."], ["--file", "'.'", "directory"]),
    "invalid UTF-8 in the prompt": (["-p", b"ab\xff"], ["--prompt", "byte 2", "0xff"]),
    "adapter that is not there": (["--lora", "nothing.gguf"], ["--lora", "'nothing.gguf'", "No such file"]),
    "adapter without a scale": (["--lora-scaled", "a.gguf"], ["--lora-scaled", "'a.gguf'", "FILE:SCALE"]),
    "grammar file that is not there": (["--grammar-file", "no.gbnf"], ["--grammar-file", "'no.gbnf'", "No such file"]),
    "grammar without rules": (["--grammar", "what"], ["--grammar", "expecting ::="]),
    "grammar without a root": (["--grammar", 'other ::= "a"'], ["--grammar", "root"]),
    "grammar with an undefined rule": (["--grammar", "root ::= other"], ["--grammar", "other"]),
    "grammar with left recursion": (["--grammar", 'root ::= root "a"'], ["--grammar", "recursion"]),
    "trace in a folder that is not there": (["--trace", "no/a.csv"], ["--trace", "'no/a.csv'", "No such file"]),
    "trace that is a directory": (["--trace", "."], ["--trace", "'.'", "directory"]),
    "unknown chat template": (["--chat-template", "mine"], ["--chat-template", "'mine'", "chatml"]),
    "one turn of no chat": (["-no-cnv", "-st"], ["--single-turn", "--no-conversation"]),
    "system message of no chat": (["-no-cnv", "-sys", "Be."], ["--system-prompt", "--no-conversation"]),
    "context beyond all memory": (["-c", "2000000000", "-p", "a"], ["--ctx-size", "2000000000", "GiB"]),
    "unknown policy": (["--policy", "all"], ["policy", "'all'", "ffn_skip"]),
    "threshold that is no number": (["--sim-threshold", "high"], ["sim-threshold", "'high'", "a number"]),
    "ratio out of range": (["--skip-ratio", "1.5"], ["skip_ratio", "1.5", "[0, 1]"]),
    "cold regions that meet": (["--cold-s", "9", "--cold-e", "3"], ["cold_s", "9", "cold_e = 3"]),
    "more than the region has": (["--max-skip", "40", "-p", "a"], ["max_skip", "40", "at most"]),
    "layer that always runs": (["--skip-layers", "15", "-p", "a"], ["layers", "15", "[0, 14]"]),
    "list of layers that is none": (["--skip-layers", "3-"], ["skip-layers", "3,5-7"]),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_refused_in_one_line(case, tmp_path):
    arguments, words = BAD_INPUT[case]
    command = [os.fsdecode(argument) for argument in arguments]
    message = refusal_of(*command, cwd=tmp_path)
    assert all(word in message for word in words), message
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_model_is_refused(tmp_path, tiny):
    whole = tiny.read_bytes()
    for content, reason in [(b"", "no GGUF file"), (b"hello", "no GGUF file"), (whole[:500], "can't load it"),
                            (whole[: len(whole) // 2], "incomplete")]:  # fmt: skip
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        message = refusal_of("-m", path)
        assert str(path) in message and reason in message


def test_a_demo_model_that_is_not_there_is_named():
    message = refusal_of("-p", "a", env={**os.environ, "FFNSKIP_DEMO_MODEL": "/no/demo.gguf"})
    assert "/no/demo.gguf" in message and "-m FILE" in message


def test_an_adapter_of_another_model_is_refused(tiny, tmp_path):
    adapter = tiny_models.write_lora(tmp_path / "lora.gguf", n_layer=12, n_embd=32)
    message = refusal_of("-m", tiny, "--lora", adapter)
    assert str(adapter) in message and "shape" in message
    assert "no LoRA adapter" in refusal_of("-m", tiny, "--lora", tiny)


def test_a_prompt_longer_than_the_context_is_refused(tiny, tmp_path):
    file = tmp_path / "long.txt"
    file.write_text("a" * 1025)
    assert "has 1025 tokens, the context 1024;" in refusal_of("-m", tiny, "-f", file)
    assert "has 1025 tokens, the context 512;" in refusal_of("-m", tiny, "-f", file, "-c", 512)
    assert run("-m", tiny, "-f", file, "-c", 1280, "-n", 2).returncode == 0


def test_an_empty_prompt_is_refused_where_the_model_has_no_first_token(tiny):
    assert "the prompt is empty" in refusal_of("-m", tiny)


def test_a_context_of_0_is_the_models(tiny):
    assert b"note: context full (n_ctx = 1024)\n" in run("-m", tiny, "-p", "a", "-c", "0", "--ignore-eos").stderr


def test_a_cache_type_that_does_not_fit_the_model_is_refused(tiny):
    assert "does not divide" in refusal_of("-m", tiny, "-p", "a", "-ctv", "q8_0")


def test_a_model_without_a_chat_template_needs_one_to_chat(tiny):
    assert "--chat-template" in refusal_of("-m", tiny, "-cnv")
    assert run("-m", tiny, "-cnv", "--chat-template", "chatml", "-n", 3, stdin=b"hello\n").returncode == 0


def test_models_that_cannot_skip_run_dense_unless_they_are_asked_to(model_file, tmp_path):
    path = model_file("mamba")
    result = run("-m", path, "-p", "hello", "-n", 4)
    assert result.returncode == 0 and b"note: nothing is skipped: architecture 'mamba'" in result.stderr
    assert b"note" not in run("-m", path, "-p", "hello", "-n", 4, "--no-skip").stderr
    for asking in (["--max-skip", "1"], ["--policy", "random"], ["--compare"], ["--trace", "trace.csv"]):
        assert "architecture 'mamba'" in refusal_of("-m", path, "-p", "hello", *asking, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_embedding_models_are_refused(model_file):
    path = model_file("bert")
    assert str(path) in refusal_of("-m", path, "-p", "hello")


# --- bytes in and out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, at", [(b"ab\xff", 2), (b"ab\xc3", 2), (b"\xed\xa0\x80", 0), (b"a\xc0\x80", 1)])
def test_invalid_utf8_is_refused_with_its_place(text, at, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(text)
    assert f"standard input: invalid UTF-8 at byte {at} " in refusal_of(stdin=text)
    assert f"'{file}': invalid UTF-8 at byte {at} " in refusal_of("-f", file)
    assert f"standard input: invalid UTF-8 at byte {at + 6} " in refusal_of("-cnv", stdin=b"\n" * 6 + text)


def test_characters_are_written_whole(tiny):
    """Every token of this model is one byte. libllama's grammar lets longer forms of a character pass too."""
    grammar = 'root ::= ("é" | "€" | "😀"){20}'
    child = subprocess.Popen(
        [PROGRAM, "-m", tiny, "-p", "a", "--grammar", grammar, "--no-display-prompt", "-s", "1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
    )  # fmt: skip
    chunks = list(iter(lambda: os.read(child.stdout.fileno(), 1 << 16), b""))
    child.stdout.close()
    assert child.wait(DEADLINE) == 0
    character = rb"[\x00-\x7f]|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3}"
    assert all(re.fullmatch(rb"(%b)+" % character, chunk) for chunk in chunks)
    assert len(re.findall(character, b"".join(chunks))) == 21  # a newline at the end


def test_what_is_left_of_a_character_at_the_end_is_written(tiny):
    result = run("-m", tiny, "-p", "a", "--grammar", 'root ::= "😀"', "--no-display-prompt", "-n", 2)
    assert result.stdout == "😀".encode()[:2] + b"\n"


def test_a_reader_that_has_gone_ends_the_program_quietly(tiny):
    child = subprocess.Popen(
        [PROGRAM, "-m", tiny, "-p", "hello", "--ignore-eos"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    child.stdout.read(3)
    child.stdout.close()
    with child.stderr:
        assert child.stderr.read() == b""
    assert child.wait(DEADLINE) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_error(closed, tmp_path):
    trace = tmp_path / "trace.csv"
    command = f'"{PROGRAM}" -p "{PROMPT}" -n 4 --trace "{trace}" {closed}'
    result = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE)
    assert result.returncode == 0
    assert trace.read_text().count("\n") == 4  # the header, and 3 tokens: none of what is printed strays into it


def test_full_disk_is_reported_in_one_line():
    with open("/dev/full", "w") as full:
        result = subprocess.run([PROGRAM, "-p", "a"], stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr == b"ffnskip-main: standard output can't be written: No space left on device\n"


def test_no_colours_in_a_pipe_unless_asked_for():
    assert b"\x1b" not in run("-p", PROMPT, "-n", 3).stdout
    assert run("-p", PROMPT, "-n", 3, "--color", "on").stdout.startswith(b"\x1b[33m" + PROMPT.encode() + b"\x1b[0m")


# --- reports ---------------------------------------------------------------------------------------------------------


def test_summary_and_layers_agree_with_the_python_package():
    with ours(ffnskip_cpp.demo_model(), SkipConfig(warm_up_index=5)) as llm:
        list(llm.generate(PROMPT, max_tokens=40, **GREEDY))
        stats = llm.stats
    result = run("-p", PROMPT, "-n", 40, *TEXT_ONLY, "--warm-up", 5, "--stats")
    report = result.stderr.decode()
    assert f"{100 * stats.skip_ratio:.1f} % of {stats.ffn_total} FFN blocks" in report
    assert f"similarity checks = {stats.checks / stats.tokens:10.2f} per token" in report
    assert re.search(r"load time = +[\d.]+ ms\n", report)
    assert re.search(r"prompt eval time = +[\d.]+ ms / +\d+ tokens ", report)
    assert re.search(r"eval time = +[\d.]+ ms / +39 runs ", report)
    assert f"policy ffn_skip, {stats.tokens} tokens, {stats.tokens_never_tripped} never reached" in report
    counts = [int(n) for n in re.findall(r"layer +\d+: FFN skipped for +(\d+) tokens", report)]
    assert counts == list(stats.skipped_per_layer)


def read_trace(path):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    n_layer = (len(header) - 2) // 2
    assert header == ["token", "text", *(f"similarity_{il}" for il in range(n_layer)),
                      *(f"skipped_{il}" for il in range(n_layer))]  # fmt: skip
    assert [int(row[0]) for row in rows] == list(range(len(rows)))
    similarity = np.array([[np.float32(x or "nan") for x in row[2 : 2 + n_layer]] for row in rows])
    skipped = np.array([[int(x) for x in row[2 + n_layer :]] for row in rows])
    return [row[1] for row in rows], similarity, skipped


@pytest.mark.parametrize("model", ["demo", "tiny"])
def test_trace_is_that_of_the_python_package(model, model_file, tiny, tmp_path):
    path = model_file("demo") if model == "demo" else tiny
    with ours(path, SkipConfig(warm_up_index=3, sim_threshold=0.85)) as llm, llm.trace() as trace:
        tokens = list(llm.generate(llm.tokenize(PROMPT.encode(), special=True), max_tokens=30, **GREEDY))
        pieces = [llm.detokenize([token], special=True).decode(errors="replace") for token in tokens[:-1]]
    file = tmp_path / "trace.csv"
    file.write_text("something older")
    arguments = ["-m", path, "-p", PROMPT, "-n", 30, "--warm-up", 3, "--sim-threshold", 0.85, "--ignore-eos"]
    run(*arguments, *TEXT_ONLY, "--trace", file, check=True)
    texts, similarity, skipped = read_trace(file)
    assert texts == pieces
    np.testing.assert_array_equal(similarity, trace.similarity)
    np.testing.assert_array_equal(skipped, trace.skipped)
    assert skipped.any() and np.isfinite(similarity).any() and np.isnan(similarity).any()
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_compare_prints_both_texts_and_how_far_they_agree(ratio, tmp_path):
    runs = []
    for skip in (None, SkipConfig(skip_ratio=ratio, warm_up_index=2)):
        with ours(ffnskip_cpp.demo_model(), skip) as llm:
            prompt = llm.tokenize(PROMPT.encode(), special=True)
            tokens = list(llm.generate(prompt, max_tokens=40, **GREEDY))
            runs.append((tokens, llm.detokenize(tokens).decode()))
    (dense, dense_text), (skipping, skipping_text) = runs
    file = tmp_path / "trace.csv"
    skip = ["--warm-up", 2, "--skip-ratio", ratio]
    text = output_of("-p", PROMPT, "-n", 40, *TEXT_ONLY, *skip, "--compare", "--trace", file)
    assert text.startswith(f"--- dense ---\n{dense_text}\n\n--- skipping ---\n{skipping_text}\n\n")
    equal = [a == b for a, b in zip(dense, skipping)]
    first = equal.index(False) if False in equal else len(equal)
    assert f"the first {first} of 40 tokens ({100 * first / 40:.1f} %)" in text
    assert f"{sum(equal)} position by position ({100 * sum(equal) / 40:.1f} %)" in text
    speed = r" +40 tokens +[\d.]+ tokens/s"
    assert re.search(rf"\ndense{speed}\nskipping{speed} +speed-up [\d.]+, [\d.]+ % of the FFN blocks skipped\n", text)
    assert len(read_trace(file)[0]) == 39  # of the skipping one


def test_help_has_every_option_and_a_worked_example():
    text = output_of("--help")
    assert text.endswith("example:\n" + text[text.rindex("  ffnskip-main -m ") :])
    options = """
        -m -p -f -n -c -b -ub -t -tb -ngl -s --seed --temp --top-k --top-p --min-p --typical --repeat-penalty
        --repeat-last-n --presence-penalty --frequency-penalty --mirostat --dry-multiplier --grammar --grammar-file
        --lora -fa -ctk -ctv --mlock --no-mmap --numa --ignore-eos -r --reverse-prompt -sys -cnv -no-cnv -st --jinja
        --chat-template --no-display-prompt -v -h --version --stats --trace --compare --policy --sim-threshold --cold-s
        --cold-e --warm-up --skip-ratio --max-skip --skip-layers --skip-seed --no-skip
    """
    for option in options.split():
        assert re.search(rf"^ .*{option}\b", text, re.MULTILINE), option
    assert max(map(len, text.splitlines())) <= 120


def test_version_names_ffnskip_and_llama_cpp():
    assert re.fullmatch(rf"ffnskip-main {ffnskip_cpp.__version__} \(llama\.cpp .+\)\n", output_of("--version"))


def test_libllama_speaks_only_when_asked():
    quiet = run("-p", PROMPT, "-n", 2).stderr.decode()
    assert all(line.startswith("ffnskip-main: ") for line in quiet.splitlines())
    assert "llama_model_loader" in run("-p", PROMPT, "-n", 2, "-v").stderr.decode()


# --- chat ------------------------------------------------------------------------------------------------------------

MESSAGES = ["Tell me about Grasus Parstra.", "Where does Herno Jotsen work?", "And Grasus Parstra?"]


def render(llm, template, messages):
    """The conversation as libllama renders it for the next answer."""
    chat = (llama_cpp.llama_chat_message * len(messages))()
    for entry, (role, content) in zip(chat, messages):
        entry.role, entry.content = role.encode(), content.encode()
    buffer = ctypes.create_string_buffer(1 << 16)
    n = llama_cpp.llama_chat_apply_template(template.encode(), chat, len(messages), True, buffer, len(buffer))
    return buffer.raw[:n].decode()


def expected_answers(template, messages, limit, **options):
    """Answers of a generation that keeps what the context holds, and goes on after each answer as it was generated."""
    answers, tokens, fed = [], [], ""
    conversation = [("system", options.pop("system"))] if "system" in options else []
    with ours(ffnskip_cpp.demo_model(), None, **options) as llm:
        template = template or llm.metadata["tokenizer.chat_template"]
        for message in messages:
            conversation.append(("user", message))
            whole = render(llm, template, conversation)
            assert whole.startswith(fed)
            tokens += llm.tokenize(whole[len(fed) :].encode(), add_bos=not fed, special=True)
            answer = []
            for token in llm.generate(tokens, max_tokens=limit, **GREEDY):
                if llama_cpp.llama_vocab_is_eog(llm._model.vocab, token):
                    break
                answer.append(token)
            tokens += answer
            answers.append(llm.detokenize(answer).decode())
            conversation.append(("assistant", answers[-1]))
            fed = whole + answers[-1]
    return answers


@pytest.mark.parametrize("limit", [8, 100])
@pytest.mark.parametrize("template", [None, "chatml"])
def test_a_piped_chat_answers_every_line(template, limit):
    arguments = ["-cnv", "-n", limit, *ONE_THREAD, "-c", 512, "--temp", "0", "--no-skip"]
    arguments += [] if template is None else ["--chat-template", template]
    text = output_of(*arguments, stdin="\n".join(MESSAGES).encode())
    assert text == "".join(answer + "\n" for answer in expected_answers(template, MESSAGES, limit, n_ctx=512))


def test_a_system_message_begins_the_conversation():
    (answer,) = expected_answers(None, MESSAGES[:1], 30, system="Be brief.")
    arguments = ["-sys", "Be brief.", "-p", MESSAGES[0], "-n", 30, *ONE_THREAD, "--temp", "0", "--no-skip"]
    assert output_of(*arguments) == answer + "\n"


def test_a_single_turn_answers_once():
    (answer,) = expected_answers(None, MESSAGES[:1], 30)
    arguments = ["-st", "-n", 30, *ONE_THREAD, "--temp", "0", "--no-skip"]
    assert output_of(*arguments, "-p", MESSAGES[0], stdin=b"not read\n") == answer + "\n"
    assert output_of(*arguments, stdin="\n".join(MESSAGES).encode()) == answer + "\n"


def test_a_line_that_ends_in_a_backslash_goes_on_and_exit_ends_the_chat():
    arguments = ["-cnv", "-n", 20, *ONE_THREAD, "--temp", "0", "--no-skip"]
    (answer,) = expected_answers(None, ["Tell me\nabout Grasus Parstra."], 20)
    assert output_of(*arguments, stdin=b"Tell me\\\nabout Grasus Parstra.\n/exit\nnot read\n") == answer + "\n"


def test_a_chat_that_fills_the_context_ends_with_a_note(tiny):
    arguments = ["-m", tiny, "-cnv", "--chat-template", "chatml", "--ignore-eos", "-n", 60, "-c", 256]
    result = run(*arguments, stdin=b"hello\n" * 9)
    assert result.returncode == 0 and b"note: context full (n_ctx = 256)" in result.stderr


@pytest.mark.parametrize("n_batch", [1, 2048])
def test_trace_of_a_chat_has_the_generated_tokens_only(n_batch, tmp_path):
    """Cut into single tokens, a message once looked like a continued answer."""
    file = tmp_path / "trace.csv"
    text = output_of("-cnv", "-b", n_batch, "-n", 5, "--trace", file, *TEXT_ONLY, stdin="\n".join(MESSAGES).encode())
    pieces, _, _ = read_trace(file)
    assert len(pieces) == 3 * 4  # the last of each answer was not fed as generated
    assert all("".join(pieces[4 * i : 4 * i + 4]) in answer for i, answer in enumerate(text.splitlines()))


def test_jinja_is_accepted_with_a_note():
    result = run("-st", "-p", "Hi", "-n", 2, "--jinja")
    assert result.returncode == 0 and result.stderr.count(b"ffnskip-main: note: --jinja") == 1


class Terminal:
    """The program on a terminal of its own."""

    def __init__(self, *arguments, **environment):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM, [PROGRAM, *map(str, arguments)], {**os.environ, **environment})
        self.waited = False

    def read_until(self, end):
        """What is printed up to `end`; None: all of it."""
        text, deadline = b"", time.monotonic() + DEADLINE
        while end is None or end not in text:
            ready, _, _ = select.select([self.fd], [], [], deadline - time.monotonic())
            assert ready, f"{end!r} is not in {text!r}"
            try:
                chunk = os.read(self.fd, 1 << 16)
            except OSError:  # Linux: the other end is closed
                chunk = b""
            if not chunk:
                assert end is None, f"{end!r} is not in {text!r}"
                break
            text += chunk
        return text

    def send(self, text):
        os.write(self.fd, text)

    def wait(self):
        self.waited = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self):
        if not self.waited:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        os.close(self.fd)


@contextlib.contextmanager
def terminal(*arguments, **environment):
    with contextlib.closing(Terminal(*arguments, **environment)) as program:
        yield program


ASKING = b"> \x1b[1m\x1b[32m"  # what follows is in the user's colour
CTRL_C, CTRL_D = b"\x03", b"\x04"
ENDLESS = ["--ignore-eos", "-c", "20000"]


def test_a_terminal_gets_a_chat():
    answers = expected_answers(None, MESSAGES, 30)
    with terminal("-n", 30, *ONE_THREAD, "--temp", "0", "--no-skip", NO_COLOR="") as program:
        program.read_until(ASKING)
        for message, answer in zip(MESSAGES, answers):
            program.send(message.encode() + b"\n")
            expected = f"{message}\r\n\x1b[0m{answer}\r\n".encode() + ASKING
            assert program.read_until(ASKING) == expected
        program.send(CTRL_D)
        assert b"eval time" in program.read_until(None)
        assert program.wait() == 0


def test_a_prompt_on_a_terminal_is_the_first_message():
    (answer,) = expected_answers(None, MESSAGES[:1], 20)
    with terminal("-p", MESSAGES[0], "-n", 20, *ONE_THREAD, "--temp", "0", "--no-skip", NO_COLOR="1") as program:
        assert program.read_until(b"\n> ").decode() == f"> {MESSAGES[0]}\r\n{answer}\r\n> "
        program.send(b"/exit\n")
        program.read_until(None)
        assert program.wait() == 0


def test_no_conversation_completes_the_prompt_on_a_terminal():
    expected = output_of("-p", PROMPT, "-n", 10, *ONE_THREAD, "--temp", "0")
    with terminal("-no-cnv", "-p", PROMPT, "-n", 10, *ONE_THREAD, "--temp", "0", NO_COLOR="1") as program:
        assert program.read_until(None).decode().startswith(expected.replace("\n", "\r\n"))
        assert program.wait() == 0


def test_a_template_that_libllama_does_not_know_is_noted_on_a_terminal(model_file, tmp_path):
    unknown = tmp_path / "unknown.gguf"
    content = Path(model_file("demo")).read_bytes()
    with ours(ffnskip_cpp.demo_model(), None) as llm:
        template = llm.metadata["tokenizer.chat_template"].encode()
    unknown.write_bytes(content.replace(template, b"{" * len(template)))
    with terminal("-m", unknown, "-p", PROMPT, "-n", 3, NO_COLOR="1") as program:
        assert b"note: libllama does not recognise the model's chat template" in program.read_until(None)
        assert program.wait() == 0
    assert "--chat-template" in refusal_of("-m", unknown, "-cnv")


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(tiny):
    with terminal("-m", tiny, "--chat-template", "chatml", *ENDLESS, NO_COLOR="") as program:
        program.read_until(ASKING)
        for _ in range(2):
            program.send(b"hello\n")
            program.read_until(b"\x1b[0m")  # the line has been read
            program.send(CTRL_C)
            program.read_until(ASKING)
        program.send(b"/exit\n")
        assert b"eval time" in program.read_until(None)
        assert program.wait() == 0


def test_ctrl_c_ends_a_completion_with_its_summary(tiny):
    with terminal("-m", tiny, "-p", "hello", *ENDLESS, NO_COLOR="1") as program:
        program.read_until(b"hello")
        time.sleep(0.1)
        program.send(CTRL_C)
        assert b"eval time" in program.read_until(None)
        assert program.wait() == 128 + signal.SIGINT


def test_ctrl_c_at_the_prompt_leaves(tiny):
    with terminal("-m", tiny, "--chat-template", "chatml", NO_COLOR="1") as program:
        program.read_until(b"> ")
        program.send(CTRL_C)
        assert b"eval time" not in program.read_until(None)
        assert program.wait() == 128 + signal.SIGINT


def test_ctrl_c_twice_leaves_at_once(tiny, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("a" * 900)  # time enough between the two
    with terminal("-m", tiny, "-f", file, "-ub", "1", *ENDLESS, NO_COLOR="1") as program:
        program.read_until(b"a" * 900)
        program.send(CTRL_C)
        program.read_until(b"^C")
        time.sleep(0.05)  # two signals at once are one
        program.send(CTRL_C)
        assert b"eval time" not in program.read_until(None)
        assert program.wait() == 128 + signal.SIGINT


# --- profiles --------------------------------------------------------------------------------------------------------


@pytest.fixture
def profile(tiny, tmp_path):
    """What to skip in the tiny model, in a profile."""
    config = SkipConfig(sim_threshold=-1.0, warm_up_index=2, max_skip=3, cold_s=3)
    with ours(tiny, config) as llm:
        llm.save_profile(tmp_path / "tiny.ffnskip.gguf")
    return tmp_path / "tiny.ffnskip.gguf"


def test_a_profile_says_what_to_skip(tiny, profile):
    options = ["-m", tiny, "-p", "abc", "-n", 30, *TEXT_ONLY]
    by_hand = ["--sim-threshold", "-1", "--warm-up", "2", "--max-skip", "3", "--cold-s", "3"]
    assert output_of(*options, "--profile", profile) == output_of(*options, *by_hand)
    assert "skipped =        0.0 %" in run(*options, "--profile", profile, "--warm-up", 99).stderr.decode()


def test_a_profile_of_another_model_or_none_is_refused(tiny, profile, tmp_path):
    message = refusal_of("-p", PROMPT, "-n", 5, "--profile", profile)  # the demo model
    assert "it is for model 'llama-" in message and "but this is 'llama-16x160-" in message
    assert f"profile {tmp_path / 'none.gguf'}: can't be read" in refusal_of("--profile", tmp_path / "none.gguf")
    assert f"profile {tiny}: has no ffnskip.model" in refusal_of("--profile", tiny)
    damaged = tmp_path / "damaged.gguf"
    for data, why in ((b"text", "is no GGUF file"), (profile.read_bytes()[:60], "is truncated or damaged")):
        damaged.write_bytes(data)
        assert f"profile {damaged}: {why}" in refusal_of("--profile", damaged)
