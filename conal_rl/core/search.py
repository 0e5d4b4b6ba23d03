"""The two steps of the bi-level search, `min_alpha L_val(w*(alpha), alpha)`, solved first-order.

One gate step on a validation batch and one weight step on a training batch alternate; neither
touches the other's parameters or leaves gradients behind (algorithm 1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conal_rl.core.conflict import ConflictNoticing


def gate_step(
    loss: Tensor, gates: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """One step on the gates alone, down the gradient of a validation loss (a scalar)."""
    gradients = torch.autograd.grad(loss, list(gates))
    for gate, gradient in zip(gates, gradients, strict=True):
        gate.grad = gradient
    apply_gradients(optimizer)


def weight_step(
    losses: Tensor,
    optimizer: torch.optim.Optimizer,
    noticing: ConflictNoticing | None = None,
    max_norm: float | None = None,
) -> None:
    """One step on the optimiser's weights alone, down the summed training losses `(task,)`.

    With `noticing` the losses must have been computed inside its `capture()`.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    if noticing is None:
        losses.sum().backward(inputs=weights)
    else:
        noticing.backward(losses, inputs=weights)
    apply_gradients(optimizer, max_norm)


def apply_gradients(optimizer: torch.optim.Optimizer, max_norm: float | None = None) -> None:
    """The one place where parameters change: clip, step, clear.

    Args:
        max_norm: clip the gradient's global norm to this.
    """
    if max_norm is not None:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(weights, max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
