"""What skipping does while a model generates: tokens that never trip (Table 6 of FFN-SkipLLM), and one generation token
by layer.

Every function takes an open `Llama`, gives it back with the `skip` it had, and returns an object with `rows()`, the
numbers as they go to a CSV file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..llama import Llama
from ..progress import Told, nobody
from ..skip_config import SkipConfig
from ..stats import INPUT_KINDS, Trace
from .similarity import check_everything

__all__ = [
    "ChannelGeneration",
    "Generation",
    "NeverTripped",
    "measure_channels",
    "measure_generation",
    "measure_never_tripped",
]

GREEDY: dict[str, Any] = {"temp": 0.0, "repeat_penalty": 1.0}

Row = dict[str, Any]


# ---- tokens that never trip ----


@dataclass(frozen=True)
class NeverTripped:
    """Of each generation and each of its tokens, whether it might have skipped and never reached the threshold."""

    never: npt.NDArray[np.bool_]  # [n_prompts, n_generated]
    warm_up_index: int

    def share(self) -> npt.NDArray[np.float64]:
        """float64 [n_generated]: up to and including each token, of the tokens that might have skipped; NaN before."""
        n_may_skip = np.maximum(np.arange(1, self.never.shape[1] + 1) - self.warm_up_index, 0) * len(self.never)
        with np.errstate(invalid="ignore"):
            share: npt.NDArray[np.float64] = self.never.sum(axis=0).cumsum() / n_may_skip
        return share

    def rows(self, lengths: Sequence[int]) -> list[Row]:
        """For the first n generated tokens, for each n of `lengths`."""
        return [self._row(n) for n in lengths]

    def _row(self, n: int) -> Row:
        never, n_prompts = int(self.never[:, :n].sum()), len(self.never)
        may_skip = n_prompts * max(n - self.warm_up_index, 0)
        return {
            "generated_tokens": n,
            "prompts": n_prompts,
            "tokens_that_may_skip": may_skip,
            "never_tripped": never,
            "share_never_tripped": never / may_skip if may_skip else float("nan"),
            "share_of_all_tokens": never / (n_prompts * n),
        }

    def curve(self) -> list[Row]:
        """`share` token by token."""
        return [{"generated_tokens": n, "share_never_tripped": float(x)} for n, x in enumerate(self.share(), 1)]


def measure_never_tripped(
    llm: Llama,
    prompts: Sequence[Sequence[int]],
    n_generated: int,
    config: SkipConfig,
    progress: Told = nobody,
) -> NeverTripped:
    """Table 6: greedy generation from each prompt, past end tokens, by Algorithm 1.

    Args:
        n_generated: Tokens of each generation that are fed back to the model.
        config: With the policy "ffn_skip".
    Raises:
        ValueError: A prompt and its generation do not fit the context.
    """
    never = np.zeros((len(prompts), n_generated), np.bool_)
    for i, prompt in enumerate(prompts):
        _, trace = _generate(llm, prompt, n_generated, config, progress)
        similarity = trace.similarity[config.warm_up_index :]
        reached = similarity >= np.float32(config.sim_threshold)  # NaN, where unchecked, is not
        never[i, config.warm_up_index :] = ~np.any(reached, axis=1)
    return NeverTripped(never, config.warm_up_index)


def _generate(llm: Llama, prompt: Sequence[int], n: int, config: SkipConfig, progress: Told) -> tuple[list[int], Trace]:
    """n tokens and what happened when each was fed back."""
    if len(prompt) + n > llm.n_ctx():
        raise ValueError(f"a prompt of {len(prompt)} and {n} tokens do not fit n_ctx={llm.n_ctx()}")
    tokens: list[int] = []
    with llm.skipping(config), llm.trace() as trace:
        llm.reset()
        for token in llm.generate(prompt, max_tokens=n + 1, **GREEDY):  # the last one is not fed back
            tokens.append(token)
            progress(1)
    return tokens[:n], trace


# ---- one generation, token by layer ----


@dataclass(frozen=True)
class Generation:
    """A greedy generation: what Algorithm 1 did, and the similarities the same tokens have where nothing is skipped."""

    prompt: str
    pieces: list[str]  # text of each token, [n_tokens]
    similarity: npt.NDArray[np.float32]  # [n_tokens, n_layer]; NaN where unchecked
    skipped: npt.NDArray[np.bool_]  # [n_tokens, n_layer]
    full: npt.NDArray[np.float32]  # [n_tokens, n_layer]: similarity without skipping; NaN in the last layer
    warm_up_index: int

    def rows(self) -> list[Row]:
        return [
            {
                "token": i,
                "text": piece,
                "layer": il,
                "warm_up": int(i < self.warm_up_index),
                "similarity": float(self.similarity[i, il]),
                "skipped": int(self.skipped[i, il]),
                "similarity_without_skipping": float(self.full[i, il]),
            }
            for i, piece in enumerate(self.pieces)
            for il in range(self.similarity.shape[1])
        ]


def measure_generation(
    llm: Llama, prompt: Sequence[int], n_generated: int, config: SkipConfig, progress: Told = nobody
) -> Generation:
    """The heat map: greedy generation from a prompt, then the generated tokens teacher-forced without skipping.

    Raises:
        ValueError: Prompt and generation do not fit the context.
    """
    tokens, did = _generate(llm, prompt, n_generated, config, progress)
    eligible = [False] * len(prompt) + [True] * len(tokens)
    with llm.skipping(check_everything(llm.n_layer)), llm.trace() as full:
        llm.forward([*prompt, *tokens], eligible, rows=())
    progress(len(eligible))
    text, pieces = _texts(llm, prompt, tokens)
    return Generation(text, pieces, did.similarity, did.skipped, full.similarity, config.warm_up_index)


def _texts(llm: Llama, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[str, list[str]]:
    """Of the prompt, and of each token."""
    text = llm.detokenize(list(prompt), special=True).decode("utf-8", "replace")
    return text, [llm.detokenize([token], special=True).decode("utf-8", "replace") for token in tokens]


@dataclass(frozen=True)
class ChannelGeneration:
    """A greedy generation that left channels out: the share that each token kept of each layer's inputs."""

    prompt: str
    pieces: list[str]  # text of each token, [n_tokens]
    kept: npt.NDArray[np.float32]  # [n_tokens, n_layer, 4]; NaN where none may be left out
    n_full: int  # tokens that ran in full

    @property
    def kinds(self) -> list[str]:
        """Of the inputs of which some may be left out."""
        return [kind for i, kind in enumerate(INPUT_KINDS) if np.isfinite(self.kept[..., i]).any()]

    def of(self, kind: str) -> npt.NDArray[np.float32]:
        """float32 [n_tokens, n_layer]."""
        kept: npt.NDArray[np.float32] = self.kept[..., INPUT_KINDS.index(kind)]
        return kept

    def rows(self) -> list[Row]:
        shares = {f"kept_{kind}": self.of(kind) for kind in self.kinds}
        return [
            {
                "token": i,
                "text": piece,
                "layer": il,
                "warm_up": int(i < self.n_full),
                **{name: float(share[i, il]) for name, share in shares.items()},
            }
            for i, piece in enumerate(self.pieces)
            for il in range(self.kept.shape[1])
        ]


def measure_channels(
    llm: Llama, prompt: Sequence[int], n_generated: int, config: SkipConfig, progress: Told = nobody
) -> ChannelGeneration:
    """Greedy generation from a prompt by policy "channels".

    Raises:
        ValueError: Prompt and generation do not fit the context, or channels can't be left out of this model.
    """
    tokens, did = _generate(llm, prompt, n_generated, config, progress)
    return ChannelGeneration(*_texts(llm, prompt, tokens), did.kept, config.n_full)
