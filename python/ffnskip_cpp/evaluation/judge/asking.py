"""Asking a judge many things at once, each until its reply can be used, and never twice what it has replied to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ...progress import Told
from .endpoint import MAX_TOKENS, PARAMETERS, Endpoint, FailedRequestError
from .grades import Grades, InvalidReplyError, grades_of
from .replies import Message, Replies, Reply, key_of
from .templates import Prompt, Templates

__all__ = ["Asker", "Verdict"]

GIVE_UP = 10
"""Requests that failed in a row, each with its retries: the server is gone, and the rest is not asked. One that refuses
a request, such as for its length, is there."""

KEPT = 1000
"""Characters of an invalid reply that the judge is shown again, from its end, where the fault is."""


@dataclass(frozen=True)
class Verdict:
    """What became of a prompt."""

    grades: Grades | None
    """None: there are none."""
    replies: tuple[Reply, ...]
    """Of which the last was valid, or one too many that was not."""
    error: str | None = None
    """Of the request that failed; None where none did."""


class Asker:
    """
    Args:
        replies: What was replied before, and where replies go.
        max_retries: Of an invalid reply.
    """

    def __init__(self, endpoint: Endpoint, templates: Templates, replies: Replies, *, max_retries: int):
        self._endpoint = endpoint
        self._templates = templates
        self._replies = replies
        self._max_retries = max_retries
        self._lock = threading.Lock()
        self._failed_in_a_row = 0
        self._ended: str | None = None

    def known(self, prompt: Prompt) -> Verdict | None:
        """What comes of the replies that are there; None where one more is needed."""
        try:
            return self._follow(prompt, ask=False)
        except LookupError:
            return None

    def verdicts(self, prompts: Sequence[Prompt], *, parallel: int, told: Told) -> dict[Prompt, Verdict]:
        """Of different prompts.

        Args:
            parallel: Requests at a time.
            told: Of each verdict.
        Raises:
            FailedRequestError: The server refuses the key, or does not know the model.
            OSError: A reply could not be kept.
            KeyboardInterrupt: After the replies to what was being asked, which are paid for, are kept; where it is
                pressed again, at once.
        """
        todo: queue.SimpleQueue[Prompt] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Prompt, Verdict | BaseException]] = queue.SimpleQueue()
        for prompt in prompts:
            todo.put(prompt)
        # Not an executor's threads: the interpreter waits for them at its end, however often Ctrl-C is pressed.
        n_threads = min(parallel, len(prompts))
        threads = [threading.Thread(target=self._work, args=(todo, done), daemon=True) for _ in range(n_threads)]
        found: dict[Prompt, Verdict] = {}
        try:
            for thread in threads:
                thread.start()
            for _ in prompts:
                prompt, outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                found[prompt] = outcome
                told(1)
        finally:
            self._ended = self._ended or "it was interrupted"
            for thread in threads:
                thread.join()
        return found

    def _work(
        self,
        todo: queue.SimpleQueue[Prompt],
        done: queue.SimpleQueue[tuple[Prompt, Verdict | BaseException]],
    ) -> None:
        while True:
            try:
                prompt = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((prompt, self._verdict(prompt)))
            except BaseException as error:  # is raised where the verdicts are waited for; nothing more is paid for
                self._ended = self._ended or "it ended with an error"
                done.put((prompt, error))

    def _verdict(self, prompt: Prompt) -> Verdict:
        try:
            return self._follow(prompt, ask=True)
        except FailedRequestError as error:
            if error.final:
                raise
            return Verdict(None, (), str(error))

    def _follow(self, prompt: Prompt, *, ask: bool) -> Verdict:
        """The conversation until there are grades, or no more retries. LookupError where it would have to ask."""
        messages: list[Message] = [{"role": "user", "content": prompt.text}]
        replies: list[Reply] = []
        while True:
            key = key_of(self._endpoint.model, messages, PARAMETERS)
            reply = self._replies.get(key)
            if reply is None and len(replies) > self._max_retries:
                return Verdict(None, tuple(replies))
            if reply is None and not ask:
                raise LookupError(key)
            replies.append(reply or self._ask(key, messages))
            try:
                return Verdict(_grades(replies[-1], prompt), tuple(replies))
            except InvalidReplyError as error:
                messages.append({"role": "assistant", "content": replies[-1].text[-KEPT:]})
                messages.append({"role": "user", "content": self._templates.invalid(prompt, str(error))})

    def _ask(self, key: str, messages: Sequence[Message]) -> Reply:
        if self._ended is not None:
            raise FailedRequestError(f"not asked: {self._ended}")
        try:
            reply = self._endpoint.reply(messages)
        except FailedRequestError as error:
            self._count(error)
            raise
        self._count(None)
        self._replies.add(key, reply)
        return reply

    def _count(self, error: FailedRequestError | None) -> None:
        with self._lock:
            alive = error is None or error.is_refusal
            self._failed_in_a_row = 0 if alive else self._failed_in_a_row + 1
            if self._failed_in_a_row >= GIVE_UP:
                self._ended = f"{GIVE_UP} requests in a row had failed"
            if error is not None and error.final:
                self._ended = "the server had refused"


def _grades(reply: Reply, prompt: Prompt) -> Grades:
    if reply.finish_reason == "length":
        raise InvalidReplyError(f"it was cut off after {reply.tokens_out or MAX_TOKENS} tokens")
    return grades_of(reply.text, prompt)
