"""Every task's own gradients of shared modules, for conflict noticing and aggregation.

A row is a task (or one ensemble member's copy of a task), and row `r` is task `r % tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from conal_rl.core.layers import Layer, gradients_of


class GradientRule(Protocol):
    """A way to combine the tasks' gradients of shared modules in a weight step."""

    def capture(self) -> AbstractContextManager[None]:
        """Return the context in which the losses must be computed."""
        ...

    def backward(
        self, losses: Tensor, inputs: Sequence[Tensor] | None = None, total: Tensor | None = None
    ) -> object:
        """Backpropagate `total` (default: the sum of `losses`), and change shared gradients."""
        ...


class TaskGradients:
    """Every row's own gradients of `layers`, from as few backward passes as the layers allow.

    Linear layers (`LinearStack`) capture them in the backward pass of training. Other modules
    (`ModuleStack`) do so if all tasks have a shared input. Modules whose rows have different
    inputs take a backward pass per task.
    """

    def __init__(self, layers: Sequence[Layer]):
        self.layers = list(layers)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Make forward passes in this context prepare for the next `backward`."""
        with ExitStack() as stack:
            for layer in self.layers:
                stack.enter_context(layer.capture())
            yield

    def backward(
        self, losses: Tensor, inputs: Sequence[Tensor] | None = None, total: Tensor | None = None
    ) -> list[list[Tensor]]:
        """Backpropagate once; return the gradients of `layers` and accumulate all others.

        Args:
            losses: each task's own loss `(task,)`, summed over the members of an ensemble.
            inputs: the leaves that may receive gradients. The default is all.
            total: the scalar that is minimised. The default is the sum of `losses`.

        Returns:
            For each layer, the gradients of its parameters, each `(row, ...)`. They are valid until
            the next captured backward pass.

        Raises:
            RuntimeError: the losses were computed outside of `capture()`.
        """
        by_pass = self._by_pass(losses, total)
        if by_pass and inputs is not None:  # their gradients are already known
            known = {id(p) for number in by_pass for p in self.layers[number].parameters()}
            inputs = [p for p in inputs if id(p) not in known]
        if inputs is None or inputs:
            (losses.sum() if total is None else total).backward(inputs=inputs)
        gradients = [
            by_pass[number] if number in by_pass else layer.row_gradients()
            for number, layer in enumerate(self.layers)
        ]
        for layer in self.layers:
            layer.release()
        return gradients

    def _by_pass(self, losses: Tensor, total: Tensor | None) -> dict[int, list[Tensor]]:
        """Compute gradients of the layers that captured nothing, in a backward pass per task.

        Returns:
            For each layer, by its number, the gradients of its parameters, each `(row, ...)`.
        """
        by_row: dict[int, list[list[Tensor]]] = {
            number: [[] for _ in layer.index]
            for number, layer in enumerate(self.layers)
            if layer.needs_pass_per_task()
        }
        if not by_row:
            return {}
        if total is not None:
            (share,) = torch.autograd.grad(total, losses, retain_graph=True)
            losses = losses * share
        for task, loss in enumerate(losses):
            # An ensemble's members each run their own module for this task.
            wanted = [
                (n, r) for n, rows in by_row.items() for r in range(task, len(rows), len(losses))
            ]
            parameters = [
                self.layers[number].module_parameters(self.layers[number].index[row])
                for number, row in wanted
            ]
            gradients = iter(gradients_of(loss, [p for module in parameters for p in module]))
            for (number, row), module in zip(wanted, parameters, strict=True):
                by_row[number][row] = [next(gradients) for _ in module]
        return {n: [torch.stack(g) for g in zip(*rows, strict=True)] for n, rows in by_row.items()}
