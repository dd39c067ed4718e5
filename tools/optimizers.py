"""What the demo model is trained with: Muon for its matrices, AdamW for the rest."""

from __future__ import annotations

import torch

__all__ = ["make_optimizers"]

MUON_RATE = 0.02  # peak, for the weight matrices of the blocks
ADAM_RATE = 3e-3  # peak, for embeddings and norms
WEIGHT_DECAY = 0.05


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024), in float32.

    It learns rare associations, which is all this model has to learn, in fewer
    tokens than AdamW. PyTorch's own Muon computes in bfloat16, which processors
    without bfloat16 arithmetic do very slowly; this one also handles all matrices
    of a shape together.
    """

    def __init__(self, params, lr: float, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for param in group["params"]:
                by_shape.setdefault(param.shape, []).append(param)
            for params in by_shape.values():
                self._step_shape(group, params)

    def _step_shape(self, group: dict, params: list[torch.nn.Parameter]) -> None:
        updates = []
        for param in params:
            buffer = self.state[param].setdefault("momentum_buffer", torch.zeros_like(param))
            buffer.lerp_(param.grad, 1 - group["momentum"])
            updates.append(param.grad.lerp(buffer, group["momentum"]))  # Nesterov's look ahead
        rows, columns = params[0].shape
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        for param, update in zip(params, orthogonal(torch.stack(updates)), strict=True):
            param.mul_(1 - group["lr"] * group["weight_decay"])
            param.add_(update, alpha=-scale)


def orthogonal(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Each of [n, rows, columns] with its singular values brought near 1, by Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315  # steepest at zero, see Jordan et al.
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def make_optimizers(model) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        Muon(matrices, lr=MUON_RATE, weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers
