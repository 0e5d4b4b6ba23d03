"""How often the tasks' gradients conflict during training, and which tasks do: figures, a table.

Yue, Zhang, Liang (AAAI 2023) motivate CoNAL with the share of negative cosines between the
gradients of two tasks on their shared modules. `draw_conflicts` draws this share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from conal_rl.reports.run_data import NETWORKS, Array, ConflictRecord, Curve, Phase, mean_over_pairs
from conal_rl.reports.seeds import Line, draw_band, lines, styles, title
from conal_rl.reports.style import FAINT, INK, SEARCH_ENDS, dress, legend, name_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NO_PAIR = "#E4E4E4"
_SMALL = 12  # the largest number of tasks for which a heat map's cells have room for a number


# Conflicts over training


def draw_conflicts(records: Sequence[ConflictRecord]) -> Figure:
    """Draw the share of negative cosines during training, one panel per network and shared layer.

    Runs that differ only in their seeds become one line: their mean, in a band from lowest to
    highest. At each step, only the runs that have reached this step count. The grey line is the
    share that pure noise would have.

    Raises:
        ValueError: no run has such a curve.
    """
    from matplotlib.figure import Figure

    drawn = lines([record for record in records if record.negative])
    if not drawn:
        raise ValueError("records: got no curve of conflicts, expected at least one")
    layers = {
        network: sorted({layer for r in records for layer in r.negative.get(network, {})})
        for network in NETWORKS
    }
    networks = [network for network in NETWORKS if layers[network]]
    columns = max(map(len, layers.values()))
    figure = Figure(figsize=(2.2 * max(columns, 2) + 0.5, 1.75 * len(networks) + 0.6))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(len(networks), columns, squeeze=False, sharey=True)
    line_styles = styles(drawn)
    for row, network in zip(panels, networks, strict=True):
        for axes in row[len(layers[network]) :]:
            axes.set_visible(False)
        for axes, layer in zip(row, layers[network], strict=False):
            _draw_shares(axes, [_curves(line, network, layer) for line in drawn], line_styles)
            axes.set_title(f"{NETWORKS[network]}, layer {layer}", size=8, color=INK)
    shares = [c.values for r in records for n in r.negative.values() for c in n.values()]
    low, high = (20 * edge(0.5, *map(edge, shares)) for edge in (min, max))
    low, high = math.floor(low - 0.2) / 20, math.ceil(high + 0.2) / 20
    panels[0, 0].set_ylim(max(low, -0.02), min(high, 1.02))
    figure.supxlabel(" or ".join(sorted({record.steps for record in records})), size=8, color=INK)
    figure.supylabel("share of negative cosines", size=8, color=INK)
    handles = [
        panels[0, 0].plot([], [], **style, label=line.label)[0]
        for line, style in zip(drawn, line_styles, strict=True)
    ]
    handles += panels[0, 0].plot([], [], color=FAINT, lw=0.8, label="pure noise")
    if _end_searches(panels.flat, drawn, line_styles):
        handles += panels[0, 0].plot([], [], **SEARCH_ENDS, color=FAINT, label="end of search")
    legend(figure, handles, title([record for line in drawn for record in line.runs]))
    return figure


def _curves(line: Line[ConflictRecord], network: str, layer: int) -> list[Curve]:
    curves = [record.negative.get(network, {}).get(layer) for record in line.runs]
    return [curve for curve in curves if curve is not None]


def _draw_shares(
    axes: Axes, curves_of_lines: Sequence[list[Curve]], styles: Sequence[dict[str, Any]]
) -> None:
    axes.axhline(0.5, color=FAINT, lw=0.8, zorder=1)
    for curves, style in zip(curves_of_lines, styles, strict=True):
        if curves:
            draw_band(axes, curves, style)
    dress(axes, ticks=5)


def _end_searches(
    panels: Iterable[Axes],
    drawn: Sequence[Line[ConflictRecord]],
    line_styles: Sequence[dict[str, Any]],
) -> bool:
    """Mark the end of each search whose run then counted conflicts in the derived tree.

    Returns whether there is such a search.
    """
    ends = {
        (record.searched, style["color"])
        for line, style in zip(drawn, line_styles, strict=True)
        for record in line.runs
        if record.searched is not None and record.searched < _last_step(record)
    }
    for axes in panels:
        for step, colour in ends:
            axes.axvline(step, **SEARCH_ENDS, color=colour)
    return bool(ends)


def _last_step(record: ConflictRecord) -> float:
    return max(c.steps[-1] for layers in record.negative.values() for c in layers.values())


# Cosines of pairs


def draw_cosines(record: ConflictRecord, phase: Phase) -> Figure:
    """Draw heat maps of the tasks' mean cosines, one row per network, one column per shared layer.

    Red pairs conflict. With at most 12 tasks, the number in a cell is the percentage of steps with
    a negative cosine. A cell is grey if the two tasks share no module in this layer.

    Raises:
        ValueError: the phase has no statistics.
    """
    from matplotlib.figure import Figure

    networks = [n for n, statistics in phase.networks.items() if len(statistics.cosine)]
    if not networks:
        raise ValueError(
            f"phase: got {record.name}'s {phase.name} without statistics, expected some"
        )
    columns = max(len(phase.networks[network].cosine) for network in networks)
    tasks = len(phase.tasks)
    side = tasks * max(0.11, min(0.27, 4.5 / tasks), 1.2 / tasks)  # of a map, in inches
    names = 0.065 * max(map(len, phase.tasks))
    size = (columns * (side + 0.15) + names + 1.0, len(networks) * (side + 0.35) + names + 0.7)
    figure = Figure(figsize=size, layout="compressed")
    panels = figure.subplots(len(networks), columns, squeeze=False)
    everything = np.concatenate([phase.networks[n].cosine.ravel() for n in networks])
    limit = max(np.nanmax(np.abs(everything)), 1e-3) if np.isfinite(everything).any() else 1.0
    for row, network in zip(panels, networks, strict=True):
        statistics = phase.networks[network]
        for axes in row[len(statistics.cosine) :]:
            axes.set_visible(False)
        for layer, (axes, cosine) in enumerate(zip(row, statistics.cosine, strict=False)):
            _draw_map(axes, cosine, statistics.negative[layer], limit)
            axes.set_title(
                f"{NETWORKS[network]}, layer {statistics.layers[layer]}", size=8, color=INK
            )
    _name_tasks(panels, phase.tasks)
    first_image = panels[0, 0].images[0]
    bar = figure.colorbar(first_image, ax=list(panels.flat), shrink=0.6, aspect=25, pad=0.02)
    bar.set_label("mean cosine of two tasks' gradients", size=8, color=INK)
    bar.ax.tick_params(labelsize=7, labelcolor=INK, color=FAINT)
    bar.outline.set_visible(False)
    text = f"{title([record])}, {phase.name}, up to {phase.steps:,} {record.steps}"
    if tasks <= _SMALL:
        text += "\nnumbers: share of negative cosines, in percent"
    if np.isnan(everything).sum() > tasks * sum(len(phase.networks[n].cosine) for n in networks):
        text += "\ngrey: the two tasks share no module"
    name_figure(figure, text)
    return figure


def _draw_map(axes: Axes, cosine: Array, negative: Array, limit: float) -> None:
    from matplotlib import colormaps

    colours = colormaps["RdBu"].with_extremes(bad=_NO_PAIR)
    axes.imshow(np.ma.masked_invalid(cosine), cmap=colours, vmin=-limit, vmax=limit)
    axes.set_frame_on(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.set_yticks([])
    if len(cosine) > _SMALL:
        return
    for i, j in np.argwhere(np.isfinite(negative)):
        dark = abs(cosine[i, j]) > 0.6 * limit
        axes.text(
            j,
            i,
            f"{100 * negative[i, j]:.0f}",
            size=6.5,
            color="white" if dark else INK,
            ha="center",
            va="center_baseline",
        )


def _name_tasks(panels: NDArray[Any], tasks: Sequence[str]) -> None:
    """Write the tasks' names left of each row's first map and below each column's last map."""
    size = 7.5 if len(tasks) <= 30 else 6
    style: dict[str, Any] = {"size": size, "color": INK, "parse_math": False}
    for row in panels:
        row[0].set_yticks(range(len(tasks)), tasks, **style)
    for column in panels.T:
        lowest = [axes for axes in column if axes.get_visible()][-1]
        for number, task in enumerate(tasks):
            name = lowest.annotate(
                task,
                (number, len(tasks) - 0.5),
                (0, -3),
                textcoords="offset points",
                rotation=90,
                ha="center",
                va="top",
                **style,
            )
            # If the map below is missing, the names fill its place and need no extra room.
            name.set_in_layout(lowest is column[-1])


# The table


_RULES_CAPTION = (
    "A rule's column is the share of steps in which it holds the layer's shared module: it drops "
    "at least one task's gradient there. * marks the rule that was in use. The other columns say "
    "only what their rules would have done. In a held step, any_pair leaves the module without a "
    "gradient; with consensus it learns from the tasks that are not dropped."
)


def table(record: ConflictRecord) -> Table:
    """Return a table with one row per phase, network and shared layer.

    The columns say how well the tasks' gradients agree, and how often each rule would hold the
    module. A run that is still in its first phase has only the mean over its log lines.
    """
    statistics = [
        (phase.name, network, network_statistics)
        for phase in record.phases
        for network, network_statistics in phase.networks.items()
    ]
    rules = list(
        dict.fromkeys(
            r
            for _, _, network_statistics in statistics
            for r in network_statistics.held
            if r != "none"
        )
    )
    rows = Table(
        title=Text(f"{record.name}: {record.method}"),
        caption=_RULES_CAPTION if rules else None,
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for heading in ("phase", "layer"):
        rows.add_column(heading, no_wrap=True)
    for heading in ("negative cosines", "mean cosine", *rules):
        rows.add_column(heading.replace(" ", "\n").replace("_", "\n"), justify="right")
    for phase, network, network_statistics in statistics:
        negative, cosine = (
            mean_over_pairs(network_statistics.negative),
            mean_over_pairs(network_statistics.cosine),
        )
        for layer, layer_number in enumerate(network_statistics.layers):
            shares = [
                _formatted(network_statistics.held[r][layer]) + "*" * (r == network_statistics.rule)
                if r in network_statistics.held
                else "-"
                for r in rules
            ]
            numbers = [_formatted(negative[layer]), _formatted(cosine[layer], "+.3f"), *shares]
            rows.add_row(phase, f"{NETWORKS[network]} {layer_number}", *numbers)
    if not rows.row_count:
        for network, layers in record.negative.items():
            for layer, curve in sorted(layers.items()):
                share = _formatted(float(curve.values.mean()))
                rows.add_row("so far", f"{NETWORKS[network]} {layer}", share, "-")
    return rows


def _formatted(number: float, form: str = ".2f") -> str:
    return format(number, form) if np.isfinite(number) else "-"
