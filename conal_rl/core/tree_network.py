"""A network shaped by a tree; hard parameter sharing and a network per task are two such trees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conal_rl.core.layers import Layer, LayerFactory, LayerList
from conal_rl.core.module_stack import run_leading_modules
from conal_rl.core.rows import RowOrder, is_one_input
from conal_rl.core.tree import Tree


class TreeNetwork(nn.Module):
    """Runs `tree` over a chain of modules, one layer of the tree for each module of the chain.

    Args:
        tree: which tasks share which module, layer by layer.
        chain: one layer factory per layer of the tree (`linear_chain`, `module_chain`).

    Raises:
        ValueError: the chain's length is not the tree's depth.
    """

    order: Tensor | None  # see `RowOrder`; None: the tree's own order
    inverse: Tensor | None

    def __init__(self, tree: Tree, chain: Sequence[LayerFactory]):
        super().__init__()
        if len(chain) != tree.depth:
            raise ValueError(
                f"chain: got {len(chain)} modules, expected {tree.depth}, one per layer of the tree"
            )
        self.tree = tree
        self.layers = LayerList(make(index) for make, index in zip(chain, tree.layers, strict=True))
        order = self._better_order()
        inverse = None if order is None else order.argsort()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("inverse", inverse, persistent=False)

    def _better_order(self) -> Tensor | None:
        """Return an order of the rows that takes fewer products, if all layers accept it.

        In this order the rows of a module are neighbours in all layers, and the module with most
        rows is first. In CoNAL's trees the tasks that stay longest on the trunk are first, then
        the single tasks.
        """
        tree = self.tree.layers
        order = sorted(
            range(self.tree.num_tasks), key=lambda row: [(-i.count(i[row]), i[row]) for i in tree]
        )
        saved = 0
        for layer in self.layers:
            saved_here = layer.arrange(order)
            if saved_here is None:
                return None
            saved += saved_here
        return torch.tensor(order) if saved > 0 else None

    def forward(self, x: Tensor) -> Tensor:
        """Encode `(task, batch, ...)`, or `(1, batch, ...)` if all tasks see the same input.

        With a shared input each module of a tree runs once, for any number of tasks.

        Returns:
            `(task, batch, ...)`.

        Raises:
            ValueError: the number of rows does not fit.
        """
        rows = len(self.tree.tasks)
        one_input = is_one_input(x, rows) and not self.tree.rejoining
        if one_input and not any(layer.captures for layer in self.shared_layers()):
            return self._run_once(x[:1])
        if len(x) not in (1, rows):
            raise ValueError(f"x: got {tuple(x.shape)}, expected {rows} rows first, one per task")
        x = x.expand(rows, *x.shape[1:])
        if self.order is None or self.inverse is None:
            return self._run_rows(x, one_input)
        order = RowOrder(self.order, self.inverse)
        x = order.sort(x)
        for layer in self.layers:
            x = layer(x, order=order, equal_rows=one_input)
        return order.unsort(x)

    def _run_once(self, x: Tensor) -> Tensor:
        """Run every module once, on a shared input `(1, batch, ...)`."""
        for depth, layer in enumerate(self.layers):
            parents = self.tree.parents(depth)
            x = layer.run_modules(_take(x, [0] * len(parents) if depth == 0 else parents))
        return _take(x, self.tree.layers[-1])

    def _run_rows(self, x: Tensor, one_input: bool) -> Tensor:
        """Run all rows `(row, batch, ...)` layer by layer; a shared input runs the trunk once."""
        done = 0
        if one_input:
            x, done = run_leading_modules(list(self.layers), x)
        for layer in self.layers[done:]:
            x = layer(x, equal_rows=one_input)
        return x

    def shared_layers(self) -> list[Layer]:
        """The layers with at least one module that several rows run, from input to output."""
        return [layer for layer in self.layers if layer.count < len(layer.index)]


def _take(x: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows of `x`, without a copy if that is possible."""
    if len(x) == 1:
        return x.expand(len(rows), *x.shape[1:])
    return x if list(rows) == list(range(len(x))) else x[list(rows)]


def parameter_count(module: nn.Module) -> int:
    """Number of scalar parameters."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def copy_layers(target: TreeNetwork, sources: Sequence[Sequence[tuple[Layer, int]]]) -> None:
    """Fill every module of `target`; `sources[layer][row]` is the layer and module to copy."""
    for layer, rows in zip(target.layers, sources, strict=True):
        for row, module in enumerate(layer.index):
            layer.copy_module(module, *rows[row])
