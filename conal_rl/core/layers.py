"""Layers that hold one set of weights per module of a tree and run all tasks at once.

Task-major throughout: an input is `(row, batch, ...)`, where a row is a task (or, for an
ensemble, one member's copy of a task), and a layer knows which of its modules each row runs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearStack(nn.Module):
    """Linear (+ layer norm) (+ ReLU) with one weight per module; all rows in one batched product.

    Parameters are stacked along the first dimension: weight `(module, in, out)`, bias, gain and
    shift `(module, 1, out)`.

    While `capturing`, each row runs on its own copy of its module's parameters. The one backward
    pass of training then leaves every task's own gradient in `copies[k].grad`, shape
    `(row, ...)`, beside the summed gradient in the parameters: per-task gradients of shared
    modules cost no second pass.
    """

    rows: Tensor

    def __init__(
        self,
        index: Sequence[int],
        in_features: int,
        out_features: int,
        layer_norm: bool = False,
        activation: bool = True,
    ):
        super().__init__()
        self.index = tuple(index)
        self.count = max(self.index) + 1
        self.activation = activation
        self.capturing = False
        self.copies: tuple[Tensor, ...] = ()
        bound = in_features**-0.5  # torch.nn.Linear's initialisation, per module
        self.weight = nn.Parameter(
            torch.empty(self.count, in_features, out_features).uniform_(-bound, bound)
        )
        self.bias = nn.Parameter(torch.empty(self.count, 1, out_features).uniform_(-bound, bound))
        if layer_norm:
            self.gain = nn.Parameter(torch.ones(self.count, 1, out_features))
            self.shift = nn.Parameter(torch.zeros(self.count, 1, out_features))
        self.layer_norm = layer_norm
        self.register_buffer("rows", torch.tensor(self.index), persistent=False)
        run = len(self.index) // self.count
        self._equal_runs = self.index == tuple(row // run for row in range(len(self.index)))

    def forward(self, x: Tensor, by_module: bool = False) -> Tensor:
        """Map `(row, batch, in)` to `(row, batch, out)`.

        A layer of a single module takes any number of rows.
        """
        if self.capturing and torch.is_grad_enabled() and not by_module:
            if self.copies:
                raise RuntimeError("a second forward pass of this layer in one capture()")
            self.copies = tuple(p.index_select(0, self.rows) for p in self.parameters())
            for copy in self.copies:
                copy.retain_grad()
            return self._run(x, *self.copies)
        if by_module or self._equal_runs:
            # Equal runs of rows are one larger matrix per module: nothing is copied.
            y = self._run(x.reshape(self.count, -1, x.shape[-1]), *self.parameters())
            return y.reshape(*x.shape[:-1], -1)
        return self._run(x, *(p.index_select(0, self.rows) for p in self.parameters()))

    def _run(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        gain: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        y = torch.baddbmm(bias, x, weight)
        if gain is not None and shift is not None:
            y = torch.addcmul(shift, F.layer_norm(y, y.shape[-1:]), gain)
        return F.relu(y) if self.activation else y

    def copy_gradients(self) -> list[Tensor]:
        """Every row's own gradient of each parameter, `(row, ...)`, after a captured backward."""
        return [torch.zeros_like(c) if c.grad is None else c.grad for c in self.copies]

    @torch.no_grad()
    def copy_module(self, module: int, source: "LinearStack", source_module: int) -> None:
        """Take over one module's parameters from a layer of the same shape."""
        for mine, theirs in zip(self.parameters(), source.parameters(), strict=True):
            mine[module] = theirs[source_module]


class ModuleStack(nn.Module):
    """The same for any `nn.Module` (convolutions, transformer layers): one module object each."""

    def __init__(self, index: Sequence[int], factory: Callable[[], nn.Module]):
        super().__init__()
        self.index = tuple(index)
        self.count = max(self.index) + 1
        self.modules_ = nn.ModuleList(factory() for _ in range(self.count))

    def forward(self, x: Tensor, by_module: bool = False) -> Tensor:
        """Map `(row, batch, ...)` to `(row, batch, ...)`, the rows of a module run together."""
        if by_module:
            return torch.stack([m(part) for m, part in zip(self.modules_, x, strict=True)])
        if self.count == 1:
            return self.modules_[0](x.flatten(0, 1)).unflatten(0, x.shape[:2])
        outputs: dict[int, Tensor] = {}
        for number, module in enumerate(self.modules_):
            rows = [row for row, used in enumerate(self.index) if used == number]
            y = module(x[rows].flatten(0, 1)).unflatten(0, (len(rows), x.shape[1]))
            outputs |= dict(zip(rows, y, strict=True))
        return torch.stack([outputs[row] for row in range(len(self.index))])

    def copy_module(self, module: int, source: "ModuleStack", source_module: int) -> None:
        """Take over one module's parameters and buffers from a layer of the same kind."""
        self.modules_[module].load_state_dict(source.modules_[source_module].state_dict())


Layer = LinearStack | ModuleStack
"""One layer of a tree: `count` modules, and in `index` the module that every row runs."""

LayerFactory = Callable[[tuple[int, ...]], Layer]
"""Makes a layer for a row-to-module index; a chain of modules is a sequence of these."""


def linear_chain(
    in_features: int, widths: Sequence[int], layer_norm: bool = False
) -> list[LayerFactory]:
    """A chain of hidden linear layers with ReLU: an MLP's trunk, ready for any tree."""
    sizes = [in_features, *widths]
    return [
        partial(LinearStack, in_features=i, out_features=o, layer_norm=layer_norm)
        for i, o in pairwise(sizes)
    ]


def module_chain(factories: Sequence[Callable[[], nn.Module]]) -> list[LayerFactory]:
    """A chain of arbitrary modules, each given by a function that makes a fresh one."""
    return [partial(ModuleStack, factory=factory) for factory in factories]
