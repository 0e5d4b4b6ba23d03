"""The two steps of the bi-level search, `min_alpha L_val(w*(alpha), alpha)`, solved first-order.

One gate step on a validation batch and one weight step on a training batch alternate; neither
touches the other's parameters or leaves gradients behind (algorithm 1).
"""

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
    """One step on the gates alone, down the gradient of a validation loss (a scalar).

    Args:
        scaler: of mixed precision; not that of the weights, as each counts its own overflows.
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
    """One step on the optimiser's weights alone, down the training losses `(task,)`.

    Args:
        rule: conflict noticing or a gradient aggregation, in whose `capture()` the losses must
            have been computed.
        max_norm: see `apply_gradients`.
        combine: what is minimised: the sum of the losses, or a weighted one.
        scaler: of mixed precision.
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
    """Let an optimiser that has all weights pull those of purely-specific modules towards zero.

    A preference for sharing (ours): a task's own modules must be worth more than what this costs.
    It found known groups of tasks more often, where the same decay of all weights did not: see
    `python -m conal_rl.benchmark groups`.

    Args:
        decay: share of a weight that a step of size 1 takes away, decoupled from the gradient
            (AdamW's; Loshchilov and Hutter, ICLR 2019) where the optimiser can.
    """
    own = {id(p) for p in specific}
    for group in optimizer.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in own]
    group = {"params": list(specific), "weight_decay": decay}
    if "decoupled_weight_decay" in optimizer.defaults:
        group["decoupled_weight_decay"] = True
    optimizer.add_param_group(group)


def apply_gradients(
    optimizer: torch.optim.Optimizer,
    max_norm: float | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """The one place where parameters change: unscale, clip, step, clear.

    Args:
        max_norm: clip the gradient's global norm to this.
        scaler: what the loss was scaled by; where gradients overflow it leaves out the step.
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
