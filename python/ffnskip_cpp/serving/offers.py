"""What a server skips, and what a request may ask for instead: GET /v1/skip."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..skip_config import SkipConfig
from .engine import SETTINGS, Engine

__all__ = ["offers"]

# What a user turns, by policy; all fields of SkipConfig can be given. Numbers without an end have no `maximum`.
_POLICIES: dict[str, tuple[str, ...]] = {
    "dense": (),
    "ffn_skip": ("skip_ratio", "sim_threshold", "warm_up_index"),
    "channels": ("skip_ratio", "warm_up_index"),
    "random": ("skip_ratio", "warm_up_index"),
    "skip_decode": ("skip_ratio", "budget_decay"),
}


def offers(engine: Engine) -> dict[str, Any]:
    """The model, its settings, and by policy the ranges of what can be set; policies that it can't do are left out."""
    own = engine.skip
    return {
        "model": engine.model_id,
        "n_layer": engine.llm.n_layer,
        "n_ctx": engine.n_ctx_slot,
        "policy": "dense" if own is None else own.policy,
        "settings": None if own is None else {name: _finite(value) for name, value in own.asdict().items()},
        "policies": {
            policy: _ranges(engine, policy, names)
            for policy, names in _POLICIES.items()
            if _can(engine, {"policy": policy})
        },
        "fields": list(SETTINGS),
    }


def _finite(value: Any) -> Any:
    """null in place of what JSON does not have, such as the threshold of a layer that is not checked."""
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _can(engine: Engine, settings: Mapping[str, Any]) -> bool:
    try:
        engine.skip_of(settings)
    except ValueError:
        return False
    return True


def _ranges(engine: Engine, policy: str, names: tuple[str, ...]) -> dict[str, Any]:
    usual = SkipConfig(policy=policy)  # type: ignore[arg-type]
    ranges: dict[str, dict[str, Any]] = {
        "skip_ratio": {"minimum": 0, "default": usual.ratio},
        "sim_threshold": {"minimum": 0, "maximum": 1, "default": usual.sim_threshold},
        "warm_up_index": {"minimum": 0, "integer": True, "default": usual.warm_up_index},
        "budget_decay": {"minimum": 1, "integer": True, "default": usual.budget_decay},
    }
    if "skip_ratio" in names:
        n = engine.llm.n_layer
        ratios = (i / n for i in range(n, 0, -1))
        ranges["skip_ratio"]["maximum"] = next(
            (ratio for ratio in ratios if _can(engine, {"policy": policy, "skip_ratio": ratio})), 0
        )
    return {name: ranges[name] for name in names}
