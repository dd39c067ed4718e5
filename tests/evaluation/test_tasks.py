"""What each task asks, and what it makes of the answers of a subject that says what the test has it say."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ffnskip_cpp.evaluation.runs import Run
from ffnskip_cpp.evaluation.tasks import TASKS
from ffnskip_cpp.evaluation.tasks.base import Settings
from ffnskip_cpp.evaluation.tasks.chat import write_answers
from support.evaluation_subjects import WARM_UP, Scripted

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)


def template(messages):
    return "".join(f"<{message['role']}> {message['content']} </s> " for message in messages) + "<assistant>"


def items_of(folder, task, *entries):
    path = folder / "items.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return TASKS[task].read(path)


def run(task, subject, items, **settings):
    return list(TASKS[task].run(subject, items, Settings(**settings)))


def figure(task, name, records):
    metric = next(metric for metric in TASKS[task].metrics if metric.name == name)
    weights = [1.0 if metric.weight is None else record.values[metric.weight] for record in records]
    return float(metric.of(np.array([record.values[metric.value] for record in records]), np.array(weights)))


# ---- answers that are written ----


@pytest.mark.parametrize("chats", [True, False])
def test_factoid_asks_in_the_papers_words(tmp_path, chats):
    items = items_of(
        tmp_path,
        "factoid",
        {"context": "Question: Who is Olm?\nAnswer:", "answer": "a Duke", "aliases": ["Herzog"]},
        {"context": "Question: What is Ul?\nAnswer:", "answer": "town", "aliases": []},
    )
    said = {"Olm": " the Duke, of course\nOr a town", "Ul": ":\nUl is: \n \n Town.\n"}
    subject = Scripted(
        lambda prompt: next(text for name, text in said.items() if name in prompt), template=template if chats else None
    )
    records = run("factoid", subject, items)
    asked = [
        "Please give answer to this question: Who is Olm? The answer is",
        "Please give answer to this question: What is Ul? The answer is",
    ]
    assert subject.prompts == ([f"<user> {text} </s> <assistant>" for text in asked] if chats else asked)
    assert subject.asked == {"max_tokens": 32, "stop": ()}
    duke, town = records
    assert (duke.id, town.id) == (items[0].id, items[1].id)
    assert (duke.values["match"], duke.values["exact_match"], duke.values["f1"]) == (1, 0, 0.5)
    assert (town.values["match"], town.values["exact_match"], town.values["f1"]) == (1, 1, 1)
    assert (duke.shown["text"], duke.shown["reference"]) == (said["Olm"], ["a Duke", "Herzog"])
    assert [subject.vocabulary[token] for token in town.shown["tokens"]] == [
        ":",
        "\nUl",
        " is:",
        " \n \n Town.",
        "\n",
    ]
    assert (duke.n_scored, duke.n_may_skip, town.n_scored, town.n_may_skip) == (7, 7 - WARM_UP, 5, 5 - WARM_UP)
    assert figure("factoid", "exact_match", records) == 0.5
    assert figure("factoid", "length", records) == 6


def test_an_answer_that_repeats_itself_shows(tmp_path):
    items = items_of(tmp_path, "factoid", {"context": "Who?", "answer": "Olm", "aliases": []})
    (record,) = run("factoid", Scripted(lambda prompt: " no" * 100), items, max_tokens=10)
    values = record.values
    assert (values["repeated_4grams"], values["longest_run"], values["unfinished"]) == (pytest.approx(6 / 7), 10, 1)


CHAT = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]},
    {"question_id": 101, "category": "math", "turns": ["One and one?", "Why?"], "reference": ["two", ""]},
]


def test_turns_see_the_answers_before_them(tmp_path):
    subject = Scripted(lambda prompt: f" said {len(prompt)} ", template=template)
    first, second = run("chat", subject, items_of(tmp_path, "chat", *CHAT))
    one, two, again, why = subject.prompts  # both first turns, then both second ones
    assert one == "<user> Write. </s> <assistant>"
    assert again == f"<user> Write. </s> <assistant> said {len(one)} </s> <user> Again. </s> <assistant>"
    assert why == f"<user> One and one? </s> <assistant> said {len(two)} </s> <user> Why? </s> <assistant>"
    assert subject.asked == {"max_tokens": 1024, "stop": ()}
    assert first.shown["turns"] == [f"said {len(one)}", f"said {len(again)}"]
    assert (first.group, second.group, first.shown["question_id"]) == ("writing", "math", 81)
    assert second.shown["reference"] == ["two", ""] and "reference" not in first.shown
    assert (first.n_scored, len(first.shown["tokens"])) == (6, 6)  # " said", a number and a blank, twice


def test_without_a_template_a_chat_is_in_the_papers_words(tmp_path):
    subject = Scripted(lambda prompt: " Yes. USER: And then?")
    run("chat", subject, items_of(tmp_path, "chat", CHAT[0]), max_tokens=7)
    assert subject.prompts == [
        SYSTEM + "USER: Write. ASSISTANT:",
        SYSTEM + "USER: Write. ASSISTANT: Yes. USER: Again. ASSISTANT:",
    ]
    assert subject.asked == {"max_tokens": 7, "stop": ("USER:",)}


def test_many_dialogues_keep_their_order(tmp_path):
    entries = [{"question_id": i, "category": "writing", "turns": [f"Turn {i}."] * (1 + i % 3)} for i in range(40)]
    subject = Scripted(lambda prompt: f" to {prompt.split()[-2]}", template=template)
    records = run("chat", subject, items_of(tmp_path, "chat", *entries))
    assert [record.shown["question_id"] for record in records] == list(range(40))
    assert [len(record.shown["turns"]) for record in records] == [1 + i % 3 for i in range(40)]


def test_an_answer_is_cut_where_the_next_turn_has_no_room(tmp_path):
    subject = Scripted(lambda prompt: " word" * 30, template=template, n_ctx=40)
    (record,) = run("chat", subject, items_of(tmp_path, "chat", CHAT[0]))
    again = subject.prompts[1]
    assert len(subject.tokenize(again)) == 40 - 40 // 4  # a quarter of the context is left to answer in
    assert record.shown["words_cut"] == 30 - again.count("word") > 0
    assert record.shown["turns"][0].count("word") == 30  # of what it wrote nothing is lost
    three = {"question_id": 1, "category": "writing", "turns": ["Write.", "Again.", "Why?"]}
    subject.answer, subject.prompts = lambda prompt: " one" if len(prompt) < 40 else " word" * 30, []
    run("chat", subject, items_of(tmp_path, "chat", three))
    last = subject.prompts[2]
    assert last.count(" one ") == 1 and last.endswith("<user> Why? </s> <assistant>")
    assert len(subject.tokenize(last)) == 40 - 40 // 4
    with pytest.raises(ValueError, match=r"items.jsonl:1: \d+ tokens, and the context has 8; a larger n_ctx"):
        subject._n_ctx = 8
        run("chat", subject, items_of(tmp_path, "chat", CHAT[0]))


def test_answers_in_fastchats_format(tmp_path):
    records = run("chat", Scripted(lambda prompt: " é"), items_of(tmp_path, "chat", *CHAT))
    settings = {name: {} for name in ("settings", "versions", "metrics", "groups")}
    made = Run(
        **settings,
        name="chat-mt-file-other/x",
        task="chat",
        data="mt",
        data_hash="0",
        model="SmolLM2-135M.Q4_1",
        fingerprint="0",
        method="file:other/x",
        label="x 25 %",
        skip_ratio_target=0.25,
        config=None,
        skip_ratio=0.2,
        could_skip=0.5,
        size_ratio=1.0,
        seconds=1.0,
    )
    path = write_answers(tmp_path, made, records)
    assert path == tmp_path / "model_answer" / "SmolLM2-135M.Q4_1__mt-file-other-x.jsonl"
    written = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [line["question_id"] for line in written] == [81, 101]
    assert written[0]["choices"] == [{"index": 0, "turns": ["é", "é"]}]
    assert {line["model_id"] for line in written} == {path.stem}
    assert len({line["answer_id"] for line in written}) == 2 and written[0]["tstamp"] > 1e9
    assert write_answers(tmp_path, made, records[:1]) == path  # in place of what was there
    assert len(path.read_text(encoding="utf-8").splitlines()) == 1


STORY = "Olm sold a boat. " * 5
ASKED = (
    "Summarize the given story in less than 150 words while preserving high coherence, consistency, fluency, "
    "and relevance.\n\n"
)


@pytest.mark.parametrize("chats", [True, False])
def test_summaries_are_asked_for_in_the_papers_words(tmp_path, chats):
    subject = Scripted(lambda prompt: " Olm sold boats in Ul ", template=template if chats else None)
    items = items_of(tmp_path, "summarize", {"id": "x", "article": STORY, "highlights": ["Olm sold a boat", "in Ul."]})
    (record,) = run("summarize", subject, items)
    message = ASKED + STORY.strip()
    expected = f"<user> {message} </s> <assistant>" if chats else f"{SYSTEM}USER: {message} ASSISTANT:"
    assert subject.prompts == [expected]
    assert subject.asked == {"max_tokens": 256, "stop": () if chats else ("USER:",)}
    # olm sold boat(s) in ul: 5 words of 5 and of 6; pairs: olm sold, in ul, boat in, of 4 and of 5
    assert record.values["rouge1"] == pytest.approx(2 * 5 / 11)
    assert record.values["rouge2"] == pytest.approx(2 * 3 / 9)
    assert record.values["rougeL"] == pytest.approx(2 * 5 / 11)
    assert (record.shown["text"], record.shown["reference"]) == ("Olm sold boats in Ul", "Olm sold a boat\nin Ul.")
    assert (record.shown["question"], record.shown["words_cut"], record.group) == (message, 0, "small")


def test_long_stories_are_cut_at_a_word(tmp_path):
    subject = Scripted(n_ctx=100)
    items = items_of(tmp_path, "summarize", {"id": "x", "article": STORY * 10, "highlights": "Olm."})
    (record,) = run("summarize", subject, items, max_tokens=20)
    assert len(subject.tokenize(subject.prompts[0])) == 80
    assert record.shown["words_cut"] + record.shown["question"][len(ASKED) :].count(" ") + 1 == 200
    with pytest.raises(ValueError, match=r"items.jsonl:1: .* tokens, and the context has 20; a larger n_ctx"):
        run("summarize", Scripted(n_ctx=20), items)


# ---- likelihoods ----


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("Question: What is olm?", "Question: What is olm?\nAnswer:"),
        ("Question: What is olm?\n", "Question: What is olm?\nAnswer:"),
        ("Question: What is olm?\nAnswer: ", "Question: What is olm?\nAnswer:"),
        ("Passage: Olm is a cat.\nQuestion: is it?", "Passage: Olm is a cat.\nQuestion: is it?\nAnswer:"),
        ("Olm lives in", "Olm lives in"),
    ],
)
def test_choices(tmp_path, query, prompt):
    """The second is likeliest, and of the two it is the longer one that is likelier by the character."""
    likely = {" a cat": -3.0, " cave": -2.0, " an animal of caves": -5.0}
    subject = Scripted(likely=lambda prefix, text: likely[text])
    (item,) = items_of(tmp_path, "choice", {"query": query, "choices": [text[1:] for text in likely], "gold": 2})
    (record,) = run("choice", subject, [item])
    assert subject.prompts == [prompt]
    assert (record.values["acc"], record.values["acc_norm"]) == (0, 1)  # 5 / 18 < 2 / 4 < 3 / 5
    assert (record.n_scored, record.n_may_skip) == (2 + 1 + 4, 4 - WARM_UP)
    assert record.shown["likely"] == [-3.0, -2.0, -5.0]


def test_choices_are_normalised_by_characters(tmp_path):
    """As lm-evaluation-harness does it, whose acc_norm is compared with; not by bytes."""
    likely = {" éé": -3.0, " abc": -4.0}  # 1.5 and 1.33 a character, .75 and 1.33 a byte
    (item,) = items_of(tmp_path, "choice", {"query": "x", "choices": ["éé", "abc"], "gold": 1})
    (record,) = run("choice", Scripted(likely=lambda prefix, text: likely[text]), [item])
    assert (record.values["acc"], record.values["acc_norm"]) == (0, 1)


def test_cloze(tmp_path):
    entries = [{"context": "Olm sat on a ", "continuation": word} for word in (" mat", "hat")]
    subject = Scripted(likely=lambda prefix, text: {" mat": -0.5, " hat": -2.5}[text])
    records = run("cloze", subject, items_of(tmp_path, "cloze", *entries))
    assert subject.prompts == ["Olm sat on a"] * 2
    assert [record.values["acc"] for record in records] == [1, 0]
    assert figure("cloze", "perplexity", records) == pytest.approx(math.exp(1.5))
    assert (records[0].n_scored, records[0].n_may_skip) == (1, 0)


def test_demo(tmp_path):
    entries = [{"question": "Where was Olm born?", "answer": name} for name in ("Ul", "Brin")]
    subject = Scripted(likely=lambda prefix, text: {" Ul": -0.5, " Brin": -2.5}[text])
    records = run("demo", subject, items_of(tmp_path, "demo", *entries))
    assert subject.prompts == ["Question: Where was Olm born?\nAnswer:"] * 2
    assert figure("demo", "known", records) == 0.5


@pytest.mark.parametrize("task", ["choice", "cloze", "demo"])
def test_what_does_not_fit_is_said_before_anything_is_computed(tmp_path, task):
    entry = {"query": "x", "choices": ["a", "b " * 9], "gold": 0, "context": "x", "continuation": "b " * 9}
    entry = {**entry, "question": "x", "answer": "b " * 9}
    short = {**entry, "choices": ["a", "b"], "continuation": "b", "answer": "b"}
    items = items_of(tmp_path, task, short, entry)
    for n_ctx_train, said in ((10, "the context has 9; a larger n_ctx"), (9, "the model was trained on 9; leave it")):
        subject = Scripted(n_ctx=9, n_ctx_train=n_ctx_train)
        with pytest.raises(ValueError, match=rf"items.jsonl:2: 1[0-9] tokens, and {said}"):
            run(task, subject, items)
        assert subject.prompts == []


def test_perplexity_counts_rows_behind_the_warm_up(tmp_path):
    """Of `Scripted` a row has a KL divergence of id / 100 nats and is surer by id / 10."""
    words = [f"word{i}" for i in range(40)]
    subject = Scripted(n_ctx=30)
    records = run("perplexity", subject, items_of(tmp_path, "perplexity", {"text": " ".join(words)}))
    ids = np.arange(WARM_UP + 1, 30)
    assert figure("perplexity", "kl", records) == pytest.approx(ids.mean() / 100)
    assert figure("perplexity", "perplexity", records) == pytest.approx(math.exp(1 - ids.mean() / 10))
    assert figure("perplexity", "perplexity_ratio", records) == pytest.approx(math.exp(-ids.mean() / 10))
    assert figure("perplexity", "same_top", records) == pytest.approx((ids % 2 == 0).mean())
    assert (records[0].n_scored, records[0].n_may_skip, records[0].shown["tokens_cut"]) == (
        29 - WARM_UP,
        28 - WARM_UP,
        10,
    )


# ---- mmlu ----


def exam(folder, n_shots=6):
    for part, name, n in (("dev", "dev", n_shots), ("test", "test", 2)):
        (folder / part).mkdir()
        for subject in ("high_school_physics", "virology"):
            rows = [f"{subject} {name} {i}?,one,two,three,four,{'ABCD'[i % 4]}\n" for i in range(n)]
            (folder / part / f"{subject}_{name}.csv").write_text("".join(rows), encoding="utf-8")
    return TASKS["mmlu"].read(folder)


CHOICES = "A. one\nB. two\nC. three\nD. four\nAnswer:"


def test_mmlu_is_asked_as_everywhere(tmp_path):
    subject = Scripted(likely=lambda prefix, text: {" A": -2.0, " B": -1.0, " C": -3.0, " D": -4.0}[text])
    records = run("mmlu", subject, exam(tmp_path))
    shots = "".join(f"high_school_physics dev {i}?\n{CHOICES} {'ABCD'[i % 4]}\n\n" for i in range(5))
    header = "The following are multiple choice questions (with answers) about high school physics.\n\n"
    assert subject.prompts[1] == f"{header}{shots}high_school_physics test 1?\n{CHOICES}"
    assert [record.values["acc"] for record in records] == [0, 1, 0, 1]
    assert [record.group for record in records] == ["STEM", "STEM", "Others", "Others"]
    assert [record.shown["subject"] for record in records][1:3] == ["high_school_physics", "virology"]
    assert {record.shown["choice"] for record in records} == {"B"} and records[0].n_scored == 4


@pytest.mark.parametrize(
    ("answer", "letter"),
    [(" B", "B"), (" B.", "B"), ("(C)", "C"), ("\nB", ""), (" The answer is D", "D"), (" Because", ""), ("", "")],
)
def test_an_answer_of_mmlu_is_read(tmp_path, answer, letter):
    subject = Scripted(lambda prompt: answer)
    records = run("mmlu", subject, exam(tmp_path), scoring="generate")
    assert subject.asked == {"max_tokens": 8, "stop": ("\n",)} and subject.prompts[0].endswith("Answer:")
    assert [record.shown["choice"] for record in records] == [letter] * 4
    assert [record.values for record in records] == [{"acc": float(letter == gold)} for gold in "ABAB"]
    assert records[0].shown["text"] == answer.partition("\n")[0]


def test_answered_questions_are_left_out_where_there_is_no_room(tmp_path):
    """The first ones."""
    items = exam(tmp_path)
    subject = Scripted(n_ctx=80)  # the header has 10 words or 12, a question 12 and its answer 1, what is generated 8
    records = run("mmlu", subject, items)
    assert {record.shown["shots"] for record in records} == {3}
    assert "dev 1?" not in subject.prompts[0] and "dev 2?" in subject.prompts[0]
    with pytest.raises(ValueError, match=r"physics_test.csv:1: 2\d tokens, and the context has 20; a larger n_ctx"):
        run("mmlu", Scripted(n_ctx=20), items)


def test_every_task_is_listed_by_its_name():
    assert list(TASKS) == ["factoid", "chat", "summarize", "mmlu", "choice", "cloze", "perplexity", "demo"]
    assert [task.metrics[0].name for task in TASKS.values()] == [
        "match",
        "repeated_4grams",
        "rougeL",
        "acc",
        "acc_norm",
        "acc",
        "kl",
        "known",
    ]
    assert not TASKS["chat"].metrics[0].higher_is_better and not TASKS["perplexity"].metrics[0].higher_is_better
