"""What conflict noticing costs: a weight step with it, without it, and with a pass per task.

The network is the paper's for reinforcement learning: twin critics of three hidden layers of 400
units, 128 transitions of every task. The rule is `any_pair`, and every step ends in Adam's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from rich.table import Table
from torch import Tensor

from conal_rl.agents.policies import TaskNetwork
from conal_rl.core import ConflictNoticing, Tree
from conal_rl.core.conflict import held_rows
from conal_rl.core.gradients import gram, same_module, set_gradients
from conal_rl.core.layers import Layer
from conal_rl.core.search import apply_gradients, weight_step

FEATURES = 43  # Meta-World's observation and action

Step = Callable[[], None]


def measure(
    tasks: int, widths: Sequence[int], batch: int, rounds: int, seconds: float, device: str
) -> Table:
    """A table of the three kinds of step, on HPS's tree and on the supernet, for so many tasks.

    The three take turns for `rounds` rounds of about `seconds` each; medians are shown.
    """
    torch.manual_seed(0)
    table = Table(
        title=f"{tasks} tasks, hidden layers {', '.join(map(str, widths))}, batch {batch}"
    )
    for column in ("network", "plain", "conflict noticing", "a pass per task", "gain over passes"):
        table.add_column(column, justify="left" if column == "network" else "right")
    names = [f"task-{number}" for number in range(tasks)]
    for title, tree in (("HPS", Tree.shared(names, len(widths))), ("supernet", None)):
        network = TaskNetwork(names, tree, FEATURES, widths, outputs=1, replicas=2).to(device)
        x = torch.randn(tasks, batch, FEATURES, device=device)
        target = torch.randn(2 * tasks, batch, 1, device=device)
        steps = _steps(network, x, target)
        times: list[list[float]] = [[] for _ in steps]
        for _ in range(rounds):
            for taken, step in zip(times, steps, strict=True):
                taken.append(_duration(step, seconds, device))
        plain, noticed, passes = (median(taken) for taken in times)
        table.add_row(
            title,
            f"{1000 * plain:,.1f} ms",
            f"{noticed / plain:.2f} x",
            f"{passes / plain:.2f} x",
            f"{passes / noticed:.1f} x",
        )
    return table


def _steps(network: TaskNetwork, x: Tensor, target: Tensor) -> tuple[Step, Step, Step]:
    """The three kinds of weight step on one batch `(task, batch, feature)`."""
    tasks = len(x)
    weights = network.weights()
    optimizer = torch.optim.Adam(weights, lr=1e-4, fused=True)
    noticing = ConflictNoticing(network.encoder.shared_layers(), "any_pair")

    def losses() -> Tensor:
        error = (network(x) - target).square().mean(dim=(1, 2))
        return error.view(-1, tasks).sum(dim=0)

    def plain() -> None:
        weight_step(losses(), optimizer)

    def noticed() -> None:
        with noticing.capture():
            captured = losses()
        weight_step(captured, optimizer, noticing)

    def pass_per_task() -> None:
        found = [
            torch.autograd.grad(loss, weights, retain_graph=True, materialize_grads=True)
            for loss in losses()
        ]
        for weight, gradients in zip(weights, zip(*found, strict=True), strict=True):
            weight.grad = torch.stack(gradients).sum(dim=0)
        place = {id(weight): number for number, weight in enumerate(weights)}
        for layer in network.encoder.shared_layers():
            _notice(layer, [[own[place[id(p)]] for p in layer.parameters()] for own in found])
        apply_gradients(optimizer)

    return plain, noticed, pass_per_task


def _notice(layer: Layer, found: Sequence[Sequence[Tensor]]) -> None:
    """Apply the rule to a layer's gradients, `found[task][parameter]`, each `(module, ...)`."""
    rows = [
        torch.stack([found[row % len(found)][n][module] for row, module in enumerate(layer.index)])
        for n in range(len(found[0]))
    ]
    same = same_module(layer).to(rows[0].device)
    held = held_rows(gram(layer, rows)[None], same[None], "any_pair")
    set_gradients(layer, rows, (~held[0]).to(rows[0].dtype))


def _duration(step: Step, seconds: float, device: str) -> float:
    """Mean seconds of a step, over about so many in all."""
    step()
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
