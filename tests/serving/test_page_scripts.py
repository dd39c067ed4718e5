"""What the page's scripts compute, in V8 without a browser, next to Python."""

from __future__ import annotations

import json
import random
import re

import pytest
from py_mini_racer import MiniRacer

from ffnskip_cpp.serving.page import page_files

SCRIPTS = {path: file.body.decode() for path, file in page_files().items() if path.endswith(".js")}


def plain(text):
    """A module as a script: what it exports is global, what it imports is not there."""
    return re.sub(r"^export ", "", re.sub(r"^import .*$", "", text, flags=re.M), flags=re.M)


@pytest.fixture(scope="module")
def call():
    racer = MiniRacer()
    racer.eval(plain(SCRIPTS["/skips.js"]))
    racer.eval(plain(SCRIPTS["/api.js"]))

    def call(expression, *arguments):
        return json.loads(racer.eval(f"JSON.stringify(({expression})(...{json.dumps(arguments)}))"))

    return call


def skip(layers=(), attention=(), kept=None, may_skip=True):
    return {"layers": list(layers), "attention": list(attention), "kept": kept, "may_skip": may_skip}


def token(text, at=0.0, **traced):
    return {"text": text, "at": at, "skip": skip(**traced)}


@pytest.mark.parametrize("path", SCRIPTS)
def test_scripts_are_javascript(path):
    MiniRacer().eval(f"(async function () {{ {plain(SCRIPTS[path])} }}); 0")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], ""),
        ([3], "3"),
        ([3, 4], "3, 4"),
        ([3, 4, 5], "3–5"),
        ([11, 9, 10, 2], "2, 9–11"),
        ([0, 2, 4, 5, 6, 7, 20], "0, 2, 4–7, 20"),
    ],
)
def test_layers_are_written_as_ranges(call, layers, words):
    assert call("ranges", layers) == words


def test_the_share_is_of_blocks_or_of_bytes(call):
    assert call("shareOf", None, 12) == 0
    assert call("shareOf", skip([1, 2, 3]), 12) == 0.25
    assert call("shareOf", skip([1], [1, 2, 3]), 12) == 0.25
    assert call("shareOf", skip(kept=0.6), 12) == pytest.approx(0.4)
    assert call("shareOf", skip([0, 1, 2, 3, 4, 5], kept=0.9), 12) == 0.5


def test_colours_step_by_twelfths_to_the_half(call):
    found = [call("levelOf", n / 12) for n in range(13)]
    assert found == [min(n, 6) for n in range(13)]
    assert call("levelOf", 0.001) == 1


def test_what_ran_in_full_is_told_from_what_left_nothing_out(call):
    assert call("describe", skip(may_skip=False), 12) == ["ran in full, as it had to"]
    assert call("describe", skip(), 12) == ["left nothing out"]
    assert call("describe", None, 12) == ["not traced"]
    # Settings for every row leave blocks out of the warm-up too.
    assert call("describe", skip([4], may_skip=False), 12) == ["1 of 12 FFN blocks left out: layer 4"]
    assert call("describe", skip([4, 5], [7], 0.5), 12) == [
        "2 of 12 FFN blocks left out: layers 4, 5",
        "1 of 12 attention blocks left out: layer 7",
        "50 % of the weights’ bytes read",
    ]


@pytest.mark.parametrize(
    ("text", "words"), [(" road", "“road”"), (" ", "“␣”"), ("\n\n", "“↵↵”"), ("a\nb", "“a↵b”"), ("<b>", "“<b>”")]
)
def test_a_token_is_visible(call, text, words):
    assert call("visible", text) == words


@pytest.mark.parametrize("seed", range(20))
def test_the_first_difference_is_found(call, seed):
    rng = random.Random(seed)
    one = [rng.choice("ab") for _ in range(rng.randrange(8))]
    other = one[: rng.randrange(len(one) + 1)] + [rng.choice("ab") for _ in range(rng.randrange(4))]
    for done in (False, True):
        padded = [list(texts) + ["end"] * (max(len(one), len(other)) - len(texts)) for texts in (one, other)]
        n = max(len(one), len(other)) if done else min(len(one), len(other))
        wanted = next((i for i in range(n) if padded[0][i] != padded[1][i]), -1)
        assert call("firstDifference", [token(t) for t in one], [token(t) for t in other], done) == wanted


def test_layers_are_counted_among_tokens_that_may_skip(call):
    tokens = [token("a", may_skip=False), token("b", layers=[1, 2]), token("c", layers=[2], attention=[0]), token("d")]
    found = call("perLayer", tokens, 4)
    assert found["ffn"] == pytest.approx([0, 1 / 3, 2 / 3, 0])
    assert found["attention"] == pytest.approx([1 / 3, 0, 0, 0])


OWN = {"secondsFirst": 0.5, "inFull": 1, "prompt": None, "cached": None}


def test_statistics_are_the_servers_where_it_tells(call):
    tokens = [token("a", 1500.0, may_skip=False), token("b", 1600.0, layers=[0]), token("c", 1900.0, layers=[0, 1])]
    found = call("statistics", tokens, None, 1000.0, 4)
    assert found == {**OWN, "tokens": 3, "perSecond": 2 / 0.4, "leftOut": 0.25}
    totals = {"n_prompt": 9, "n_cached": 4, "n_generated": 4, "skip_ratio": 0.2, "seconds_first": 0.5, "seconds": 2.0}
    found = call("statistics", tokens, totals, 1000.0, 4)
    assert found == {**OWN, "tokens": 4, "perSecond": 2.0, "leftOut": 0.2, "prompt": 9, "cached": 4}


def test_statistics_of_nothing_say_nothing(call):
    found = call("statistics", [], None, 0, 4)
    assert (found["perSecond"], found["secondsFirst"], found["leftOut"]) == (None, None, None)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_events_come_whole_out_of_any_pieces(call, end):
    wanted = ['{"a": "1"}', "two\nlines", "[DONE]"]
    text = f"data: {wanted[0]}||: comment||event: x|data: two|data: lines||data:[DONE]||".replace("|", end)
    for seed in range(20):
        rng = random.Random(seed)
        cuts = sorted({0, len(text), *(rng.randrange(len(text)) for _ in range(6))})
        pieces = [text[a:b] for a, b in zip(cuts, cuts[1:])]
        script = "(pieces) => { const events = new Events(); return pieces.flatMap((piece) => events.push(piece)); }"
        assert call(script, pieces) == wanted
