"""Answers of runs graded by another model.

    judgement = judge("results", url="https://api.openai.com/v1", model="gpt-4o", mode="pairwise")
    print(judgement)

Every reply is kept as soon as it is there (`replies`), so that judging again, after an interruption or with more runs,
asks for what is missing alone.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from ... import __version__
from ...files import whole_file
from ...progress import progress_bar
from .asking import Asker, Verdict
from .endpoint import Endpoint, openai_version, shown_url
from .estimate import Estimate, estimate
from .replies import open_replies
from .tally import Graded, judged_run
from .templates import Prompt, Templates, read_templates
from .texts import Judged, judged_runs
from .verdicts import Judgement, write_judgement
from .wanted import Wanted

__all__ = ["judge"]

PathLike = Union[str, "os.PathLike[str]"]

REPLIES = "replies.jsonl"


def judge(
    directory: PathLike,
    *,
    url: str,
    model: str,
    api_key_env: str | None = None,
    mode: str = "single",
    against: str | None = None,
    criteria: Sequence[str] | None = None,
    prompts: PathLike | None = None,
    limit: int | None = None,
    max_retries: int = 3,
    parallel: int = 4,
    timeout: float = 120.0,
    price_in: float | None = None,
    price_out: float | None = None,
    confirm: Callable[[Estimate], Any] | None = None,
    progress: bool | None = None,
) -> Judgement:
    """Has the texts of finished runs graded, and writes DIR/judge/NAME.json, with all verdicts beside it.

    Args:
        directory: Folder of results, as `evaluate` writes it; runs of chat, summarize and factoid are judged.
        url, model: Of an endpoint that speaks OpenAI's protocol, and of the judge there. Replies are kept under the
            model's name: another judge needs another one.
        api_key_env: Environment variable that has the key. None: OPENAI_API_KEY; without one none is sent.
        mode: "single": each answer gets grades from 1 to 10. "pairwise": each beside the reference's, in both orders.
        against: The reference of "pairwise": a method, label or name of runs, or a file of answers to chat in
            FastChat's format. Default: "dense".
        criteria: Default: those that the prompts name for each kind of question.
        prompts: Folder of a user's own prompts (`templates`).
        limit: Items of each run; all by default.
        max_retries: Of a request that fails, and of a reply that is invalid.
        parallel: Requests at a time.
        timeout: Seconds that the server may be silent.
        price_in, price_out: Of a million tokens, for the estimate.
        confirm: Called with the estimate before the first request, if there is one; what it raises ends all.
        progress: Show a bar on stderr; None: where that is a terminal.
    Returns:
        What was written. Where `failed` is above 0, judging again asks for what is missing.
    Raises:
        ArgumentError: A bad value.
        ValueError, FileNotFoundError: Nothing to judge, or nothing to compare with; a file is damaged; prompts that
            lack what they must have; another process judges here.
        ImportError: The `openai` package is missing.
        RuntimeError: The server refuses the key or the model, or no request got a reply.
    """
    return _judged(Wanted(**locals()))


def _judged(wanted: Wanted) -> Judgement:
    templates = read_templates(wanted.prompts, wanted.criteria)
    runs = judged_runs(wanted.directory, wanted.reference, wanted.limit)
    graded = {judged.run.name: list(_graded(judged, templates)) for judged in runs}
    endpoint = Endpoint(
        wanted.url, wanted.model, wanted.api_key, max_retries=wanted.max_retries, timeout=wanted.timeout
    )
    with contextlib.closing(endpoint), open_replies(wanted.folder / REPLIES) as replies:
        asker = Asker(endpoint, templates, replies, max_retries=wanted.max_retries)
        verdicts = _verdicts(wanted, asker, [each.prompt for of_run in graded.values() for each in of_run])
        judgement = Judgement(
            name=wanted.name,
            judge=wanted.model,
            url=shown_url(wanted.url),
            mode=wanted.mode,
            against=wanted.reference_name,
            prompts_hash=templates.hash,
            limit=wanted.limit,
            versions={"ffnskip_cpp": __version__, "openai": openai_version()},
            runs=tuple(judged_run(judged, graded[judged.run.name], verdicts) for judged in runs),
            **_totals(verdicts),
        )
        _write_verdicts(wanted.folder / f"{judgement.name}.verdicts.jsonl", graded, verdicts)
        write_judgement(wanted.directory, judgement)
    return judgement


def _verdicts(wanted: Wanted, asker: Asker, prompts: Sequence[Prompt]) -> dict[Prompt, Verdict]:
    """Of each prompt once, however many runs it is part of. RuntimeError where nothing is known of any."""
    known = {prompt: verdict for prompt in dict.fromkeys(prompts) if (verdict := asker.known(prompt)) is not None}
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if not missing:
        return known
    if wanted.confirm is not None:
        wanted.confirm(estimate(missing, len(known), wanted.price_in, wanted.price_out))
    with progress_bar("judging", len(known) + len(missing), unit="verdicts", show=wanted.progress) as bar:
        bar.update(len(known))
        found = asker.verdicts(missing, parallel=wanted.parallel, told=bar.update)
    errors = [verdict.error for verdict in found.values() if verdict.error is not None]
    if not known and len(errors) == len(found):
        raise RuntimeError(f"{shown_url(wanted.url)}: no request got a reply: {errors[0]}")
    return {**known, **found}


def _graded(judged: Judged, templates: Templates) -> Iterator[Graded]:
    """All that is asked about a run."""
    for answer in judged.answers:
        for turn in range(len(answer.texts)):
            questions, own = answer.questions[: turn + 1], answer.texts[: turn + 1]
            reference = answer.references[turn]
            if judged.others is None:
                prompt = templates.single(answer.kind, questions, own, reference)
                yield Graded(judged.run.name, answer.item, turn, False, prompt)
                continue
            other = judged.others[answer.item][: turn + 1]
            for swapped in (False, True):
                texts = (other, own) if swapped else (own, other)
                prompt = templates.pair(answer.kind, questions, *texts, reference)
                yield Graded(judged.run.name, answer.item, turn, swapped, prompt)


def _totals(verdicts: Mapping[Prompt, Verdict]) -> dict[str, Any]:
    replies = [reply for verdict in verdicts.values() for reply in verdict.replies]
    return {
        "answered_by": tuple(sorted({reply.model for reply in replies} - {""})),
        "replies": len(replies),
        "tokens_in": sum(reply.tokens_in for reply in replies),
        "tokens_out": sum(reply.tokens_out for reply in replies),
        "errors": tuple(sorted({verdict.error for verdict in verdicts.values() if verdict.error is not None})),
    }


def _write_verdicts(path: Path, graded: Mapping[str, Sequence[Graded]], verdicts: Mapping[Prompt, Verdict]) -> None:
    """For those who want to read what the judge says: a line for each thing that it was asked."""
    with whole_file(path) as part, open(part, "w", encoding="ascii") as file:
        for each in (each for of_run in graded.values() for each in of_run):
            verdict = verdicts[each.prompt]
            line = {
                "run": each.run,
                "item": each.item,
                "turn": each.turn + 1,
                "reference_first": each.swapped,
                "grades": verdict.grades,
                "reply": verdict.replies[-1].text if verdict.replies else None,
                "error": verdict.error,
            }
            file.write(json.dumps(line) + "\n")
