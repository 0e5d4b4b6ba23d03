"""What the core computes, said again in loops over tasks, modules and pairs, on the raw weights.

And a problem of which it is known who can share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from conal_rl.core import ConflictNoticing, Supernet, TreeNetwork, linear_chain, module_chain
from conal_rl.core.bilevel import gate_step, weight_step
from conal_rl.core.conal_pro import StageNetwork
from conal_rl.core.conflict import RULES
from conal_rl.core.gradients import TaskGradients
from conal_rl.core.layers import Layer, LayerFactory
from conal_rl.core.linear_stack import LinearStack
from conal_rl.core.ltb import LTBNetwork
from conal_rl.core.module_stack import ModuleStack
from conal_rl.core.search_network import SearchNetwork

IN = 3  # input features, or input channels of images
SIDE = 4  # height and width of images


def make_chain(kind: str, depth: int) -> list[LayerFactory]:
    """A chain of unequal widths: "plain" and "norm" are linear, "conv" is made of `nn.Module`s."""
    widths = [4 + (2 * i) % 5 for i in range(depth)]
    if kind == "conv":
        return module_chain([_conv(i, o) for i, o in zip([IN, *widths], widths)])
    return linear_chain(IN, widths, layer_norm=kind == "norm")


def _conv(inputs: int, outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())


def make_input(kind: str, rows: int, batch: int) -> Tensor:
    shape = (SIDE, SIDE) if kind == "conv" else ()
    return torch.randn(rows, batch, IN, *shape, dtype=torch.float64)


def randomize(network: nn.Module) -> None:
    """Float64, and every parameter random: biases, gains and shifts too."""
    network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.7)


def run_module(layer: nn.Module, module: int, x: Tensor) -> Tensor:
    """One module of a layer on `(batch, ...)`, from its raw parameters."""
    if isinstance(layer, ModuleStack):
        conv: Any = layer.modules_[module]
        return F.relu(F.conv2d(x, conv[0].weight, conv[0].bias, padding=1))
    assert isinstance(layer, LinearStack)
    y = F.linear(x, layer.weight[module].T, layer.bias[module, 0])
    if layer.layer_norm:
        y = F.layer_norm(y, y.shape[1:], layer.gain[module, 0], layer.shift[module, 0])
    return F.relu(y) if layer.activation else y


def supernet_outputs(supernet: Supernet, x: Tensor) -> list[Tensor]:
    """Each row's mixture over its branch points, every path from the input on its own."""
    tasks, points = supernet.gates.shape
    outputs = []
    for row in range(supernet.replicas * tasks):
        replica, task = divmod(row, tasks)
        gates = supernet.gates[task].exp() / supernet.gates[task].exp().sum()
        z: Any = 0
        for point in range(1, points + 1):
            h = x[row if len(x) > 1 else 0]
            for number in range(1, points):
                if number < point:
                    h = run_module(supernet.trunk[number - 1], replica, h)
                else:
                    h = run_module(supernet.specific[number - 1], row, h)
            z = z + gates[point - 1] * h
        outputs.append(z)
    return outputs


def stage_outputs(network: StageNetwork, x: Tensor) -> list[Tensor]:
    """Each row to the end with the others and, if its task is open, from `p - 1` on its own."""
    settled, depth = network.stage.settled, len(network.joint.layers)
    point = depth + 2 - network.stage.number
    unsettled = [task for task, at in enumerate(settled) if at is None]
    outputs = []
    for row in range(network.replicas * len(settled)):
        replica, task = divmod(row, len(settled))
        z = own = x[row if len(x) > 1 else 0]
        for number, layer in enumerate(network.joint.layers, start=1):
            z = run_module(layer, layer.index[row], z)
            if number < point - 1:
                own = z
            elif task in unsettled:
                module = replica * len(unsettled) + unsettled.index(task)
                own = run_module(network.specific[number - point + 1], module, own)
        if task in unsettled:
            gates = network.gates[unsettled.index(task)].exp()
            z = (gates[0] * z + gates[1] * own) / gates.sum()
        outputs.append(z)
    return outputs


def branching_outputs(network: LTBNetwork, x: Tensor) -> list[Tensor]:
    """Each row through all copies of all layers, each fed by a mixture of the copies before it."""
    copies, tasks, depth = network.copies, len(network.tasks), len(network.layers)
    gates = [row.exp() / row.exp().sum() for row in network.gates]
    outputs = []
    for row in range(network.replicas * tasks):
        replica, task = divmod(row, tasks)
        ways = [x[row if len(x) > 1 else 0]] * copies
        for number in range(depth):
            if number > 0:
                chosen = gates[(number - 1) * copies : number * copies]
                ways = [_mixture(weights, ways) for weights in chosen]
            ways = [
                run_module(network.layers[number], replica * copies + copy, way)
                for copy, way in enumerate(ways)
            ]
        outputs.append(_mixture(gates[(depth - 1) * copies + task], ways))
    return outputs


def _mixture(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    total = torch.zeros_like(values[0])
    for weight, value in zip(weights, values, strict=True):
        total = total + weight * value
    return total


def tree_outputs(network: TreeNetwork, x: Tensor) -> list[Tensor]:
    """Each task on its own through the modules that the tree gives it."""
    outputs = []
    for task in range(network.tree.num_tasks):
        h = x[task if len(x) > 1 else 0]
        for layer, modules in zip(network.layers, network.tree.layers):
            h = run_module(layer, modules[task], h)
        outputs.append(h)
    return outputs


def task_losses(outputs: Sequence[Tensor], targets: Tensor) -> list[Tensor]:
    """Mean squared error per task; an ensemble's members are summed, `targets` is per task."""
    tasks = len(targets)
    return [
        sum(((y - targets[task]) ** 2).mean() for y in outputs[task::tasks])  # type: ignore[misc]
        for task in range(tasks)
    ]


def row_gradients(
    losses: Sequence[Tensor], layers: Sequence[Layer]
) -> list[list[dict[str, Tensor]]]:
    """[layer][row]: gradient of the row's task's loss in the module it runs; a pass per task."""
    parameters = [
        {name: p for name, p in layer.named_parameters() if p.requires_grad} for layer in layers
    ]
    gradients: list[list[dict[str, Tensor]]] = [[{} for _ in layer.index] for layer in layers]
    for task, loss in enumerate(losses):
        flat = [p for named in parameters for p in named.values()]
        found = iter(torch.autograd.grad(loss, flat, retain_graph=True, materialize_grads=True))
        for layer, named, rows in zip(layers, parameters, gradients):
            whole = {name: next(found) for name in named}
            for row in range(task, len(rows), len(losses)):
                rows[row] = module_slice(layer, layer.index[row], whole)
    return gradients


def module_slice(layer: Layer, module: int, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a layer's named tensors that belongs to one of its modules."""
    if isinstance(layer, LinearStack):
        return {name: value[module] for name, value in named.items()}
    prefix = f"modules_.{module}."
    return {
        name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)
    }


def flat(gradients: dict[str, Tensor]) -> list[float]:
    return [value for g in gradients.values() for value in g.flatten().tolist()]


# The rules (METHOD: conflict noticing). Gradients are lists of numbers, [layer][row].

Vector = Sequence[float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b))


def cosine(a: Vector, b: Vector) -> float:
    """0 where a gradient vanishes: nothing can conflict with it."""
    if not any(a) or not any(b):
        return 0.0
    return dot(a, b) / (dot(a, a) * dot(b, b)) ** 0.5


def held_by_rule(
    gradients: Sequence[Sequence[Vector]],
    layers: Sequence[Sequence[int]],
    rule: str,
    margin: float = 0.0,
) -> list[list[bool]]:
    """[layer][row]: whether the row's gradient is dropped; `layers` as in `Tree.layers`."""
    held = [[False] * len(layer) for layer in layers]
    for number, (layer, g) in enumerate(zip(layers, gradients)):
        for module in set(layer):
            users = [row for row, used in enumerate(layer) if used == module]
            pairs = [(i, j) for i in users for j in users if i < j]
            conflicts = [pair for pair in pairs if cosine(g[pair[0]], g[pair[1]]) < -margin]
            for row in users:
                others = [g[j] for j in users if j != row]
                if rule == "any_pair":
                    held[number][row] = bool(conflicts)
                elif rule == "conflicting_tasks":
                    held[number][row] = any(row in pair for pair in conflicts)
                elif rule == "and_deeper":
                    before = number > 0 and held[number - 1][row]
                    held[number][row] = bool(others) and (bool(conflicts) or before)
                elif rule == "consensus" and others:
                    mean = [sum(values) / len(others) for values in zip(*others)]
                    held[number][row] = cosine(g[row], mean) < -margin
    return held


def margin_is_clear(
    gradients: Sequence[Sequence[Vector]], layers: Sequence[Sequence[int]], margin: float
) -> bool:
    """No cosine that a rule looks at lies so near `-margin` that rounding would decide."""
    for layer, g in zip(layers, gradients):
        for row, module in enumerate(layer):
            others = [g[j] for j in range(len(layer)) if j != row and layer[j] == module]
            mean = [sum(values) for values in zip(*others)]
            if any(abs(cosine(g[row], other) + margin) < 1e-9 for other in [*others, mean]):
                return False
    return True


def check_task_gradients(
    network: TreeNetwork | SearchNetwork,
    x: Tensor,
    tasks: int,
    in_loops: Callable[[], Sequence[Tensor]],
) -> None:
    """Per-task gradients and what every rule leaves of them, against one backward pass per task.

    Args:
        in_loops: the network's outputs for `x`, computed from its raw weights, one for each row.
    """
    directions = torch.randn_like(network(x))

    def losses(outputs: Sequence[Tensor]) -> Tensor:  # an ensemble's members are summed
        rows = torch.stack([(y * d).mean() for y, d in zip(outputs, directions, strict=True)])
        return rows.view(-1, tasks).sum(dim=0)

    shared = network.shared_layers()
    rows = row_gradients(list(losses(in_loops())), shared)
    own = TaskGradients(shared)
    with own.capture():
        captured = losses(network(x).unbind())
    for layer, found in zip(rows, own.backward(captured), strict=True):
        for row, named in enumerate(layer):
            for gradients, expected in zip(found, named.values(), strict=True):
                torch.testing.assert_close(gradients[row], expected)

    plain = torch.autograd.grad(losses(in_loops()).sum(), list(network.parameters()))
    watched = {id(p) for layer in shared for p in layer.parameters()}
    vectors = [[flat(gradients) for gradients in layer] for layer in rows]
    for rule in RULES:
        network.zero_grad()
        noticing = ConflictNoticing(shared, rule)
        with noticing.capture():
            captured = losses(network(x).unbind())
        held = noticing.backward(captured).tolist()
        assert held == held_by_rule(vectors, [layer.index for layer in shared], rule)
        for parameter, whole in zip(network.parameters(), plain, strict=True):
            if id(parameter) not in watched:
                torch.testing.assert_close(parameter.grad, whole)
        for number, watching in enumerate(shared):
            left = {name: p.grad for name, p in watching.named_parameters() if p.grad is not None}
            for module in range(watching.count):
                kept = [
                    rows[number][row]
                    for row, used in enumerate(watching.index)
                    if used == module and not held[number][row]
                ]
                for name, gradient in module_slice(watching, module, left).items():
                    total = sum((named[name] for named in kept), torch.zeros_like(gradient))
                    torch.testing.assert_close(gradient, total)


class Signs:
    """Tasks that want a random function or its negative, all read out by the same fixed head.

    Tasks of one sign can share all modules, tasks of opposite signs not the last one.
    """

    features, width = 4, 8

    def __init__(self, signs: Sequence[float], seed: int):
        torch.manual_seed(seed)
        self.signs = torch.tensor(signs).view(-1, 1, 1)
        self.first = 1.5 * torch.randn(self.features, 16) / self.features**0.5
        self.bias, self.last = 0.5 * torch.randn(16), torch.randn(16, 1)
        y = self.function(torch.randn(4096, self.features))
        self.mean, self.scale = y.mean(), y.std()
        alternating = torch.tensor([1.0, -1.0]).repeat(self.width // 2)
        self.readout = 2 / self.width**0.5 * alternating.unsqueeze(1)

    def function(self, x: Tensor) -> Tensor:
        return (x @ self.first + self.bias).tanh() @ self.last

    def chain(self) -> list[LayerFactory]:
        return linear_chain(self.features, [self.width] * 2, layer_norm=True)

    def losses(self, network: SearchNetwork) -> Tensor:
        x = torch.randn(1, 32, self.features)
        y = self.signs * (self.function(x) - self.mean) / self.scale
        y = y + 0.1 * torch.randn_like(y)
        return ((network(x) @ self.readout - y) ** 2).mean(dim=(1, 2))

    def search(self, network: SearchNetwork, steps: int) -> None:
        weights = torch.optim.Adam(network.weights(), lr=0.01, fused=True)
        gates = torch.optim.Adam([network.gates], lr=0.05)
        noticing = ConflictNoticing(network.shared_layers(), "consensus")
        for _ in range(steps):
            gate_step(self.losses(network).sum(), [network.gates], gates)
            with noticing.capture():
                losses = self.losses(network)
            weight_step(losses, weights, noticing)
