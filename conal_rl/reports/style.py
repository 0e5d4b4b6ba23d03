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
}
INK, FAINT = "#333333", "#999999"


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


def legend(figure: Figure, handles: list[Any]) -> None:
    """Put a legend above the panels, in one line if it fits, otherwise in columns."""
    widths = [0.5 + 0.06 * len(handle.get_label()) for handle in handles]  # inches, at size 8
    fitting = int(figure.get_figwidth() / max(widths))
    drawn_legend = figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles) if sum(widths) < figure.get_figwidth() else max(fitting, 1),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
    )
    for text in drawn_legend.get_texts():
        text.set_parse_math(False)
