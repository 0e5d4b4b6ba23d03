"""CoNAL-Pro (figure 1c): a search in stages for many tasks, from the last branch point up.

In stage `s` every task that is not settled yet has two gates. It joins the others on modules from
point `p = P - s + 1` on, or it leaves one module earlier into purely-specific modules `p-1..P-1`.
In stage 1 tasks join the trunk itself; in later stages they join a new joint branch. Tasks that
join are settled: they are the group of point `p`. The stage of point 2 is the last: each task that
leaves in it has a whole encoder. With P = 4 and three modules:

    module                   1         2         3
    stage 1, p = 4   join    trunk     trunk     trunk
                     leave   trunk     trunk     specific
    stage 2, p = 3   join    trunk     trunk     joint
                     leave   trunk     specific  specific
    stage 3, p = 2   join    trunk     joint     joint
                     leave   specific  specific  specific

A stage holds the trunk, the branches of settled groups, one joint branch, and specific branches
that are a module longer in each stage. Only the last stage holds whole encoders, for the tasks that
no earlier stage has settled. The paper leaves open how a stage begins. Here (ours) its joint and
specific modules are new, so that neither has a lead. The trunk, settled branches and heads keep
their weights.

Source: Yue, Zhang, Liang, "Learning Conflict-Noticed Architecture for Multi-Task Learning", AAAI
2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from conal_rl.core.layers import Layer, LayerFactory, LayerList
from conal_rl.core.search_network import SearchNetwork
from conal_rl.core.tree import Tree
from conal_rl.core.tree_network import TreeNetwork, copy_layers

JOIN, LEAVE = 0, 1  # the two gates


@dataclass(frozen=True)
class ConalProStage:
    """A stage of CoNAL-Pro, and the points that earlier stages have settled.

    Attributes:
        number: number of the stage, from 1.
        settled: the branch point of each task's group; None if the task is not settled yet.

    Raises:
        ValueError: the number is below 1, or all tasks are settled.
    """

    number: int
    settled: tuple[int | None, ...]
    method: ClassVar[str] = "conal_pro"

    def __post_init__(self) -> None:
        if self.number < 1:
            raise ValueError(f"number: got {self.number}, expected 1 or more")
        if None not in self.settled:
            raise ValueError(f"settled: got {self.settled}, expected None for at least one task")

    @classmethod
    def first(cls, tasks: int) -> ConalProStage:
        """The stage that begins a search."""
        return cls(1, (None,) * tasks)

    def network(
        self, tasks: Sequence[str], chain: Sequence[LayerFactory], replicas: int = 1
    ) -> StageNetwork:
        """The network of the stage, over a chain of modules."""
        return StageNetwork(tasks, chain, self, replicas)


class StageNetwork(SearchNetwork):
    """One stage: every task's shared path, and the unsettled tasks' specific paths.

    Attributes:
        gates: `(unsettled task, 2)`: join, leave.
        point: the branch point `p` that the stage decides on.
        Others: see `SearchNetwork`.

    Raises:
        ValueError: the stage does not fit the tasks or the chain's length.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        chain: Sequence[LayerFactory],
        stage: ConalProStage,
        replicas: int = 1,
    ):
        last = len(chain) + 1
        point = last + 1 - stage.number
        if point < 2:
            raise ValueError(
                f"number: got stage {stage.number}, expected at most {len(chain)}, one per module"
            )
        if len(stage.settled) != len(tasks):
            raise ValueError(
                f"settled: got {len(stage.settled)} points, expected {len(tasks)}, one per task"
            )
        if not all(p is None or point < p <= last for p in stage.settled):
            raise ValueError(
                f"settled: got {stage.settled}, expected None or points {point + 1} to {last}"
            )
        unsettled = [i for i, p in enumerate(stage.settled) if p is None]
        super().__init__(tasks, chain, [tasks[i] for i in unsettled], 2, replicas)
        self.stage, self.point, self._open = stage, point, unsettled
        joined = self._tree(dict.fromkeys(self._open, self.point))
        self.joint = TreeNetwork(joined.replicate(replicas), chain)
        specific_rows = tuple(range(replicas * len(self._open)))
        self.specific = LayerList(make(specific_rows) for make in chain[self.point - 2 :])
        rows = [r * len(tasks) + i for r in range(replicas) for i in self._open]
        self.register_buffer("open_rows", torch.tensor(rows), persistent=False)

    open_rows: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Encode `(row, batch, ...)` (or `(1, batch, ...)`, one input for all) to the same rows."""
        rows = self._rows(x)
        joined, leaving = x, x  # the paths of all rows, and of the unsettled rows
        for depth, layer in enumerate(self.joint.layers):
            if layer.count > 1:  # before, the trunk runs once on one input for all
                joined = joined.expand(rows, *joined.shape[1:])
            if depth == self.point - 2:
                leaving = joined.expand(rows, *joined.shape[1:])[self.open_rows]
            if depth >= self.point - 2:
                leaving = self.specific[depth - self.point + 2](leaving)
            joined = layer(joined)
        joined = joined.expand(rows, *joined.shape[1:])
        # (unsettled row, 2, 1, ...): a row has one gate weight.
        gates = self.gate_weights().repeat(self.replicas, 1).view(-1, 2, *[1] * (joined.ndim - 1))
        mixed = gates[:, JOIN] * joined[self.open_rows] + gates[:, LEAVE] * leaving
        return joined.index_copy(0, self.open_rows, mixed.to(joined.dtype))

    def specific_weights(self) -> list[nn.Parameter]:
        """The parameters of the tasks' own modules."""
        return list(self.specific.parameters())

    def shared_layers(self) -> list[Layer]:
        """The layers with modules that several tasks run, from input to output."""
        return self.joint.shared_layers() if len(self.tasks) > 1 else []

    def tree(self) -> Tree:
        """The tree of the strongest gates, if this stage were the last."""
        return self._tree(self._decided())

    def next_stage(self) -> ConalProStage | None:
        """The next stage; None if the strongest gates settle all tasks, or at point 2.

        Raises:
            ValueError: a gate is NaN or infinite.
        """
        settled = list(self.stage.settled)
        for task, point in self._decided().items():
            if point == self.point:
                settled[task] = point
        if self.point == 2 or None not in settled:
            return None
        return ConalProStage(self.stage.number + 1, tuple(settled))

    def modules_of(self, layer: int) -> list[tuple[Layer, int]]:
        """See `SearchNetwork`."""
        joint = self.joint.layers[layer]
        modules = [(joint, module) for module in joint.index]
        if layer >= self.point - 2:
            specific = self.specific[layer - self.point + 2]
            leaving = [gate == LEAVE for gate in self.strongest()] * self.replicas
            for module, row in enumerate(self.open_rows.tolist()):
                if leaving[module]:
                    modules[row] = (specific, module)
        return modules

    @torch.no_grad()
    def inherit_from(self, before: StageNetwork) -> None:
        """Copy the trunk and the settled groups' branches from the stage before."""
        for depth, (mine, theirs) in enumerate(
            zip(self.joint.layers, before.joint.layers, strict=True)
        ):
            for row, module in enumerate(mine.index):
                settled = self.stage.settled[row % len(self.tasks)] is not None
                if settled or depth + 1 < self.point:
                    mine.copy_module(module, theirs, theirs.index[row])

    def _decided(self) -> dict[int, int]:
        """The branch point of each unsettled task by its strongest gate."""
        return {
            task: self.point if gate == JOIN else self.point - 1
            for task, gate in zip(self._open, self.strongest(), strict=True)
        }

    def _tree(self, points: dict[int, int]) -> Tree:
        """The tree of settled groups at their points and the other tasks at `points`.

        Tasks at this stage's point are together. Tasks at an earlier point have their own modules.
        """

        def label(task: int, settled: int | None, layer: int) -> tuple[str, int]:
            point = points[task] if settled is None else settled
            if layer < point:
                return "trunk", 0
            return ("task", task) if point < self.point else ("group", point)

        return Tree.from_labels(
            self.tasks,
            (
                [label(task, settled, layer) for task, settled in enumerate(self.stage.settled)]
                for layer in range(1, len(self._chain) + 1)
            ),
        )


def inherit_weights(
    after: TreeNetwork | SearchNetwork, before: TreeNetwork | SearchNetwork
) -> None:
    """Copy weights into an encoder from the encoder before it in a run.

    From a stage of CoNAL-Pro to the next, the trunk and the settled branches are copied. From a
    search or a tree to a tree, all modules are copied; rows that share a module must have shared
    one before.

    Args:
        after: the encoder that gets the weights.
        before: the encoder that they come from; it is unchanged.
    """
    if isinstance(before, StageNetwork) and isinstance(after, StageNetwork):
        after.inherit_from(before)
        return
    assert isinstance(after, TreeNetwork)
    learnt = before.derive() if isinstance(before, SearchNetwork) else before
    copy_layers(after, [[(layer, module) for module in layer.index] for layer in learnt.layers])
