"""Whole layers, attention and FFN: the methods that FFN-SkipLLM is compared with.

short_gpt (Men et al. 2024) leaves out the same layers for every token, prompts included: those of lowest block
influence, which is 1 - the mean cosine of what goes into a layer and what comes out of it. skip_decode (Del Corro et
al. 2023) leaves out more of them the later a token comes; there is nothing to find out for it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..skip_config import SkipConfig
from .costs import ATTENTION, FFN, KEYS_AND_VALUES
from .search import Model

__all__ = ["WHOLE_LAYERS", "short_gpt", "skip_decode"]

WHOLE_LAYERS = ("short_gpt", "skip_decode")


def short_gpt(influence: npt.NDArray[np.float64], share: float, model: Model) -> SkipConfig | None:
    """The layers of lowest influence that save a share; None where those that can be left out do not.

    Args:
        influence: [n_layer], NaN where it is not known.
    """
    usable = [
        il
        for il in np.argsort(influence, kind="stable").tolist()
        if np.isfinite(influence[il]) and {(il, ATTENTION), (il, FFN)} <= model.whole
    ]
    for n in range(1, len(usable) + 1):
        saved = model.saved((il, part) for il in usable[:n] for part in (KEYS_AND_VALUES, ATTENTION, FFN))
        if saved >= share - 1e-9:
            return SkipConfig("short_gpt", layers=sorted(usable[:n]), warm_up_index=model.warm_up_index)
    return None


def skip_decode(share: float, model: Model) -> SkipConfig:
    return SkipConfig("skip_decode", skip_ratio=share, warm_up_index=model.warm_up_index)
