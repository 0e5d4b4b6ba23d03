"""Which tasks share which module, layer by layer: the structure that CoNAL derives.

Notation of Yue et al., "Learning Conflict-Noticed Architecture for Multi-Task Learning"
(AAAI 2023): an encoder is a chain of P - 1 modules and has the branch points 1..P. Layer indices
in Python count from 0. Branch points, messages and drawings count from 1, as in the paper.
"""

from __future__ import annotations

import json
import operator
import os
import textwrap
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from conal_rl.core import drawing
from conal_rl.errors import TreeError
from conal_rl.files import atomic_write, read_text, user_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMAT = "conal_rl.tree"
VERSION = 1
TEXT_WIDTH = 100  # columns of a tree as text


@dataclass(frozen=True)
class Tree:
    """Tasks that share a prefix of their layers: a tree, or a forest if layer 1 is split.

    Trees that share equally are equal: the modules of each layer are numbered 0, 1, ... in the
    order in which the tasks first use them. `from_groups` and `from_labels` number them so.

    Attributes:
        tasks: unique, printable names, `(task,)`.
        layers: the module that each task runs, `(P - 1, task)`.
        rejoining: whether two tasks part and share a module again in a deeper layer. Recon makes
            such structures; strictly they are not trees.

    Raises:
        TreeError: tasks or layers are missing, names repeat, layers have unequal lengths, modules
            are numbered differently, or `rejoining` is wrong.
    """

    tasks: tuple[str, ...]
    layers: tuple[tuple[int, ...], ...]
    rejoining: bool = False

    def __post_init__(self) -> None:
        _check_names(self.tasks)
        if not self.layers:
            raise TreeError("layers: got none, expected at least one")
        for number, layer in enumerate(self.layers, start=1):
            if len(layer) != len(self.tasks):
                raise TreeError(
                    f"layer {number}: got modules for {len(layer)} tasks, expected "
                    f"{len(self.tasks)}"
                )
            if layer != _canonical(layer):
                raise TreeError(
                    f"layer {number}: got modules {layer}, expected numbers in order of first use"
                )
        meeting = _first_meeting(self.layers)
        if meeting and not self.rejoining:
            number, task, other = meeting
            raise TreeError(
                f"layer {number}: got a module for {self.tasks[other]!r} and {self.tasks[task]!r}, "
                f"which part in layer {number - 1}, expected tasks that part never to share again"
            )
        if self.rejoining and not meeting:
            raise TreeError("rejoining: got true, expected false, because no tasks share again")

    @classmethod
    def from_labels(
        cls,
        tasks: Iterable[str],
        layers: Iterable[Iterable[Hashable]],
        may_rejoin: bool = False,
    ) -> Tree:
        """Return a tree from labels `(P - 1, task)`: tasks of equal label share a layer's module.

        Raises:
            TreeError: tasks part and share again, and `may_rejoin` is false.
        """
        numbered = tuple(_canonical(layer) for layer in layers)
        return cls(tuple(tasks), numbered, may_rejoin and _first_meeting(numbered) is not None)

    @classmethod
    def from_groups(
        cls,
        tasks: Iterable[str],
        groups: Iterable[Iterable[Iterable[str]]],
        may_rejoin: bool = False,
    ) -> Tree:
        """Return a tree from each layer's groups of task names that share a module.

        Raises:
            TreeError: a layer lacks a task, has it twice, or names a task that is not in `tasks`.
        """
        tasks = tuple(tasks)
        _check_names(tasks)
        layers = []
        for number, layer in enumerate(groups, start=1):
            module: dict[str, int] = {}
            for index, group in enumerate(layer):
                for name in group:
                    if name not in tasks:
                        raise TreeError(f"layer {number}: got {name!r}, expected only known tasks")
                    if name in module:
                        raise TreeError(f"layer {number}: got {name!r} twice, expected it once")
                    module[name] = index
            missing = [name for name in tasks if name not in module]
            if missing:
                raise TreeError(f"layer {number}: got no {missing[0]!r}, expected every task")
            layers.append([module[name] for name in tasks])
        return cls.from_labels(tasks, layers, may_rejoin)

    @classmethod
    def from_branch_points(
        cls,
        points: Sequence[int] | Mapping[str, int],
        depth: int,
        tasks: Iterable[str] | None = None,
    ) -> Tree:
        """Return CoNAL's tree: a task runs the trunk in layers 1..p-1 and its own modules from p.

        Args:
            points: the branch point of each task, 1 (nothing shared) to P = depth + 1 (all).
            depth: P - 1, the number of modules in the chain.
            tasks: names in order. The default is the mapping's keys, or "task-0", "task-1", ...

        Raises:
            TreeError: a point is not an integer in 1..P, or points and tasks do not match.
        """
        if isinstance(points, Mapping):
            tasks = tuple(points if tasks is None else tasks)
            if different := sorted({*tasks} ^ {*points}):
                raise TreeError(
                    f"points: got {different[0]!r} only in points or only in tasks, "
                    "expected the same names in both"
                )
            points = [points[name] for name in tasks]
        elif tasks is None:
            tasks = tuple(f"task-{i}" for i in range(len(points)))
        else:
            tasks = tuple(tasks)
        if len(points) != len(tasks):
            raise TreeError(f"points: got {len(points)}, expected {len(tasks)}, one per task")
        try:
            points = [operator.index(point) for point in points]
        except TypeError as error:
            raise TreeError(f"points: got no integer ({error}), expected integers") from error
        for name, point in zip(tasks, points):
            if not 1 <= point <= depth + 1:
                raise TreeError(f"points: got {point} for {name!r}, expected 1 to {depth + 1}")
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
        """The number of tasks."""
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
            TreeError: the tree is `rejoining`, so that a module may have several parents.
        """
        if self.rejoining:
            raise TreeError("rejoining: got true, expected false, or modules have several parents")
        layer = range(self.depth)[layer]
        if layer == 0:
            return (0,) * self.modules[0]
        parent = dict(zip(self.layers[layer], self.layers[layer - 1]))
        return tuple(parent[module] for module in range(len(parent)))

    def branch_points(self) -> tuple[int, ...]:
        """(task,) the first layer, from 1, whose module only the task runs; P if all are shared.

        These are the points given to `from_branch_points`, with one exception. If a single task has
        the largest point, only it runs the trunk after the last other task has left. Its point
        then becomes the second largest. A single task has point 1.
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
        """Return a forest of disjoint copies, for twin critics: the tasks of copy 1, then of 2.

        Tasks are renamed "reach#1", "reach#2", ...; module j of copy c (from 0) in a layer of n
        modules is module c * n + j. One copy is the tree itself.
        """
        if copies < 1:
            raise TreeError(f"copies: got {copies}, expected 1 or more")
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
        """Return this tree with its tasks in the order of `tasks`.

        Args:
            tasks: the tasks of a network.
            depth: the number of the network's layers.

        Raises:
            TreeError: the tree has different tasks or a different depth.
        """
        tasks = tuple(tasks)
        _check_names(tasks)
        if unknown := [name for name in self.tasks if name not in tasks]:
            raise TreeError(f"tasks: got {unknown[0]!r} in the tree, expected only known tasks")
        if missing := [name for name in tasks if name not in self.tasks]:
            raise TreeError(f"tasks: got no {missing[0]!r} in the tree, expected every task")
        if self.depth != depth:
            raise TreeError(
                f"layers: got {self.depth} in the tree, expected {depth} as in the network"
            )
        rows = [self.tasks.index(name) for name in tasks]
        layers = ([layer[row] for row in rows] for layer in self.layers)
        return Tree.from_labels(tasks, layers, self.rejoining)

    def to_json(self) -> str:
        """Return the tree as JSON, one line per layer: the groups of tasks that share a module."""
        layers = ",\n".join(f"    {json.dumps(self.groups(p))}" for p in range(self.depth))
        rejoining = '  "rejoining": true,\n' if self.rejoining else ""
        return (
            f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION},\n'
            f'{rejoining}  "tasks": {json.dumps(self.tasks)},\n  "layers": [\n{layers}\n  ]\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str) -> Tree:
        """Return the tree that `to_json` wrote.

        Raises:
            TreeError: the text is not JSON, has a different format or version, or is not a tree.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TreeError(f"text: got no JSON ({error}), expected a tree") from None
        if not isinstance(data, dict):
            raise TreeError(f"text: got a JSON {type(data).__name__}, expected an object")
        for field, expected in (("format", FORMAT), ("version", VERSION)):
            if data.get(field) != expected:
                raise TreeError(f"{field}: got {data.get(field)!r}, expected {expected!r}")
        tasks: Any = data.get("tasks")
        layers: Any = data.get("layers")
        if not _is_nested_list(tasks, 1):
            raise TreeError(f"tasks: got {tasks!r:.40}, expected a list of names")
        if not _is_nested_list(layers, 3):
            raise TreeError(
                f"layers: got {layers!r:.40}, expected lists of groups, each a list of names"
            )
        return cls.from_groups(tasks, layers, data.get("rejoining") is True)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` to `path`, all or nothing. Raises OSError if that fails."""
        atomic_write(user_path(path), self.to_json(), through=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tree:
        """Return the tree in the file `path`.

        Raises:
            TreeError: the file cannot be read or holds no valid tree. The message names the file.
        """
        try:
            return cls.from_json(read_text(user_path(path)))
        except OSError as error:
            reason = error.strerror or error
            raise TreeError(f"{path}: got {reason}, expected a tree. Check the path") from None
        except UnicodeDecodeError:
            raise TreeError(f"{path}: got no text file, expected JSON. Check the path") from None
        except TreeError as error:
            raise TreeError(f"{path}: {error}. Correct the file") from None

    def __str__(self) -> str:
        """Return the tree as text; layers with the same tasks are one line, leaves have the names.

        Tasks that leave the same module for their own modules are listed together.
        """
        tasks, layers = _count(self.num_tasks, "task"), _count(self.depth, "layer")
        header = f"{tasks}, {layers}, {_count(sum(self.modules), 'module')}"
        if self.rejoining:  # it has no branches to follow, so a line for every layer
            lines = [header]
            for p in range(self.depth):
                lines += _wrap(f"layer {p + 1}: {_sharing(self, p)}", "", "      ")
            return "\n".join(lines)
        return "\n".join([header, *_branches(self, tuple(range(self.num_tasks)), 0, "")])

    def draw(self, ax: Axes | None = None, title: str | None = None) -> Axes:
        """Draw the tree with matplotlib; see `conal_rl.core.drawing.draw`."""
        return drawing.draw(self.tasks, self.layers, ax, title)


def _canonical(labels: Iterable[Hashable]) -> tuple[int, ...]:
    number: dict[Hashable, int] = {}
    return tuple(number.setdefault(label, len(number)) for label in labels)


def _first_meeting(layers: Sequence[Sequence[int]]) -> tuple[int, int, int] | None:
    """Return the first layer (from 1) in which two tasks that parted share again, and the two."""
    for number, (above, layer) in enumerate(pairwise(layers), start=2):
        first_user: dict[int, int] = {}
        for task, module in enumerate(layer):
            other = first_user.setdefault(module, task)
            if above[other] != above[task]:
                return number, task, other
    return None


def _check_names(tasks: Sequence[str]) -> None:
    if not tasks:
        raise TreeError("tasks: got none, expected at least one")
    seen: set[str] = set()
    for name in tasks:
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise TreeError(f"tasks: got {name!r}, expected a printable name")
        if name in seen:
            raise TreeError(f"tasks: got {name!r} twice, expected unique names")
        seen.add(name)


def _is_nested_list(value: Any, levels: int) -> bool:
    """Return whether `value` is strings in exactly `levels` nested lists."""
    if levels == 0:
        return isinstance(value, str)
    return isinstance(value, list) and all(_is_nested_list(item, levels - 1) for item in value)


def _branches(tree: Tree, tasks: tuple[int, ...], start: int, indent: str) -> Iterator[str]:
    members: dict[int, list[int]] = {}
    for task in tasks:
        members.setdefault(tree.layers[start][task], []).append(task)
    shared = [tuple(group) for group in members.values() if len(group) > 1]
    single = tuple(group[0] for group in members.values() if len(group) == 1)

    for group in [*shared, *([single] if single else [])]:
        end = tree.depth
        if group is not single:
            while len({tree.layers[end - 1][task] for task in group}) > 1:
                end -= 1
        layers = f"layer {end}" if end == start + 1 else f"layers {start + 1}-{end}"
        what = f"{layers} {'separate: ' if group is single else 'shared by '}"
        last = group is single or (group is shared[-1] and not single)
        below = indent + ("   " if last else "│  ")
        if end < tree.depth:
            names = _count(len(group), "task")
        else:
            names = ", ".join(tree.tasks[task] for task in group)
        yield from _wrap(what + names, indent + ("└─ " if last else "├─ "), below + "   ")
        if end < tree.depth:
            yield from _branches(tree, group, end, below)


def _sharing(tree: Tree, layer: int) -> str:
    groups = tree.groups(layer)
    single = [group[0] for group in groups if len(group) == 1]
    parts = [f"shared by {', '.join(group)}" for group in groups if len(group) > 1]
    if single:
        parts.append(f"separate: {', '.join(single)}")
    return "; ".join(parts)


def _wrap(line: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        line,
        TEXT_WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
