"""Policies that take a skip ratio, as `bench` and `analyze` set them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from ..errors import ArgumentError
from ..skip_config import POLICIES, SkipConfig, TensorsName
from ..stats import INPUT_KINDS

__all__ = ["RATIO_POLICIES", "REGIONS", "TENSORS", "all_kept", "policy_settings"]

RATIO_POLICIES = ("ffn_skip", "random", "channels")
REGIONS = ("any", "adaptive")
TENSORS: tuple[TensorsName, ...] = get_args(TensorsName)
_OLD = "random_adaptive_region"
_NOTHING = 1e-30  # reach; only a channel that is zero stays below it


def policy_settings(
    policies: Sequence[str], regions: Sequence[str] | None, known: Sequence[str] = RATIO_POLICIES
) -> list[dict[str, Any]]:
    """For each policy of RATIO_POLICIES, and of "random" for each region (default: any), the fields of a SkipConfig.

    Args:
        known: Policies that are measured by skip ratio; those that RATIO_POLICIES lacks are passed over.
    Raises:
        ArgumentError: A policy that is not measured by skip ratio, an unknown region, or regions without "random".
    """
    for policy in policies:
        if policy not in (*known, _OLD):
            why = "is measured as a profile" if policy in POLICIES else "is not known"
            raise ArgumentError(f"policy: {policy!r} {why}; those measured by skip ratio: {', '.join(known)}")
    for region in regions or ():
        if region not in REGIONS:
            raise ArgumentError(f"region: {region!r} is not known; known are {', '.join(REGIONS)}")
    if regions and "random" not in policies:
        raise ArgumentError(f"region: {', '.join(regions)} is for policy random, which is not among those to measure")
    found = [
        SkipConfig().replace(policy=policy, region=region)
        for policy in policies
        if policy in (*RATIO_POLICIES, _OLD)
        for region in (regions or REGIONS[:1] if policy == "random" else REGIONS[:1])
    ]
    return [{"policy": config.policy, "region": config.region} for config in dict.fromkeys(found)]


def all_kept(n_layer: int, tensors: TensorsName, warm_up_index: int) -> SkipConfig:
    """Channels as they are computed where some are left out, and none is, but those that are zero. (With a ratio of 0
    the products are llama.cpp's.)"""
    of_a_layer = [_NOTHING if tensors == "all" or kind in ("up", "down") else 0.0 for kind in INPUT_KINDS]
    return SkipConfig("channels", channel_thresholds=of_a_layer * n_layer, warm_up_index=warm_up_index)
