"""Answers are right by SQuAD's rules, worked out by hand."""

from __future__ import annotations

import pytest

from ffnskip_cpp.evaluation.answers import exact_match, f1, matches, normalized


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Duke of Ul.", ["duke", "of", "ul"]),
        ("  An  A-Team, THE end!\n", ["ateam", "end"]),
        ("theatre, another", ["theatre", "another"]),
        ("“Olm” é", ["“olm”", "é"]),
        ("The The", ["the", "the"]),
        ("A.", ["a"]),
        ("?!", []),
        ("", []),
    ],
)
def test_normalized(text, words):
    assert normalized(text) == words


@pytest.mark.parametrize(
    ("answer", "right", "within", "exact", "expected_f1"),
    [
        # of 3 and 2 words 2 are common: 2 * 2 / 5
        (" the Duke of Ul.", ["duke of"], True, False, 0.8),
        ("The duke of Ul", ["Olm", "duke of Ul!"], True, True, 1.0),
        ("of the Duke", ["duke of"], False, False, 1.0),  # the order is no matter to f1
        ("Dukes of Ul", ["duke"], False, False, 0.0),
        ("Ul", ["Duke of Ul"], False, False, 0.5),
        ("Ul Ul Ul", ["Ul"], True, False, 0.5),
        ("Olm or Ul", ["Olm", "Brin or Ul"], True, False, 2 / 3),  # the better of 1/2 and 2/3
        ("", ["Olm"], False, False, 0.0),
        ("Olm", ["", "?!"], False, False, 0.0),
        ("", [""], False, False, 0.0),
        ("vitamin A", ["A"], False, False, 0.0),
        ("the", ["A"], False, False, 0.0),
        ("A", ["A"], True, True, 1.0),
        ("Olm", [], False, False, 0.0),
    ],
)
def test_answers(answer, right, within, exact, expected_f1):
    assert (matches(answer, right), exact_match(answer, right)) == (within, exact)
    assert f1(answer, right) == pytest.approx(expected_f1)
