"""The sequences of a context, each with an answer being generated or with what the last one left, and their turns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from .._core import PreparedConfig
from .job import Job
from .model import ServedLlama
from .requests import EndReason

__all__ = ["Slot", "Slots"]


@dataclass(eq=False)
class Slot:
    seq: int
    tokens: list[int] = field(default_factory=list)
    """That its sequence holds."""
    job: Job | None = None
    used: int = 0
    """When, counted in answers."""

    @property
    def busy(self) -> Job:
        assert self.job is not None
        return self.job

    @property
    def n_unread(self) -> int:
        """Tokens of its prompt that are not evaluated yet."""
        return max(0, len(self.busy.request.prompt) - len(self.tokens))


class Slots:
    """
    Args:
        ended: Told how each answer ends.
    """

    def __init__(self, llm: ServedLlama, n_slots: int, ended: Callable[[EndReason], None]):
        self._slots = [Slot(seq) for seq in range(n_slots)]
        self._session = llm.session
        self._controller = llm.controller
        self._n_prompt_rows = llm.context_params.n_ubatch
        self._ended = ended
        self._settings: PreparedConfig | None = None  # in use
        self.n_begun = self.n_prompt = self.n_cached = self.n_generated = 0
        """Answers, tokens of their prompts, of these found in a sequence, and tokens of answers, so far."""

    @property
    def running(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.job is not None]

    def begin(self, job: Job) -> None:
        """Gives it the free slot that holds most of its prompt's beginning already; of several the one that was used
        least lately."""
        prompt = job.request.prompt
        free = [slot for slot in self._slots if slot.job is None]
        slot = max(free, key=lambda slot: (_n_common(slot.tokens, prompt) if job.request.reuses else 0, -slot.used))
        self.n_begun += 1
        slot.used, slot.job = self.n_begun, job
        self._use(job.settings)
        n_kept = min(_n_common(slot.tokens, prompt), len(prompt) - 1) if job.request.reuses else 0
        n_kept = self._controller.first_to_repeat(n_kept, slot.seq)
        if not self._session.go_back(n_kept, slot.seq):
            n_kept = 0
            self._session.go_back(0, slot.seq)
        self._controller.count_from_here(slot.seq)
        slot.tokens = list(prompt[:n_kept])
        job.start(n_kept)
        self.n_prompt += len(prompt)
        self.n_cached += n_kept

    def turn(self) -> None:
        """A token of each answer that is being generated, and a part of the prompts that are being read."""
        generating = [slot for slot in self.running if slot.n_unread == 0]
        for slots in _by_settings(generating):
            self._decode(slots, [(slot.busy.last,) for slot in slots], generated=True)
        reading = [slot for slot in self.running if slot.n_unread > 0]
        shares = dict(zip(reading, _shares([slot.n_unread for slot in reading], self._n_prompt_rows)))
        for slots in _by_settings(slot for slot in reading if shares[slot] > 0):
            parts = []
            for slot in slots:
                begin = len(slot.tokens)
                parts.append(slot.busy.request.prompt[begin : begin + shares[slot]])
            self._decode(slots, parts, generated=False)

    def end(self, which: Callable[[Job], bool], reason: EndReason, message: str = "") -> None:
        """Ends all answers of which that is true."""
        for slot in self.running:
            if which(slot.busy):
                self._end(slot, reason, message)

    def clear(self) -> None:
        """Forgets what the sequences hold."""
        self._session.clear()
        for slot in self._slots:
            slot.tokens.clear()

    def _decode(self, slots: list[Slot], parts: list[tuple[int, ...]], *, generated: bool) -> None:
        """These tokens of each slot, which have the same settings. What fails ends their answers, and no others."""
        rows: list[tuple[int, int, int, int | None]] = []
        chosen = []
        for slot, part in zip(slots, parts):
            job = slot.busy
            rows += [(token, slot.seq, 0, None) for token in part]
            if generated or len(part) == slot.n_unread:
                rows[-1] = (part[-1], slot.seq, job.chain.address, job.request.n_logprobs)
                chosen.append(slot)
        try:
            self._use(slots[0].busy.settings)
            choices = self._session.choose(rows, generated)
        except (RuntimeError, ValueError) as error:
            for slot in slots:
                slot.tokens.clear()  # whatever its sequence holds, the next answer begins anew
                self._end(slot, "error", str(error))
            return
        for slot, part in zip(slots, parts):
            slot.tokens += part
        for slot, choice in zip(chosen, choices):
            if isinstance(choice, str):
                self._end(slot, "error", choice)
                continue
            job = slot.busy
            n_before = job.n_generated
            reason = job.take(choice, generated=generated)
            self.n_generated += job.n_generated - n_before
            if reason is not None:
                self._end(slot, reason)

    def _use(self, settings: PreparedConfig) -> None:
        if settings is not self._settings:
            self._controller.use(settings)
            self._settings = settings

    def _end(self, slot: Slot, reason: EndReason, message: str = "") -> None:
        job, slot.job = slot.busy, None
        self._ended(reason)
        job.end(reason, message)


def _n_common(a: Sequence[int], b: Sequence[int]) -> int:
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))


def _by_settings(slots: Iterable[Slot]) -> list[list[Slot]]:
    groups: dict[PreparedConfig, list[Slot]] = {}
    for slot in slots:
        groups.setdefault(slot.busy.settings, []).append(slot)
    return list(groups.values())


def _shares(wanted: list[int], most: int) -> list[int]:
    """Rows for each, the same for all who want as many, `most` together."""
    shares = [0] * len(wanted)
    by_size = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for n_done, i in enumerate(by_size):
        shares[i] = min(wanted[i], most // (len(wanted) - n_done))
        most -= shares[i]
    return shares
