"""Loss weights, and TorchJD's gradient aggregations on the shared segments of a tree.

A segment is all modules, in one layer or several, that the same rows run. Its tasks' gradients are
aggregated as one Jacobian. All other gradients are unchanged. The members of an ensemble are
separate networks with separate segments.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from typing import get_args

import torch
from torch import Tensor, nn
from torchjd import aggregation, scalarization

from conal_rl.core.conflict import held_rows, require_share
from conal_rl.core.gradients import TaskGradients
from conal_rl.core.layers import Layer
from conal_rl.errors import missing_extra
from conal_rl.literals import AggregationName, LossWeights, Rule

LOSS_WEIGHTS: tuple[LossWeights, ...] = get_args(LossWeights)
AGGREGATIONS: tuple[AggregationName, ...] = get_args(AggregationName)
_SOLVERS = {
    "cagrad": ("cvxpy", "clarabel"),
    "nash_mtl": ("cvxpy", "ecos"),
    "upgrad": ("qpsolvers", "quadprog"),
}


def loss_weights(name: LossWeights, tasks: int) -> nn.Module:
    """Return a module that makes one loss of the tasks' losses `(task,)`.

    `equal` is their sum. `random` (RLW, Lin et al., TMLR 2022) weights them by the softmax of a
    standard normal, which each call draws again; the weights sum to one. `uncertainty` (Kendall et
    al., CVPR 2018) weights them by learnt log variances, the parameters of the module.
    """
    if name == "equal":
        return scalarization.Sum()
    if name == "random":
        return scalarization.Random()
    return scalarization.UW(tasks)


def require_solvers(name: AggregationName) -> None:
    """Raise ExtraError if a package that the method needs is not installed."""
    missing = [solver for solver in _SOLVERS.get(name, ()) if find_spec(solver) is None]
    if missing:
        note = " (ecos has no build for Python 3.13)" * ("ecos" in missing)
        raise missing_extra(f"{name} needs {' and '.join(missing)}{note}", "aggregation")


def segments(layers: Sequence[Layer]) -> dict[tuple[int, ...], list[int]]:
    """Return, for every set of two or more rows that share modules, the layers of these modules."""
    layers_of_rows: dict[tuple[int, ...], list[int]] = {}
    for number, layer in enumerate(layers):
        for rows in layer.rows_of_modules():
            if len(rows) > 1:
                layers_of_rows.setdefault(tuple(rows), []).append(number)
    return layers_of_rows


class Aggregation:
    """Replaces `losses.sum().backward()` and aggregates the gradients of shared modules.

    If all tasks' gradients are equal, the result is their sum (for CAGrad, 1 + c times the sum). A
    method whose weights sum to one is scaled by the number of tasks, so that shared modules keep
    their proportion to heads. Nash-MTL sets its own scale; Adam ignores it. A task without labels
    in the batch has a vanishing gradient and is left out. Otherwise its zero would be the smallest
    or the worst gradient.

    GradVac and Nash-MTL remember earlier steps. Checkpoints do not hold that memory.

    Args:
        layers: the shared layers of a `TreeNetwork`.
        name: one of `AGGREGATIONS`.

    Raises:
        ExtraError: a solver that the method needs is not installed.
    """

    def __init__(self, layers: Sequence[Layer], name: AggregationName):
        require_solvers(name)
        self.layers = list(layers)
        self.segments = segments(layers)
        self._gradients = TaskGradients(layers)
        self._graddrop = aggregation.GradDrop() if name == "graddrop" else None
        self._weigh = [] if self._graddrop else [_weights(name, len(r)) for r in self.segments]

    def capture(self) -> AbstractContextManager[None]:
        """Return the context in which the losses must be computed."""
        return self._gradients.capture()

    def backward(
        self, losses: Tensor, inputs: Sequence[Tensor] | None = None, total: Tensor | None = None
    ) -> None:
        """Backpropagate and aggregate.

        Args:
            losses, inputs, total: see `TaskGradients.backward`.

        Raises:
            RuntimeError: the losses were computed outside of `capture()`.
        """
        gradients = self._gradients.backward(losses, inputs, total)
        with torch.no_grad():
            weights = self._segment_weights(gradients)
            for layer, rows, weight in zip(self.layers, gradients, weights, strict=True):
                layer.assign_gradients(rows, weight)
            if self._graddrop is not None:
                self._drop_signs(gradients)

    def _segment_weights(self, gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Return the weight of each row's gradient in each layer, `(row,)`."""
        weights = [by_row[0].new_ones(len(by_row[0])) for by_row in gradients]
        if self._graddrop is not None:
            return weights
        grams = [layer.gram(rows) for layer, rows in zip(self.layers, gradients, strict=True)]
        for (rows, layers), weigh in zip(self.segments.items(), self._weigh, strict=True):
            index = torch.tensor(rows)
            # On the CPU, because MPS has no float64 and the solvers run there.
            products = (
                torch.stack([grams[n][index][:, index] for n in layers]).sum(dim=0).cpu().double()
            )
            # Vanishing gradients need no weights. The check of the losses finds NaN.
            if products.isfinite().all() and products.any():
                segment_weights = weigh(products)
                for number in layers:
                    weights[number][index] = segment_weights.to(weights[number])
        return weights

    def _drop_signs(self, gradients: Sequence[Sequence[Tensor]]) -> None:
        """Aggregate by GradDrop, which works per coordinate and so may take module by module."""
        assert self._graddrop is not None
        for layer, by_row in zip(self.layers, gradients, strict=True):
            for module, rows in enumerate(layer.rows_of_modules()):
                if len(rows) > 1:
                    kept = [self._graddrop(g[rows].flatten(1)).view_as(g[0]) for g in by_row]
                    layer.assign_module_gradients(module, kept)


def _weights(name: AggregationName, tasks: int) -> Callable[[Tensor], Tensor]:
    """The method as a function from a Gram matrix `(task, task)` to weights `(task,)`."""
    # Functions of this file, not closures: agents that hold them can be copied and pickled.
    if name == "nash_mtl":
        return partial(_weigh_by_nash, aggregation.NashMTL(n_tasks=tasks).weighting)
    makers: dict[AggregationName, Callable[[], Callable[[Tensor], Tensor]]] = {
        "pcgrad": aggregation.PCGradWeighting,
        "cagrad": lambda: aggregation.CAGradWeighting(c=0.5),  # as LibMTL
        "gradvac": aggregation.GradVacWeighting,
        "mgda": aggregation.MGDAWeighting,
        "imtl_g": aggregation.IMTLGWeighting,
        "aligned_mtl": aggregation.AlignedMTLWeighting,
        "upgrad": aggregation.UPGradWeighting,
    }
    weigh = partial(_weigh_by, makers[name](), name not in ("pcgrad", "gradvac"))
    return weigh if name == "gradvac" else partial(_weigh_present, weigh)


def _weigh_by(weighting: Callable[[Tensor], Tensor], sum_to_one: bool, products: Tensor) -> Tensor:
    """Weights of TorchJD's method, scaled by the number of tasks if they sum to one."""
    # The scale of the gradients changes no weights, but TorchJD drops very small gradients.
    weights = weighting(products / products.trace())
    return weights * len(products) if sum_to_one else weights


def _weigh_by_nash(weighting: Callable[[Tensor], Tensor], products: Tensor) -> Tensor:
    # TorchJD takes a Jacobian but uses only inner products, so any root of the Gram matrix works.
    values, vectors = torch.linalg.eigh(products)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are solving a parameterized problem")
        return weighting(vectors * values.clamp(min=0).sqrt())


def _weigh_present(weigh: Callable[[Tensor], Tensor], products: Tensor) -> Tensor:
    """Weights of the tasks whose gradients do not vanish, and 1 for the others."""
    present = products.diagonal() > 0
    weights = torch.ones_like(products.diagonal())
    weights[present] = weigh(products[present][:, present])
    return weights


class ConflictNoticingWeighting(aggregation.Weighting[Tensor]):
    """TorchJD's weights for conflict noticing: 0 for every gradient that a rule drops, else 1.

    Args:
        rule, margin: see `conal_rl.core.conflict.held_rows`. TorchJD has no order of modules, so
            that `and_deeper` would be `any_pair`; it is refused.

    Raises:
        ValueError: the rule is unknown or `and_deeper`, or the margin is out of its range.
    """

    def __init__(self, rule: Rule = "any_pair", margin: float = 0.0):
        super().__init__()
        if rule == "and_deeper":
            raise ValueError(
                "rule: got 'and_deeper', expected one that needs no order of modules. "
                "Use ConflictNoticing"
            )
        require_share("margin", margin)
        self.rule, self.margin = rule, margin
        self(torch.eye(2, dtype=torch.float32))  # an unknown rule is refused here

    def forward(self, gramian: Tensor) -> Tensor:
        """Weights `(task,)` for a Gram matrix `(task, task)`."""
        others = ~torch.eye(len(gramian), dtype=torch.bool, device=gramian.device)
        held = held_rows(gramian[None], others[None], self.rule, self.margin)[0]
        return (~held).to(gramian.dtype)

    def extra_repr(self) -> str:
        """Return the arguments, for `repr`."""
        return f"rule={self.rule!r}, margin={self.margin}"


class ConflictNoticingAggregator(aggregation.GramianWeightedAggregator):
    """Conflict noticing for users of TorchJD, for `torchjd.autojac.jac_to_grad`.

    With `any_pair` the parameters of a Jacobian are held if any two tasks conflict.

    Args:
        rule, margin: see `ConflictNoticingWeighting`.
    """

    def __init__(self, rule: Rule = "any_pair", margin: float = 0.0):
        super().__init__(ConflictNoticingWeighting(rule, margin))

    def __repr__(self) -> str:
        """Return the class and its arguments, as TorchJD's aggregators do."""
        return f"{type(self).__name__}({self.gramian_weighting.extra_repr()})"
