"""The pictures of `ffnskip report`: what is drawn in them, and that the same results make the same files."""

from __future__ import annotations

import re

from ffnskip_cpp import report_evaluation
from support.made_up_runs import CATEGORIES, MODEL, Results, made_up


def small(folder):
    """With everything that is drawn."""
    results = Results(folder)
    for task, n in (("factoid", 4), ("chat", 8), ("summarize", 3)):
        results.add(task, made_up(task, n, 0.6, 1))
        results.add(task, made_up(task, n, 0.4, 2), "ffn_skip", 0.2)
        results.add(task, made_up(task, n, 0.4, 3), "calibrated:tuned", skip_ratio=0.1)
    results.add("factoid", made_up("factoid", 4, 0.3, 4), "ffn_skip", 0.2, warm_up_index=0)
    results.add("factoid", made_up("factoid", 4, 0.3, 4), "file:small", size_ratio=0.7)
    results.add_speed()
    results.add_speed("ffn_skip", 0.2, (1.2, 1.1, 1.3))
    results.add_speed("file:small", speed_up=(1.3, 1.2, 1.4), size_ratio=0.7)
    return results


def test_pictures_are_drawn_and_the_same_results_make_the_same_files(tmp_path):
    results = small(tmp_path / "results")
    first = report_evaluation(results.folder, tmp_path / "first")
    again = report_evaluation(results.folder, tmp_path / "again")
    assert [path.relative_to(first.folder) for path in first.files] == [
        path.relative_to(again.folder) for path in again.files
    ]
    for one, other in zip(first.files, again.files):
        assert one.read_bytes() == other.read_bytes(), one
    names = {path.name for path in first.files if path.suffix in (".png", ".svg")}
    drawn = ("quality", "speed", "figure3-summarize-facts", "figure4-chat-facts", "figure5-factoid-facts")
    assert names == {f"{name}.{ending}" for name in drawn for ending in ("png", "svg")}
    text = (first.folder / "report.md").read_text()
    links = re.findall(r"!\[.*\]\(<(.*)>\)", text)
    assert [first.folder / link for link in links] == [path for path in first.files if path.suffix == ".svg"]
    written = {name: set(comments(first.folder / MODEL / f"{name}.svg")) for name in drawn}
    assert {"small", "medium", "large", "rougeL (%)", "skipped (%)"} <= written[drawn[2]]
    assert {*CATEGORIES, "repeated 4grams (%) ↓"} <= written[drawn[3]]
    assert {"warm-up (tokens)", "match (%)"} <= written[drawn[4]]
    assert {"factoid, facts", "chat, facts", "summarize, facts", "ffn_skip", "tuned", "dense, 95 %"} <= written[
        "quality"
    ]
    assert "small" not in written["quality"] and {"small", "speed, dense = 1"} <= written["speed"]
    for name in drawn:
        assert (first.folder / MODEL / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def comments(svg):
    """Texts, which matplotlib writes as paths with a comment."""
    return re.findall("<!-- (.*?) -->", svg.read_text())
