"""The two steps of the bi-level search, `min_alpha L_val(w*(alpha), alpha)`, solved first-order.

One gate step on a validation batch and one weight step on a training batch alternate. A step
neither changes the other's parameters nor leaves gradients.

Source: Yue, Zhang, Liang, "Learning Conflict-Noticed Architecture for Multi-Task Learning", AAAI
2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from conal_rl.core.gradients import GradientRule


def gate_step(
    loss: Tensor,
    gates: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Take one step with only the gates, down the gradient of a validation loss.

    Args:
        loss: the validation loss, a scalar.
        gates: the optimiser's parameters.
        optimizer: the optimiser of the gates.
        scaler: the scaler of mixed precision. The weights have a different one, because each counts
            its own overflows.
    """
    if scaler is not None:
        loss = scaler.scale(loss)
    gradients = torch.autograd.grad(loss, list(gates))
    for gate, gradient in zip(gates, gradients, strict=True):
        gate.grad = gradient
    apply_gradients(optimizer, scaler=scaler)


def weight_step(
    losses: Tensor,
    optimizer: torch.optim.Optimizer,
    rule: GradientRule | None = None,
    max_norm: float | None = None,
    combine: Callable[[Tensor], Tensor] = torch.sum,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Take one step with only the optimiser's weights, down the training losses.

    Args:
        losses: one loss per task, `(task,)`.
        optimizer: the optimiser of the weights.
        rule: conflict noticing or a gradient aggregation. The losses must have been computed in its
            `capture()`.
        max_norm: see `apply_gradients`.
        combine: makes one scalar of the losses: their sum, or a weighted sum.
        scaler: the scaler of mixed precision.
    """
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    total = combine(losses)
    if scaler is not None:
        total = scaler.scale(total)
    if rule is None:
        total.backward(inputs=weights)
    else:
        rule.backward(losses, weights, total)
    apply_gradients(optimizer, max_norm, scaler)


def decay_specific(
    optimizer: torch.optim.Optimizer, specific: Sequence[nn.Parameter], decay: float
) -> None:
    """Make an optimiser of all weights decay the weights of purely-specific modules.

    This prefers sharing (ours): a task's own modules must be worth more than the decay costs. The
    search then recovers known groups of tasks more often. Decay of all weights does not do that:
    see `python -m conal_rl.benchmark groups`.

    Args:
        optimizer: the optimiser of all weights. The specific ones move into its last group.
        specific: the parameters of purely-specific modules.
        decay: share of a weight that a step of size 1 removes. It is decoupled from the gradient if
            the optimiser supports it (AdamW; Loshchilov and Hutter, ICLR 2019).
    """
    moved = {id(p) for p in specific}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in moved]
    group = {"params": list(specific), "weight_decay": decay}
    if "decoupled_weight_decay" in optimizer.defaults:
        group["decoupled_weight_decay"] = True
    optimizer.add_param_group(group)


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    max_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Unscale, clip, step and clear. Parameters change only here.

    Args:
        optimizer: the optimiser of the parameters that have gradients.
        max_norm: largest global norm of the gradient; a longer one is clipped.
        scaler: the scaler of the loss. It leaves out the step if gradients overflow.
    """
    if scaler is not None:
        scaler.unscale_(optimizer)
    if max_norm is not None:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(weights, max_norm)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
