"""Every task's own gradients of shared modules: what conflict noticing and aggregation work on.

A row is a task (or one ensemble member's copy of a task), and row `r` is task `r % tasks`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from conal_rl.core.layers import Layer, LinearStack, ModuleStack, row_blocks
from conal_rl.core.one_input import gradients_of


class GradientRule(Protocol):
    """What a weight step does with the tasks' gradients of shared modules."""

    def capture(self) -> AbstractContextManager[None]:
        """The forward pass of the losses belongs into this context."""
        ...

    def backward(
        self, losses: Tensor, inputs: Sequence[Tensor] | None = None, total: Tensor | None = None
    ) -> object:
        """Backpropagate `total` (default: the sum of `losses`), and change shared gradients."""
        ...


class TaskGradients:
    """Per-row gradients of `layers`, out of one backward pass where the layers can give them.

    They come out of the backward pass that training needs anyway for stacked linear layers
    (`LinearStack`). Modules of any kind run once where all tasks share an input; the pass is cut
    behind them, and from there they go backwards once per row, alone (`capture_one_input`). On a
    CPU both are cheaper than vmap: see `python -m conal_rl.benchmark conflict`. What is left are
    modules whose rows have inputs of their own: these take a pass per task.
    """

    def __init__(self, layers: Sequence[Layer]):
        self.layers = list(layers)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Forward passes in this context leave per-task gradients at the next `backward`."""
        for layer in self.layers:
            layer.capturing = True
            layer.captured = None
        try:
            yield
        finally:
            for layer in self.layers:
                layer.capturing = False

    def backward(
        self, losses: Tensor, inputs: Sequence[Tensor] | None = None, total: Tensor | None = None
    ) -> list[list[Tensor]]:
        """Backpropagate once; gradients of `layers` are returned, all others accumulate.

        Args:
            losses: each task's own loss `(task,)`; with an ensemble, summed over its members.
            inputs: the leaves that may receive gradients (default: all).
            total: what is minimised, if not the sum of `losses`: their weighted sum.

        Returns:
            For each layer the gradients of its parameters, each `(row, ...)`. They are valid until
            the next captured backward pass.

        Raises:
            RuntimeError: the losses were computed outside of `capture()`.
        """
        if any(isinstance(layer, LinearStack) and layer.captured is None for layer in self.layers):
            raise RuntimeError("the losses were computed outside of capture()")
        by_pass = self._by_pass(losses, total)
        if by_pass and inputs is not None:  # whose gradients are known: no pass for them again
            known = {id(p) for number in by_pass for p in self.layers[number].parameters()}
            inputs = [p for p in inputs if id(p) not in known]
        if inputs is None or inputs:
            (losses.sum() if total is None else total).backward(inputs=inputs)
        gradients = [
            by_pass[number] if number in by_pass else layer.row_gradients()
            for number, layer in enumerate(self.layers)
        ]
        for layer in self.layers:
            layer.captured = None
        return gradients

    def _by_pass(self, losses: Tensor, total: Tensor | None) -> dict[int, list[Tensor]]:
        """Gradients of layers that cannot capture, with a backward pass for each task."""
        found: dict[int, list[list[Tensor]]] = {
            number: [[] for _ in layer.index]
            for number, layer in enumerate(self.layers)
            if isinstance(layer, ModuleStack) and layer.captured is None
        }
        if not found:
            return {}
        if total is not None:
            (share,) = torch.autograd.grad(total, losses, retain_graph=True)
            losses = losses * share
        for task, loss in enumerate(losses):
            # An ensemble's members each run their own module for this task.
            wanted = [
                (n, r) for n, rows in found.items() for r in range(task, len(rows), len(losses))
            ]
            parameters = [module_parameters(self.layers[n], row) for n, row in wanted]
            flat = [p for module in parameters for p in module]
            gradients = iter(gradients_of(loss, flat))
            for (number, row), module in zip(wanted, parameters, strict=True):
                found[number][row] = [next(gradients) for _ in module]
        return {n: [torch.stack(g) for g in zip(*rows, strict=True)] for n, rows in found.items()}


def module_parameters(layer: Layer, row: int) -> list[nn.Parameter]:
    """The parameters of the module that a row of a `ModuleStack` runs."""
    assert isinstance(layer, ModuleStack)
    return list(layer.modules_[layer.index[row]].parameters())


def rows_of_modules(layer: Layer) -> list[list[int]]:
    """The rows that run each module of the layer, in order."""
    rows: list[list[int]] = [[] for _ in range(layer.count)]
    for row, module in enumerate(layer.index):
        rows[module].append(row)
    return rows


def same_module(layer: Layer) -> Tensor:
    """`(row, row)`, true where two different rows run the same module."""
    index = torch.tensor(layer.index)
    return (index.unsqueeze(1) == index) & ~torch.eye(len(index), dtype=torch.bool)


def gram(layer: Layer, gradients: Sequence[Tensor]) -> Tensor:
    """Inner products `(row, row)` of the rows' gradients, each `(row, ...)`, of one layer.

    Those of rows that run different modules are 0: their gradients are of different weights.
    """
    if isinstance(layer, LinearStack) and gradients[0].is_cuda:
        return _gram_at_once(layer.rows, gradients)
    products = gradients[0].new_zeros(len(layer.index), len(layer.index))
    for rows in rows_of_modules(layer):
        first, last = rows[0], rows[-1]
        own = slice(first, last + 1) if last - first + 1 == len(rows) else rows
        vectors = [gradient[own].flatten(1) for gradient in gradients]
        inner = torch.stack([v @ v.T for v in vectors]).sum(dim=0)
        products[torch.tensor(rows).unsqueeze(1), torch.tensor(rows)] = inner
    return products


def _gram_at_once(modules: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """The same with more products but fewer kernels, and without waiting for the device.

    Args:
        modules: that each row runs, `(row,)`.
    """
    vectors = [gradient.flatten(1) for gradient in gradients]
    products = torch.stack([v @ v.T for v in vectors]).sum(dim=0)
    return torch.where(modules.unsqueeze(1) == modules, products, 0.0)


def set_gradients(layer: Layer, gradients: Sequence[Tensor], weights: Tensor) -> None:
    """Give the layer's parameters the sum over rows of `weights` `(row,)` times the gradients.

    Frozen ones get none, or weight decay would move them.
    """
    blocks = row_blocks(layer.index)
    for number, gradient in enumerate(gradients):
        flat = gradient.flatten(1)
        total = flat.new_zeros(layer.count, 1, flat.shape[1])
        for block in blocks:
            own = slice(block.start, block.start + block.size * block.run)
            block.modules(total).baddbmm_(
                weights[own].view(block.size, 1, block.run),
                flat[own].unflatten(0, (block.size, block.run)),
            )
        total = total.view(layer.count, *gradient.shape[1:])
        holders = [layer] if isinstance(layer, LinearStack) else layer.modules_
        parts = [total] if isinstance(layer, LinearStack) else total
        for holder, part in zip(holders, parts, strict=True):
            parameter = list(holder.parameters())[number]
            if parameter.requires_grad:
                parameter.grad = part


def set_module_gradients(layer: Layer, module: int, gradients: Sequence[Tensor]) -> None:
    """Replace the gradients of one module's parameters, in their order."""
    if isinstance(layer, LinearStack):
        for parameter, gradient in zip(layer.parameters(), gradients, strict=True):
            if parameter.grad is not None:
                parameter.grad[module] = gradient
        return
    for parameter, gradient in zip(layer.modules_[module].parameters(), gradients, strict=True):
        if parameter.grad is not None:
            parameter.grad = gradient
