"""Stories summarised: CNN/DailyMail in three lengths, with the paper's prompt (section 4.2), by ROUGE."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.entry import Entry
from ..data.json_text import entries_of_lines
from ..data.tables import entries_of_csv, entries_of_parquet
from .base import Item, Metric, Prompt, Record, Settings, Subject
from .conversation import conversation, shortened, stops
from .fitting import check_prompts, n_tokens, room
from .generated import COLLAPSE, record
from .ids import content_id, distinct

__all__ = ["Story", "Summarize"]

ASKED = (
    "Summarize the given story in less than 150 words while preserving high coherence, consistency, fluency, and "
    "relevance.\n\n{story}"
)
MAX_TOKENS = 256  # of 150 words, and some more
COLUMNS = ("id", "article", "highlights")
MEDIUM, LARGE = 470, 790  # words that a story of this length has at least


@dataclass(frozen=True)
class Story(Item):
    article: str
    highlights: str


class Summarize:
    """id, article and highlights, in lines of JSON, CSV or parquet."""

    name = "summarize"
    metrics: tuple[Metric, ...] = (
        Metric("rougeL", "rougeL", percent=True),
        Metric("rouge1", "rouge1", percent=True),
        Metric("rouge2", "rouge2", percent=True),
        *COLLAPSE,
    )

    def read(self, path: Path) -> list[Story]:
        _scorer()  # without it nothing has to be begun
        readers = {".jsonl": entries_of_lines, ".csv": _of_csv, ".parquet": _of_parquet}
        if path.suffix.lower() not in readers:
            raise ValueError(f"{path}: its name has none of the endings {', '.join(readers)}")
        return distinct(map(_story, readers[path.suffix.lower()](path)))

    def run(self, subject: Subject, items: Sequence[Story], settings: Settings) -> Iterator[Record]:
        scorer = _scorer()
        max_tokens = settings.max_tokens or MAX_TOKENS
        asked = [_asked(subject, item, room(subject, max_tokens)) for item in items]
        prompts = [_prompt(subject, text) for text, _ in asked]
        check_prompts(subject, items, prompts)
        answers = subject.generate(prompts, max_tokens=max_tokens, stop=stops(prompts[0]) if prompts else ())
        for item, (question, cut), answer in zip(items, asked, answers):
            text = answer.text.strip()
            values = {name: float(score.fmeasure) for name, score in scorer.score(item.highlights, text).items()}
            shown = {"question": question, "reference": item.highlights, "text": text, "words_cut": cut}
            yield record(item, [answer], values, shown)


def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise ImportError(f"summaries need rouge-score: pip install 'ffnskip_cpp[eval]' ({error})") from error
    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)


def _prompt(subject: Subject, asked: str) -> Prompt:
    return conversation(subject, [{"role": "user", "content": asked}])


def _asked(subject: Subject, item: Story, n_room: int) -> tuple[str, int]:
    """What the user says, and how many words of the story had no room."""

    def fits(story: str) -> bool:
        return n_tokens(subject, _prompt(subject, ASKED.format(story=story))) <= n_room

    story, cut = shortened(item.article, fits)
    return ASKED.format(story=story), cut


# ---- reading ----


def _of_csv(path: Path) -> list[Entry]:
    return entries_of_csv(path, COLUMNS)


def _of_parquet(path: Path) -> list[Entry]:
    return entries_of_parquet(path, COLUMNS)


def _story(entry: Entry) -> Story:
    article = entry.text("article").strip()
    listed = isinstance(entry.get("highlights"), list)
    highlights = "\n".join(entry.texts("highlights")) if listed else entry.text("highlights")
    name = entry.id("id") if "id" in entry.fields else content_id(article, highlights)
    return Story(name, _length(article), entry.where, article, highlights)


def _length(article: str) -> str:
    n = len(article.split())
    return "small" if n < MEDIUM else "medium" if n < LARGE else "large"
