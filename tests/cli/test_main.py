"""`ffnskip-main` generates what `Llama` generates, and takes bad input, pipes, terminals and Ctrl-C as it should."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import itertools
import os
import pty
import re
import select
import shutil
import signal
import stat
import struct
import subprocess
import sysconfig
import time
from pathlib import Path

import gguf
import jinja2
import llama_cpp
import numpy as np
import pytest
from llama_cpp import llama_chat_format

import ffnskip_cpp
from ffnskip_cpp import SkipConfig
from support import tiny_models
from support.channel_bytes import NO_CHANNELS, ffn_bytes
from support.running import F32_CACHE, GREEDY, ours, plain

PROGRAM = shutil.which("ffnskip-main") or str(Path(sysconfig.get_path("scripts")) / "ffnskip-main")

# As running.options_of has them.
ONE_THREAD = ["-t", "1", "-c", "256", "-fa", "off"]
TEXT_ONLY = [*ONE_THREAD, "--no-display-prompt", "--temp", "0"]
PROMPT = "Herno Jotsen"

NO_PROFILE = (
    "ffnskip-main: note: no skip profile for this model: nothing is skipped; "
    '"ffnskip calibrate MODEL --text FILE" makes one, "ffnskip try MODEL" says what skipping would cost\n'
)
NOT_CALIBRATED = (
    'ffnskip-main: note: these values are not calibrated for this model; "ffnskip try MODEL" says what they cost\n'
)

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
    "default": ([], "auto"),
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
    "channels": (
        ["--policy", "channels", "--skip-ratio", 0.4, "--warm-up", 3],
        SkipConfig(policy="channels", skip_ratio=0.4, warm_up_index=3),
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
    assert output_of(*arguments, "--lora", adapter) == expected + "\n" != output_of(*arguments)


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
    "unknown cache type": (["-ctk", "q9_9"], ["-ctk", "'q9_9'", "q8_0"]),
    "quantised values without flash attention": (["-ctv", "q8_0", "-fa", "off"], ["q8_0", "flash attention"]),
    "unknown choice": (["-fa", "maybe"], ["-fa", "'maybe'", "on, off, auto"]),
    "unknown reuse": (["--reuse", "some"], ["--reuse", "'some'", "all, full"]),
    "empty reverse prompt": (["-r", ""], ["-r", "''"]),
    "model that is not there": (["-m", "nothing.gguf"], ["--model", "'nothing.gguf'", "No such file"]),
    "model that is a directory": (["-m", "."], ["--model", "'.'", "directory"]),
    "prompt file that is not there": (["-f", "nothing.txt"], ["--file", "'nothing.txt'", "No such file"]),
    "prompt file that is a directory": (["-f", "."], ["--file", "'.'", "directory"]),
    "invalid UTF-8 in the prompt": (["-p", b"ab\xff"], ["--prompt", "byte 2", "0xff"]),
    "adapter that is not there": (["--lora", "nothing.gguf"], ["--lora", "'nothing.gguf'", "No such file"]),
    "grammar file that is not there": (["--grammar-file", "no.gbnf"], ["--grammar-file", "'no.gbnf'", "No such file"]),
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


ELSEWHERE = [["--mirostat", "2"], ["--dry-multiplier", "0.8"], ["--typical", "0.5"], ["--numa", "distribute"],
             ["--lora-scaled", "a.gguf:0.5"], ["--mlock"], ["--no-mmap"], ["--special"], ["--color", "on"]]  # fmt: skip


@pytest.mark.parametrize("words", ELSEWHERE, ids=lambda words: words[0])
def test_what_llama_cli_has_is_refused_with_the_way_to_have_it(words):
    way = f'"ffnskip run -- llama-cli ... {" ".join(words)}" has it'
    assert refusal_of(*words, "-p", "a") == f"ffnskip-main: {words[0]} is not here; {way}\n"


DAMAGED = {
    "what": "expecting ::=",
    'other ::= "a"': "root",
    "root ::= other": "other",
    'root ::= root "a"': "recursion",
}


@pytest.mark.parametrize("grammar", DAMAGED)
def test_a_damaged_grammar_is_refused_with_the_parsers_reason(grammar):
    result = run("-p", "a", "--grammar", grammar)
    message = result.stderr.decode()
    assert (result.returncode, result.stdout) == (2, b"") and DAMAGED[grammar] in message
    *above, ours = message.splitlines()
    reason = ours.removeprefix("ffnskip-main: --grammar: it is no GBNF grammar")
    assert (reason[:2] == ": " and reason[2:]) or (above and reason == "; the lines above say why")


DECODE_FAILS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <llama.h>

int32_t llama_decode(struct llama_context * ctx, struct llama_batch batch) {
    static int n_calls = 0;
    if (++n_calls == 4) {
        batch.token[0] = -7;
    }
    return ((int32_t (*)(struct llama_context *, struct llama_batch)) dlsym(RTLD_NEXT, "llama_decode"))(ctx, batch);
}
"""


@pytest.mark.parametrize("options", [["--no-skip"], ["--skip-layers", "1"]], ids=["dense", "skipping"])
def test_a_decode_that_fails_is_reported_with_libllamas_reason(tmp_path, tiny, options):
    (tmp_path / "fails.c").write_text(DECODE_FAILS)
    include = Path(llama_cpp.__file__).parents[1] / "include"
    library = tmp_path / "fails.so"
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", f"-I{include}", tmp_path / "fails.c", "-o", library]
    subprocess.run([*command, "-ldl"], check=True)
    result = run("-m", tiny, "-p", "a", *TEXT_ONLY, *options, env={**os.environ, "LD_PRELOAD": str(library)})
    assert result.returncode == 1
    assert result.stderr.decode().splitlines()[-1] == (
        "ffnskip-main: libllama can't decode: llama_decode returned -1: the batch is invalid: invalid token[0] = -7"
    )


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
    assert result.returncode == 0 and NO_PROFILE in result.stderr.decode()
    assert b"note" not in run("-m", path, "-p", "hello", "-n", 4, "--no-skip").stderr
    for asking in (["--max-skip", "1"], ["--policy", "random"], ["--compare"], ["--trace", "trace.csv"]):
        assert "architecture 'mamba'" in refusal_of("-m", path, "-p", "hello", *asking, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_embedding_models_are_refused(model_file):
    path = model_file("bert")
    assert str(path) in refusal_of("-m", path, "-p", "hello")


def with_number(model, to, key, value):
    """A copy of the model whose header says `value` for the 32-bit number under `key`."""
    field = gguf.GGUFReader(model).fields[key].parts[-1]
    content = bytearray(model.read_bytes())
    (at,) = [m.end() + 4 for m in re.finditer(key.encode(), content) if content[m.end() + 4 :][:4] == field.tobytes()]
    content[at : at + 4] = struct.pack("<I", value)
    to.write_bytes(content)
    return to


@pytest.mark.parametrize("n_layer", [0, 513, 10**6, 2**32 - 1])
def test_a_number_of_layers_that_makes_llama_cpp_abort_is_one_line(n_layer, tiny, tmp_path):
    path = with_number(tiny, tmp_path / "m.gguf", "llama.block_count", n_layer)
    assert f"--model '{path}': libllama gives up: " in refusal_of("-m", path, "-p", "a")


@pytest.mark.parametrize("key, value", [("expert_count", 10**6), ("expert_used_count", 0), ("expert_used_count", 99)])
def test_other_headers_that_make_llama_cpp_abort_are_one_line(key, value, model_file, tmp_path):
    path = with_number(model_file("moe"), tmp_path / "m.gguf", f"qwen3moe.{key}", value)
    assert re.search(
        r"m.gguf': libllama gives up: [\w.-]+:\d+: GGML_ASSERT\(.*n_expert", refusal_of("-m", path, "-p", "a")
    )


# --- what a vocabulary asks to be added ------------------------------------------------------------------------------


def rewritten(model, to, tokens=None, **settings):
    """A copy of the model with other settings of its tokenizer, and the texts of some tokens in place of theirs."""
    reader, writer = gguf.GGUFReader(model), gguf.GGUFWriter(to, "llama")
    for field in reader.fields.values():
        name, value = field.name, field.contents()
        if name.startswith("GGUF.") or name == "general.architecture" or name.rsplit(".", 1)[-1] in settings:
            continue
        for token, text in (tokens or {}).items() if name == "tokenizer.ggml.tokens" else ():
            value[token] = text
        if name == "tokenizer.ggml.merges" and tokens:
            value = ["Ā ā"]  # llama.cpp refuses a vocabulary without any; this one makes no token
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, field.types[0])
    for name, value in settings.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def test_two_start_tokens_are_noted(tmp_path, tiny):
    path = rewritten(tiny, tmp_path / "bos.gguf", add_bos_token=True)
    arguments = ["-m", path, "-n", 3, *TEXT_ONLY, "--no-skip", "-p"]
    assert b"note" not in run(*arguments, "abc").stderr
    assert b"note: the prompt begins with the start token <s>, and the model adds one: the text has two" in run(
        *arguments, "<s>abc").stderr  # fmt: skip
    assert b"note" not in run("-m", tiny, *arguments[2:], "<s>abc").stderr  # this one adds none
    chat = run(
        "-m",
        path,
        "-st",
        "-n",
        3,
        "--no-skip",
        "--chat-template",
        "{{ bos_token }}{{ messages[0].content }}",
        "-p",
        "a",
    )
    assert b"note: the prompt" not in chat.stderr and re.search(rb"prompt eval time = .*/ +2 tokens", chat.stderr)


def test_what_a_vocabulary_adds_at_the_end_is_left_out_of_a_prompt(tmp_path, tiny):
    """The text goes on: an end token behind the prompt would say that it does not. llama-completion aborts here."""
    path = rewritten(tiny, tmp_path / "eos.gguf", add_eos_token=True)
    arguments = ["-p", PROMPT, "-n", 30, *TEXT_ONLY, "--no-skip"]
    with_eos, without = (run("-m", model, *arguments) for model in (path, tiny))
    assert with_eos.stdout == without.stdout
    n_prompt = [re.findall(rb"prompt eval time = .* (\d+) tokens", result.stderr) for result in (with_eos, without)]
    assert n_prompt[0] == n_prompt[1]
    assert "the prompt is empty" in refusal_of("-m", path, "--no-skip")


# --- bytes in and out ------------------------------------------------------------------------------------------------


def test_marks_and_line_ends_of_editors_are_no_part_of_a_text(tiny, tmp_path):
    plain_text, marked = tmp_path / "a.txt", tmp_path / "b.txt"
    plain_text.write_bytes("é\r\n b\n".encode())
    marked.write_bytes("\ufeffé\r\n b\r\n".encode())
    arguments = ["-m", tiny, "-n", 0, "--no-skip"]
    assert run(*arguments, "-f", marked).stdout == run(*arguments, "-f", plain_text).stdout == "é\r\n b\n".encode()
    assert run(*arguments, stdin=marked.read_bytes()).stdout == "é\r\n b\n".encode()
    grammar = tmp_path / "g.gbnf"
    grammar.write_bytes('\ufeffroot ::= b "a"\r\nb ::= "b"\r\n'.encode())
    assert output_of("-m", tiny, "-p", "x", *TEXT_ONLY, "--no-skip", "--grammar-file", grammar) == "ba\n"
    chat = ["-m", tiny, "-cnv", "--chat-template", "chatml", "-n", 9, *TEXT_ONLY, "--no-skip"]
    assert (
        run(*chat, stdin="\ufeffé\r\nmo\\\r\nre\r\n/exit\r\nx".encode()).stdout
        == run(*chat, stdin="é\nmo\\\nre".encode()).stdout
    )


def test_nul_bytes_are_text_or_refused_where_they_would_cut_it(tiny, tmp_path):
    prompt = tmp_path / "p.txt"
    prompt.write_bytes(b"ab\0cd")
    with plain(tiny) as llm:
        tokens = itertools.islice(llm.generate(llm.tokenize(b"ab\0cd", special=True), **GREEDY), 20)
        expected = llm.detokenize(list(tokens))
    assert run("-m", tiny, "-f", prompt, "-n", 20, *TEXT_ONLY, "--no-skip").stdout == expected + b"\n"
    grammar = tmp_path / "g.gbnf"
    grammar.write_bytes(b'root ::= "a"\0 "b"')
    assert "byte 12 is NUL" in refusal_of("-m", tiny, "-p", "x", "--grammar-file", grammar)
    chat = ["-m", tiny, "-st", "-f", prompt, "-n", 20, *TEXT_ONLY, "--no-skip", "--chat-template"]
    assert "the user message: byte 2 is NUL" in refusal_of(*chat, "chatml")
    rendered = run(*chat, "{{ messages[0].content }}")
    assert rendered.stdout == expected + b"\n"


@pytest.mark.parametrize("option", ["-sys", "--chat-template", "--grammar"])
def test_options_that_are_not_utf8_are_refused(option):
    assert "invalid UTF-8 at byte 1 (0xff)" in refusal_of(option, os.fsdecode(b"a\xff"))


def test_texts_and_lines_longer_than_any_buffer_reach_the_model(tiny, tmp_path):
    text = "".join(chr(97 + i % 26) for i in range(70001))
    file = tmp_path / "long.txt"
    file.write_text(text)
    assert "has 70001 tokens, the context 256" in refusal_of("-m", tiny, "-c", 256, "--no-skip", "-f", file)
    assert "has 70001 tokens" in refusal_of("-m", tiny, "-c", 256, "--no-skip", stdin=text.encode())
    chat = refusal_of(
        "-m", tiny, "-c", 256, "-cnv", "--chat-template", "{{ messages[0].content }}", "--no-skip", stdin=text.encode()
    )
    assert "takes 70001 tokens" in chat


def test_a_line_that_the_terminal_cuts_is_not_sent(tiny):
    with terminal("-m", tiny, "--chat-template", "chatml", "-n", 3, "-c", 256, "--no-skip") as program:
        program.read_until(b"> ")
        program.send(b"a" * 5000 + b"\n")
        assert b"note: the line has reached the terminal's limit of 4096 bytes" in program.read_until(b"\n> ")
        program.send(b"\xff\n")
        assert b"note: standard input: invalid UTF-8" in program.read_until(b"\n> ")
        program.send(b"/exit\n")
        program.read_until(None)
        assert program.wait() == 0


@pytest.mark.parametrize("n_bytes", [63, 64, 65, 300])
def test_a_token_longer_than_a_buffer_is_written_whole(n_bytes, tiny, tmp_path):
    long = "Long" + "x" * (n_bytes - 4)
    path = rewritten(tiny, tmp_path / "long.gguf", tokens={256: long})  # in place of "th"
    trace = tmp_path / "trace.csv"
    biased = ["--grammar", f'root ::= "{long}" "."', "-n", 400, "--trace", trace, "--no-skip"]
    assert output_of("-m", path, "-p", "x", *ONE_THREAD, "--no-display-prompt", *biased) == long + ".\n"
    assert "".join(read_trace(trace)[0]) in long + "."


@pytest.mark.parametrize("text, at", [(b"ab\xff", 2), (b"ab\xc3", 2), (b"\xed\xa0\x80", 0), (b"a\xc0\x80", 1)])
def test_invalid_utf8_is_refused_with_its_place(text, at, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes(text)
    assert f"standard input: invalid UTF-8 at byte {at} " in refusal_of(stdin=text)
    assert f"'{file}': invalid UTF-8 at byte {at} " in refusal_of("-f", file)
    chat = refusal_of("-cnv", "--no-skip", stdin=b"\n" * 6 + text)
    assert f"standard input: invalid UTF-8 at byte {at + 6} " in chat


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
        [PROGRAM, "-m", tiny, "-p", "hello", "--ignore-eos", "--no-skip"],
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
        command = [PROGRAM, "-p", "a", "--no-skip"]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr == b"ffnskip-main: standard output can't be written: No space left on device\n"


# --- reports ---------------------------------------------------------------------------------------------------------


def test_summary_and_layers_agree_with_the_python_package():
    with ours(ffnskip_cpp.demo_model(), SkipConfig(warm_up_index=5)) as llm:
        list(llm.generate(PROMPT, max_tokens=40, **GREEDY))
        stats = llm.stats
    result = run("-p", PROMPT, "-n", 40, *TEXT_ONLY, "--warm-up", 5, "--stats")
    report = result.stderr.decode()
    assert f"{stats.tokens} generated tokens, {100 * stats.skip_ratio:.1f} % of their FFN blocks skipped" in report
    assert f"({stats.ffn_skipped} of {stats.ffn_total}), {stats.checks / stats.tokens:.2f} checks per token" in report
    assert re.search(r"load time = +[\d.]+ ms\n", report)
    assert re.search(r"prompt eval time = +[\d.]+ ms / +\d+ tokens ", report)
    assert re.search(r"eval time = +[\d.]+ ms / +39 runs ", report)
    assert f"policy ffn_skip, {stats.tokens} tokens, {stats.tokens_never_tripped} never reached" in report
    counts = [int(n) for n in re.findall(r"layer +\d+: FFN skipped for +(\d+) tokens", report)]
    assert counts == list(stats.skipped_per_layer)


def test_summary_and_layers_of_channels_agree_with_the_python_package_and_the_file(tiny):
    with ours(tiny, SkipConfig(policy="channels", layers=[3], warm_up_index=5)) as llm:
        list(llm.generate(PROMPT, max_tokens=40, **GREEDY))
        stats = llm.stats
    options = ["--policy", "channels", "--skip-layers", 3, "--warm-up", 5]
    report = run("-m", tiny, "-p", PROMPT, "-n", 40, *TEXT_ONLY, *options, "--stats").stderr.decode()
    kept, total = stats.channels_kept, stats.channels_total
    up, down = 100 * kept.sum(axis=0)[2:] / total.sum(axis=0)[2:]
    share = stats.bytes_left_out / (stats.tokens * ffn_bytes(tiny))
    assert f"39 generated tokens, {100 * share:.1f} % of their FFN weight bytes left out (" in report
    assert f"(up {up:.0f} %, down {down:.0f} % of channels kept), " in report
    assert f", {stats.ffn_bytes_not_read / 2**20:.1f} MiB of FFN weights not read\n" in report
    assert "policy channels, 39 tokens\n" in report
    layers = re.findall(r"layer +(\d+): FFN skipped for .*; channels kept: up (\d+) %, down (\d+) %", report)
    for layer, up, down in layers:
        shares = 100 * kept[int(layer), 2:] / total[int(layer), 2:]
        assert [int(up), int(down)] == pytest.approx(shares, abs=0.51)
    assert len(layers) == 12


def read_trace(path, kinds=()):
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    n_layer = (len(header) - 2) // (2 + len(kinds))
    names = ["similarity", "skipped", *(f"kept_{kind}" for kind in kinds)]
    assert header == ["token", "text", *(f"{name}_{il}" for name in names for il in range(n_layer))]
    assert [int(row[0]) for row in rows] == list(range(len(rows)))
    similarity = np.array([[np.float32(x or "nan") for x in row[2 : 2 + n_layer]] for row in rows])
    skipped = np.array([[int(x) for x in row[2 + n_layer : 2 + 2 * n_layer]] for row in rows])
    kept = np.array([[np.float32(x or "nan") for x in row[2 + 2 * n_layer :]] for row in rows])
    texts = [row[1] for row in rows]
    return (texts, similarity, skipped, kept) if kinds else (texts, similarity, skipped)


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


def test_trace_of_channels_is_that_of_the_python_package(tiny, tmp_path):
    with ours(tiny, SkipConfig(policy="channels", layers=[2], warm_up_index=3)) as llm, llm.trace() as trace:
        list(llm.generate(PROMPT, max_tokens=30, **GREEDY))
    options = ["--policy", "channels", "--skip-layers", 2, "--warm-up", 3]
    run("-m", tiny, "-p", PROMPT, "-n", 30, *TEXT_ONLY, *options, "--trace", tmp_path / "trace.csv", check=True)
    *_, skipped, kept = read_trace(tmp_path / "trace.csv", kinds=("qkv", "o", "up", "down"))
    np.testing.assert_array_equal(skipped, trace.skipped)
    np.testing.assert_array_equal(kept, trace.kept.transpose(0, 2, 1).reshape(len(trace.kept), -1))
    assert len(kept) == 29 and np.nanmin(kept) == 0 and np.nanmax(kept) == 1


def trace_to(path, *more, **options):
    return run(
        "-m",
        more[0] if more else ffnskip_cpp.demo_model(),
        "-p",
        PROMPT,
        "-n",
        5,
        *TEXT_ONLY,
        "--trace",
        path,
        **options,
    )


def test_a_trace_is_written_into_what_is_no_file_and_where_links_lead(tmp_path):
    expected = tmp_path / "expected.csv"
    assert trace_to(expected).returncode == 0
    rows = expected.read_bytes()

    result = trace_to("/dev/stdout")
    assert result.stdout.endswith(rows) and len(result.stdout) > len(rows)
    assert trace_to("/dev/null").returncode == 0 and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    result = trace_to("/dev/full")
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 2) and b"No space left on device" in result.stderr

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = subprocess.Popen(["cat", fifo], stdout=subprocess.PIPE)
    assert trace_to(fifo).returncode == 0
    assert reader.communicate(timeout=DEADLINE)[0] == rows and stat.S_ISFIFO(fifo.stat().st_mode)

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for target in ("there.csv", "not yet there.csv"):
        (folder / "there.csv").write_text("something older")
        (folder / "there.csv").chmod(0o640)
        link, second = tmp_path / "link.csv", tmp_path / "second.csv"
        link.unlink(missing_ok=True), second.unlink(missing_ok=True)
        link.symlink_to(Path("elsewhere") / target)
        second.symlink_to(link)
        assert trace_to(second).returncode == 0
        assert link.is_symlink() and second.is_symlink() and (folder / target).read_bytes() == rows
        assert stat.S_IMODE((folder / "there.csv").stat().st_mode) == 0o640

    both = tmp_path / "both.txt"  # what is printed and the trace, one after the other
    with open(both, "wb") as file:
        command = [PROGRAM, *map(str, ["-p", PROMPT, "-n", 5, *TEXT_ONLY, "--trace", both])]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.DEVNULL, timeout=DEADLINE)
    assert both.read_bytes().endswith(rows) and len(both.read_bytes()) > len(rows)
    assert sorted(p.name for p in folder.iterdir()) == ["not yet there.csv", "there.csv"]


@pytest.mark.parametrize("way", ["itself", "link", "hard link"])
@pytest.mark.parametrize("what", ["-m", "-f", "--grammar-file", "--lora", "--profile", "the profile beside", "stdin"])
def test_a_trace_is_not_written_over_what_is_read(what, way, tiny, profile, tmp_path):
    model = tmp_path / "m.gguf"
    shutil.copy(tiny, model)
    shutil.copy(profile, tmp_path / "m.ffnskip.gguf")
    (tmp_path / "text").write_text('root ::= "a"')
    source = {
        "-m": model, "--lora": tiny_models.write_lora(tmp_path / "lora.gguf", n_layer=12), "--profile": profile,
        "the profile beside": tmp_path / "m.ffnskip.gguf",
    }.get(what, tmp_path / "text")  # fmt: skip
    before = source.read_bytes()
    trace = source if way == "itself" else tmp_path / "other name"
    if way != "itself":
        (os.symlink if way == "link" else os.link)(source, trace)
    arguments = ["-m", model, "-n", 2, "--trace", trace]
    arguments += [what, source] if what.startswith("-") and what != "-m" else []
    with open(tmp_path / "text") as stdin:
        command = [PROGRAM, *map(str, arguments)]
        result = subprocess.run(command, stdin=stdin, capture_output=True, timeout=DEADLINE)
    assert result.returncode == 2 and result.stderr.startswith(f"ffnskip-main: --trace: '{trace}' is ".encode())
    assert source.read_bytes() == before and result.stderr.count(b"\n") == 1


def test_what_a_killed_run_left_of_a_trace_is_removed(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left, alive, other = (tmp_path / name for name in (
        f".t.csv.{dead.pid}.part", f".t.csv.{os.getpid()}.part", f".t2.csv.{dead.pid}.part"))  # fmt: skip
    for file in (left, alive, other):
        file.write_text("half")
    assert trace_to(tmp_path / "t.csv").returncode == 0
    assert not left.exists() and alive.exists() and other.exists()


def test_a_trace_is_csv_whatever_the_tokens_are(tiny, tmp_path):
    file = tmp_path / "t.csv"
    grammar = r'root ::= "a,\"b\"\n" "é" ";\r\t" "\x00" "end"'
    arguments = ["-m", tiny, "-p", "x", *ONE_THREAD, "--no-display-prompt", "--no-skip", "--grammar", grammar]
    run(*arguments, "--trace", file, check=True)
    assert b"\0" not in file.read_bytes()
    pieces = read_trace(file)[0]
    assert "".join(pieces) in 'a,"b"\n\ufffd\ufffd;\r\t\ufffdend' and '"' in pieces and "\r" in pieces


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
    spread = r"\nspeed-up: median of 37 tokens past the warm-up; quartiles [\d.]+ and [\d.]+, from [\d.]+ to [\d.]+\n"
    assert re.search(spread, text)
    assert len(read_trace(file)[0]) == 39  # of the skipping one


def test_compare_says_what_of_the_channels_was_left_out(tiny):
    options = ["--policy", "channels", "--warm-up", 2]
    text = output_of("-m", tiny, "-p", PROMPT, "-n", 40, *TEXT_ONLY, *options, "--compare")
    assert re.search(r" speed-up [\d.]+, [1-9][\d.]+ % of the FFN weight bytes left out\n", text)
    assert "median of 23 tokens past the warm-up" in text  # the first 16 tell the thresholds


def test_a_file_of_copies_that_is_not_the_models_is_noted(tiny, model_file, tmp_path):
    path = shutil.copy(tiny, tmp_path / "m.gguf")
    file = ffnskip_cpp.write_channels(model_file("phi3"), tmp_path / "m.channels.gguf", n_threads=1)
    report = run("-m", path, "-p", PROMPT, "-n", 3, *TEXT_ONLY, "--policy", "channels").stderr.decode()
    assert f"ffnskip-main: note: {file} is not used: " in report


def test_a_model_whose_channels_cannot_be_left_out_is_refused(model_file):
    message = refusal_of("-m", model_file(**NO_CHANNELS), "-p", PROMPT, "--policy", "channels")
    assert "policy 'channels': this model has no weights whose input channels can be left out" in message


SAMPLERS = {
    "greedy": ["--temp", 0],
    "random": [],
    "a seed": ["--seed", 5],
    "penalties": ["--repeat-penalty", 1.3, "--presence-penalty", 0.5],
    "a grammar": ["--grammar", "root ::= [a-z ]+"],
}


@pytest.mark.parametrize("skip", [["--sim-threshold", "1.5", "--warm-up", "0"], ["--no-skip"]], ids=lambda o: o[0])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_compare_agrees_with_itself_where_nothing_is_skipped(sampler, skip):
    """The two once drew seeds of their own."""
    text = output_of("-p", PROMPT, "-n", 30, *ONE_THREAD, *SAMPLERS[sampler], "--compare", *skip)
    first, n = re.search(r"agreement: the first (\d+) of (\d+) tokens \(100.0 %\)", text).groups()
    assert first == n != "0"


def test_the_seed_that_was_drawn_is_printed_and_gives_the_text_again():
    arguments = ["-p", PROMPT, "-n", 30, *ONE_THREAD, "--temp", "1.5"]
    first, second = run(*arguments), run(*arguments, "--seed", -1)
    (seed,), others = (re.findall(rb"seed = +(\d+)\n", result.stderr) for result in (first, second))
    assert seed not in others
    assert run(*arguments, "--seed", int(seed)).stdout == first.stdout != second.stdout
    assert b"seed" not in run(*arguments, "--temp", 0).stderr  # nothing was drawn


def test_help_has_every_option_and_a_worked_example():
    text = output_of("--help")
    assert text.endswith("example:\n" + text[text.rindex("  ffnskip-main -m ") :])
    options = """
        -m -p -f -n -c -b -ub -t -tb -ngl -s --seed --temp --top-k --top-p --min-p --repeat-penalty
        --repeat-last-n --presence-penalty --frequency-penalty --grammar --grammar-file
        --lora -fa -ctk -ctv --ignore-eos -r --reverse-prompt -sys -cnv -no-cnv -st --jinja
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


# --- nothing is skipped unless asked for -----------------------------------------------------------------------------


def test_a_model_without_a_profile_runs_as_llama_cpp_and_says_how_to_get_one(tiny):
    with plain(tiny) as llm:
        tokens = llm.generate(llm.tokenize(PROMPT.encode(), special=True), **GREEDY)
        expected = llm.detokenize(list(itertools.islice(tokens, 60))).decode(errors="replace")
    arguments = ["-m", tiny, "-p", PROMPT, "-n", 60, *TEXT_ONLY]
    result = run(*arguments)
    assert result.stdout.decode(errors="replace") == expected + "\n"
    assert result.stderr.decode().startswith(NO_PROFILE) and b"FFN blocks skipped" not in result.stderr
    assert "note" not in run(*arguments, "--no-skip").stderr.decode()


@pytest.mark.parametrize("setting", [["--skip-ratio", "0.2"], ["--sim-threshold", "0.8"], ["--policy", "random"]])
def test_settings_without_a_profile_are_said_to_be_uncalibrated(setting, tiny, profile):
    arguments = ["-m", tiny, "-p", PROMPT, "-n", 3]
    error = run(*arguments, *setting).stderr.decode()
    assert error.count(NOT_CALIBRATED) == 1 and NO_PROFILE not in error
    assert NOT_CALIBRATED not in run(*arguments, *setting, "--policy", "dense").stderr.decode()
    assert "note" not in run(*arguments, "--profile", profile, "--warm-up", 3).stderr.decode()


def test_a_threshold_that_tells_nothing_is_noted(tiny):
    arguments = ["-m", tiny, "-p", PROMPT, "-n", 140, "-c", 256, "--ignore-eos", "--warm-up", 0]
    assert run(*arguments, "--sim-threshold", -1).stderr.count(b"note: ") == 2
    assert run(*arguments, "--sim-threshold", 1.5).stderr.count(b"note: ") == 1  # that it is not calibrated


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


def test_a_full_context_loses_nothing_that_was_typed(tiny):
    """It once ended the chat: what was typed, and the answer so far, were gone."""
    arguments = ["-m", tiny, "--chat-template", "chatml", "-n", 4, "-c", 256, "--temp", "0", "--no-skip"]
    long = "a" * 190
    with terminal(*arguments) as program:
        program.read_until(b"> ")
        program.send(b"hello\n")
        program.read_until(b"\n> ")
        program.send(long.encode() + b"\n")
        said = program.read_until(b"\n> ").decode()
        assert re.search(
            r"context full \(n_ctx = 256\): the message takes \d+ tokens, \d+ are free; --ctx-size gives", said
        )
        assert f"not answered: {long}" in said
        program.send(b"short\n")  # the conversation goes on
        assert b"note" not in program.read_until(b"\n> ")
        program.send(b"/exit\n")
        program.read_until(None)
        assert program.wait() == 0
    piped = run(*arguments, stdin=f"hello\n{long}\n".encode())
    answer = run(*arguments, stdin=b"hello\n").stdout
    assert (piped.returncode, piped.stdout) == (0, answer) and f"not answered: {long}".encode() in piped.stderr
    assert "context full (n_ctx = 256): the message takes" in refusal_of(*arguments, "-cnv", stdin=b"a" * 300)


def test_an_answer_that_fills_the_context_is_kept(tiny):
    arguments = ["-m", tiny, "--chat-template", "chatml", "--ignore-eos", "-c", 256, "--temp", 0, "--no-skip"]
    with terminal(*arguments) as program:
        program.read_until(b"> ")
        program.send(b"hello\n")
        assert b"context full (n_ctx = 256): the answer ends here; --ctx-size" in program.read_until(b"\n> ")
        program.send(b"more\n")
        assert b"not answered: more" in program.read_until(b"\n> ")
        program.send(CTRL_D)
        program.read_until(None)
        assert program.wait() == 0


@pytest.mark.parametrize("reuse", ["all", "full"])
def test_reuse_says_what_becomes_of_answers_that_skipped(reuse, tiny):
    skip = SkipConfig(sim_threshold=-1.0, warm_up_index=0)
    arguments = ["-m", tiny, "-cnv", "--chat-template", "{% for m in messages %}{{ m.content }}{% endfor %}"]
    arguments += [*ONE_THREAD, "--temp", 0, "--sim-threshold", -1, "--warm-up", 0, "--reuse", reuse]
    first = run(*arguments, "-n", 1, "--grammar", 'root ::= "a" | "b"', stdin=b"x\n")
    assert first.returncode == 0
    result = run(*arguments, "-n", 20, "--grammar", "root ::= [a-c]{20}", stdin=b"one\ntwo\n")
    (n_prompt,) = re.findall(rb"prompt eval time = .* / +(\d+) tokens", result.stderr)
    assert (int(n_prompt) > 20) == (reuse == "full")  # the first answer again
    with ours(tiny, skip, **({} if reuse == "all" else {"reuse": "full"})) as llm:
        grammar = llama_cpp.LlamaGrammar.from_string("root ::= [a-c]{20}", verbose=False)
        text = ""
        for question in ("one", "two"):
            text += question
            answer = llm(text, max_tokens=20, grammar=grammar, temperature=0.0)["choices"][0]["text"]
            text += answer
    assert result.stdout.decode().splitlines()[1] == answer


@pytest.mark.parametrize("n_batch", [1, 2048])
def test_trace_of_a_chat_has_the_generated_tokens_only(n_batch, tmp_path):
    """Cut into single tokens, a message once looked like a continued answer."""
    file = tmp_path / "trace.csv"
    text = output_of("-cnv", "-b", n_batch, "-n", 5, "--trace", file, *TEXT_ONLY, stdin="\n".join(MESSAGES).encode())
    pieces, _, _ = read_trace(file)
    assert len(pieces) == 3 * 4  # the last of each answer was not fed as generated
    assert all("".join(pieces[4 * i : 4 * i + 4]) in answer for i, answer in enumerate(text.splitlines()))


CHATML = llama_chat_format.CHATML_CHAT_TEMPLATE
TEMPLATES = {
    "chatml": CHATML,
    "chatml with a part that is not understood": "{% if tools %}{{ 2 ** 3 < 9.5 < 10 }}{% endif %}~" + CHATML,
    "chatml with a system message of its own": """\
{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nIt\\'s "own".<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + m.role + '\\n' ~ m.content }}<|im_end|>
{% endfor %}
<|im_start|>assistant

""",
    "llama 3": llama_chat_format.LLAMA3_INSTRUCT_CHAT_TEMPLATE,
    "mistral, which has no system message": llama_chat_format.MISTRAL_INSTRUCT_CHAT_TEMPLATE,
    "zephyr, by lines": """\
{% for message in messages %}
  {% if message['role'] in ['user', 'system'] %}
{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}
  {%- elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'].strip() + eos_token }}
  {% endif %}
  {% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}
{% endfor %}
""",
    "gemma, the system message within the first turn": """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set prefix = "" -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("no turns") }}
    {%- endif -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}
    {{- (prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{{'<start_of_turn>model\n'}}
""",
    "macros, namespaces, and tools that are not asked for": """\
{%- macro say(who, what='nothing') -%}[{{ who | upper }}] {{ what }}{{ eos_token }}{%- endmacro %}
{%- set ns = namespace(system='none', n=0) %}
{%- if tools %}{{ tools | tojson(indent=4) }}{% call x() %}{% endcall %}{%- endif %}
{%- for m in messages if m.role != 'tool' %}
    {%- if m.role == 'system' %}{% set ns.system = m.content %}{% continue %}{%- endif %}
    {%- set ns.n = ns.n + 1 %}
    {#- a comment, with {{ braces }} -#}
    {{- say(m.role, m.content.split('</think>')[-1].lstrip('\n')) -}}
{%- else %}nobody{%- endfor %}
{{- ' ' ~ ns.n ~ ' ' ~ ns.system ~ (messages | length) ~ (not messages[9] is defined) -}}
{%- if tools is none and enable_thinking is not defined and messages[-1].get('name', 1) == 1 %}x{% endif -%}
[ASSISTANT] {{ messages[::-1][0]['content'] | default('y') | replace('e', '3') }}\u00e9
""",
    "unknown to libllama": "{% for m in messages %}<{{ m.role.title() }}>{{ m.content }}{% endfor %}<Assistant>",
}
AWKWARD = "  Tell {{ me }}\t'of' \"wh\u00e9re\" \\n <s> {% "


@pytest.mark.parametrize("system", [None, "", " Be brief.\u00a0"], ids=["no system", "empty system", "system"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_chat_is_fed_what_jinja_renders(name, system, tiny):
    """libllama's own renderings once stood in for the templates: a template's own system message was left out."""
    messages = [{"role": "user", "content": AWKWARD}]
    messages[:0] = [] if system is None else [{"role": "system", "content": system}]
    formatter = llama_chat_format.Jinja2ChatFormatter(TEMPLATES[name], eos_token="</s>", bos_token="<s>")
    arguments = ["-m", tiny, "-st", "-p", AWKWARD, "--no-escape", "-n", 40, *ONE_THREAD, "--temp", 0, "--no-skip"]
    arguments += ["--chat-template", TEMPLATES[name]] + ([] if system is None else ["-sys", system])
    result = run(*arguments)
    try:
        prompt = formatter(messages=messages).prompt
    except (ValueError, jinja2.TemplateError):  # as the template refuses it: libllama knows what to do
        assert b"can't be rendered as it stands: it says" in result.stderr
        return
    with plain(tiny) as llm:
        tokens = llm.tokenize(prompt.encode(), add_bos=False, special=True)
        expected = []
        for token in llm.generate(tokens, **GREEDY):
            if llama_cpp.llama_vocab_is_eog(llm._model.vocab, token) or len(expected) == 40:
                break
            expected.append(token)
        assert result.stdout == llm.detokenize(expected) + b"\n"
    assert re.search(rb"prompt eval time = .* %d tokens" % len(tokens), result.stderr)


@pytest.mark.parametrize("name", TEMPLATES)
def test_three_turns_are_fed_what_jinja_renders(name, tiny):
    """Byte by byte, as every token of this model is one: the answers are the same whatever the prompt."""
    questions, answer = ["One?", "And two?", "Three."], "Yes."
    messages = []
    for question in questions:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    formatter = llama_chat_format.Jinja2ChatFormatter(TEMPLATES[name], eos_token="</s>", bos_token="<s>")
    with plain(tiny) as llm:
        n_tokens = len(llm.tokenize(formatter(messages=messages[:-1]).prompt.encode(), add_bos=False, special=True))
    arguments = ["-m", tiny, "-cnv", *ONE_THREAD, "-c", 1024, "--chat-template", TEMPLATES[name], "--no-skip"]
    result = run(*arguments, "--grammar", f'root ::= "{answer}"', stdin="\n".join(questions).encode())
    assert result.stdout.decode() == f"{answer}\n" * 3
    n_generated = 2 * len(answer)  # of the first two answers
    if "ns.n" not in TEMPLATES[name]:  # which is rendered anew from the beginning in every turn
        (n_prompt,) = re.findall(rb"prompt eval time = .* / +(\d+) tokens", result.stderr)
        assert int(n_prompt) == n_tokens - n_generated


def test_a_template_that_can_not_be_rendered_gives_way_to_libllamas_rendering_with_a_note(tiny):
    odd = "{% import 'x' as y %}" + CHATML
    arguments = ["-m", tiny, "-st", "-p", "Hi", "-n", 30, *TEXT_ONLY, "--no-skip", "--chat-template"]
    result = run(*arguments, odd)
    assert result.stdout == run(*arguments, "chatml").stdout
    assert b"note: --chat-template can't be rendered as it stands: the statement 'import' is not known" in result.stderr
    for bad, why in [
        ("{% for m in messages %}", "'endfor' is missing"), ("{{ 'a }}", "a quotation does not end"),
        ("{{ 1 + }}", "a value is missing before '}}'"), ("{{ x", "'}}' is missing"), ("{{ 1 }}{#", "'#}' is missing"),
        ("{{ " + "(" * 9999 + " }}", "it nests too deep"), ("{% if x %}" * 9999, "it nests too deep"),
        ("{{ none.x() }}", "'x' is asked of nothing"), ("{% break %}", "'break' stands outside"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "it nests too deep"),
    ]:  # fmt: skip
        assert why in refusal_of(*arguments, bad)


def test_what_a_template_says_of_itself_is_noted(tiny):
    arguments = [
        "-m",
        tiny,
        "-st",
        "-p",
        "Hi",
        "-n",
        2,
        "--chat-template",
        TEMPLATES["chatml with a system message of its own"],
    ]
    own = b'note: --chat-template begins with a text of its own: <|im_start|>system\\nIt\'s "own".'
    assert own in run(*arguments).stderr
    assert own not in run(*arguments, "-sys", "Be.").stderr
    assert b"of its own" not in run(*arguments[:-1], llama_chat_format.MISTRAL_INSTRUCT_CHAT_TEMPLATE).stderr


def test_jinja_is_accepted():
    assert run("-st", "-p", "Hi", "-n", 2, "--jinja").returncode == 0


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


CTRL_C, CTRL_D = b"\x03", b"\x04"
ENDLESS = ["--ignore-eos", "-c", "20000"]


def test_a_terminal_gets_a_chat():
    answers = expected_answers(None, MESSAGES, 30)
    with terminal("-n", 30, *ONE_THREAD, "--temp", "0", "--no-skip") as program:
        program.read_until(b"> ")
        for message, answer in zip(MESSAGES, answers):
            program.send(message.encode() + b"\n")
            assert program.read_until(b"\n> ").decode() == f"{message}\r\n{answer}\r\n> "
        program.send(CTRL_D)
        assert b"eval time" in program.read_until(None)
        assert program.wait() == 0


def test_a_prompt_on_a_terminal_is_the_first_message():
    (answer,) = expected_answers(None, MESSAGES[:1], 20)
    with terminal("-p", MESSAGES[0], "-n", 20, *ONE_THREAD, "--temp", "0", "--no-skip") as program:
        assert program.read_until(b"\n> ").decode() == f"> {MESSAGES[0]}\r\n{answer}\r\n> "
        program.send(b"/exit\n")
        program.read_until(None)
        assert program.wait() == 0


def test_no_conversation_completes_the_prompt_on_a_terminal():
    arguments = ["-p", PROMPT, "-n", 10, *ONE_THREAD, "--temp", "0", "--no-skip"]
    expected = output_of(*arguments)
    with terminal("-no-cnv", *arguments) as program:
        assert program.read_until(None).decode().startswith(expected.replace("\n", "\r\n"))
        assert program.wait() == 0


def test_a_template_that_libllama_does_not_know_is_noted_on_a_terminal(model_file, tmp_path):
    unknown = tmp_path / "unknown.gguf"
    content = Path(model_file("demo")).read_bytes()
    with ours(ffnskip_cpp.demo_model(), None) as llm:
        template = llm.metadata["tokenizer.chat_template"].encode()
    unknown.write_bytes(content.replace(template, b"{" * len(template)))
    with terminal("-m", unknown, "-p", PROMPT, "-n", 3) as program:
        assert b"note: libllama does not recognise the model's chat template" in program.read_until(None)
        assert program.wait() == 0
    assert "--chat-template" in refusal_of("-m", unknown, "-cnv")


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(tiny):
    with terminal("-m", tiny, "--chat-template", "chatml", *ENDLESS) as program:
        program.read_until(b"> ")
        for _ in range(2):
            program.send(b"hello\n")
            program.read_until(b"hello\r\n")
            assert select.select([program.fd], [], [], DEADLINE)[0]  # it answers
            program.send(CTRL_C)
            program.read_until(b"\n> ")
        program.send(b"/exit\n")
        assert b"eval time" in program.read_until(None)
        assert program.wait() == 0


def test_ctrl_c_ends_a_completion_with_its_summary(tiny):
    with terminal("-m", tiny, "-p", "hello", *ENDLESS) as program:
        program.read_until(b"hello")
        time.sleep(0.1)
        program.send(CTRL_C)
        assert b"eval time" in program.read_until(None)
        assert program.wait() == 128 + signal.SIGINT


def test_ctrl_c_at_the_prompt_leaves(tiny):
    with terminal("-m", tiny, "--chat-template", "chatml") as program:
        program.read_until(b"> ")
        program.send(CTRL_C)
        assert b"eval time" not in program.read_until(None)
        assert program.wait() == 128 + signal.SIGINT


def test_ctrl_c_twice_leaves_at_once(tiny, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("a" * 900)  # time enough between the two
    with terminal("-m", tiny, "-f", file, "-ub", "1", *ENDLESS) as program:
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
    assert " 0.0 % of their FFN blocks skipped" in run(*options, "--profile", profile, "--warm-up", 99).stderr.decode()


def test_a_profile_of_another_model_or_none_is_refused(tiny, profile, tmp_path):
    message = refusal_of("-p", PROMPT, "-n", 5, "--profile", profile)  # the demo model
    assert "it is for model 'llama-" in message and "but this is 'llama-16x160-" in message
    assert f"profile {tmp_path / 'none.gguf'}: can't be read" in refusal_of("--profile", tmp_path / "none.gguf")
    assert f"profile {tiny}: has no ffnskip.model" in refusal_of("--profile", tiny)
    damaged = tmp_path / "damaged.gguf"
    for data, why in ((b"text", "is no GGUF file"), (profile.read_bytes()[:60], "is truncated or damaged")):
        damaged.write_bytes(data)
        assert f"profile {damaged}: {why}" in refusal_of("--profile", damaged)
