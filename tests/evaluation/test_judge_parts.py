"""What a judge may reply, in which words it is asked, and what it will cost."""

from __future__ import annotations

import json
import resource

import pytest

from ffnskip_cpp.errors import ArgumentError
from ffnskip_cpp.evaluation.judge.estimate import estimate
from ffnskip_cpp.evaluation.judge.grades import InvalidReplyError, grades_of
from ffnskip_cpp.evaluation.judge.replies import Reply, key_of, open_replies
from ffnskip_cpp.evaluation.judge.templates import FILES, KINDS, Prompt, read_templates, write_templates

ONE = Prompt("", ("fluency", "relevance"), 1, "")
TWO = Prompt("", ("fluency", "relevance"), 2, "")


# ---- replies ----


@pytest.mark.parametrize(
    "reply",
    [
        '{"fluency": 7, "relevance": 10}',
        'It is good.\n\n  {"relevance": 10, "fluency": 7}  \n\n',
        '<think>\n{"fluency": 1, "relevance": 1}\n</think>\r\n{"fluency":7,"relevance":10}',
    ],
)
def test_the_last_line_has_the_grades(reply):
    assert grades_of(reply, ONE) == {"fluency": (7,), "relevance": (10,)}


def test_two_answers_have_two_grades_each():
    reply = 'The first is worse.\n{"fluency": [3, 8], "relevance": [1, 10]}'
    assert grades_of(reply, TWO) == {"fluency": (3, 8), "relevance": (1, 10)}


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "it is empty"),
        (" \n\n", "it is empty"),
        ("7", "is no JSON object"),
        ("[[7]]", "is no JSON object"),
        ('```json\n{"fluency": 7, "relevance": 10}\n```', "its last line, '```', is no JSON object"),
        ('{"fluency": 7, "relevance": 10} I hope this helps', "is no JSON object"),
        ('{"fluency": N, "relevance": N}', "is no JSON object"),  # the form itself
        ('{\n"fluency": 7,\n"relevance": 10\n}', "is no JSON object"),
        ('{"fluency": 7}', '"relevance" is missing'),
        ('{"fluency": 7, "relevance": 10, "overall": 9}', "'overall' is none of the names"),
        ('{"fluency": 7, "fluency": 8, "relevance": 10}', "a name is there twice"),
        ('{"fluency": 0, "relevance": 10}', '"fluency" is 0; a whole number from 1 to 10'),
        ('{"fluency": 7, "relevance": 11}', '"relevance" is 11'),
        ('{"fluency": 7.5, "relevance": 10}', '"fluency" is 7.5'),
        ('{"fluency": NaN, "relevance": 10}', '"fluency" is nan'),
        ('{"fluency": true, "relevance": 10}', '"fluency" is True'),
        ('{"fluency": "7", "relevance": 10}', "\"fluency\" is '7'"),
        ('{"fluency": [7], "relevance": [10]}', r'"fluency" is \[7\]'),
        ("[" * 100_000, "is no JSON object"),
        ('{"fluency": ' + "9" * 5000 + ', "relevance": 10}', "is no JSON object|a whole number"),
    ],
)
def test_anything_else_is_invalid(reply, why):
    with pytest.raises(InvalidReplyError, match=why) as error:
        grades_of(reply, ONE)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("grades", ["7", "[7]", "[7, 8, 9]", '{"first": 7, "second": 8}', "[7, 0]", '"7, 8"'])
def test_two_answers_need_two_grades(grades):
    with pytest.raises(InvalidReplyError, match='"fluency" is'):
        grades_of(f'{{"fluency": {grades}, "relevance": [1, 1]}}', TWO)


# ---- prompts ----


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_show_the_texts_as_they_are_and_name_the_form(kind):
    texts = read_templates()
    own, other = "{answer} <b> \\1", "{question}\n\n\nend"
    single = texts.single(kind, ["what {form}"], [own], "")
    assert all(part in single.text for part in ("what {form}", own, single.form))
    assert "CORRECT" not in single.text and "\n\n\n" not in single.text
    pair = texts.pair(kind, ["q1", "q2"], ["a1", own], ["b1", other], "this {is} right")
    assert f"(1) a1\n\n(2) {own}\n" in pair.text and f"(1) b1\n\n(2) {other}\n" in pair.text
    assert pair.text.index(own) < pair.text.index(other)
    assert "this {is} right" in pair.text and "last part" in pair.text
    # The form, filled in, is what is accepted.
    for prompt, grade in ((single, 4), (pair, 9)):
        assert prompt.text.endswith(prompt.form)
        assert set(grades_of(prompt.form.replace("N", str(grade)), prompt)) == set(prompt.criteria)


def test_every_criterion_is_explained_and_used():
    texts = read_templates()
    assert {name for of_kind in texts.criteria.values() for name in of_kind} == set(texts.meanings)


def test_prompts_of_ones_own_are_used_and_the_rest_are_the_packages(tmp_path):
    own = tmp_path / "mine"
    write_templates(own)
    assert sorted(path.stem for path in own.iterdir()) == sorted(FILES)
    assert read_templates(own) == read_templates()
    (own / "factoid.txt").write_text("criteria: accuracy, wit\n\nBe strict.\n")
    with open(own / "criteria.txt", "a") as file:
        file.write("wit: it makes one smile\n")
    for name in set(FILES) - {"factoid", "criteria"}:
        (own / f"{name}.txt").unlink()
    texts = read_templates(own)
    prompt = texts.single("factoid", ["q"], ["a"], "")
    assert prompt.criteria == ("accuracy", "wit") and "Be strict." in prompt.text and "- wit: it makes" in prompt.text
    assert texts.hash != read_templates().hash
    assert texts.single("general", ["q"], ["a"], "") == read_templates().single("general", ["q"], ["a"], "")
    assert read_templates(own, ["wit"]).single("coding", ["q"], ["a"], "").criteria == ("wit",)


def test_prompts_that_are_there_are_not_written_over(tmp_path):
    (tmp_path / "turns.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"turns.txt: is there already"):
        write_templates(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["turns.txt"]


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("single", "{question} {answer} {criteria}", r"single.txt:1: \{form\} is missing"),
        ("single", "{question}\n{answers}", r"single.txt:2: \{answers\} stands for nothing here; there are \{task\}"),
        ("pairwise", "{question}{answer_1}{criteria}{form}", r"\{answer_2\} is missing"),
        ("general", "Be strict.", r"general.txt:1: 'Be strict.' is not `criteria: NAME, ...`"),
        ("general", "criteria: wit\n", "general.txt:1: criterion wit is not in criteria.txt"),
        ("general", "criteria: detail, detail\n", "general.txt:1: a criterion is there twice"),
        ("general", "criteria: detail\n{question}", r"general.txt:2: \{question\} stands for nothing here; .* none"),
        ("criteria", "detail\n", "criteria.txt:1: 'detail' is not `name: what it means`"),
        ("criteria", "wit: a\n\nwit: b\n", "criteria.txt:3: wit is there twice"),
        ("criteria", "overall: all\n", "criteria.txt:1: overall is what the mean"),
        ("genral", "criteria: detail\n", r"genral.txt: no prompt is called so; there are single.txt, "),
        ("turns", "caf\udce9", r"turns.txt:1: not text in UTF-8"),
    ],
)
def test_prompts_that_lack_something_are_named(tmp_path, name, text, why):
    (tmp_path / f"{name}.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=why):
        read_templates(tmp_path)


def test_folders_without_prompts(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: no prompts in it"):
        read_templates(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder of prompts"):
        read_templates(tmp_path / "none")
    with pytest.raises(ArgumentError, match="'wit' is none of"):
        read_templates(None, ["wit"])


# ---- the estimate ----


def test_the_estimate_is_of_bytes_and_prices():
    prompts = [Prompt("a" * 4000, (), 1, ""), Prompt("ä" * 2000, (), 1, "")]
    known = estimate(prompts, 3, price_in=2.0, price_out=10.0)
    assert (known.requests, known.known) == (2, 3)
    assert 2000 <= known.tokens_in < 2100 and 200 <= known.tokens_out <= 400
    assert known.price == pytest.approx((known.tokens_in * 2 + known.tokens_out * 10) / 1e6)
    assert "2 requests (3 more verdicts are there already)" in repr(known) and "at the prices given" in repr(known)
    assert json.dumps(known.as_dict())
    free = estimate(prompts, 0, None, None)
    assert free.price is None and "price" not in repr(free)
    assert estimate(prompts, 0, 1.0, None).price == pytest.approx(known.tokens_in / 1e6)


# ---- replies that are kept ----


def test_a_full_disk_tears_no_line_that_others_follow(tmp_path):
    path = tmp_path / "judge" / "replies.jsonl"
    reply = Reply("x" * 1000, "stop", "m", 1, 2)
    with open_replies(path) as replies:
        replies.add("first", reply)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 500, before[1]))
        try:
            with pytest.raises(OSError):
                replies.add("second", reply)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        replies.add("third", reply)
    with open_replies(path) as replies:
        assert [replies.get(key) for key in ("first", "second", "third")] == [reply, None, reply]


def test_a_reply_hangs_on_all_that_was_asked():
    asked = ("m", [{"role": "user", "content": "a"}], {"temperature": 0})
    keys = {
        key_of(*asked),
        key_of("n", *asked[1:]),
        key_of("m", [{"role": "user", "content": "b"}], asked[2]),
        key_of("m", [{"role": "assistant", "content": "a"}], asked[2]),
        key_of("m", asked[1] * 2, asked[2]),
        key_of(*asked[:2], {"temperature": 1}),
    }
    assert len(keys) == 6 and key_of(*asked) in keys
