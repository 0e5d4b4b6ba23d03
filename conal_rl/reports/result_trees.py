"""The trees of `results/trees`: read, and drawn side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from conal_rl.core import Tree
from conal_rl.errors import TreeError
from conal_rl.files import read_json
from conal_rl.reports.results import Results
from conal_rl.reports.style import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def read_trees(path: Path) -> dict[str, Tree]:
    """Return the trees in a run's file, by network: `actor` and `critic`, or `encoder`.

    Raises:
        TreeError: the file is missing or damaged. The error names it.
    """
    content = read_json(path, TreeError)
    try:
        if "actor" in content:
            networks = {name: content[name] for name in ("actor", "critic")}
        else:
            networks = {"encoder": content}
        return {name: Tree.from_json(json.dumps(found)) for name, found in networks.items()}
    except (TreeError, LookupError, TypeError) as error:
        raise TreeError(
            f"{path}: got no trees ({error}), expected a run's tree.json. Restore the file"
        ) from error


def draw_study(results: Results, study: str) -> Figure:
    """Draw a row for every run of a study with kept trees, and a column for every network.

    Raises:
        ConfigError: unknown study.
        TreeError: no trees are kept, or a file is damaged.
    """
    from matplotlib.figure import Figure

    runs = [run for run in results.of_study(study) if results.tree_path(run.run).is_file()]
    if not runs:
        raise TreeError(
            f"study: got {study!r}, expected a study with kept trees. Give a different study"
        )
    trees = {run: read_trees(results.tree_path(run.run)) for run in runs}
    columns = max(map(len, trees.values()))
    tasks = max(tree.num_tasks for of_run in trees.values() for tree in of_run.values())
    size = (4.2 * columns, (0.19 * tasks + 0.7) * len(runs))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(runs), columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for (run, of_run), row in zip(trees.items(), panels, strict=True):
        for (network, tree), axes in zip(of_run.items(), row, strict=False):
            axes.set_axis_on()
            tree.draw(axes)
            axes.set_title(f"{run.run}, {network}", size=8, color=INK, parse_math=False)
    return figure
