"""One model, one thread that decodes, and the answers of many clients at once.

    engine = Engine("model.gguf", n_parallel=8)
    async for item in engine.submit(Request(tuple(engine.llm.tokenize(b"The weather")))):
        ...  # Token, Token, ..., End

Each answer is what the model gives to its request alone: what others ask for, and what they skip, is nothing to it.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from .._core import PreparedConfig
from ..errors import UnsupportedModelError
from ..skip_argument import DENSE, Skip
from ..skip_config import SkipConfig
from .job import Job
from .model import ServedLlama
from .requests import Closed, Counts, EndReason, PromptTooLong, QueueFull, Request
from .sampling import Chain
from .slots import Slots
from .stream import Stream
from .waiting import Waiting

__all__ = ["Engine"]

SETTINGS = tuple(field.name for field in dataclasses.fields(SkipConfig))
MAX_PREPARED = 64  # settings that are kept for the next request


class Engine:
    """
    Args:
        model_path: Path of a GGUF file.
        n_parallel: Answers at once, 1 or more.
        n_ctx: Tokens of each, prompt and answer; None: as many as the model was trained on, 4096 at most. The memory
            has room for n_parallel times as many.
        skip: What is skipped where a request does not say, as for `Llama`.
        max_queue: Requests that may wait where so many run, 0 or more.
        **llama_options: As for `Llama`, but for what is not given: llama.cpp decides about `flash_attn`, and `reuse` is
            "full": of what a client's last answer left in the memory, tokens that skipped are evaluated again when
            they come back in a prompt.
    Raises:
        ValueError: What `Llama` raises, or a value out of range.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        n_parallel: int = 4,
        n_ctx: int | None = None,
        skip: Skip = "auto",
        max_queue: int = 64,
        **llama_options: Any,
    ):
        if max_queue < 0:
            raise ValueError(f"max_queue: {max_queue} is negative")
        options = {"reuse": "full", "verbose": False, **llama_options}
        self._path = os.fspath(model_path)
        self._n_parallel = n_parallel
        self._max_queue = max_queue
        self._prepared: OrderedDict[SkipConfig, PreparedConfig] = OrderedDict()
        self._prepared_lock = threading.Lock()

        # What follows is changed by whoever holds this, which also wakes the thread.
        self._state = threading.Condition()
        self._waiting: Waiting[Job] = Waiting()
        self._n_running = 0
        self._any_cancelled = False
        self._deadline: float | None = None  # the engine closes, and ends what is left then
        self._ends = dict.fromkeys(("stop", "length", "cancelled", "error"), 0)
        self._seconds = 0.0

        def load() -> ServedLlama:
            return ServedLlama(self._path, n_parallel=n_parallel, n_ctx=n_ctx, skip=skip, **options)

        loaded: Future[ServedLlama] = Future()
        self._thread = threading.Thread(target=self._run, args=(load, loaded), name="ffnskip-decode", daemon=True)
        self._thread.start()
        self._llm = loaded.result()
        self._default = self._llm.skip or DENSE

    # ---- for clients, from any thread ----

    @property
    def llm(self) -> ServedLlama:
        """Tokens, metadata, chat template and statistics of the model. The engine alone evaluates with it."""
        return self._llm

    @property
    def model_id(self) -> str:
        """Name of the model's file, without the ending."""
        return os.path.splitext(os.path.basename(self._path))[0]

    @property
    def skip(self) -> SkipConfig | None:
        """What is skipped where a request does not say; None: nothing."""
        return None if self._default.policy == "dense" else self._default

    @property
    def n_ctx_slot(self) -> int:
        """Tokens of a prompt and its answer."""
        return self._llm.n_ctx_slot

    @property
    def is_open(self) -> bool:
        """Whether it takes requests."""
        return self._deadline is None

    def submit(self, request: Request) -> Stream:
        """
        Raises:
            QueueFull: As many requests wait as may.
            Closed: The engine closes, or is closed.
            ValueError: The prompt does not fit the context, or a value does not fit the model.
        """
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[Stream]:
        """All of them or none, as `submit`: where there is a place for one, the others may wait behind it."""
        self._require_place()
        jobs = [self._job(request) for request in requests]
        with self._state:
            self._require_place()
            for job in jobs:
                self._waiting.add(job.request.client, job)
            self._state.notify()
        return [job.stream for job in jobs]

    def _job(self, request: Request) -> Job:
        self._check(request)
        settings = self._prepare(self._default if request.skip == "default" else request.skip or DENSE)
        chain = Chain(self._llm, request.sampling)
        room = self.n_ctx_slot - len(request.prompt) + 1  # the last token generated need not fit
        n_most = room if request.max_tokens is None else min(request.max_tokens, room)
        return Job(self._llm, request, Stream(self._note_cancelled), chain, settings, n_most)

    def skip_of(self, options: Mapping[str, Any]) -> SkipConfig | None:
        """What a request is to skip, by the fields of `SkipConfig`; None: nothing.

        Raises:
            ValueError: There is no such field, or its value does not fit the model.
        """
        for name in options:
            if name not in SETTINGS:
                raise ValueError(f"skip: {name!r} is not known; there are {', '.join(SETTINGS)}")
        try:
            config = SkipConfig(**options)
        except TypeError as error:
            raise ValueError(f"skip: {error}") from error
        try:
            self._prepare(config)
        except UnsupportedModelError as error:
            if config.policy != "channels" or self._llm.why_dense is not None:
                raise
            raise ValueError(
                f"skip: policy 'channels' of tensors {config.tensors!r} is there where the server was started with it"
            ) from error
        return None if config.policy == "dense" else config

    def counts(self) -> Counts:
        """What has been done so far."""
        stats = self._llm.stats
        with self._state:
            return Counts(
                running=self._n_running,
                queued=len(self._waiting),
                done=self._ends["stop"] + self._ends["length"],
                cancelled=self._ends["cancelled"],
                failed=self._ends["error"],
                n_prompt=self._slots.n_prompt,
                n_cached=self._slots.n_cached,
                n_generated=self._slots.n_generated,
                ffn_total=stats.ffn_total,
                ffn_skipped=stats.ffn_skipped,
                attention_total=stats.attention_total,
                attention_skipped=stats.attention_skipped,
                skip_ratio=stats.skip_ratio,
                seconds=self._seconds,
            )

    def close(self, grace: float = 0.0) -> None:
        """Takes no more requests, ends after so many seconds what has not ended by then, and frees the model. Again
        while another thread waits here: the shorter time holds."""
        with self._state:
            deadline = time.monotonic() + grace
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            self._state.notify()
        self._thread.join()
        self._llm.close()

    # ---- requests ----

    def _require_place(self) -> None:
        if self._deadline is not None:
            raise Closed("the server is shutting down")
        if self._n_running + len(self._waiting) >= self._n_parallel + self._max_queue:
            raise QueueFull(f"{self._n_running} answers are being generated, and {len(self._waiting)} requests wait")

    def _check(self, request: Request) -> None:
        n_vocab, n_prompt = self._llm.n_vocab(), len(request.prompt)
        if min(request.prompt) < 0 or max(request.prompt) >= n_vocab:
            raise ValueError(f"prompt: token ids must be in [0, {n_vocab})")
        if n_prompt > self.n_ctx_slot:
            raise PromptTooLong(f"prompt: it has {n_prompt} tokens, more than the {self.n_ctx_slot} of the context")

    def _prepare(self, config: SkipConfig) -> PreparedConfig:
        with self._prepared_lock:
            settings = self._prepared.pop(config, None) or self._llm.controller.prepare(config)
            self._prepared[config] = settings
            if len(self._prepared) > MAX_PREPARED:
                self._prepared.popitem(last=False)
            return settings

    def _note_cancelled(self) -> None:
        with self._state:
            self._any_cancelled = True
            self._state.notify()

    # ---- the thread ----

    def _run(self, load: Callable[[], ServedLlama], loaded: Future[ServedLlama]) -> None:
        # Whatever computes, computes here: OpenMP has threads for each thread that does, and where they are more than
        # the processors, they no longer wait for each other awake: on two of them that took twice as long.
        try:
            llm = load()
        except BaseException as error:
            loaded.set_exception(error)
            return
        self._slots = Slots(llm, self._n_parallel, self._count_end)
        loaded.set_result(llm)
        try:
            with llm.at_work():
                while (jobs := self._await_work()) is not None:
                    self._work(jobs)
        finally:  # whatever has happened, nobody waits for ever
            with self._state:
                self._deadline = time.monotonic()
                self._end_unwanted()

    def _work(self, jobs: list[Job]) -> None:
        """Begins answers, and goes on with all by a turn."""
        began = time.perf_counter()
        try:
            while jobs:
                self._slots.begin(jobs.pop(0))
            self._slots.turn()
        except Exception as error:  # nothing that a request may cause: all answers end, and the next ones begin
            message = f"{type(error).__name__}: {error}"
            self._slots.end(lambda job: True, "error", message)
            for job in jobs:
                job.end("error", message)
                self._count_end("error")
            self._slots.clear()
        with self._state:
            self._seconds += time.perf_counter() - began

    def _await_work(self) -> list[Job] | None:
        """Waits until there is something to do. The answers to begin, for which there are slots; None: no more."""
        with self._state:
            while True:
                self._end_unwanted()
                jobs = []
                while len(self._waiting) > 0 and self._n_running < self._n_parallel:
                    jobs.append(self._waiting.next())
                    self._n_running += 1
                if self._n_running > 0:
                    return jobs
                if self._deadline is not None:
                    return None
                self._state.wait()

    def _end_unwanted(self) -> None:
        """Those that were cancelled; all, once the time is over."""
        is_over = self._deadline is not None and time.monotonic() >= self._deadline
        if not (is_over or self._any_cancelled):
            return
        self._any_cancelled = False
        message = "the server is shutting down" if is_over else ""

        def unwanted(job: Job) -> bool:
            return is_over or job.stream.is_cancelled

        for job in self._waiting.take(unwanted):
            job.end("cancelled", message)
            self._ends["cancelled"] += 1
        self._slots.end(unwanted, "cancelled", message)

    def _count_end(self, reason: EndReason) -> None:
        with self._state:
            self._n_running -= 1
            self._ends[reason] += 1
