"""Conflict noticing: a shared module is held still while its tasks disagree on it.

Tasks `i`, `j` conflict on a module when `<grad_i, grad_j> < 0` for the gradients of their own
training losses (Yue, Zhang, Liang, AAAI 2023, algorithm 1). Everything a rule needs is in the
Gram matrix of the tasks' gradients, so the rules here take Gram matrices.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from conal_rl.core.gradients import TaskGradients, gram, same_module, set_gradients
from conal_rl.core.layers import Layer
from conal_rl.literals import Rule

RULES: tuple[Rule, ...] = get_args(Rule)
_PAIRS = ("counted", "cosine", "negative", "conflicting")  # summed over the studied steps


def cosines(gram: Tensor) -> Tensor:
    """Pairwise cosines `(..., row, row)` of a Gram matrix; 0 where a gradient vanishes."""
    norm = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    scale = norm.unsqueeze(-1) * norm.unsqueeze(-2)
    return torch.where(scale > 0, gram / scale, 0.0)


def held_rows(gram: Tensor, same: Tensor, rule: Rule, margin: float = 0.0) -> Tensor:
    """Which tasks' gradients are dropped from the modules that they share.

    Args:
        gram: inner products of the tasks' gradients, `(layer, row, row)`, layers in order from
            the input.
        same: `(layer, row, row)`, true where two different rows run the same module.
        rule: `any_pair` (the authors' final code): one conflicting pair holds the module for all.
            `conflicting_tasks` (their first code): only tasks in a conflicting pair are dropped.
            `and_deeper` (their variant): as `any_pair`, and a conflict also holds every shared
            module behind. `consensus` (ours): a task is dropped where it opposes the mean of the
            others on the module. `none`: nothing is dropped.
        margin: a conflict is a cosine below `-margin`.

    Returns:
        `(layer, row)`, true where the row's gradient is dropped.
    """
    if rule == "none":
        return torch.zeros_like(same[..., 0])
    if rule == "consensus":
        weight = same.to(gram.dtype)
        against = (gram * weight).sum(-1)  # <g_i, sum of the others>
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
    raise ValueError(f"unknown conflict rule {rule!r}; there are {', '.join(RULES)}")


@dataclass(frozen=True)
class ConflictStatistics:
    """What was noticed in the steps studied since the start.

    Attributes:
        steps: weight steps in all, since the start.
        held: per rule the share of steps in which each module was held, `(layer, row)`, indexed
            by the row (task) whose gradient was dropped.
        module_held: per rule the share of steps in which at least one gradient was dropped from
            the module that a row runs, `(layer, row)`.
        shared: whether another row runs that module, `(layer, row)`.
        counted: steps in which two rows had gradients of the module that they share,
            `(layer, row, row)`; the means and shares below are over these.
        cosine: mean pairwise cosine, `(layer, row, row)`; of the running mean of inner products
            where that is smoothed.
        negative: share of steps in which the pair's cosine was negative, `(layer, row, row)`.
        conflicting: the same for a cosine below `-margin`.
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

        def summed(values: Tensor) -> Tensor:  # over members of an ensemble, copies of a module
            rows = values.shape[-1] // tasks
            return values.view(-1, rows, tasks, rows, tasks).sum(dim=(1, 3))

        return summed(shares * self.counted) / summed(self.counted).clamp(min=1)


class ConflictNoticing:
    """Takes the place of `losses.sum().backward()` and drops conflicting gradients.

    Usage::

        with noticing.capture():
            losses = ...                # (task,), computed through the watched network
        optimizer.zero_grad()
        noticing.backward(losses)
        optimizer.step()

    A module that is held whole gets a gradient of zero, as in the authors' code. What an optimiser
    does beside the gradient goes on: momentum moves the module by what was gathered before, and
    weight decay shrinks what is held for long (with Adam's L2 by whole steps, as nothing else is in
    its moments).

    Args:
        layers: the shared layers of a `Supernet` or `TreeNetwork`, from input to output.
        rule, margin: see `held_rows`.
        smoothing: decay in [0, 1) of a running mean of the inner products, on which the rule then
            decides; 0 decides on this step alone.
        study_every: every so many steps the other rules are evaluated as well (and only counted),
            so that one run says how often each would have held each module.
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
            raise ValueError(f"unknown conflict rule {rule!r}; there are {', '.join(RULES)}")
        if not 0 <= smoothing < 1 or not 0 <= margin < 1:
            raise ValueError("smoothing and margin lie in [0, 1)")
        if study_every < 1:
            raise ValueError(f"study_every counts steps, from 1, not {study_every}")
        self.layers = list(layers)
        self._gradients = TaskGradients(layers)
        self.rule: Rule = rule
        self.margin = margin
        self.smoothing = smoothing
        self.study_every = study_every
        self.steps = 0
        self._gram: Tensor | None = None
        self._same: Tensor | None = None
        # Sums over the studied steps, which grow in place: a CUDA graph finds them where they were.
        self._pairs: dict[str, Tensor | int] = dict.fromkeys(_PAIRS, 0)
        self._held: dict[Rule, Tensor | int] = dict.fromkeys(RULES, 0)
        self._module_held: dict[Rule, Tensor | int] = dict.fromkeys(RULES, 0)
        self._studied = 0
        self._before = _copied(self._pairs)

    def capture(self) -> AbstractContextManager[None]:
        """Forward passes in this context leave per-task gradients at the next `backward`."""
        return self._gradients.capture()

    def backward(
        self, losses: Tensor, inputs: Sequence[Tensor] | None = None, total: Tensor | None = None
    ) -> Tensor:
        """Backpropagate, then take back what the rule drops; arguments as `TaskGradients`'.

        Returns:
            `(layer, row)`, true where a row's gradient was dropped.
        """
        gradients = self._gradients.backward(losses, inputs, total)
        if not self.layers:
            return torch.zeros(0, 0, dtype=torch.bool)
        with torch.no_grad():
            grams = [gram(layer, own) for layer, own in zip(self.layers, gradients, strict=True)]
            held = self._notice(_pad(grams))
            for layer, own, dropped in zip(self.layers, gradients, held, strict=True):
                set_gradients(layer, own, (~dropped[: len(layer.index)]).to(own[0].dtype))
        return held

    @property
    def studying(self) -> bool:
        """Whether the next step is one of those that the statistics are of."""
        return self.steps % self.study_every == 0

    def count_step(self) -> None:
        """Count a step; `backward` does, where it is not a CUDA graph that does its work."""
        self._studied += self.studying
        self.steps += 1

    def _notice(self, gram: Tensor) -> Tensor:
        """Update running means and statistics with this step's Gram matrices; decide."""
        if self._same is None:
            self._same = _pad([same_module(layer) for layer in self.layers]).to(gram.device)
        if self.smoothing and self._gram is not None:
            gram = torch.lerp(gram, self._gram, self.smoothing)
        # Where half precision overflows, what was known before stays.
        known = 0.0 if self._gram is None else self._gram
        finite = torch.where(gram.isfinite(), gram, known)
        self._gram = finite if self._gram is None else self._gram.copy_(finite)
        held = held_rows(gram, self._same, self.rule, self.margin)
        if self.studying:
            cosine = cosines(gram)
            norms = gram.diagonal(dim1=-2, dim2=-1)
            there = (norms > 0) & norms.isfinite()  # they overflow where half precision does
            seen = {
                "counted": self._same & there.unsqueeze(-1) & there.unsqueeze(-2),
                "cosine": cosine.nan_to_num(),
                "negative": cosine < 0,
                "conflicting": cosine < -self.margin,
            }
            for name, value in seen.items():
                _add(self._pairs, name, value)
            for rule in RULES:
                dropped = held_rows(gram, self._same, rule, self.margin)
                _add(self._held, rule, dropped)
                module = dropped | (self._same & dropped.unsqueeze(-2)).any(-1)
                _add(self._module_held, rule, module)
        self.count_step()
        return held

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
            shared=_pad([same_module(layer) for layer in self.layers]).any(-1),
            counted=counted,
            cosine=over_pairs("cosine"),
            negative=over_pairs("negative"),
            conflicting=over_pairs("conflicting"),
        )

    def recently_negative(self) -> list[float]:
        """Share of negative cosines since this was last called, `(layer,)`; NaN: no pair seen."""
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
        """Tensors and counters for a checkpoint; `restore` takes them back."""
        sums: dict[str, Tensor | int | None] = {**self._pairs, "gram": self._gram}
        for rule in RULES:
            sums[f"held.{rule}"] = self._held[rule]
            sums[f"module_held.{rule}"] = self._module_held[rule]
        tensors = {name: value for name, value in sums.items() if isinstance(value, Tensor)}
        return tensors, {"steps": self.steps, "studied": self._studied}

    def restore(self, tensors: dict[str, Tensor], counters: dict[str, int]) -> None:
        """Go on from what `state` returned."""
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
    """Stack square matrices of unequal size into one tensor, filled up with zeros."""
    size = max(len(matrix) for matrix in matrices)
    padded = matrices[0].new_zeros(len(matrices), size, size)
    for target, matrix in zip(padded, matrices, strict=True):
        target[: len(matrix), : len(matrix)] = matrix
    return padded
