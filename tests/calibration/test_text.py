"""Texts are read whole or refused by name, and every token of a chunk is one of its text, in order."""

from __future__ import annotations

import json

import pytest

from ffnskip_cpp.measure.chat import PROMPT, Chat, tokens_of_chat
from ffnskip_cpp.measure.text import MIN_TOKENS, chunks_of_text, chunks_of_tokens, read_texts
from support.running import ours

LONG = "".join(f"Sentence number {i} of a text. " for i in range(60))


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture(scope="module")
def demo(model_file):
    """Adds a start token to every text."""
    with ours(model_file("demo"), None) as llm:
        yield llm


@pytest.fixture(scope="module")
def bytewise(model_file):
    """A token per byte (but for "th"), and no start token."""
    with ours(model_file("llama"), None) as llm:
        yield llm


# ---- reading ----


def test_a_plain_file_is_one_text_and_a_jsonl_file_one_per_line(tmp_path):
    plain = write(tmp_path, "a.txt", "\ufeffFirst line\r\n\r\nsecond – line\r\n")
    lines = [json.dumps({"text": "one\ntwo", "id": 7}), "", '{"text": "line separator \u2028 inside"}', '{"text": " "}']
    listed = write(tmp_path, "b.JSONL", "\r\n".join(lines))
    assert read_texts([plain, str(listed)]) == [
        "First line\n\nsecond – line\n",
        "one\ntwo",
        "line separator \u2028 inside",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", "", r"empty\.txt: there is no text in it"),
        ("blank.txt", " \n\t\n", r"blank\.txt: there is no text in it"),
        ("blank.jsonl", '{"text": ""}\n\n', r"blank\.jsonl: there is no text in it"),
        ("model.gguf", b"GGUF\x03\0\0\0", r"model\.gguf: a binary file, not text \(byte 5 is zero\)"),
        ("latin1.txt", "Brücke".encode("latin-1"), r"latin1\.txt:1: not text in UTF-8 \(byte 2 is 0xfc\)"),
        ("marked.txt", b"\xef\xbb\xbfone\r\ntwo\r\n\xff", r"marked\.txt:3: not text in UTF-8 \(byte 13 is 0xff\)"),
        ("wide.txt", "text".encode("utf-16"), r"wide\.txt: in UTF-16; save it in UTF-8"),
        ("role.jsonl", '{"messages": [{"content": "x"}]}', r'role\.jsonl:1: a message without a "role"'),
        ("none.jsonl", '{"messages": []}', r'none\.jsonl:1: "messages" is not a list of at least one'),
        ("null.jsonl", '{"messages": [{"role": "user", "content": null}]}', r'null\.jsonl:1: "content" holds what is'),
        ("turns.jsonl", '{"turns": ["a", 2]}', r'turns\.jsonl:1: "turns" holds what is no string'),
        ("pair.jsonl", '{"turns": ["\\ud83d"]}', r'pair\.jsonl:1: "turns" holds half a surrogate pair'),
        ("cut.jsonl", '{"text": "a"}\n{"text": "b', r"cut\.jsonl:2: not JSON: "),
        ("list.jsonl", '["text"]', r'list\.jsonl:1: not an object with a string under "text"'),
        ("number.jsonl", '{"text": 1}', r'number\.jsonl:1: not an object with a string under "text"'),
        ("other.jsonl", '{"content": "a"}', r'other\.jsonl:1: not an object with a string under "text"'),
        ("half.jsonl", '{"text": "\\ud83d"}', r'half\.jsonl:1: "text" holds half a surrogate pair'),
        ("deep.jsonl", "[" * 100_000, r"deep\.jsonl:1: not JSON: "),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path, name, content, message):
    good = write(tmp_path, "good.txt", "text")
    with pytest.raises(ValueError, match=message):
        read_texts([good, write(tmp_path, name, content)])


def test_chats_are_read_in_both_formats(tmp_path):
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "a\r\nb"}]
    entries = [{"messages": messages, "id": 1}, {"turns": ["one", "two"], "category": "x"}, {"text": "plain"}]
    first, second, third = read_texts([write(tmp_path, "c.jsonl", "\n".join(map(json.dumps, entries)))])
    assert (list(first.messages), third) == (messages, "plain")
    assert list(second.messages) == [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
    assert second.where.endswith("c.jsonl:2")


def test_no_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        read_texts([tmp_path / "missing.txt"])
    with pytest.raises(IsADirectoryError):
        read_texts([tmp_path])
    with pytest.raises(ValueError, match="no text is given"):
        read_texts([])


@pytest.mark.parametrize("text", ["a\0b", "x" * 200_000, "\u2028\ufeff\U0001f600 é", "</s> <s>", " \t lead"])
def test_what_is_in_a_text_reaches_the_model(bytewise, tmp_path, text):
    (read,) = read_texts([write(tmp_path, "t.jsonl", json.dumps({"text": text}))])
    tokens = [token for chunk in chunks_of_tokens(bytewise, [read, LONG], 300, min_tokens=1) for token in chunk]
    assert bytewise.detokenize(tokens).startswith(text.encode())


# ---- chats ----

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION, ANSWER = {"role": "user", "content": "Why is it so? Yes."}, {"role": "assistant", "content": " Yes. "}


@pytest.fixture
def chatting(bytewise):
    bytewise.metadata["tokenizer.chat_template"] = TEMPLATE
    yield bytewise
    del bytewise.metadata["tokenizer.chat_template"]


def test_of_a_chat_what_the_assistant_says_is_generated(chatting):
    """Also where the user has said the same before."""
    tokens, generated = tokens_of_chat(chatting, Chat((QUESTION, ANSWER, QUESTION, ANSWER), "here"))
    answers = "".join(chatting.detokenize([t]).decode() for t, i in zip(tokens, generated) if i >= 0)
    assert answers == "Yes.Yes." and max(generated) == 3
    rest = b"".join(chatting.detokenize([t]) for t, i in zip(tokens, generated) if i == PROMPT)
    assert rest.decode().count("<user>Why is it so? Yes.<assistant>") == 2


def test_a_chat_longer_than_a_context_goes_on_in_the_next(chatting):
    answer = {"role": "assistant", "content": "y" * 150}
    first, second, third = chunks_of_text(chatting, [Chat((QUESTION, answer, answer), "here")], 150)
    assert [len(first), len(second)] == [150, 150] and len(third) >= MIN_TOKENS
    n = first.generated.count(PROMPT)
    assert first.generated[n:] == list(range(150 - n)) and first.eligible(10).index(True) == n + 10
    assert second.generated[:2] == [PROMPT, 1]  # nothing led to it in its context, which it begins
    assert second.eligible(10).index(True) == 10


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system') }}", "here: the model's chat template can't render it: no system"),
        ("{% for %}", "here: the model's chat template can't render it"),
    ],
)
def test_a_template_that_fails_is_named_with_the_chat(chatting, template, message):
    chatting.metadata["tokenizer.chat_template"] = template
    with pytest.raises(ValueError, match=message):
        chunks_of_text(chatting, [Chat((QUESTION,), "here")], 100)


# ---- chunks ----


def test_chunks_are_the_tokens_of_the_text_in_order(bytewise):
    tokens = bytewise.tokenize(LONG.encode())
    chunks = chunks_of_tokens(bytewise, [LONG], 100)
    kept = len(tokens) - len(tokens) % 100 if len(tokens) % 100 < MIN_TOKENS else len(tokens)
    assert [token for chunk in chunks for token in chunk] == tokens[:kept]
    assert {len(chunk) for chunk in chunks[:-1]} == {100}


def test_every_chunk_has_the_start_token_that_the_vocabulary_asks_for(demo):
    tokens = demo.tokenize(LONG.encode())
    bos, content = tokens[0], tokens[1:]
    chunks = chunks_of_tokens(demo, [LONG], 64)
    assert bos == demo.token_bos() and len(chunks) > 2
    assert all(chunk[0] == bos for chunk in chunks)
    assert [token for chunk in chunks for token in chunk[1:]] == content[: sum(map(len, chunks)) - len(chunks)]


@pytest.mark.parametrize("n", [MIN_TOKENS - 1, MIN_TOKENS, MIN_TOKENS + 1, 99, 100, 101])
def test_a_short_text_is_used_from_32_tokens_on(bytewise, n):
    if n < MIN_TOKENS:
        with pytest.raises(ValueError, match=f"too short: the longest has {n} tokens, and at least 32 are needed"):
            chunks_of_tokens(bytewise, ["a" * n, "b"], 100)
    else:
        assert [len(chunk) for chunk in chunks_of_tokens(bytewise, ["a" * n], 100)] == [min(n, 100)]


def test_no_chunk_holds_parts_of_two_texts(bytewise):
    chunks = chunks_of_tokens(bytewise, ["a" * 50, "b" * 10, "c" * 130], 100)
    assert [set(bytewise.detokenize(chunk)) for chunk in chunks] == [{ord("a")}, {ord("c")}]
    chunks = chunks_of_tokens(bytewise, ["a" * 50, "c" * 132], 100)
    assert [len(chunk) for chunk in chunks] == [50, 100, 32]


@pytest.mark.parametrize("max_tokens", [32, 99, 100, 131, 132, 1000])
def test_max_tokens_takes_the_first_ones(bytewise, max_tokens):
    whole = chunks_of_tokens(bytewise, [LONG, LONG], 100)
    part = chunks_of_tokens(bytewise, [LONG, LONG], 100, max_tokens=max_tokens)
    total = sum(map(len, part))
    assert max_tokens - MIN_TOKENS < total <= max_tokens
    assert [chunk[: len(p)] for chunk, p in zip(whole, part)] == part


def test_the_beginning_of_a_long_text_is_the_same_whether_or_not_the_rest_is_wanted(demo):
    text = LONG * 20
    part = chunks_of_tokens(demo, [text], 64, max_tokens=128)
    assert part == chunks_of_tokens(demo, [text], 64)[:2]


def test_markers_in_a_text_are_text(demo):
    tokens = chunks_of_tokens(demo, ["</s>" * 40], 512)[0]
    assert demo.token_eos() not in tokens


@pytest.mark.parametrize(("n_ctx", "max_tokens", "name"), [(31, None, "n_ctx: 31"), (64, 31, "max_tokens: 31")])
def test_limits_too_small_for_a_chunk_are_refused(bytewise, n_ctx, max_tokens, name):
    with pytest.raises(ValueError, match=f"{name} tokens are too few for a chunk; at least 32"):
        chunks_of_tokens(bytewise, [LONG], n_ctx, max_tokens=max_tokens)
