"""The cost of conflict noticing: weight steps with it, without it, and with a pass per task.

The first table gives every task its own transitions. The network is the paper's for reinforcement
learning: twin critics of three hidden layers of 400 units, with 128 transitions of every task. The
rule is `any_pair`, and every step ends in a step of Adam.

The second table gives all tasks a shared input. It compares several ways to compute each task's
gradients on small networks. It leaves out the rule, because the rule costs the same in all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from statistics import median

import torch
from rich.table import Table
from torch import Tensor, nn

from conal_rl.agents.policies import TaskNetwork
from conal_rl.benchmarks import say
from conal_rl.core import (
    ConalSearch,
    ConflictNoticing,
    Supernet,
    Tree,
    TreeNetwork,
    linear_chain,
    module_chain,
)
from conal_rl.core.bilevel import apply_gradients, weight_step
from conal_rl.core.conflict import held_rows
from conal_rl.core.gradients import TaskGradients
from conal_rl.core.layers import Layer

CRITICS = 2
FEATURES = 43  # Meta-World's observation and action
CLASSES = 10
CHANNELS = (3, 32, 32, 64, 64)
UNITS = (100, 400, 400, 400)

Encoder = Supernet | TreeNetwork
Step = Callable[[], object]
VJPs = Callable[[Tensor, Tensor, Sequence[Tensor]], list[Tensor]]


def measure(
    tasks: int, widths: Sequence[int], batch: int, rounds: int, seconds: float, device: str
) -> Table:
    """Return a table of the kinds of step, on hard parameter sharing's tree and on the supernet.

    Args:
        tasks: The number of tasks.
        widths: The hidden widths.
        batch: Transitions per task.
        rounds: The number of rounds. All kinds take turns, and the table shows their medians.
        seconds: The time of each kind in each round.
        device: The torch device.
    """
    torch.manual_seed(0)
    table = Table(
        title=f"{tasks} tasks, hidden layers {', '.join(map(str, widths))}, batch {batch} per task",
        caption="x: time as a multiple of the plain step. Passes: a backward pass per task through "
        "all rows. One by one: a forward and backward pass per task through only its own rows. "
        "Gain: passes divided by noticing.",
    )
    columns = ("network", "plain", "noticing", "passes", "one by one", "gain")
    _add_columns(table, columns)
    names = [f"task-{number}" for number in range(tasks)]
    for title, tree in (("HPS", Tree.shared(names, len(widths))), ("supernet", ConalSearch())):
        say(f"{tasks} tasks, {title}")
        network = TaskNetwork(names, tree, FEATURES, widths, 1, replicas=CRITICS).to(device)
        x = torch.randn(tasks, batch, FEATURES, device=device)
        target = torch.randn(CRITICS * tasks, batch, 1, device=device)
        times = take_turns(_steps(network, x, target), rounds, seconds, device)
        gain = times["passes"] / times["noticing"]
        table.add_row(title, *_cells(times, columns[1:-1]), f"{gain:.1f} x")
    return table


def _steps(network: TaskNetwork, x: Tensor, target: Tensor) -> dict[str, Step]:
    """Return the kinds of weight step on one batch `(task, batch, feature)`."""
    weights = network.weights()
    optimizer = torch.optim.Adam(weights, lr=1e-4, fused=True)
    shared = network.encoder.shared_layers()
    noticing = ConflictNoticing(shared, "any_pair")

    def losses() -> Tensor:
        error = (network(x) - target).square().mean(dim=(1, 2))
        return error.view(-1, len(x)).sum(dim=0)

    def noticed() -> None:
        with noticing.capture():
            captured = losses()
        weight_step(captured, optimizer, noticing)

    def passes(one_by_one: Iterable[Tensor]) -> None:
        by_layer: list[list[list[Tensor]]] = [[] for _ in shared]
        for loss in one_by_one:
            of_task = torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
            by_id = {id(weight): grad for weight, grad in zip(weights, of_task, strict=True)}
            for layer, gradients in zip(shared, by_layer, strict=True):
                gradients.append([by_id[id(p)] for p in layer.parameters()])
            for weight, grad in zip(weights, of_task, strict=True):
                weight.grad = grad if weight.grad is None else weight.grad + grad
        for layer, gradients in zip(shared, by_layer, strict=True):
            _notice(layer, gradients)
        apply_gradients(optimizer)

    steps: dict[str, Step] = {
        "plain": lambda: weight_step(losses(), optimizer),
        "noticing": noticed,
        "passes": lambda: passes(losses()),
    }
    if isinstance(network.encoder, TreeNetwork):
        steps["one by one"] = lambda: passes(_losses_one_by_one(network, x, target))
    return steps


def _losses_one_by_one(network: TaskNetwork, x: Tensor, target: Tensor) -> Iterator[Tensor]:
    """Yield each task's loss on a fully shared tree, from a forward pass of only its own rows."""
    head = network.head
    for task, batch in enumerate(x):
        task_id = network.task_id[task].expand(len(batch), -1)
        h = torch.cat([batch, task_id], dim=-1).expand(CRITICS, -1, -1)
        for layer in network.encoder.shared_layers():
            h = layer.run_modules(h)
        rows = slice(task, None, len(x))
        outputs = torch.baddbmm(head.bias[rows], h, head.weight[rows])
        yield (outputs - target[rows]).square().mean(dim=(1, 2)).sum()


def _notice(layer: Layer, gradients: Sequence[Sequence[Tensor]]) -> None:
    """Apply the rule to a layer's `gradients[task][parameter]`, each `(module, ...)`."""
    tasks = len(gradients)
    rows = [
        torch.stack([gradients[row % tasks][n][module] for row, module in enumerate(layer.index)])
        for n in range(len(gradients[0]))
    ]
    same = layer.same_module().to(rows[0].device)
    held = held_rows(layer.gram(rows)[None], same[None], "any_pair")
    layer.assign_gradients(rows, (~held[0]).to(rows[0].dtype))


# A shared input


def measure_one_input(tasks: int, rounds: int, seconds: float, device: str) -> Table:
    """Return a table of exact ways to compute every task's gradients on a shared input.

    `noticing` is `TaskGradients`. `passes` makes one backward pass through the trunk per task.
    `batched` makes one call for all tasks, which vmap vectorises. `cut` makes one pass for all
    tasks to the trunk's output, and then passes like `passes` only through the trunk. `cut+batch`
    does the same with one call like `batched`. The trees are hard parameter sharing's, a mixed one
    and the supernet, of four convolutions or three linear layers.

    Args:
        tasks: The number of tasks, at least 3.
        rounds, seconds, device: As in `measure`.
    """
    torch.manual_seed(0)
    table = Table(
        title=f"shared input: {tasks} tasks, 16 images of 32x32, or 128 rows",
        caption="x: time as a multiple of the plain step, one backward pass of the summed losses",
    )
    columns = ("network", "plain", "noticing", "passes", "batched", "cut", "cut+batch")
    _add_columns(table, columns)
    names = [f"task-{number}" for number in range(tasks)]
    images = torch.randn(1, 16, CHANNELS[0], 32, 32, device=device)
    rows = torch.randn(1, 128, UNITS[0], device=device)
    strides = (1, 2) * 2
    convolutions = module_chain(
        [partial(_convolution, *sizes) for sizes in zip(CHANNELS, CHANNELS[1:], strides)]
    )
    linears = module_chain([partial(_linear, *sizes) for sizes in pairwise(UNITS)])
    networks: list[tuple[str, Encoder, Encoder, Tensor]] = []
    for title, tree_of in (("HPS", Tree.shared), ("mixed", _mixed)):
        of_images = TreeNetwork(tree_of(names, len(convolutions)), convolutions)
        tree = tree_of(names, len(linears))
        # vmap does not support stacked layers, so a network of equal nn.Modules replaces them.
        stacked = TreeNetwork(tree, linear_chain(UNITS[0], UNITS[1:]))
        networks += [
            (f"{title}, conv", of_images, of_images, images),
            (f"{title}, linear", stacked, TreeNetwork(tree, linears), rows),
        ]
    supernet = Supernet(names, convolutions)
    for title, ours, of_modules, x in (*networks, ("supernet, conv", supernet, supernet, images)):
        say(f"shared input, {title}")
        steps = _ways(ours.to(device), of_modules.to(device), x)
        table.add_row(title, *_cells(take_turns(steps, rounds, seconds, device), columns[1:]))
    return table


def _mixed(tasks: Sequence[str], depth: int) -> Tree:
    """Return a tree. Task 0 leaves the trunk at the start, and task 1 before the last layer."""
    return Tree.from_branch_points([1, depth, *[depth + 1] * (len(tasks) - 2)], depth, tasks)


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU())


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.ReLU())


def _ways(ours: Encoder, of_modules: Encoder, x: Tensor) -> dict[str, Step]:
    """Return the ways on one input `(1, batch, ...)`. Each computes all weights' gradients."""
    with torch.no_grad():
        tasks, batch, width = ours(x).shape[:3]
    heads = nn.ModuleList(nn.Linear(width, CLASSES) for _ in range(tasks)).to(x.device)
    target = torch.randn(tasks, batch, CLASSES, device=x.device)
    gradients = TaskGradients(ours.shared_layers())
    trunk = of_modules.shared_layers()
    shared = [p for layer in trunk for p in layer.parameters()]
    weights = _weights(ours, heads)
    others = _others(_weights(of_modules, heads), shared)

    def losses(z: Tensor) -> Tensor:
        if z.ndim > 3:
            z = z.mean(dim=(3, 4))
        outputs = torch.stack([head(row) for head, row in zip(heads, z, strict=True)])
        return (outputs - target).square().mean(dim=(1, 2))

    def noticing() -> None:
        with gradients.capture():
            captured = losses(ours(x))
        gradients.backward(captured, weights)

    def passes() -> None:
        of_tasks = losses(of_modules(x))
        _vjps(of_tasks, torch.eye(tasks, device=x.device), shared)
        of_tasks.sum().backward(inputs=others)

    def batched() -> None:
        of_tasks = losses(of_modules(x))
        _batched_vjps(of_tasks, torch.eye(tasks, device=x.device), shared)
        of_tasks.sum().backward(inputs=others)

    def cut(vjps: VJPs) -> None:
        z = x
        for layer in trunk:
            z = layer.run_modules(z)
        boundary = z.detach().repeat(tasks, *[1] * (z.ndim - 1)).requires_grad_()
        losses(boundary).sum().backward(inputs=[boundary, *others])
        assert boundary.grad is not None
        vjps(z, boundary.grad.unsqueeze(1), shared)

    steps: dict[str, Step] = {
        "plain": lambda: losses(ours(x)).sum().backward(inputs=weights),
        "noticing": noticing,
        "passes": passes,
        "batched": batched,
    }
    if isinstance(ours, TreeNetwork) and all(layer.count == 1 for layer in trunk):
        steps |= {"cut": lambda: cut(_vjps), "cut+batch": lambda: cut(_batched_vjps)}
    return steps


def _weights(encoder: Encoder, heads: nn.Module) -> list[nn.Parameter]:
    weights = encoder.weights() if isinstance(encoder, Supernet) else encoder.parameters()
    return [*weights, *heads.parameters()]


def _others(weights: Sequence[nn.Parameter], shared: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    ids = {id(weight) for weight in shared}
    return [weight for weight in weights if id(weight) not in ids]


def _vjps(outputs: Tensor, vectors: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of `weights` for each of `vectors`, `(vector, ...)`."""
    by_vector = [torch.autograd.grad(outputs, weights, v, retain_graph=True) for v in vectors]
    return [torch.stack(gradients) for gradients in zip(*by_vector, strict=True)]


def _batched_vjps(outputs: Tensor, vectors: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    return list(
        torch.autograd.grad(outputs, weights, vectors, retain_graph=True, is_grads_batched=True)
    )


# Taking turns


def take_turns(
    steps: Mapping[str, Step], rounds: int, seconds: float, device: str
) -> dict[str, float]:
    """Return the seconds of each step: the median over rounds. All steps run in every round."""
    for step in steps.values():  # the first call of each step allocates its memory
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(_duration(step, seconds, device))
    return {name: median(taken) for name, taken in times.items()}


def _duration(step: Step, seconds: float, device: str) -> float:
    """Return the mean seconds of a step, over about `seconds` of steps."""
    _wait(device)
    began, taken = time.perf_counter(), 0
    while taken == 0 or time.perf_counter() - began < seconds:
        step()
        taken += 1
        _wait(device)
    return (time.perf_counter() - began) / taken


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _add_columns(table: Table, columns: Sequence[str]) -> None:
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")


def _cells(times: Mapping[str, float], columns: Sequence[str]) -> list[str]:
    """Return the plain step's milliseconds and the others' multiples. "-" means not measured."""
    plain = times["plain"]
    ratios = [f"{times[name] / plain:.2f} x" if name in times else "-" for name in columns[1:]]
    return [f"{1000 * plain:,.1f} ms", *ratios]
