"""Tables that are printed: every line as wide as the others, cells where their column is."""

from __future__ import annotations

import pytest

from ffnskip_cpp.table import aligned, markdown

NAMES = ("policy", "", "KL")
ROWS = [("ffn_skip", "1", "0.31"), ("a|b", "", "12.5 ± 0.1")]


def test_markdown_has_a_rule_and_columns_of_equal_width():
    assert markdown(NAMES, ROWS, left=("policy",)).splitlines() == [
        "| policy   |     |         KL |",
        "| -------- | --: | ---------: |",
        "| ffn_skip |   1 |       0.31 |",
        "| a\\|b     |     | 12.5 ± 0.1 |",
    ]


def test_aligned_has_blanks_alone_and_none_at_the_end():
    assert aligned(NAMES, ROWS, left=NAMES).splitlines() == [
        "policy       KL",
        "ffn_skip  1  0.31",
        "a|b          12.5 ± 0.1",
    ]


@pytest.mark.parametrize("table", [markdown, aligned])
def test_without_rows_the_names_are_left(table):
    assert table(("layer",), []).splitlines()[0].strip("| ") == "layer"
