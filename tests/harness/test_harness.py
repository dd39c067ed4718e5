"""The harness's model class `ffnskip`, next to the harness's own class `hf` on the same checkpoint."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ffnskip_cpp.errors import ArgumentError, FfnSkipError

harness = pytest.importorskip("support.harness")


# ---- dense, it is the class `hf` ----


IN_TURNS = {"num_fewshot": 2, "system_instruction": "Answer.", "fewshot_as_multiturn": True}


@pytest.mark.parametrize(
    ("begins", "options"),
    [
        (False, {}),
        (True, {}),
        (True, {"num_fewshot": 2}),
        (False, {"apply_chat_template": True}),
        (True, {"apply_chat_template": True, **IN_TURNS}),
    ],
    ids=["plain", "with a start token", "few-shot", "chat", "chat in turns"],
)
def test_tasks_come_to_what_hf_comes_to(begins, options, pair, tmp_path):
    theirs, mine = pair(begins=begins)
    folder = harness.write_tasks(tmp_path, harness.DOCUMENTS)
    expected, found = (harness.evaluated(lm, folder, **options) for lm in (theirs, mine))
    for task in harness.TASKS:
        compare_samples(expected["samples"][task], found["samples"][task])
    accuracy = {name: value for name, value in expected["results"]["lamps"].items() if name.startswith("acc")}
    assert len(accuracy) >= 2
    for name, value in accuracy.items():
        assert found["results"]["lamps"][name] == value
    for name in ("word_perplexity,none", "byte_perplexity,none"):
        assert found["results"]["lines"][name] == pytest.approx(
            expected["results"]["lines"][name], rel=harness.TOLERANCE
        )


def compare_samples(expected: list[dict[str, Any]], found: list[dict[str, Any]]) -> None:
    for theirs, mine in zip(expected, found, strict=True):
        assert mine["arguments"] == theirs["arguments"]  # prompts, as the chat template makes them
        for a, b in zip(theirs["resps"], mine["resps"], strict=True):
            (a,), (b,) = a, b
            if isinstance(a, str):
                assert characters(b) == characters(a)
            elif isinstance(a, tuple):
                assert b[0] == pytest.approx(a[0], abs=harness.TOLERANCE)
                assert b[1] == a[1]
            else:
                assert b == pytest.approx(a, abs=harness.TOLERANCE)


def characters(text: str) -> str:
    """Without what stands for bytes that are none."""
    return text.replace("\ufffd", "")


@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("begins", [False, True])
def test_pairs_are_cut_into_the_tokens_that_hf_cuts(begins, add_bos_token, models):
    checkpoint, path = models(begins=begins)
    theirs, mine = (
        make(where, add_bos_token=add_bos_token) for make, where in ((harness.hf, checkpoint), (harness.ffnskip, path))
    )
    texts = ["The lamp", "x ", " \n", "end.\n\n", "<|begin|>The", "<|user|>hi<|stop|>\n<|assistant|>", "naïve 北", "t"]
    for context in texts:
        for continuation in ("he", " lamp", "\n", "<|stop|>", "京", " "):
            assert mine._encode_pair(context, continuation) == theirs._encode_pair(context, continuation)
    for text in texts:
        assert mine.tok_encode(text, add_special_tokens=False) == theirs.tok_encode(text, add_special_tokens=False)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_do_not_depend_on_the_batch_size(batch_size, pair, models):
    theirs, _ = pair(begins=False)
    how = [{"until": ["."], "max_gen_toks": n, "do_sample": False} for n in (5, 17)]
    asked = [(document["question"] or "-", how[i % 2]) for i, document in enumerate(harness.DOCUMENTS)]
    mine = harness.ffnskip(models(begins=False)[1], batch_size=batch_size)
    for found, expected in zip(*(harness.answers(lm, "generate_until", *asked) for lm in (mine, theirs))):
        assert characters(found) == characters(expected)


@pytest.mark.parametrize("template", [harness.TEMPLATE, harness.STRIPPING], ids=["as it is", "stripped"])
@pytest.mark.parametrize("content", ["I think", " I think that ", "think", ""])
def test_an_answer_that_is_begun_is_left_open_as_transformers_leaves_it(template, content, pair):
    theirs, mine = pair(template=template)
    chat = [{"role": "user", "content": "What do you think "}, {"role": "assistant", "content": content}]
    for generation in (True, False):
        expected = theirs.apply_chat_template(chat, add_generation_prompt=generation)
        assert mine.apply_chat_template(chat, add_generation_prompt=generation) == expected
    assert mine.chat_template(True) == theirs.chat_template(True)


def test_a_system_message_that_the_template_refuses_is_left_out(pair):
    theirs, mine = pair(begins=False)
    chat = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    assert mine.apply_chat_template(chat) == theirs.apply_chat_template(chat)
    assert "<|system|>" not in mine.apply_chat_template(chat)
    assert "<|system|>" in mine.apply_chat_template(chat[:2])


def test_a_chat_template_that_is_not_there_or_can_not_render(models):
    mine = harness.ffnskip(models(template=None)[1])
    with pytest.raises(FfnSkipError, match="the model has no chat template"):
        mine.apply_chat_template([{"role": "user", "content": "hi"}])
    mine = harness.ffnskip(models(template="{{ raise_exception('never') }}")[1])
    with pytest.raises(FfnSkipError, match="its chat template can't render this: never"):
        mine.apply_chat_template([{"role": "user", "content": "hi"}])
    with pytest.raises(ArgumentError, match="chat_template: 'tools' can't be chosen"):
        mine.chat_template("tools")
    assert len({harness.ffnskip(models(template=each)[1]).tokenizer_name for each in (None, harness.TEMPLATE)}) == 2


# ---- contexts ----


def test_a_context_is_scored_once_with_all_that_goes_on_from_it(pair, monkeypatch):
    _, mine = pair(begins=False)
    scored = []
    score = mine.llm.score
    monkeypatch.setattr(mine.llm, "score", lambda *given, **how: scored.append(given) or score(*given, **how))
    pairs = [("the lamp", " is out"), ("the bird", " sings"), ("the lamp", " sings"), ("the lamp", " is out")]
    found = harness.answers(mine, "loglikelihood", *pairs)
    assert sorted(len(continuations) for _, continuations in scored) == [1, 2]
    assert found[0] == found[3] != found[2]


def test_what_is_too_long_for_the_context_is_refused(pair):
    _, mine = pair(begins=False)
    with pytest.raises(
        ValueError, match=f"continuation: {harness.MAX_LENGTH + 1} tokens can't be scored; 1 to max_length="
    ):
        harness.answers(mine, "loglikelihood", ("a", "$" * (harness.MAX_LENGTH + 1)))
    with pytest.raises(
        ArgumentError, match=f"max_gen_toks: 96 tokens leave no room in max_length={harness.MAX_LENGTH}"
    ):
        harness.answers(mine, "generate_until", ("a", {"max_gen_toks": 96}))


# ---- sampling, caches ----


def test_samples_follow_the_seed_of_the_harness(models):
    mine = harness.ffnskip(models()[1], batch_size=2)
    asked = [("the lamp", {"max_gen_toks": 12, "temperature": 2.0})] * 3
    found = []
    for seed in (1, 2, 1):
        random.seed(seed)
        found.append(harness.answers(mine, "generate_until", *asked))
    assert found[0] == found[2] != found[1]
    assert len(set(found[0])) == 3  # requests that are repeated for a vote


def test_answers_are_kept_in_the_cache_of_the_harness(pair, tmp_path, monkeypatch):
    _, mine = pair(begins=False)
    folder = harness.write_tasks(tmp_path, harness.DOCUMENTS)
    cached = {"use_cache": str(tmp_path / "answers")}
    first = harness.evaluated(mine, folder, **cached)
    for name in ("score", "generate_batch"):
        monkeypatch.setattr(mine.llm, name, None)
    again = harness.evaluated(mine, folder, **cached)
    assert again["results"] == first["results"]


def interrupted(*given: Any, **how: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_leaves_its_answers_in_the_cache(pair, monkeypatch):
    _, mine = pair(begins=False)
    kept = []
    monkeypatch.setattr(mine.cache_hook, "add_partial", lambda *what: kept.append(what))
    score = mine.llm.score
    calls = iter([score, score, interrupted])
    monkeypatch.setattr(mine.llm, "score", lambda *given, **how: next(calls)(*given, **how))
    with pytest.raises(KeyboardInterrupt):
        harness.answers(mine, "loglikelihood", ("a", "b"), ("c", "d"), ("e", "f"))
    assert [(kind, texts) for kind, texts, _ in kept] == [("loglikelihood", ("a", "b")), ("loglikelihood", ("c", "d"))]
