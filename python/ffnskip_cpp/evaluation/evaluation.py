"""What skipping costs a model on tasks: items of official files, put to it under each method.

    evaluation = evaluate("model.gguf", ["choice"], "arc_easy.jsonl", "results", methods=["ffn_skip", "channels"])
    print(evaluation)

Every run, a task's data set under a method, becomes a file with its figures and one with its items (runs.py). What is
there already is not run again, and what was interrupted goes on (store.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..measure.model import check_model, open_model
from ..measure.text import as_paths, read_texts
from ..plain import plain
from ..progress import progress_bar
from .items import Data, PathLike, read_data_sets
from .making import finds_on_text
from .methods import asked_methods
from .page import page
from .runs import Run
from .statistics import Paired
from .store import open_store
from .wanted import N_CTX, N_PARALLEL, SCORING, Wanted
from .work import Work

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What was measured. Its repr is a page to read, `as_dict()` for programs."""

    folder: Path
    """Where all of it lies."""
    runs: tuple[Run, ...]
    """Of this evaluation, each task's data sets in turn, dense first."""
    differences: Mapping[str, Paired]
    """By run's name, to the dense run on the same items, of the task's first metric; of other runs than dense ones."""

    def as_dict(self) -> dict[str, Any]:
        """Of plain values; None for NaN."""
        return plain(self)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return page(self.runs, self.differences)


def evaluate(
    model_path: PathLike,
    tasks: str | Sequence[str],
    data: Data | None,
    output: PathLike,
    *,
    methods: PathLike | Sequence[PathLike] = "ffn_skip",
    skip_ratio: float | Sequence[float] | None = None,
    limit: int | None = None,
    text: PathLike | Sequence[PathLike] = (),
    skip_prompts: int | None = None,
    warm_up_index: int | None = None,
    scoring: str = SCORING[0],
    max_tokens: int | None = None,
    lora: PathLike | None = None,
    n_ctx: int = N_CTX,
    n_parallel: int = N_PARALLEL,
    seed: int = 0,
    n_threads: int | None = None,
    n_gpu_layers: int = -1,
    progress: bool | None = None,
) -> Evaluation:
    """Puts tasks to a model, dense and under each method.

    Args:
        model_path: GGUF file; the first part of a model that is split.
        tasks: Of "factoid", "chat", "summarize", "mmlu", "choice", "cloze", "perplexity", "demo", and "speed", which
            takes no data: how much faster than dense a method generates, all of them in turn.
        data: The official file, or folder, of each task: one for each, in their order, or several by task's name; of
            one task several. None where only speed is measured.
        output: Folder for the results; made if it is missing. Runs that are there are not run again.
        methods: "ffn_skip" with the paper's values, "random", "random_adaptive_region", "short_gpt", "skip_decode" or
            "channels", each at every skip ratio; a skip profile; another GGUF file of the model, such as a smaller
            quantisation. Dense is run besides, first.
        skip_ratio: Shares to leave out, in (0, 1): of the FFN blocks, with "channels" of the FFN's weight bytes, with
            "short_gpt" and "skip_decode" of the layers. Default: 0.25, with "channels" a third.
        limit: Items of each data set at most, the same for all methods; as many of each group. None: all.
        text: Files, plain or .jsonl, that "short_gpt" finds its layers on, and "channels" thresholds; without, each
            text's first tokens tell those. And what is generated to measure speed; default: what the model writes.
        skip_prompts: Tokens of a prompt from this one on count as generated, so that they may skip; the warm-up counts
            from there. None: prompts run in full, and with them what is read from their last token.
        warm_up_index: Generated tokens that run in full first, of every method that has a warm-up. None: its own.
        scoring: Of mmlu: by the "loglikelihood" of the letters, or "generate": the letter that is written.
        max_tokens: Of an answer, or of what is generated to measure speed. None: the task's own.
        lora: LoRA adapter that all files of the model are used with, FILE or FILE:SCALE.
        n_ctx: Tokens of the context, which all answers generated at once share; one has no more than the model was
            trained on.
        n_parallel: Answers generated at once. An interrupted run goes on from the last whole 4 times as many items.
        seed: Of the choice of items, and of the random methods.
        n_threads, n_gpu_layers: Default: all processors; all layers, if there is a GPU.
        progress: Show a progress bar on stderr; None: where that is a terminal.
    Raises:
        ValueError: A bad value; a file that is none of its task's, with file and line; a method that does not fit the
            model, by name; results that are there with other settings, versions, model or data.
        OSError: A file is missing or can't be written, or another evaluation writes into the folder.
        DecodeError: llama.cpp failed to decode.
    """
    model, names = Path(model_path), (tasks,) if isinstance(tasks, str) else tuple(tasks)
    wanted = Wanted(
        names, limit, as_paths(text), skip_prompts, warm_up_index, scoring, max_tokens, n_ctx, n_parallel, seed
    )
    check_model(model, n_threads, lora)
    ratios = [skip_ratio] if isinstance(skip_ratio, (int, float)) else skip_ratio
    asked = asked_methods(as_paths(methods), ratios, model)
    for method in asked:
        finds_on_text(method, has_text=bool(wanted.text))
    texts = read_texts(wanted.text) if wanted.text else []
    data_sets = read_data_sets(names, data, limit, seed)
    opening: dict[str, Any] = {"n_threads": n_threads, "n_gpu_layers": n_gpu_layers, "lora": lora}
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store(Path(output)))
        llm = stack.enter_context(open_model(model, n_ctx, must_skip=False, **opening))
        bar = stack.enter_context(progress_bar("evaluating", 0, unit="items", show=progress))
        work = Work(llm, store, wanted, asked, data_sets, texts, opening, bar)
        runs = work.run()
        return Evaluation(Path(output), tuple(runs), work.differences(runs))
