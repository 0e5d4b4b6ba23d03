"""Colours, axes and legends that all figures share; pyplot never lists these figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours; the drawings of trees use them too.
COLOURS = {
    "HPS": "#D55E00",
    "LTB": "#009E73",
    "CoNAL": "#0072B2",
    "CoNAL-Pro": "#CC79A7",
    "Recon": "#56B4E9",
    "tree": "#E69F00",
    "STL": "#000000",
}
INK, FAINT = "#333333", "#999999"
SEARCH_ENDS: dict[str, Any] = {"lw": 0.8, "ls": (0, (1, 2))}
"""The line where a search ends and training begins."""


def dress(axes: Axes, ticks: int) -> None:
    """Draw only the left and lower edge, with at most `ticks` + 1 marks on the x axis."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 5, 10]))
    axes.tick_params(labelsize=7, labelcolor=INK, color=FAINT, length=2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def line_styles(count: int) -> list[dict[str, Any]]:
    """Return `count` styles: one per colour, then the colours again with a different dash."""
    dashes = ("-", "--", ":", "-.")
    palette = list(COLOURS.values())
    return [
        {
            "color": palette[number % len(palette)],
            "ls": dashes[number // len(palette) % len(dashes)],
            "lw": 1.4,
        }
        for number in range(count)
    ]


def name_figure(figure: Figure, text: str) -> None:
    """Write the title of a figure without a legend, which names its runs."""
    figure.suptitle(text, size=8, color=INK, parse_math=False)


def legend(figure: Figure, handles: list[Any], text: str) -> None:
    """Put a legend above the panels, in one line if it fits, otherwise in columns.

    The `text` above it names the figure's runs.
    """
    widths = [0.5 + 0.06 * len(handle.get_label()) for handle in handles]  # inches, at size 8
    fitting = int(figure.get_figwidth() / max(widths))
    drawn_legend = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles) if sum(widths) < figure.get_figwidth() else max(fitting, 1),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        title=text,
        title_fontproperties={"size": 8},
    )
    drawn_legend.get_title().set(color=INK, parse_math=False, multialignment="center")
    for label in drawn_legend.get_texts():
        label.set_parse_math(False)
