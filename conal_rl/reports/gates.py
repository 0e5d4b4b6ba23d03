"""The figure of a search's gates over time."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from conal_rl.reports.run_data import NETWORKS, ConflictRecord, Curve
from conal_rl.reports.seeds import title
from conal_rl.reports.style import COLOURS, INK, dress, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_gates(record: ConflictRecord) -> Figure:
    """Draw the weight of each option over the search, one small panel per choice.

    The actor's choices come first, then the critics'. The thick line is the option with the
    largest weight at the end. The tree is derived from it.

    Raises:
        ValueError: the run has logged no gates.
    """
    from matplotlib.figure import Figure

    if not record.gates:
        raise ValueError(f"{record.name}: got no curve of gates, expected at least one")
    choices = {n: _ordered(record, n) for n in NETWORKS if n in record.gates}
    largest = max(map(len, choices.values()))
    columns = math.ceil(largest / math.ceil(largest / (5 if largest <= 15 else 8)))  # equal rows
    rows = {network: math.ceil(len(names) / columns) for network, names in choices.items()}
    longest = max(len(name) for names in choices.values() for name in names)
    width = min(max(1.35, 0.055 * longest), 3.0)
    figure = Figure(
        figsize=(max(columns * width + 0.5, 3.5), 0.95 * sum(rows.values()) + 0.9),
        layout="constrained",
    )
    panels = figure.subplots(sum(rows.values()), columns, squeeze=False, sharex=True, sharey=True)
    options = sorted({o for n in record.gates.values() for c in n.values() for o in c})
    colours = dict(zip(options, _option_colours(record, len(options)), strict=True))
    top = 0
    for network, names in choices.items():
        block = panels[top : top + rows[network]]
        top += rows[network]
        for axes in block[:, 0]:
            axes.set_ylabel(NETWORKS[network], size=8, color=INK)
        for axes, name in zip(block.flat, names, strict=False):
            _draw_choice(axes, record.gates[network][name], colours)
            axes.set_title(name, size=6.5, color=INK, pad=2, parse_math=False)
        for axes in list(block.flat)[len(names) :]:
            axes.set_visible(False)
    for column in panels.T:
        visible = [axes for axes in column if axes.get_visible()]
        visible[-1].tick_params(labelbottom=True)
    figure.supxlabel(record.steps, size=8, color=INK)
    figure.supylabel("weight of the gate", size=8, color=INK)
    handles = [
        panels[0, 0].plot([], [], color=colours[o], lw=1.8, label=_option(record, o, options))[0]
        for o in options
    ]
    legend(figure, handles, title([record]))
    return figure


def _ordered(record: ConflictRecord, network: str) -> list[str]:
    """Sort the names of a network's choices by words and numbers, then tasks in the run's order."""
    order = {task: i for phase in record.phases for i, task in enumerate(phase.tasks)}

    def position(name: str) -> tuple[int, list[str]]:
        words = re.split(r"(\d+)", name)
        return order.get(name, -1), [word.zfill(9 * word.isdigit()) for word in words]

    return sorted(record.gates[network], key=position)


def _draw_choice(axes: Axes, options: dict[int, Curve], colours: dict[int, str]) -> None:
    end = max(curve.steps[-1] for curve in options.values())
    strongest = max(options, key=lambda o: (options[o].steps[-1] == end, options[o].values[-1]))
    for option, curve in sorted(options.items()):
        thick = option == strongest
        axes.plot(
            curve.steps,
            curve.values,
            color=colours[option],
            lw=1.8 if thick else 0.9,
            marker="o" if len(curve.steps) == 1 else None,  # a line needs two points
            ms=3,
            zorder=3 if thick else 2,
        )
    dress(axes, ticks=3)


def _option_colours(record: ConflictRecord, count: int) -> list[str]:
    """Return a scale from specific to shared for branch points, otherwise separate colours."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    palette = list(COLOURS.values())
    if _options_are(record) == "branch points" or count > len(palette):
        # Orange for specific and blue for shared, as in the drawings of trees.
        return [to_hex(colour) for colour in colormaps["plasma"](np.linspace(0.8, 0.05, count))]
    return [palette[option % len(palette)] for option in range(count)]


def _options_are(record: ConflictRecord) -> str:
    search = record.config.search
    if search.purely_specific and search.method in ("conal", "conal_pro"):
        return {"conal": "branch points", "conal_pro": "join or leave"}[search.method]
    return "modules"  # of a search with copies


def _option(record: ConflictRecord, option: int, options: Sequence[int]) -> str:
    options_are = _options_are(record)
    if options_are == "join or leave":
        return ("join", "leave")[option - 1]
    if options_are == "modules":
        return f"option {option}"
    ends = {options[0]: " (all specific)", options[-1]: " (all shared)"}
    return f"branch point {option}{ends.get(option, '')}"
