"""Text that comes piece by piece is the whole text up to the first stop text; clients take turns."""

from __future__ import annotations

import random

import pytest

from ffnskip_cpp.serving.requests import Request, Sampling
from ffnskip_cpp.serving.waiting import Waiting
from ffnskip_cpp.text_pieces import TextPieces


def pieces_of(data, random_):
    """Bytes, cut anywhere; some pieces are empty."""
    cuts = sorted(random_.choices(range(len(data) + 1), k=random_.randrange(1, 12)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]


def whole(data, stop):
    text = data.decode("utf-8", errors="ignore")
    ends = [text.find(one) for one in stop if one in text]
    return text[: min(ends, default=len(text))]


@pytest.mark.parametrize("seed", range(300))
def test_the_pieces_are_the_text(seed):
    random_ = random.Random(seed)
    data = "".join(random_.choices("aab€é🦙,", k=random_.randrange(1, 25))).encode()
    data = data[: random_.randrange(len(data) + 1)] if seed % 3 == 0 else data  # a character that is not whole, perhaps
    stop = ["".join(random_.choices("aab€,", k=random_.randrange(1, 5))) for _ in range(random_.randrange(4))]
    pieces, given, told = TextPieces(stop), [], []
    for piece in pieces_of(data, random_):
        given.append(piece)
        told += pieces.add(piece)
        assert whole(b"".join(given), stop).startswith("".join(told))
        if pieces.stopped:
            break
    told += pieces.end()
    assert "".join(told) == whole(data, stop)
    assert len(told) == len(given), "each token is told of once"
    assert pieces.stopped == any(one in data.decode("utf-8", errors="ignore") for one in stop)


def test_text_is_told_as_soon_as_it_can_be():
    pieces = TextPieces(["stop"])
    told = [pieces.add(piece) for piece in (b"a", b"st", b"e", b"", b"\xe2", b"\x82", b"\xac.", b"s")]
    assert told == [["a"], [], ["st", "e"], [""], [], [], ["", "", "€."], []]
    assert pieces.end() == ["s"]


def test_clients_take_turns():
    waiting = Waiting()
    for client, item in [("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5), ("b", 6)]:
        waiting.add(client, item)
    assert [waiting.next(), waiting.next()] == [1, 4] and len(waiting) == 4
    waiting.add("d", 7)
    assert waiting.take(lambda item: item == 3) == [3]
    assert [waiting.next() for _ in range(4)] == [5, 2, 6, 7] and len(waiting) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature: -1.0 is outside 0 and up"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_p": 1.5}, r"top_p: 1.5 is outside \[0, 1\]"),
        ({"repeat_penalty": 0.0}, "repeat_penalty: 0"),
        ({"presence_penalty": 3.0}, r"presence_penalty: 3.0 is outside \[-2, 2\]"),
        ({"seed": 2**32}, "seed: 4294967296"),
        ({"logit_bias": {3: float("nan")}}, "logit_bias: nan of token 3"),
    ],
)
def test_sampling_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": ()}, "prompt: it has no tokens"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"stop": ("a", "")}, "stop: an empty text"),
        ({"n_logprobs": 21}, r"n_logprobs: 21 is outside \[0, 20\]"),
    ],
)
def test_requests_out_of_range(values, message):
    with pytest.raises(ValueError, match=message):
        Request(**{"prompt": (1,), **values})
