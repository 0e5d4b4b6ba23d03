"""Which tasks share which module, layer by layer: the structure that CoNAL derives.

Notation of Yue et al., "Learning Conflict-Noticed Architecture for Multi-Task Learning"
(AAAI 2023): an encoder is a chain of P - 1 modules and has the branch points 1..P. Layer indices
in Python are 0-based; branch points, messages and drawings count from 1, as the paper does.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conal_rl.core import drawing
from conal_rl.errors import TreeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = "conal_rl.tree"
VERSION = 1


@dataclass(frozen=True)
class Tree:
    """Tasks that share a prefix of their layers: a tree, or a forest if layer 1 is split already.

    Equal sharing means equal trees: the modules of each layer are numbered 0, 1, ... in the order
    in which the tasks first use them. `from_groups` and `from_labels` number them so.

    Raises:
        TreeError: no tasks or no layers, names that repeat, layers of unequal length, modules
            numbered otherwise, or two tasks that part and meet again in a deeper layer, which
            only a structure that is said to be `rejoining` may (Recon's, which is no tree).
    """

    tasks: tuple[str, ...]  # (task,) unique, printable names
    layers: tuple[tuple[int, ...], ...]  # (P - 1, task) the module that each task runs
    rejoining: bool = False

    def __post_init__(self) -> None:
        _check_names(self.tasks)
        if not self.layers:
            raise TreeError("a tree needs at least one layer")
        for number, layer in enumerate(self.layers, start=1):
            if len(layer) != len(self.tasks):
                raise TreeError(
                    f"layer {number} names a module for {len(layer)} tasks, not {len(self.tasks)}"
                )
            if layer != _canonical(layer):
                raise TreeError(f"layer {number}: modules are not numbered in order of first use")
        parted = _rejoined(self.layers)
        if parted and not self.rejoining:
            number, task, other = parted
            raise TreeError(
                f"{self.tasks[other]!r} and {self.tasks[task]!r} part in layer {number} "
                f"but share a module in layer {number + 1}"
            )
        if self.rejoining and not parted:
            raise TreeError("no tasks rejoin in this tree")

    @classmethod
    def from_labels(
        cls,
        tasks: Iterable[str],
        layers: Iterable[Iterable[Hashable]],
        may_rejoin: bool = False,
    ) -> Tree:
        """A tree from any labels, (P - 1, task): tasks of equal label in a layer share it."""
        numbered = tuple(_canonical(layer) for layer in layers)
        return cls(tuple(tasks), numbered, may_rejoin and _rejoined(numbered) is not None)

    @classmethod
    def from_groups(
        cls,
        tasks: Iterable[str],
        groups: Iterable[Iterable[Iterable[str]]],
        may_rejoin: bool = False,
    ) -> Tree:
        """A tree from the groups of task names that share a module, for each layer.

        Raises:
            TreeError: a layer lacks a task, has it twice, or names one that is not in `tasks`.
        """
        tasks = tuple(tasks)
        _check_names(tasks)
        layers = []
        for number, layer in enumerate(groups, start=1):
            module: dict[str, int] = {}
            for index, group in enumerate(layer):
                for name in group:
                    if name not in tasks:
                        raise TreeError(f"layer {number}: unknown task {name!r}")
                    if name in module:
                        raise TreeError(f"layer {number}: task {name!r} is there twice")
                    module[name] = index
            missing = [name for name in tasks if name not in module]
            if missing:
                raise TreeError(f"layer {number}: task {missing[0]!r} is missing")
            layers.append([module[name] for name in tasks])
        return cls.from_labels(tasks, layers, may_rejoin)

    @classmethod
    def from_branch_points(
        cls,
        points: Sequence[int] | Mapping[str, int],
        depth: int,
        tasks: Iterable[str] | None = None,
    ) -> Tree:
        """CoNAL's tree: a task runs the trunk in layers 1..p-1 and its own modules from p on.

        Args:
            points: the branch point of each task, 1 (nothing shared) to P = depth + 1 (all).
            depth: P - 1, the number of modules in the chain.
            tasks: names in order; default the mapping's keys, or "task-0", "task-1", ...

        Raises:
            TreeError: a point that is no integer in 1..P, or points and tasks that do not match.
        """
        if isinstance(points, Mapping):
            tasks = tuple(points if tasks is None else tasks)
            if set(tasks) != set(points):
                raise TreeError("branch points and tasks name different tasks")
            points = [points[name] for name in tasks]
        elif tasks is None:
            tasks = tuple(f"task-{i}" for i in range(len(points)))
        else:
            tasks = tuple(tasks)
        if len(points) != len(tasks):
            raise TreeError(f"{len(points)} branch points for {len(tasks)} tasks")
        try:
            points = [operator.index(point) for point in points]
        except TypeError as error:
            raise TreeError(f"branch points are integers: {error}") from error
        for name, point in zip(tasks, points):
            if not 1 <= point <= depth + 1:
                raise TreeError(f"task {name!r}: branch point {point} is not in 1..{depth + 1}")
        trunk = -1
        return cls.from_labels(
            tasks,
            (
                [trunk if layer < point else task for task, point in enumerate(points)]
                for layer in range(1, depth + 1)
            ),
        )

    @classmethod
    def shared(cls, tasks: Iterable[str], depth: int) -> Tree:
        """Hard parameter sharing (HPS): one trunk for all tasks."""
        tasks = tuple(tasks)
        return cls.from_branch_points([depth + 1] * len(tasks), depth, tasks)

    @classmethod
    def independent(cls, tasks: Iterable[str], depth: int) -> Tree:
        """Single-task learning (STL): nothing is shared."""
        tasks = tuple(tasks)
        return cls.from_branch_points([1] * len(tasks), depth, tasks)

    @property
    def depth(self) -> int:
        """The number of layers, P - 1."""
        return len(self.layers)

    @property
    def num_tasks(self) -> int:
        """How many tasks there are."""
        return len(self.tasks)

    @property
    def modules(self) -> tuple[int, ...]:
        """(P - 1,) the number of modules in each layer."""
        return tuple(max(layer) + 1 for layer in self.layers)

    def groups(self, layer: int) -> tuple[tuple[str, ...], ...]:
        """The names of the tasks that run each module of `layer` (0-based)."""
        members: list[list[str]] = [[] for _ in range(self.modules[layer])]
        for name, module in zip(self.tasks, self.layers[layer]):
            members[module].append(name)
        return tuple(tuple(names) for names in members)

    def parents(self, layer: int) -> tuple[int, ...]:
        """For each module of `layer` (0-based), the module of the previous layer that feeds it.

        In layer 0 every parent is 0, the input.

        Raises:
            TreeError: tasks rejoin, so that a module may have several parents.
        """
        if self.rejoining:
            raise TreeError("where tasks rejoin, a module has more parents than one")
        layer = range(self.depth)[layer]
        if layer == 0:
            return (0,) * self.modules[0]
        parent = dict(zip(self.layers[layer], self.layers[layer - 1]))
        return tuple(parent[module] for module in range(len(parent)))

    def branch_points(self) -> tuple[int, ...]:
        """(task,) the first layer, counted from 1, in which the task is alone; P if it never is.

        These are the points given to `from_branch_points`, except where one task has the largest
        point to itself: it is alone on the trunk once the last other task has left, so its point
        becomes the second largest. A single task is alone from the start: point 1.
        """
        return tuple(
            next(
                (
                    p
                    for p, layer in enumerate(self.layers, start=1)
                    if layer.count(layer[task]) == 1
                ),
                self.depth + 1,
            )
            for task in range(self.num_tasks)
        )

    def replicate(self, copies: int) -> Tree:
        """A forest of disjoint copies, as twin critics need: all tasks of copy 1, then of copy 2...

        Tasks are renamed "reach#1", "reach#2", ...; module j of copy c (from 0) in a layer of n
        modules is module c * n + j. One copy is the tree itself.
        """
        if copies < 1:
            raise TreeError(f"cannot make {copies} copies of a tree")
        if copies == 1:
            return self
        return Tree(
            tuple(f"{name}#{copy + 1}" for copy in range(copies) for name in self.tasks),
            tuple(
                tuple(copy * size + module for copy in range(copies) for module in layer)
                for size, layer in zip(self.modules, self.layers)
            ),
            self.rejoining,
        )

    def check(self, tasks: Iterable[str], depth: int) -> Tree:
        """This tree with its tasks in the order of `tasks`.

        Raises:
            TreeError: it is a tree of other tasks or of another depth.
        """
        tasks = tuple(tasks)
        _check_names(tasks)
        if unknown := [name for name in self.tasks if name not in tasks]:
            raise TreeError(f"the tree has a task {unknown[0]!r} that is not among the tasks here")
        if missing := [name for name in tasks if name not in self.tasks]:
            raise TreeError(f"the tree lacks the task {missing[0]!r}")
        if self.depth != depth:
            raise TreeError(f"the tree has {self.depth} layers, the network {depth}")
        rows = [self.tasks.index(name) for name in tasks]
        layers = ([layer[row] for row in rows] for layer in self.layers)
        return Tree.from_labels(tasks, layers, self.rejoining)

    def to_json(self) -> str:
        """The tree as JSON, one line per layer: the groups of tasks that share a module."""
        layers = ",\n".join(f"    {json.dumps(self.groups(p))}" for p in range(self.depth))
        rejoining = '  "rejoining": true,\n' if self.rejoining else ""
        return (
            f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION},\n'
            f'{rejoining}  "tasks": {json.dumps(self.tasks)},\n  "layers": [\n{layers}\n  ]\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str) -> Tree:
        """The tree that `to_json` wrote.

        Raises:
            TreeError: not JSON, another format or version, or not a valid tree.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TreeError(f"not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise TreeError(f'not a tree: "format" is not "{FORMAT}"')
        if data.get("version") != VERSION:
            raise TreeError(f"version {data.get('version')!r} of the format, not {VERSION}")
        tasks: Any = data.get("tasks")
        layers: Any = data.get("layers")
        if not _is_nested_list(tasks, 1):
            raise TreeError('"tasks" is not a list of names')
        if not _is_nested_list(layers, 3):
            raise TreeError('"layers" is not a list of layers, each a list of groups of names')
        return cls.from_groups(tasks, layers, data.get("rejoining") is True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to `path`, whole or not at all. Raises OSError if it cannot."""
        path = Path(path)
        part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            part.write_text(self.to_json(), encoding="utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tree:
        """The tree in the file `path`.

        Raises:
            TreeError: the file cannot be read or holds no valid tree; the message names it.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise TreeError(f"{path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise TreeError(f"{path}: not a text file") from None
        except TreeError as error:
            raise TreeError(f"{path}: {error}") from None

    def __str__(self) -> str:
        return drawing.text(self)

    def draw(self, ax: Axes | None = None, title: str | None = None) -> Axes:
        """Draws the tree with matplotlib; see `conal_rl.core.drawing.draw`."""
        return drawing.draw(self, ax, title)


def _canonical(labels: Iterable[Hashable]) -> tuple[int, ...]:
    number: dict[Hashable, int] = {}
    return tuple(number.setdefault(label, len(number)) for label in labels)


def _rejoined(layers: Sequence[Sequence[int]]) -> tuple[int, int, int] | None:
    """A layer, from 1, in which two tasks part that share a module in the next one, and they."""
    for number, (above, layer) in enumerate(pairwise(layers), start=1):
        first_user: dict[int, int] = {}
        for task, module in enumerate(layer):
            other = first_user.setdefault(module, task)
            if above[other] != above[task]:
                return number, task, other
    return None


def _check_names(tasks: Sequence[str]) -> None:
    if not tasks:
        raise TreeError("a tree needs at least one task")
    seen: set[str] = set()
    for name in tasks:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise TreeError(f"{name!r} is not a task name")
        if name in seen:
            raise TreeError(f"two tasks are named {name!r}")
        seen.add(name)


def _is_nested_list(value: Any, levels: int) -> bool:
    """Whether `value` is strings under exactly `levels` of lists."""
    if levels == 0:
        return isinstance(value, str)
    return isinstance(value, list) and all(_is_nested_list(item, levels - 1) for item in value)
