"""A network shaped by a tree: hard parameter sharing and one network per task are two trees."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import cast

import torch
from torch import Tensor, nn

from conal_rl.core.layers import (
    Layer,
    LayerFactory,
    LinearStack,
    ModuleStack,
    RowOrder,
    captures,
    is_one_input,
)
from conal_rl.core.one_input import capture_one_input
from conal_rl.core.tree import Tree


class TreeNetwork(nn.Module):
    """Runs `tree` over a chain of modules, one layer of the tree for each module of the chain.

    Args:
        tree: which tasks share which module, layer by layer.
        chain: one layer factory per layer of the tree (`linear_chain`, `module_chain`).

    Raises:
        ValueError: the chain's length is not the tree's depth.
    """

    order: Tensor | None
    place: Tensor | None

    def __init__(self, tree: Tree, chain: Sequence[LayerFactory]):
        super().__init__()
        if len(chain) != tree.depth:
            raise ValueError(
                f"the chain has {len(chain)} modules but the tree has {tree.depth} layers"
            )
        self.tree = tree
        self.layers = nn.ModuleList(
            make(index) for make, index in zip(chain, tree.layers, strict=True)
        )
        order = self._better_order()
        place = None if order is None else order.argsort()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", place, persistent=False)

    def _better_order(self) -> Tensor | None:
        """An order of the rows in which linear layers run them in fewer products, if there is one.

        In all layers of a tree, it has the rows of a module side by side and the module of most
        rows first: in CoNAL's trees what stays longest on the trunk, then the single tasks.
        """
        linear = [layer for layer in self.layers if isinstance(layer, LinearStack)]
        if len(linear) < len(self.layers):
            return None
        tree = self.tree.layers
        order = sorted(
            range(self.tree.num_tasks), key=lambda row: [(-i.count(i[row]), i[row]) for i in tree]
        )
        products = sum(layer.arrange(order) for layer in linear)
        better = products < sum(len(layer.blocks) for layer in linear)
        return torch.tensor(order) if better else None

    def forward(self, x: Tensor) -> Tensor:
        """Encode `(task, batch, ...)`, or `(1, batch, ...)` when all tasks see the same input.

        With one input for all tasks each module of a tree runs once, whatever the number of its
        tasks.

        Returns:
            `(task, batch, ...)`.
        """
        rows = len(self.tree.tasks)
        one_input = is_one_input(x, rows) and not self.tree.rejoining
        if one_input and not any(captures(layer) for layer in self.shared_layers()):
            return self._run_once(x[:1])
        if len(x) not in (1, rows):
            raise ValueError(f"expected {rows} rows (one per task), got input {tuple(x.shape)}")
        x = x.expand(rows, *x.shape[1:])
        if self.order is None or self.place is None:
            return self._run_rows(x, one_input)
        order = RowOrder(self.order, self.place)
        x = order.sort(x)
        for layer in self.layers:
            x = layer(x, order=order, equal_rows=one_input)
        return order.unsort(x)

    def _run_once(self, x: Tensor) -> Tensor:
        """Every module once, on one input `(1, batch, ...)` for all tasks."""
        for depth, layer in enumerate(self.layers):
            parents = self.tree.parents(depth)
            x = layer(_take(x, [0] * len(parents) if depth == 0 else parents), by_module=True)
        return _take(x, self.tree.layers[-1])

    def _run_rows(self, x: Tensor, one_input: bool) -> Tensor:
        """All rows `(row, batch, ...)` layer by layer; of one input, the trunk of modules once."""
        trunk = _leading_modules(self.shared_layers()) if one_input else []
        if trunk:
            x = capture_one_input(trunk, x)
        for layer in typed(self.layers)[len(trunk) :]:
            x = layer(x, equal_rows=one_input) if isinstance(layer, LinearStack) else layer(x)
        return x

    def shared_layers(self) -> list[Layer]:
        """The layers with at least one module that several rows run, from input to output."""
        return [layer for layer in typed(self.layers) if layer.count < len(layer.index)]


def _take(x: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows of `x`, without a copy where that is possible."""
    if len(x) == 1:
        return x.expand(len(rows), *x.shape[1:])
    return x if list(rows) == list(range(len(x))) else x[list(rows)]


def _leading_modules(layers: Sequence[Layer]) -> list[ModuleStack]:
    """The layers before the first that does not capture modules on one input."""
    return list(
        cast(
            Iterable[ModuleStack],
            takewhile(lambda layer: isinstance(layer, ModuleStack) and captures(layer), layers),
        )
    )


def typed(layers: Iterable[nn.Module]) -> list[Layer]:
    """The layers of an `nn.ModuleList`, as what they are."""
    return cast(list[Layer], list(layers))


def parameter_count(module: nn.Module) -> int:
    """Number of scalar parameters."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def copy_layers(target: TreeNetwork, sources: Sequence[Sequence[tuple[Layer, int]]]) -> None:
    """Fill every module of `target`; `sources[layer][row]` is the layer and module to take."""
    for layer, rows in zip(typed(target.layers), sources, strict=True):
        for row, module in enumerate(layer.index):
            layer.copy_module(module, *rows[row])  # type: ignore[arg-type]  # of one kind
