"""Floating-point operations of an FFN block, as the paper's Table 4 counts those that skipping saves.

saved = sum(ffn_flops(block) for block in ffn_blocks(llm.blocks) if block.layer in skipped)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .._core import Block

__all__ = ["ffn_flops"]


def ffn_flops(block: Block) -> float:
    """Of one token: a multiplication and an addition per element of the block's matrices; of experts, of those chosen.

    Norms, biases and the activation function are left out; they come to less than a thousandth in models of some size.
    """
    experts = [weight for weight in block.weights if weight.name.endswith("exps.weight")]
    shared = [weight for weight in block.weights if not weight.name.endswith("exps.weight")]
    matrices = [weight for weight in shared if weight.name.endswith(".weight") and "norm" not in weight.name]
    elements = float(sum(weight.n_elements for weight in matrices))
    if experts:
        read = block.bytes_per_token - sum(weight.bytes for weight in shared)
        elements += sum(weight.n_elements for weight in experts) * read / sum(weight.bytes for weight in experts)
    return 2 * elements
