"""Whether drafts pay: the pace of a generation with them against its pace without."""

from __future__ import annotations

from statistics import median

__all__ = ["Pace"]

PLAIN = 8  # tokens timed without drafts, at the beginning of a generation
WINDOW = 8  # rounds with drafts after which they are judged


class Pace:
    """Of one generation: first some tokens without drafts, then rounds with them for as long as they are not slower.

    Medians, since whoever takes the tokens may pause.

    Args:
        n_plain: Tokens without drafts, PLAIN at least.
    """

    def __init__(self, n_plain: int):
        self.n_plain = max(PLAIN, n_plain)
        self.plain: list[float] = []  # seconds of each token without a draft
        self.rounds: list[tuple[int, float]] = []  # tokens and seconds of those since the last judgement
        self.is_lost = False
        self._since: float | None = None

    def see(self, n_tokens: int, now: float, *, drafted: bool) -> None:
        """So many tokens more are there at this time, in seconds, with a draft or without."""
        since, self._since = self._since, now
        if since is None or n_tokens < 1:
            return
        if drafted:
            self.rounds.append((n_tokens, now - since))
        elif len(self.plain) < self.n_plain:
            self.plain.append((now - since) / n_tokens)
        if len(self.rounds) == WINDOW:
            self.is_lost = self.seconds_drafted > self.seconds_plain
            self.rounds = self.rounds if self.is_lost else []

    @property
    def drafts(self) -> bool:
        """Whether to draft what comes next."""
        return len(self.plain) == self.n_plain and not self.is_lost

    @property
    def seconds_plain(self) -> float:
        """Of a token."""
        return median(self.plain)

    @property
    def seconds_drafted(self) -> float:
        """Of a token."""
        n_tokens = sum(n for n, _ in self.rounds)
        return median([seconds for _, seconds in self.rounds]) * len(self.rounds) / n_tokens
