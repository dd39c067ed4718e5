"""What the paper measured (arXiv:2404.03865), of LLaMA-2 7B. Its figures are drawn without numbers, so that only its
tables are here."""

from __future__ import annotations

__all__ = ["FIGURES_NOTE", "METHODS", "MODEL", "TABLE_2", "TABLE_2_RATIO", "TABLE_3", "TABLE_4", "TABLE_5"]

MODEL = "LLaMA-2 7B"

METHODS = {
    "dense": "Full Model",
    "skip_decode": "SkipDecode",
    "short_gpt": "ShortGPT",
    "ffn_skip": "FFN-SkipLLM",
    "random": "Baseline 1",
    "random_adaptive_region": "Baseline 2",
}
"""Its names of ours."""

TABLE_2_RATIO = 0.2
TABLE_2 = {
    "dense": {"factoid": 79.02, "chat": 7.61, "summarize": 8.15},
    "skip_decode": {"factoid": 73.33, "chat": 6.53, "summarize": 7.47},
    "short_gpt": {"factoid": 70.49, "chat": 6.17, "summarize": 6.33},
    "ffn_skip": {"factoid": 78.89, "chat": 7.55, "summarize": 8.11},
}
"""Right answers in percent; GPT-4's grades, 0 to 10."""

TABLE_3: dict[str, dict[float | None, float]] = {
    "dense": {None: 79.02},
    "random": {0.05: 77.32, 0.15: 72.96, 0.25: 49.22, 0.35: 31.07},
    "random_adaptive_region": {0.05: 78.92, 0.15: 77.71, 0.25: 74.13, 0.35: 69.93},
    "ffn_skip": {0.05: 80.05, 0.15: 78.42, 0.25: 78.09, 0.35: 75.61},
}
"""Right answers in percent, by method and skip ratio."""

TABLE_4: dict[float | None, float] = {None: 9.08, 0.05: 8.35, 0.1: 9.17, 0.2: 10.22, 0.3: 10.89, 0.5: 12.45}
"""Tokens per second of ffn_skip on an RTX A6000, by skip ratio."""

TABLE_5: dict[str, dict[float | None, float]] = {
    "STEM": {None: 38.37, 0.05: 38.03, 0.1: 37.65, 0.2: 36.93, 0.3: 33.50},
    "Humanities": {None: 44.28, 0.05: 44.97, 0.1: 43.78, 0.2: 42.32, 0.3: 40.98},
    "Social Science": {None: 53.97, 0.05: 53.22, 0.1: 53.30, 0.2: 52.59, 0.3: 52.08},
    "Others": {None: 53.23, 0.05: 53.56, 0.1: 53.12, 0.2: 50.43, 0.3: 51.86},
}
"""MMLU with ffn_skip, right answers in percent, by group and skip ratio; None: the full model."""

FIGURES_NOTE = "The paper draws its own without printing numbers, so none of them stand here."
