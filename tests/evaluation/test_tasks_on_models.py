"""Tasks put to models, next to figures that come from llama_cpp alone."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

import demo_world
from ffnskip_cpp import SkipConfig
from ffnskip_cpp.evaluation.tasks import TASKS
from ffnskip_cpp.evaluation.tasks.base import Settings
from support.evaluation_subjects import Opened
from support.running import F32_CACHE, ours, plain

FACTS = [
    ("Olm sold a boat in", ["Ul", "the town", "a cave of cats"]),
    ("Question: What is olm?", ["a cat", "animal"]),
    ("Question: Who was the Duke of Ul?\nAnswer:", ["Olm Brin", "a cat", "nobody at all", "Duke"]),
]


def items_of(folder, task, *entries):
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return TASKS[task].read(path)


def run(task, subject, items, **settings):
    return list(TASKS[task].run(subject, items, Settings(**settings)))


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def log_likelihood(llm, prefix, continuation):
    """Of a text behind another by llama_cpp."""
    n, tokens = len(llm.tokenize(prefix.encode())), llm.tokenize((prefix + continuation).encode())
    llm.reset()
    llm.eval(tokens)
    rows = log_softmax(llm.scores[: len(tokens)])
    return sum(rows[i - 1, tokens[i]] for i in range(n, len(tokens)))


@pytest.fixture
def both(model_file):
    """A model, and the same in plain llama_cpp."""
    path = model_file("llama", n_layer=4)
    with ours(path, None, **F32_CACHE) as llm, plain(path, logits_all=True, **F32_CACHE) as expected:
        yield llm, expected


def test_choices_are_those_of_llama_cpp(tmp_path, both):
    llm, expected = both
    entries = [{"query": query, "choices": choices, "gold": 1} for query, choices in FACTS]
    records = run("choice", Opened(llm), items_of(tmp_path, "choice", *entries))
    for (query, choices), record in zip(FACTS, records):
        prompt = f"{query}\nAnswer:" if query.startswith("Q") and not query.endswith(":") else query
        likely = [log_likelihood(expected, prompt, f" {choice}") for choice in choices]
        np.testing.assert_allclose(record.shown["likely"], likely, rtol=1e-3)
        by_length = [value / len(choice) for value, choice in zip(likely, choices)]
        assert record.values == {"acc": float(np.argmax(likely) == 1), "acc_norm": float(np.argmax(by_length) == 1)}
        assert record.n_may_skip == 0


@pytest.mark.parametrize("skip_prompts", [None, 4])
def test_of_a_word_that_a_prompt_predicts_skipping_shows_nothing(tmp_path, model_file, skip_prompts):
    """Unless tokens of the prompt may skip, too."""
    path = model_file("llama", n_layer=8)
    items = items_of(tmp_path, "cloze", {"context": "Olm sold a boat to the Duke of", "continuation": "X"})
    with ours(path, SkipConfig("fixed", layers=[2, 3], warm_up_index=0), **F32_CACHE) as llm:
        (got,) = run("cloze", Opened(llm, skip_prompts), items)
        with llm.dense():
            (dense,) = run("cloze", Opened(llm, skip_prompts), items)
    assert got.n_scored == dense.n_scored == 2  # a blank and a letter
    assert (got.n_may_skip, dense.n_may_skip) == (1 if skip_prompts is None else 2, 0)
    assert abs(got.values["nll"] - dense.values["nll"]) > 1e-3


def test_perplexity_of_blocks_left_out_is_that_of_a_file_without_them(tmp_path, model_file):
    text = "Olm sold forty boats in Ul, and nobody asked him why. " * 4
    (item,) = items_of(tmp_path, "perplexity", {"text": text})
    layers = (2, 3, 5)
    whole, without = model_file("llama", n_layer=8), model_file("llama", n_layer=8, zero_ffn_layers=layers)
    skip = SkipConfig("fixed", layers=layers, warm_up_index=0)
    with ours(whole, skip, **F32_CACHE) as llm:
        (record,) = run("perplexity", Opened(llm), [item])
        tokens = llm.tokenize(item.text.encode())
    logs = []
    for path in (whole, without):
        with plain(path, logits_all=True, **F32_CACHE) as llm:
            llm.eval(tokens)
            logs.append(log_softmax(llm.scores[: len(tokens) - 1]))
    dense, left_out = logs
    at = (np.arange(len(tokens) - 1), tokens[1:])
    values, n = record.values, len(tokens) - 1
    assert (values["rows"], record.n_scored, record.n_may_skip) == (n, n, n)
    assert values["nll"] == pytest.approx(-left_out[at].sum(), rel=1e-3)
    assert values["nll_more"] == pytest.approx((dense - left_out)[at].sum(), rel=1e-3, abs=1e-2)
    assert values["kl"] == pytest.approx((np.exp(dense) * (dense - left_out)).sum(), rel=1e-3)
    assert values["same_top"] == (dense.argmax(axis=1) == left_out.argmax(axis=1)).sum() < n


# ---- the demo model ----


@pytest.fixture(scope="module")
def demo(model_file):
    path = model_file("demo")
    with ours(path, None, n_ctx=512) as llm, plain(path, n_ctx=512) as expected:
        yield llm, expected


def test_facts_of_the_demo_world_are_known_that_llama_cpp_would_write(tmp_path, demo):
    llm, expected = demo
    questions = random.Random(1).sample(demo_world.World().questions(held_out=True), 40)
    entries = [{"question": question.asked, "answer": question.answer} for question in questions]
    records = run("demo", Opened(llm), items_of(tmp_path, "demo", *entries))
    for question, record in zip(questions, records):
        written = expected.create_completion(question.prompt, max_tokens=20, temperature=0.0, repeat_penalty=1.0)
        assert record.values["known"] == written["choices"][0]["text"].startswith(f" {question.answer}")
    assert 0.8 < np.mean([record.values["known"] for record in records]) < 1


def test_factoid_on_the_demo_world(tmp_path, demo):
    """Its model does not know the paper's prompt, which is put into its template, and repeats itself."""
    llm, expected = demo
    (item,) = items_of(tmp_path, "factoid", {"context": "Where was Olm born?", "answer": "Ul", "aliases": []})
    (record,) = run("factoid", Opened(llm), [item])
    prompt = "Please give answer to this question: Where was Olm born? The answer is"
    messages = [{"role": "user", "content": prompt}]
    answer = expected.create_chat_completion(messages, max_tokens=32, temperature=0.0, repeat_penalty=1.0)
    written = answer["choices"][0]
    assert record.shown["text"] == written["message"]["content"]
    assert record.values["unfinished"] == float(written["finish_reason"] == "length")


def test_a_dialogue_is_what_llama_cpp_makes_of_it(tmp_path, demo):
    """By the model's own template."""
    llm, expected = demo
    person = next(person for person in demo_world.World().trained)
    turns = [f"Where was {person.name} born?", "And what did they study?"]
    (item,) = items_of(tmp_path, "chat", {"question_id": 1, "category": "writing", "turns": turns})
    (record,) = run("chat", Opened(llm), [item], max_tokens=40)
    messages, answers = [], []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        made = expected.create_chat_completion(messages, max_tokens=40, temperature=0.0, repeat_penalty=1.0)
        answers.append(made["choices"][0]["message"]["content"].strip())
        messages.append({"role": "assistant", "content": answers[-1]})
    assert record.shown["turns"] == answers
    assert person.birth_city in answers[0]
