"""Pictures of a `Tree`: in text for logs and terminals, with matplotlib for papers."""

from __future__ import annotations

import textwrap
from collections import Counter
from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes

    from conal_rl.core.tree import Tree

COLUMNS = 100  # width of the text drawing

# Okabe and Ito's colours, distinct under every common colour blindness.
SHARED_BY_ALL, SHARED_BY_SOME, OWN = "#0072B2", "#009E73", "#E69F00"
LEGEND = {SHARED_BY_ALL: "shared by all", SHARED_BY_SOME: "shared by some", OWN: "one task's own"}
INK, HEAD = "#333333", "#999999"


def text(tree: Tree) -> str:
    """The tree as lines: a run of layers with the same tasks is one line, names are at the leaves.

    Tasks that leave the same module to be alone are listed together.
    """
    tasks, layers = _count(tree.num_tasks, "task"), _count(tree.depth, "layer")
    header = f"{tasks}, {layers}, {_count(sum(tree.modules), 'module')}"
    if tree.rejoining:  # no branches to follow: a line for every layer
        lines = [header]
        for p in range(tree.depth):
            lines += _wrap(f"layer {p + 1}: {_shares(tree, p)}", "", "      ")
        return "\n".join(lines)
    return "\n".join([header, *_branches(tree, tuple(range(tree.num_tasks)), 0, "")])


def _branches(tree: Tree, tasks: tuple[int, ...], start: int, indent: str) -> Iterator[str]:
    members: dict[int, list[int]] = {}
    for task in tasks:
        members.setdefault(tree.layers[start][task], []).append(task)
    shared = [tuple(group) for group in members.values() if len(group) > 1]
    alone = tuple(group[0] for group in members.values() if len(group) == 1)

    for group in [*shared, *([alone] if alone else [])]:
        end = tree.depth
        if group is not alone:
            while len({tree.layers[end - 1][task] for task in group}) > 1:
                end -= 1
        layers = f"layer {end}" if end == start + 1 else f"layers {start + 1}-{end}"
        if group is alone:
            what = f"{layers} {'each ' if len(alone) > 1 else ''}alone: "
        else:
            what = f"{layers} shared by "
        last = group is alone or (group is shared[-1] and not alone)
        below = indent + ("   " if last else "│  ")
        if end < tree.depth:
            names = _count(len(group), "task")
        else:
            names = ", ".join(tree.tasks[task] for task in group)
        yield from _wrap(what + names, indent + ("└─ " if last else "├─ "), below + "   ")
        if end < tree.depth:
            yield from _branches(tree, group, end, below)


def _shares(tree: Tree, layer: int) -> str:
    groups = tree.groups(layer)
    alone = [group[0] for group in groups if len(group) == 1]
    shared = [f"shared by {', '.join(group)}" for group in groups if len(group) > 1]
    own = [f"{'each ' if len(alone) > 1 else ''}alone: {', '.join(alone)}"] if alone else []
    return "; ".join([*shared, *own])


def _wrap(line: str, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        line,
        COLUMNS,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def draw(tree: Tree, ax: Axes | None = None, title: str | None = None) -> Axes:
    """Draws the tree, layers from left to right, task names at the leaves.

    A node is a module: its size and number, like the width of the edge into it, tell how many
    tasks run it. The thin grey edges at the end are the heads. Everything is scaled to the size
    that `ax` has when this is called.

    Args:
        tree: what to draw.
        ax: where to draw; None makes a figure of a fitting size, kept out of pyplot's list of
            open figures (`tree.draw().figure.savefig("tree.pdf")`).
        title: a line above the tree.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if ax is None:
        ax = _fitting_axes(tree)
    # Tasks that share more modules stand closer together, so that no edges cross.
    order = sorted(range(tree.num_tasks), key=lambda task: [layer[task] for layer in tree.layers])
    row = {task: y for y, task in enumerate(order)}
    members = [
        [[i for i, used in enumerate(layer) if used == module] for module in range(size)]
        for layer, size in zip(tree.layers, tree.modules)
    ]
    centre = [[sum(row[i] for i in group) / len(group) for group in layer] for layer in members]

    ax.set_ylim(tree.num_tasks - 0.4, -0.6)
    row_height, column_width = _label_tasks(ax, tree, row)

    def edge(x: float, y: float, to_x: float, to_y: float, colour: str, width: float) -> None:
        bend = (x + to_x) / 2
        path = Path(
            [(x, y), (bend, y), (bend, to_y), (to_x, to_y)],
            [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
        )
        ax.add_patch(
            PathPatch(
                path,
                facecolor="none",
                edgecolor=colour,
                alpha=0.5,
                linewidth=width,
                capstyle="butt",
                zorder=1,
            )
        )

    for p, layer in enumerate(members):
        for module, group in enumerate(layer):
            y, tasks = centre[p][module], len(group)
            colour = _colour(tree, tasks)
            diameter = min(
                7 + 13 * sqrt((tasks - 1) / tree.num_tasks),
                0.7 * row_height * tasks,
                0.6 * column_width,
            )
            above = Counter(tree.layers[p - 1][task] for task in group) if p > 0 else {}
            for parent, count in above.items():  # more than one only where tasks rejoin
                width = min(1 + 7 * count / tree.num_tasks, 0.5 * diameter)
                edge(p - 1, centre[p - 1][parent], p, y, colour, width)
            if p == tree.depth - 1:
                for task in group:
                    edge(p, y, p + 0.5, row[task], HEAD, 1)
            ax.scatter(p, y, s=diameter**2, color=colour, linewidths=0, zorder=2)
            if tasks > 1:
                size = min(8.0, 0.6 * diameter)
                ax.text(
                    p, y, str(tasks), size=size, color="white", ha="center", va="center_baseline"
                )

    _dress(ax, tree, title)
    return ax


def _fitting_axes(tree: Tree) -> Axes:
    from matplotlib.figure import Figure

    height = max(0.19 * tree.num_tasks, 0.6)  # inches, of the rows alone
    width = 0.9 * tree.depth + 0.5 + 0.075 * max(len(name) for name in tree.tasks)
    width = max(width, 3.6)
    above, below = 0.6, 0.35
    figure = Figure(figsize=(width + 0.2, above + height + below))
    total = figure.get_figheight()
    return figure.add_axes(
        (0.1 / (width + 0.2), below / total, width / (width + 0.2), height / total)
    )


def _label_tasks(ax: Axes, tree: Tree, row: dict[int, int]) -> tuple[float, float]:
    """Writes the names and leaves room for them beside the layers' columns.

    Returns the height of a row and the width of a column in points.
    """
    left, start = -0.4, tree.depth - 0.45  # of the columns, of the names, in layers
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    width, row_height = 72 * box.width, 72 * box.height / tree.num_tasks
    size = min(9.0, 0.75 * row_height)
    names = [
        ax.text(start, y, tree.tasks[i], size=size, color=INK, va="center", parse_math=False)
        for i, y in row.items()
    ]
    ax_pixels = ax.get_window_extent().width
    longest = max(name.get_window_extent().width for name in names) / ax_pixels
    if longest > 0.6:
        for name in names:
            name.set_fontsize(size * 0.6 / longest)
        longest = 0.6
    column_width = (1 - longest) * width / (start - left)
    ax.set_xlim(left, left + width / column_width)
    return row_height, column_width


def _dress(ax: Axes, tree: Tree, title: str | None) -> None:
    ax.xaxis.tick_top()
    ax.set_xticks(
        range(tree.depth), ["layer 1", *map(str, range(2, tree.depth + 1))], color=INK, size=9
    )
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.set_frame_on(False)
    if title:
        ax.set_title(title, size=10, color=INK, loc="left", pad=10, parse_math=False)
    used = {_colour(tree, layer.count(module)) for layer in tree.layers for module in layer}
    handles = [
        ax.plot([], [], "o", color=colour, markersize=6, label=label)[0]
        for colour, label in LEGEND.items()
        if colour in used
    ]
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0, 0),
        ncols=3,
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        handletextpad=0,
        columnspacing=1,
        borderaxespad=0.2,
    )


def _colour(tree: Tree, tasks: int) -> str:
    if tasks == 1:
        return OWN
    return SHARED_BY_ALL if tasks == tree.num_tasks else SHARED_BY_SOME
