"""Conflict noticing: a shared module is held still while its tasks disagree on it.

Tasks `i`, `j` conflict on a module if `<grad_i, grad_j> < 0` for the gradients of their own
training losses. Everything a rule needs is in the Gram matrix of the tasks' gradients, so the rules
here take Gram matrices.

Source: Yue, Zhang, Liang, "Learning Conflict-Noticed Architecture for Multi-Task Learning", AAAI
2023, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from conal_rl.core.gradients import TaskGradients
from conal_rl.core.layers import Layer
from conal_rl.literals import Rule

RULES: tuple[Rule, ...] = get_args(Rule)
_PAIRS = ("counted", "cosine", "negative", "conflicting")  # summed over the studied steps


def cosines(gram: Tensor) -> Tensor:
    """Pairwise cosines `(..., row, row)` of a Gram matrix; 0 if a gradient vanishes."""
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = norm.unsqueeze(-1) * norm.unsqueeze(-2)
    return torch.where(scale > 0, gram / scale, 0.0)


def require_share(name: str, value: float) -> None:
    """Raise ValueError unless a value is at least 0 and below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name}: got {value}, expected at least 0 and below 1. Give one")


def held_rows(gram: Tensor, same: Tensor, rule: Rule, margin: float = 0.0) -> Tensor:
    """Return which tasks' gradients are dropped from the modules that they share.

    Args:
        gram: inner products of the tasks' gradients, `(layer, row, row)`, layers in order from
            the input.
        same: `(layer, row, row)`, true if two different rows run the same module.
        rule: `any_pair` (the authors' final code): one conflicting pair holds the module for all.
            `conflicting_tasks` (their first code): only tasks in a conflicting pair are dropped.
            `and_deeper` (their variant): as `any_pair`, and a conflict also holds every deeper
            shared module. `consensus` (ours): a task is dropped if it opposes the mean of the
            others on the module. `none`: nothing is dropped.
        margin: a conflict is a cosine below `-margin`.

    Returns:
        `(layer, row)`, true if the row's gradient is dropped.

    Raises:
        ValueError: the rule is unknown.
    """
    if rule == "none":
        return torch.zeros_like(same[..., 0])
    if rule == "consensus":
        weight = same.to(gram.dtype)
        against = (gram * weight).sum(-1)  # <g_i, sum of the others>
        # Row i of `weight` picks the others on its module, so that w_i G w_i is the squared norm
        # of their gradients' sum.
        others = torch.einsum("lij,ljk,lik->li", weight, gram, weight).clamp(min=0)
        scale = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt() * others.sqrt()
        return torch.where(scale > 0, against / scale, 0.0) < -margin
    in_conflict = (same & (cosines(gram) < -margin)).any(-1)
    if rule == "conflicting_tasks":
        return in_conflict
    held = in_conflict | (same & in_conflict.unsqueeze(-2)).any(-1)
    if rule == "and_deeper":
        return (held.cumsum(0) > 0) & same.any(-1)
    if rule == "any_pair":
        return held
    raise _unknown(rule)


def _unknown(rule: str) -> ValueError:
    return ValueError(f"rule: got {rule!r}, expected one of {', '.join(RULES)}")


@dataclass(frozen=True)
class ConflictStatistics:
    """Counts and means over the studied steps since the start.

    Attributes:
        steps: all weight steps since the start.
        held: per rule the share of steps in which the row's (task's) gradient was dropped,
            `(layer, row)`.
        module_held: per rule the share of steps in which at least one gradient was dropped from
            the module that a row runs, `(layer, row)`.
        shared: whether other rows run that module, `(layer, row)`.
        counted: steps in which two rows had gradients of the module that they share,
            `(layer, row, row)`. The following means and shares are over these steps.
        cosine: mean pairwise cosine, `(layer, row, row)`. With smoothing it is the cosine of the
            running mean of inner products.
        negative: share of steps in which the pair's cosine was negative, `(layer, row, row)`.
        conflicting: share of steps in which it was below `-margin`, `(layer, row, row)`.
    """

    steps: int
    held: dict[Rule, Tensor]
    module_held: dict[Rule, Tensor]
    shared: Tensor
    counted: Tensor
    cosine: Tensor
    negative: Tensor
    conflicting: Tensor

    def of_layers(self, shares: Tensor) -> Tensor:
        """Means over the rows that share a module, `(layer,)`, of `(layer, row)`."""
        return (shares * self.shared).sum(dim=1) / self.shared.sum(dim=1).clamp(min=1)

    def of_tasks(self, shares: Tensor, tasks: int) -> Tensor:
        """Means over pairs of rows as means over pairs of tasks, `(layer, task, task)`."""

        def summed(values: Tensor) -> Tensor:  # over an ensemble's members
            rows = values.shape[-1] // tasks
            return values.view(-1, rows, tasks, rows, tasks).sum(dim=(1, 3))

        return summed(shares * self.counted) / summed(self.counted).clamp(min=1)


class ConflictNoticing:
    """Replaces `losses.sum().backward()` and drops conflicting gradients.

    Usage::

        with noticing.capture():
            losses = ...                # (task,), computed through the watched network
        optimizer.zero_grad()
        noticing.backward(losses)
        optimizer.step()

    A module that is held for all its tasks gets a gradient of zero, as in the authors' code. The
    optimiser still steps: momentum moves the module by earlier gradients, and weight decay shrinks
    a module that is held for long. With Adam's L2 decay it shrinks by whole steps, because the
    moments then consist only of the decay.

    Args:
        layers: the shared layers of a `Supernet` or `TreeNetwork`, from input to output.
        rule, margin: see `held_rows`.
        smoothing: decay in [0, 1) of a running mean of the inner products. The rule decides on that
            mean; with 0 it decides on this step only.
        study_every: number of steps between two steps in which all rules are evaluated and counted.
            So one run says how often each rule would have held each module.

    Raises:
        ValueError: a value out of range, or an unknown rule.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        rule: Rule = "any_pair",
        margin: float = 0.0,
        smoothing: float = 0.0,
        study_every: int = 10,
    ):
        if rule not in RULES:
            raise _unknown(rule)
        require_share("smoothing", smoothing)
        require_share("margin", margin)
        if study_every < 1:
            raise ValueError(f"study_every: got {study_every}, expected 1 or more steps")
        self.layers = list(layers)
        self._gradients = TaskGradients(layers)
        self.rule: Rule = rule
        self.margin = margin
        self.smoothing = smoothing
        self.study_every = study_every
        self.steps = 0
        self._gram: Tensor | None = None
        self._same: Tensor | None = None
        # Sums over the studied steps. They grow in place, because a CUDA graph keeps addresses.
        self._pairs: dict[str, Tensor | int] = dict.fromkeys(_PAIRS, 0)
        self._held: dict[Rule, Tensor | int] = dict.fromkeys(RULES, 0)
        self._module_held: dict[Rule, Tensor | int] = dict.fromkeys(RULES, 0)
        self._studied = 0
        self._before = _copied(self._pairs)

    def capture(self) -> AbstractContextManager[None]:
        """Return the context in which the losses must be computed."""
        return self._gradients.capture()

    def backward(
        self, losses: Tensor, inputs: Sequence[Tensor] | None = None, total: Tensor | None = None
    ) -> Tensor:
        """Backpropagate, and leave out the gradients that the rule drops.

        Args:
            losses, inputs, total: see `TaskGradients.backward`.

        Returns:
            `(layer, row)`, true if a row's gradient was dropped.

        Raises:
            RuntimeError: the losses were computed outside of `capture()`.
        """
        gradients = self._gradients.backward(losses, inputs, total)
        if not self.layers:
            return torch.zeros(0, 0, dtype=torch.bool)
        with torch.no_grad():
            by_layer = list(zip(self.layers, gradients, strict=True))
            held = self._notice(_pad([layer.gram(rows) for layer, rows in by_layer]))
            for (layer, rows), dropped in zip(by_layer, held, strict=True):
                kept = ~dropped[: len(layer.index)]
                layer.assign_gradients(rows, kept.to(rows[0].dtype))
        return held

    @property
    def studying(self) -> bool:
        """Whether the statistics will count the next step."""
        return self.steps % self.study_every == 0

    def count_step(self) -> None:
        """Count a step. `backward` counts its own; a CUDA graph that replays it does not."""
        self._studied += self.studying
        self.steps += 1

    def _notice(self, gram: Tensor) -> Tensor:
        """Update running means and statistics with this step's Gram matrices, and decide.

        Args:
            gram: `(layer, row, row)`.

        Returns:
            `(layer, row)`, true if a row's gradient is to be dropped.
        """
        if self._same is None:
            self._same = _pad([layer.same_module() for layer in self.layers]).to(gram.device)
        if self.smoothing and self._gram is not None:
            gram = torch.lerp(gram, self._gram, self.smoothing)
        # If half precision overflows, the earlier mean is kept.
        known = 0.0 if self._gram is None else self._gram
        finite = torch.where(gram.isfinite(), gram, known)
        self._gram = finite if self._gram is None else self._gram.copy_(finite)
        held = held_rows(gram, self._same, self.rule, self.margin)
        if self.studying:
            self._study(gram, self._same)
        self.count_step()
        return held

    def _study(self, gram: Tensor, same: Tensor) -> None:
        """Add this step to the sums of the statistics."""
        cosine = cosines(gram)
        norms = gram.diagonal(dim1=-2, dim2=-1)
        usable = (norms > 0) & norms.isfinite()  # in half precision they may overflow
        pairs = {
            "counted": same & usable.unsqueeze(-1) & usable.unsqueeze(-2),
            "cosine": cosine.nan_to_num(),
            "negative": cosine < 0,
            "conflicting": cosine < -self.margin,
        }
        for name, value in pairs.items():
            _add(self._pairs, name, value)
        for rule in RULES:
            dropped = held_rows(gram, same, rule, self.margin)
            _add(self._held, rule, dropped)
            module = dropped | (same & dropped.unsqueeze(-2)).any(-1)
            _add(self._module_held, rule, module)

    def statistics(self) -> ConflictStatistics | None:
        """Shares and means over the studied steps; None before the first one."""
        if not self._studied:
            return None

        def mean(total: Tensor | int) -> Tensor:
            return torch.as_tensor(total / self._studied).cpu()

        counted = torch.as_tensor(self._pairs["counted"]).clone().cpu()

        def over_pairs(name: str) -> Tensor:
            return torch.as_tensor(self._pairs[name]).cpu() * (counted > 0) / counted.clamp(min=1)

        return ConflictStatistics(
            steps=self.steps,
            held={rule: mean(total) for rule, total in self._held.items()},
            module_held={rule: mean(total) for rule, total in self._module_held.items()},
            shared=_pad([layer.same_module() for layer in self.layers]).any(-1),
            counted=counted,
            cosine=over_pairs("cosine"),
            negative=over_pairs("negative"),
            conflicting=over_pairs("conflicting"),
        )

    def recently_negative(self) -> list[float]:
        """Share of negative cosines since the last call, `(layer,)`; NaN if no pair was counted."""
        negative, counted = (
            torch.as_tensor(self._pairs[name] - self._before[name])
            for name in ("negative", "counted")
        )
        self._before = _copied(self._pairs)
        if negative.ndim == 0:
            return []
        share = (negative * (counted > 0)).sum(dim=(1, 2)) / counted.sum(dim=(1, 2))
        return share.tolist()

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Tensors and counters for a checkpoint, as `restore` takes them."""
        sums: dict[str, Tensor | int | None] = {**self._pairs, "gram": self._gram}
        for rule in RULES:
            sums[f"held.{rule}"] = self._held[rule]
            sums[f"module_held.{rule}"] = self._module_held[rule]
        tensors = {name: value for name, value in sums.items() if isinstance(value, Tensor)}
        return tensors, {"steps": self.steps, "studied": self._studied}

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Resume from what `state` returned."""
        device = next(self.layers[0].parameters()).device if self.layers else "cpu"
        moved = {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}
        self._gram = moved.get("gram")
        self._pairs = {name: moved.get(name, 0) for name in _PAIRS}
        self._before = _copied(self._pairs)
        for rule in RULES:
            self._held[rule] = moved.get(f"held.{rule}", 0)
            self._module_held[rule] = moved.get(f"module_held.{rule}", 0)
        self.steps, self._studied = counters["steps"], counters["studied"]


def _add(sums: dict[Any, Tensor | int], name: str, value: Tensor) -> None:
    total = sums[name]
    sums[name] = total.add_(value) if isinstance(total, Tensor) else total + value


def _copied(sums: dict[str, Tensor | int]) -> dict[str, Tensor | int]:
    return {name: s.clone() if isinstance(s, Tensor) else s for name, s in sums.items()}


def _pad(matrices: Sequence[Tensor]) -> Tensor:
    """Stack square matrices of unequal size into one tensor, padded with zeros."""
    size = max(len(matrix) for matrix in matrices)
    padded = matrices[0].new_zeros(len(matrices), size, size)
    for target, matrix in zip(padded, matrices, strict=True):
        target[: len(matrix), : len(matrix)] = matrix
    return padded
