"""Pictures of trees, with matplotlib, for papers and reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, distinct under every common colour blindness.
SHARED_BY_ALL, SHARED_BY_SOME, OWN = "#0072B2", "#009E73", "#E69F00"
LEGEND = {SHARED_BY_ALL: "shared by all", SHARED_BY_SOME: "shared by some", OWN: "one task's own"}
INK, HEAD = "#333333", "#999999"


def draw(
    tasks: Sequence[str],
    layers: Sequence[Sequence[int]],
    ax: Axes | None = None,
    title: str | None = None,
) -> Axes:
    """Draw a tree, with layers from left to right and task names at the leaves.

    A node is a module. Its size, its number and the width of its edge show how many tasks run it.
    The thin grey edges at the end are the heads. All sizes fit the size that `ax` has now.

    Args:
        tasks, layers: see `Tree`: the names, and the module that each task runs in each layer.
        ax: the axes to draw on. None: a new figure of a fitting size. It is not in pyplot's list of
            open figures (`tree.draw().figure.savefig("tree.pdf")`).
        title: the line above the tree.
    """
    if ax is None:
        ax = _fitting_axes(tasks, len(layers))
    # Tasks that share more modules are closer together, so that no edges cross.
    order = sorted(range(len(tasks)), key=lambda task: [layer[task] for layer in layers])
    row = {task: y for y, task in enumerate(order)}
    ax.set_ylim(len(tasks) - 0.4, -0.6)
    row_height, column_width = _label_tasks(ax, tasks, len(layers), row)
    for node in _nodes(layers, row):
        size = len(node.tasks)
        colour = _colour(size, len(tasks))
        diameter = min(
            7 + 13 * sqrt((size - 1) / len(tasks)), 0.7 * row_height * size, 0.6 * column_width
        )
        for parent_y, shared in node.parents:
            width = min(1 + 7 * shared / len(tasks), 0.5 * diameter)
            _edge(ax, (node.x - 1, parent_y), (node.x, node.y), colour, width)
        if node.x == len(layers) - 1:
            for task in node.tasks:
                _edge(ax, (node.x, node.y), (node.x + 0.5, row[task]), HEAD, 1)
        ax.scatter(node.x, node.y, s=diameter**2, color=colour, linewidths=0, zorder=2)
        if size > 1:
            ax.text(
                node.x,
                node.y,
                str(size),
                size=min(8.0, 0.6 * diameter),
                color="white",
                ha="center",
                va="center_baseline",
            )
    _dress(ax, layers, title)
    return ax


class _Node(NamedTuple):
    x: int  # its layer, from 0
    y: float  # the mean of its tasks' rows
    tasks: list[int]
    parents: list[tuple[float, int]]  # y, and the number of tasks from there


def _nodes(layers: Sequence[Sequence[int]], row: dict[int, int]) -> Iterator[_Node]:
    """Yield every module, layer by layer; a module has several parents only if tasks rejoin."""
    above: list[float] = []  # the y of each module in the layer before
    for x, layer in enumerate(layers):
        centres = []
        for module in range(max(layer) + 1):
            tasks = [task for task, used in enumerate(layer) if used == module]
            y = sum(row[task] for task in tasks) / len(tasks)
            counts = Counter(layers[x - 1][task] for task in tasks) if x > 0 else {}
            yield _Node(x, y, tasks, [(above[parent], n) for parent, n in counts.items()])
            centres.append(y)
        above = centres


def _edge(
    ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, width: float
) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    bend = (start[0] + end[0]) / 2
    path = Path(
        [start, (bend, start[1]), (bend, end[1]), end],
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


def _fitting_axes(tasks: Sequence[str], depth: int) -> Axes:
    from matplotlib.figure import Figure

    height = max(0.19 * len(tasks), 0.6)  # inches of the rows only
    width = 0.9 * depth + 0.5 + 0.075 * max(len(name) for name in tasks)
    width = max(width, 3.6)
    above, below = 0.6, 0.35
    figure = Figure(figsize=(width + 0.2, above + height + below))
    total = figure.get_figheight()
    return figure.add_axes(
        (0.1 / (width + 0.2), below / total, width / (width + 0.2), height / total)
    )


def _label_tasks(
    ax: Axes, tasks: Sequence[str], depth: int, row: dict[int, int]
) -> tuple[float, float]:
    """Write the names, leave room for them next to the layers' columns, and set the x limits.

    Returns:
        The height of a row and the width of a column, in points.
    """
    left, start = -0.4, depth - 0.45  # of the columns and of the names, in layers
    box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
    width, row_height = 72 * box.width, 72 * box.height / len(tasks)
    size = min(9.0, 0.75 * row_height)
    names = [
        ax.text(start, y, tasks[i], size=size, color=INK, va="center", parse_math=False)
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


def _dress(ax: Axes, layers: Sequence[Sequence[int]], title: str | None) -> None:
    ax.xaxis.tick_top()
    ax.set_xticks(
        range(len(layers)), ["layer 1", *map(str, range(2, len(layers) + 1))], color=INK, size=9
    )
    ax.set_yticks([])
    ax.tick_params(length=0)
    ax.set_frame_on(False)
    if title:
        ax.set_title(title, size=10, color=INK, loc="left", pad=10, parse_math=False)
    used = {_colour(count, len(layer)) for layer in layers for count in Counter(layer).values()}
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


def _colour(size: int, num_tasks: int) -> str:
    if size == 1:
        return OWN
    return SHARED_BY_ALL if size == num_tasks else SHARED_BY_SOME
