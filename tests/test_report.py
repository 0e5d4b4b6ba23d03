"""Reports: data read from a run's files, numbers in the figures, errors in one line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.testing import assert_allclose
from rich.console import Console
from stable_baselines3.common.logger import TensorBoardOutputFormat

from conal_rl import report
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.reports.conflicts import draw_conflicts, draw_cosines, table
from conal_rl.reports.gates import draw_gates
from conal_rl.reports.run_data import (
    ConflictRecord,
    Curve,
    mean_over_pairs,
    read_phase,
    read_record,
    read_scalars,
)
from conal_rl.reports.success import draw_success, draw_tasks, read_success
from tests.helpers.refusals import refused
from tests.helpers.tiers import first_quick

TASKS = ("reach-v3", "button-press-topdown-v3", "peg_insert$side-v3")
TAG = "conflicts_actor/negative/1"


def log(folder: Path, lines: Mapping[int, Mapping[str, float]]) -> Path:
    """Log as one process of a run does; return its file."""
    before = set(folder.glob("events.*"))
    output = TensorBoardOutputFormat(str(folder))
    for step, scalars in lines.items():
        output.write({"time/fps": 1.0, **scalars}, dict.fromkeys(["time/fps", *scalars], ()), step)
    output.close()
    (file,) = set(folder.glob("events.*")) - before
    return file


def statistics(tasks: int, layers: int = 2, gates: Mapping[str, int] | None = None) -> Any:
    """A network's entry in search.json or training.json: symmetric matrices of known numbers."""
    pair = np.add.outer(range(tasks), range(tasks)) / (2 * tasks)
    off = 1 - np.eye(tasks)
    cosine = [((0.1 - 0.2 * pair) / layer * off).tolist() for layer in range(1, layers + 1)]
    negative = [((0.3 + 0.4 * pair) * off).tolist() for _ in range(layers)]
    entry = {
        "rule": "consensus",
        "mean_cosine": cosine,
        "negative_share": negative,
        "module_held": {
            "any_pair": [0.9] * layers,
            "consensus": [0.25] * layers,
            "none": [0.0] * layers,
        },
        "task_dropped": {"consensus": [[0.1] * tasks] * layers},
    }
    if gates is not None:
        entry["choices"] = list(gates)
        entry["gates"] = {name: [1 / options] * options for name, options in gates.items()}
    return entry


def make_run(
    folder: Path,
    method: str = "conal",
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    options: str = "",
    lines: Mapping[int, Mapping[str, float]] | None = None,
    gates: Mapping[str, int] | None = None,
) -> Path:
    """Make a run's folder with logged conflicts and gates; the method "shared" is HPS."""
    folder.mkdir(parents=True)
    searches = method != "shared"
    agent = f"agent: {{tree: {'search' if searches else 'shared'}{options}}}\n"
    config = f"name: tiny\ntotal_steps: 1000\nseed: {seed}\nenv: {{suite: cartpole}}\n{agent}"
    (folder / "config.yaml").write_text(config)
    if gates is None and searches:
        gates = dict.fromkeys(tasks, 3)
    entries = {name: statistics(len(tasks), 2, gates) for name in ("actor", "critic")}
    content = {"method": method, "tasks": list(tasks), "steps": 200, "updates": 20, **entries}
    name = "search.json" if searches else "training.json"
    (folder / name).write_text(json.dumps(content))
    log(folder, default_lines(gates or {}, seed) if lines is None else lines)
    return folder


def default_lines(gates: Mapping[str, int], seed: int) -> dict[int, dict[str, float]]:
    """Two log lines: growing shares of two layers, and gates whose last option wins."""
    return {
        step: {
            f"conflicts_{name}/negative/{layer}": 0.1 * layer + step / 1000 + 0.02 * seed
            for name in ("actor", "critic")
            for layer in (1, 2)
        }
        | {
            f"gates_{name}/{choice}/{option}": option / sum(range(1, options + 1))
            for name in ("actor", "critic")
            for choice, options in gates.items()
            for option in range(1, options + 1)
        }
        for step in (100, 200)
    }


def record(folder: Path, *arguments: Any, **options: Any) -> ConflictRecord:
    return read_record(make_run(folder, *arguments, **options), folder.name)


def panel(figure: Figure, title: str) -> Axes:
    (axes,) = [a for a in figure.axes if a.get_title() == title and a.get_visible()]
    return axes


def drawn(axes: Axes) -> list[tuple[Any, list[tuple[float, float]]]]:
    """Lines and their points; the legend's lines have no points and are left out."""
    data = [(line, np.asarray(line.get_xydata()).tolist()) for line in axes.lines]
    return [(line, [(x, y) for x, y in points]) for line, points in data if points]


def points(axes: Axes, colour: Any) -> list[tuple[float, float]]:
    """The points of the only solid line in a colour."""
    (line_points,) = [
        line_points
        for line, line_points in drawn(axes)
        if line.get_color() == colour and line.get_linestyle() == "-"
    ]
    return line_points


def render(figure: Figure) -> None:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()


def labels(figure: Figure) -> dict[str, Any]:
    """The colours in a figure's legend, by label."""
    (legend,) = figure.legends
    handles, texts = legend.get_lines(), legend.get_texts()
    return {text.get_text(): h.get_color() for text, h in zip(texts, handles, strict=True)}


# TensorBoard files


def test_scalars_of_one_process_are_read_by_tag(tmp_path: Path) -> None:
    log(tmp_path, {10: {TAG: 0.25, "train/loss": 3.0}, 20: {TAG: 0.5, "gates_actor/a b/1": 0.75}})
    scalars = read_scalars(tmp_path)
    assert scalars.keys() == {TAG, "gates_actor/a b/1"}
    assert_allclose(scalars[TAG].steps, [10, 20])
    assert_allclose(scalars[TAG].values, [0.25, 0.5])
    assert_allclose(scalars["gates_actor/a b/1"].steps, [20])


def test_scalars_have_the_same_tags_in_old_and_new_runs(tmp_path: Path) -> None:
    """New tags begin with tree_. A process that only evaluates takes no point away."""
    log(tmp_path, {10: {TAG: 0.25}, 20: {TAG: 0.5}, 30: {TAG: 0.75}})
    log(tmp_path, {30: {f"tree_{TAG}": 0.5, "tree_gates_actor/a/1": 1.0}})
    output = TensorBoardOutputFormat(str(tmp_path))
    output.write({"final/mean_success": 1.0}, {"final/mean_success": ()}, 20)
    output.close()
    scalars = read_scalars(tmp_path)
    assert scalars.keys() == {TAG, "gates_actor/a/1"}
    assert scalars[TAG].values.tolist() == [0.25, 0.5, 0.5]


def test_a_resumed_run_has_one_branch(tmp_path: Path) -> None:
    """Two resumes, from steps 25 and 35, leave out what was logged beyond these steps."""
    log(tmp_path, {step: {TAG: 0.125} for step in (10, 20, 30, 40, 50, 60)})
    log(tmp_path, {step: {TAG: 0.25} for step in (30, 33, 36, 39, 42)})
    log(tmp_path, {38: {"train/loss": 1.0}, 41: {TAG: 0.5}})
    curve = read_scalars(tmp_path)[TAG]
    assert_allclose(curve.steps, [10, 20, 30, 33, 36, 41])
    assert_allclose(curve.values, [0.125, 0.125, 0.25, 0.25, 0.25, 0.5])


def test_a_resumed_run_that_logged_nothing_takes_nothing_away(tmp_path: Path) -> None:
    log(tmp_path, {10: {TAG: 0.125}, 20: {TAG: 0.25}})
    log(tmp_path, {})
    assert_allclose(read_scalars(tmp_path)[TAG].steps, [10, 20])


def test_the_last_value_at_a_step_counts(tmp_path: Path) -> None:
    output = TensorBoardOutputFormat(str(tmp_path))
    for value in (0.25, 0.5, float("nan")):
        output.write({TAG: value}, {TAG: ()}, 10)
    output.close()
    curve = read_scalars(tmp_path)[TAG]
    assert (curve.steps.tolist(), curve.values.tolist()) == ([10], [0.5]), "the last value is NaN"


@pytest.mark.parametrize("damage", ["cut", "overwritten", "nothing left"])
def test_a_damaged_end_is_skipped(tmp_path: Path, damage: str) -> None:
    file = log(tmp_path, {step: {TAG: 0.5} for step in (10, 20, 30)})
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-60],
            "overwritten": content[:-60] + bytes(60),
            "nothing left": b"no events",
        }[damage]
    )
    scalars = read_scalars(tmp_path)
    if damage == "nothing left":
        assert scalars == {}
    else:
        assert_allclose(scalars[TAG].steps, [10, 20])


# search.json and training.json


def test_pairs_without_a_shared_module_are_left_out(tmp_path: Path) -> None:
    entry = statistics(3)
    for name in ("mean_cosine", "negative_share"):
        for i, j in ((0, 2), (2, 0), (1, 2), (2, 1)):
            entry[name][1][i][j] = 0.0
    entry["negative_share"][0][0][1] = entry["negative_share"][0][1][0] = 0.0  # never in conflict
    content = {"method": "tree", "tasks": TASKS, "steps": 5, "actor": entry}
    (tmp_path / "training.json").write_text(json.dumps(content))
    phase = read_phase(tmp_path / "training.json")
    assert phase is not None
    actor = phase.networks["actor"]
    expected = np.eye(3, dtype=bool)
    assert (np.isnan(actor.cosine[0]) == expected).all()
    expected[2] = expected[:, 2] = True
    assert (np.isnan(actor.negative[1]) == expected).all()
    assert mean_over_pairs(actor.negative)[1] == pytest.approx(0.3 + 0.4 / 6)
    assert mean_over_pairs(actor.cosine)[1] == pytest.approx((0.1 - 0.2 / 6) / 2)
    assert np.isnan(mean_over_pairs(np.full((1, 3, 3), np.nan))).all()


def test_labels_name_method_and_ablation(tmp_path: Path) -> None:
    for method, name in (("conal", "CoNAL"), ("conal_pro", "CoNAL-Pro"), ("ltb", "LTB")):
        assert record(tmp_path / method, method).method == name
    assert record(tmp_path / "hps", "shared").method == "HPS"
    stl = make_run(tmp_path / "stl", "shared")
    config = (stl / "config.yaml").read_text()
    (stl / "config.yaml").write_text(config.replace("shared", "independent"))
    assert read_record(stl, "stl").method == "STL"
    config = (tmp_path / "hps" / "config.yaml").read_text()
    (tmp_path / "hps" / "config.yaml").write_text(config.replace("shared", "mine.json"))
    assert read_record(tmp_path / "hps", "hps").method == "tree"
    (tmp_path / "conal" / "search.json").unlink()
    assert read_record(tmp_path / "conal", "conal").method == "CoNAL", "still searching"
    config = (tmp_path / "conal" / "config.yaml").read_text() + "search: {method: recon}\n"
    (tmp_path / "conal" / "config.yaml").write_text(config)
    assert read_record(tmp_path / "conal", "conal").method == "Recon", "still searching"
    pcgrad = make_run(tmp_path / "pcgrad", "shared", options=", weighting: pcgrad")
    assert read_record(pcgrad, "pcgrad").method == "HPS + pcgrad"
    plain = make_run(tmp_path / "plain")
    with (plain / "config.yaml").open("a") as file:
        file.write("search: {rule: none}\n")
    assert read_record(plain, "plain").method == "CoNAL without noticing"
    ltb_like = make_run(tmp_path / "ablation")
    with (ltb_like / "config.yaml").open("a") as file:
        file.write("search: {purely_specific: false}\n")
    ablation = read_record(ltb_like, "ablation")
    assert ablation.method == "CoNAL without specific modules"
    assert list(labels(draw_gates(ablation))) == ["option 1", "option 2", "option 3"]


# Conflicts over training


def test_each_layer_has_its_panel_and_each_run_its_line(tmp_path: Path) -> None:
    records = [record(tmp_path / name, name) for name in ("conal", "ltb", "shared")]
    figure = draw_conflicts(records)
    titles = [f"{name}, layer {n}" for name in ("actor", "critics") for n in (1, 2)]
    assert [axes.get_title() for axes in figure.axes] == titles
    colours = labels(figure)
    assert list(colours) == ["CoNAL", "LTB", "HPS", "pure noise"]
    for axes, layer in zip(figure.axes, (1, 2, 1, 2), strict=True):
        for method in ("CoNAL", "LTB", "HPS"):
            line_points = points(axes, colours[method])
            assert_allclose(line_points, [(100, 0.1 * layer + 0.1), (200, 0.1 * layer + 0.2)])
        noise = [
            line_points
            for _, line_points in drawn(axes)
            if [y for _, y in line_points] == [0.5, 0.5]
        ]
        assert len(noise) == 1
        low, high = axes.get_ylim()
        assert low < 0.2
        assert high > 0.5


def test_seeds_are_a_mean_within_a_band(tmp_path: Path) -> None:
    records = [record(tmp_path / f"run-{seed}", seed=seed) for seed in (0, 1)]
    longer = {step: {TAG: 0.3 + step / 1000} for step in (100, 150, 300)}
    records.append(record(tmp_path / "run-2", seed=2, lines=longer))
    figure = draw_conflicts(records)
    colours = labels(figure)
    assert list(colours) == ["CoNAL (3 seeds)", "pure noise", "end of search"]
    axes = panel(figure, "actor, layer 1")
    # At 150 the first two are interpolated; only the third has reached 300.
    expected = [(100, 0.82 / 3), (150, 0.97 / 3), (200, 1.12 / 3), (300, 0.6)]
    assert_allclose(points(axes, colours["CoNAL (3 seeds)"]), expected)
    (band,) = axes.collections
    outline = band.get_paths()[0].vertices
    at_150 = sorted({round(y, 6) for x, y in np.asarray(outline) if x == 150})
    assert_allclose(at_150, [0.25, 0.45])


def test_runs_that_differ_beyond_the_seed_get_separate_lines(tmp_path: Path) -> None:
    same_seed = [record(tmp_path / name) for name in ("first", "second")]
    figure = draw_conflicts(same_seed)
    assert list(labels(figure))[:2] == ["CoNAL, first", "CoNAL, second"]
    other = record(tmp_path / "other", seed=1, options=", batch_size: 64")
    figure = draw_conflicts([same_seed[0], other])
    colours = labels(figure)
    assert list(colours)[:2] == ["CoNAL, first", "CoNAL, other"]
    assert colours["CoNAL, first"] != colours["CoNAL, other"]
    many = [record(tmp_path / f"many-{number}") for number in range(9)]
    handles = draw_conflicts(many).legends[0].get_lines()[:9]
    assert len({(line.get_color(), str(line.get_linestyle())) for line in handles}) == 9


def test_the_end_of_a_search_is_marked_if_counting_continues(tmp_path: Path) -> None:
    lines = {step: {TAG: 0.25} for step in (100, 200, 300)}
    figure = draw_conflicts([record(tmp_path / "on", lines=lines)])
    marks = [
        line_points
        for _, line_points in drawn(figure.axes[0])
        if len({x for x, _ in line_points}) == 1
    ]
    assert [[x for x, _ in mark] for mark in marks] == [[200, 200]]
    assert "end of search" in labels(figure)
    pro = make_run(tmp_path / "pro", "conal_pro", lines=lines)
    for stage, steps in ((1, 100), (2, 200)):
        content = json.loads((pro / "search.json").read_text()) | {"steps": steps}
        (pro / f"search-stage-{stage}.json").write_text(json.dumps(content))
    figure = draw_conflicts([read_record(pro, "pro")])
    marks = [
        line_points
        for _, line_points in drawn(figure.axes[0])
        if len({x for x, _ in line_points}) == 1
    ]
    assert [[x for x, _ in mark] for mark in marks] == [[200, 200]], "the last stage's end"
    (pro / "search.json").unlink()
    (pro / "search-stage-2.json").unlink()
    assert "end of search" not in labels(draw_conflicts([read_record(pro, "pro")]))


def test_layers_keep_their_numbers_after_an_unshared_layer(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "shared")
    content = json.loads((run / "training.json").read_text())
    content["actor"]["layers"] = [2, 4]
    (run / "training.json").write_text(json.dumps(content))
    run_record = read_record(run, "run")
    rows = table(run_record)
    assert list(rows.columns[1].cells) == ["actor 2", "actor 4", "critics 1", "critics 2"]
    titles = {axes.get_title() for axes in draw_cosines(run_record, run_record.phases[0]).axes}
    assert {"actor, layer 2", "actor, layer 4", "critics, layer 1"} <= titles


# Cosines


def test_heat_maps_show_the_cosines_of_pairs(tmp_path: Path) -> None:
    run = record(tmp_path / "my_$run$", "conal")
    figure = draw_cosines(run, run.phases[0])
    render(figure)  # names are not parsed as formulas
    for name, layer in itertools.product(("actor", "critics"), (1, 2)):
        axes = panel(figure, f"{name}, layer {layer}")
        (image,) = axes.images
        pixels: Any = image.get_array()
        expected = statistics(3)["mean_cosine"][layer - 1]
        off = ~np.eye(3, dtype=bool)
        assert_allclose(pixels.data[off], np.array(expected)[off])
        assert (pixels.mask == ~off).all()
        low, high = image.get_clim()
        assert low == -high == pytest.approx(-np.abs(expected).max() * layer)
    cells = [t.get_text() for t in panel(figure, "actor, layer 1").texts]
    assert [text for text in cells if text.isdigit()] == ["37", "43", "37", "50", "43", "50"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert tuple(names) == TASKS
    title = figure.get_suptitle()
    assert "my_$run$: CoNAL, search, up to 200 env steps" in title
    assert "grey" not in title


def overlap(artists: Sequence[Any]) -> bool:
    boxes = [artist.get_window_extent() for artist in artists]
    return any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("count", first_quick([10, 50]))
@pytest.mark.slow
def test_names_do_not_overlap(tmp_path: Path, count: int) -> None:
    tasks = [f"button-press-topdown-{number}-v3" for number in range(count)]
    run = record(tmp_path / "many", tasks=tasks)
    figure = draw_cosines(run, run.phases[0])
    render(figure)
    corner = panel(figure, "critics, layer 1")
    below = [text for text in corner.texts if text.get_text() in tasks]
    assert len(below) == count
    assert not overlap(below)
    assert not overlap(corner.get_yticklabels())
    assert len(corner.texts) == (count + 90 if count == 10 else count), (
        "numbers only in large cells"
    )

    figure = draw_gates(run)
    render(figure)
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible) == 2 * count
    assert not overlap([axes.title for axes in visible])
    assert not overlap(figure.legends[0].get_texts())


# Gates


def test_gates_are_drawn_over_the_search(tmp_path: Path) -> None:
    figure = draw_gates(record(tmp_path / "run"))
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == [*TASKS, *TASKS], "the actor's, then the critics', in the order of tasks"
    colours = labels(figure)
    assert list(colours) == [
        "branch point 1 (all specific)",
        "branch point 2",
        "branch point 3 (all shared)",
    ]
    for axes in figure.axes:
        weights = {line.get_color(): line_points for line, line_points in drawn(axes)}
        for option, colour in enumerate(colours.values(), start=1):
            assert_allclose(weights[colour], [(100, option / 6), (200, option / 6)])
        strongest = max((line for line, _ in drawn(axes)), key=lambda line: line.get_linewidth())
        assert strongest.get_color() == colours["branch point 3 (all shared)"]


def test_gates_of_other_methods_name_their_options(tmp_path: Path) -> None:
    two = dict.fromkeys(TASKS, 2)
    gates = {f"layer 2 copy {copy}": 2 for copy in (1, 2, 10)} | dict.fromkeys(TASKS, 3)
    ltb = make_run(tmp_path / "ltb", "ltb", gates=gates)
    with (ltb / "config.yaml").open("a") as file:
        file.write("search: {method: ltb}\n")
    figure = draw_gates(read_record(ltb, "ltb"))
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == 2 * list(gates), "copy 2 before copy 10, then tasks in order"
    assert list(labels(figure)) == ["option 1", "option 2", "option 3"]
    for name, options, expected in (
        ("pro", "method: conal_pro", ["join", "leave"]),
        ("pro-plain", "method: conal_pro, rule: none", ["join", "leave"]),
        ("plain", "rule: none", ["branch point 1 (all specific)", "branch point 2 (all shared)"]),
    ):
        run = make_run(tmp_path / name, "conal_pro" * name.startswith("pro") or "conal", gates=two)
        with (run / "config.yaml").open("a") as file:
            file.write(f"search: {{{options}}}\n")
        assert list(labels(draw_gates(read_record(run, name)))) == expected


# The command


def test_the_command_writes_figures_and_prints_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run", "shared")]
    content = json.loads((runs[0] / "search.json").read_text()) | {"method": "tree", "steps": 1000}
    (runs[0] / "training.json").write_text(json.dumps(content))
    out = tmp_path / "new" / "report"
    same_run = runs[0] / ".." / "run"
    assert report.main(["conflicts", *map(str, runs), str(same_run), "--out", str(out)]) == 0
    expected = [
        "conflicts.png",
        "cosines-run.png",
        "cosines-run-training.png",
        "gates-run.png",
        "cosines-run-2.png",
    ]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-len(expected) :] == [str(out / name) for name in expected]
    assert sorted(path.name for path in out.iterdir()) == sorted(expected)
    for path in out.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert any(line.split()[:4] == ["search", "actor", "2", "0.43"] for line in printed)


def test_the_table_has_a_row_per_layer(tmp_path: Path) -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(table(record(tmp_path / "run")))
    text = captured.get()
    assert "…" not in text, "80 columns are enough"
    rows = [line.split() for line in text.splitlines()]
    pairs = np.array([1, 2, 3]) / 6  # of two tasks' numbers, as in `statistics`
    cosine, negative = f"{np.mean(0.1 - 0.2 * pairs):+.3f}", f"{np.mean(0.3 + 0.4 * pairs):.2f}"
    assert ["search", "actor", "1", negative, cosine, "0.90", "0.25*"] in rows
    caption = " ".join(text.split())
    assert "drops at least one task's gradient" in caption
    assert "* marks the rule that was in use" in caption
    assert ["search", "critics", "2", negative, "+0.017", "0.90", "0.25*"] in rows


def test_a_run_in_its_first_phase_has_means_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    (run / "search.json").unlink()
    assert report.main(["conflicts", str(run), "--out", str(tmp_path / "out")]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"conflicts.png", "gates-run.png"}
    assert ["so", "far", "actor", "1", "0.25", "-"] in [
        line.split() for line in capsys.readouterr().out.splitlines()
    ]


def test_a_run_without_a_log_still_has_its_cosines(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for path in run.glob("events.*"):
        path.unlink()
    assert report.main(["conflicts", str(run), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cosines-run.png"]


def test_names_of_runs_stay_unique_with_suffixes() -> None:
    assert report.unique_names(["a", "b", "a", "a"]) == ["a", "b", "a-2", "a-3"]
    assert report.unique_names(["a", "a-2", "a"]) == ["a", "a-2", "a-3"]
    assert report.unique_names(["a", "a-training"]) == ["a", "a-training-2"]


def test_folders_that_are_not_runs_are_named(tmp_path: Path) -> None:
    with refused(CheckpointError, tmp_path / "nothing"):
        read_record(tmp_path / "nothing", "")
    with refused(ConfigError, tmp_path / "config.yaml"):
        read_record(tmp_path, "")
    run = make_run(tmp_path / "run", "shared", lines={10: {"train/loss": 1.0}})
    (run / "training.json").unlink()
    with refused(CheckpointError, run, "--agent.conflict-rule"):
        read_record(run, "")


DAMAGE: dict[str, Any] = {
    "not JSON": "{",
    "a list": "[]",
    "no tasks": {"tasks": None},
    "no number": {"steps": "many"},
    "too large a number": {"steps": float("inf")},
    "one task too many": {"tasks": [*TASKS, "push-v3"]},
    "no network": {"actor": None},
    "no matrix": {"critic": {**statistics(3), "mean_cosine": 0.5}},
    "uneven rows": {"actor": {**statistics(3), "mean_cosine": [[[0, 1], [1]]]}},
    "too few layers": {"actor": {**statistics(3), "module_held": {"any_pair": [1]}}},
    "half": {"actor": {"mean_cosine": []}},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_json_is_named(
    tmp_path: Path, damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    content = json.loads((bad / "search.json").read_text())
    text = damage if isinstance(damage, str) else json.dumps(content | damage)
    (bad / "search.json").write_text(text)
    out = tmp_path / "out"
    assert report.main(["conflicts", str(good), str(bad), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {bad / 'search.json'}: ")
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["conflicts"],
        ["frobnicate", "run"],
        ["conflicts", "nowhere"],
        ["conflicts", "."],
        ["conflicts", "run", "--out", "file"],
        ["conflicts", "run", "--out", "file/below"],
        ["conflicts", "run", "--frobnicate"],
    ],
)
def test_the_command_reports_errors_in_one_line(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert report.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_reported_with_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> int:
        if path.name == "b.png":
            raise OSError(28, "No space left on device")
        path.touch()
        return 0

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with refused(ConfigError, "--out", tmp_path, "No space left on device"):
        report.write({"a.png": b"", "b.png": b""}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_imports_nothing_heavy_before_drawing() -> None:
    heavy = ["torch", "stable_baselines3", "tensorboard", "matplotlib"]
    code = f"import sys, conal_rl.report; print(*[m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []


# Success


def progress(folder: Path, text: str, config: str = "") -> Path:
    config = config or "env: {suite: cartpole}\nagent: {tree: shared}\n"
    folder.mkdir(parents=True)
    (folder / "progress.csv").write_text(text, encoding="utf-8")
    (folder / "config.yaml").write_text(f"name: tiny\ntotal_steps: 1000\n{config}")
    return folder


def test_returns_are_drawn_if_no_task_reports_success(tmp_path: Path) -> None:
    header = "time/total_timesteps,phase,return/b,return/a,time/minutes"
    lines = ["10,search,,,0.5", "20,search,-5,-100,1", "30,train,-4,-90,1.5"]
    run = progress(tmp_path / "run", "\n".join([header, *lines, ""]))
    log = read_success(run, "run")
    assert (log.quantity, log.searched, list(log.tasks)) == ("return", 2, ["b", "a"])
    steps = draw_success([log]).axes[0]
    assert steps.get_ylabel() == "mean return during training"
    (curve,) = [line_points for line, line_points in drawn(steps) if line.get_lw() == 1.4]
    assert_allclose(curve, [(10, np.nan), (20, -52.5), (30, -47)])
    assert ends_of_search(steps) == [20]
    assert [axes.get_title() for axes in draw_tasks(log).axes] == ["b", "a"]
    other = progress(tmp_path / "other", "time/total_timesteps,success/a,success/mean\n10,1,1\n")
    with pytest.raises(ConfigError, match="expected one kind"):
        draw_success([log, read_success(other, "other")])


def test_gates_that_were_logged_once_are_points(tmp_path: Path) -> None:
    figure = draw_gates(record(tmp_path / "run"))
    assert {line.get_marker() for axes in figure.axes for line in axes.lines} == {"None"}
    whole = record(tmp_path / "again")
    once = {
        network: {
            choice: {o: Curve(c.steps[:1], c.values[:1]) for o, c in curves.items()}
            for choice, curves in choices.items()
        }
        for network, choices in whole.gates.items()
    }
    figure = draw_gates(dataclasses.replace(whole, gates=once))
    assert {
        line.get_marker() for line in figure.axes[0].lines if len(np.atleast_1d(line.get_xdata()))
    } == {"o"}


def test_success_is_drawn_over_steps_and_minutes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = ["success/b", "success/mean", "time/total_timesteps", "success/a", "time/minutes"]
    lines = [",,10,,0.5,", "0.5,0.5,20,,1,", "1,0.6,30,0.2,1.5,0.4"]
    table = "\n".join([",".join([*header, "evaluation/mean_success"]), *lines])
    run = progress(tmp_path / "run", f"{table}\n")
    success_log = read_success(run, "run")
    assert success_log.steps.tolist() == [10, 20, 30]
    assert success_log.minutes.tolist() == [0.5, 1, 1.5]
    assert list(success_log.tasks) == ["a", "b"]
    assert_allclose(success_log.mean, [np.nan, np.nan, 0.6])
    dots, curve = [line_points for _, line_points in drawn(draw_success([success_log]).axes[1])]
    assert_allclose(curve, [(0.5, np.nan), (1, np.nan), (1.5, 0.6)])
    assert_allclose([y for _, y in dots], [np.nan, np.nan, 0.4])
    panels = draw_tasks(success_log).axes
    assert [axes.get_title() for axes in panels] == ["a", "b"]
    curve = np.asarray(panels[1].lines[0].get_xydata()).tolist()
    assert_allclose(curve, [[10.0, np.nan], [20.0, 0.5], [30.0, 1.0]])
    out = tmp_path / "out"
    assert report.main(["success", str(run), "--out", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["success-run.png", "success.png"]
    names = ("success.png", "success-run.png")
    assert capsys.readouterr().out.split() == [str(out / name) for name in names]


def ends_of_search(axes: Axes) -> list[float]:
    """Where the vertical lines are."""
    return [
        line_points[0][0]
        for _, line_points in drawn(axes)
        if len(line_points) == 2 and line_points[0][0] == line_points[1][0]
    ]


def logged(folder: Path, seed: int, lines: int, config: str = "") -> Path:
    """A run of 100 steps per line, whose tasks b and a alternate between 0 and 1."""
    rows = ["time/total_timesteps,phase,success/b,success/a,time/minutes"]
    for line in range(1, lines + 1):
        phase = "search" if line <= 10 else "train"
        rows.append(f"{100 * line},{phase},{line % 2},{line % 2},{line * (1 + seed)}")
    config = config or "env: {suite: cartpole}\n"
    run = progress(folder, "\n".join([*rows, ""]), f"seed: {seed}\n{config}")
    final = {"success": {"a": 0.5, "b": 0.25}, "steps": 100 * lines, "seconds": 60 * lines}
    (run / "evaluation.json").write_text(json.dumps(final))
    return run


def test_seeds_of_success_are_a_mean_within_a_band(tmp_path: Path) -> None:
    runs = [logged(tmp_path / f"run-{seed}", seed, 30) for seed in (0, 1)]
    fixed = "env: {suite: cartpole}\nagent: {tree: independent}\n"
    other = logged(tmp_path / "stl", 0, 30, fixed)
    figure = draw_success([read_success(run, run.name) for run in (*runs, other)])
    colours = labels(figure)
    assert list(colours) == ["CoNAL (2 seeds)", "STL", "end of search", "final evaluation"]
    text = figure.legends[0].get_title().get_text()
    assert text.startswith("tiny: 3 runs\n") and "band: lowest to highest seed" in text
    steps, minutes = figure.axes
    assert len(steps.collections) == 1, "one band"
    assert ends_of_search(steps) == [1000, 1000, 1000]
    assert ends_of_search(minutes) == [10, 20, 10]
    finals = [line_points for line, line_points in drawn(steps) if line.get_marker() == "D"]
    assert finals == [[(3000, 0.375)]] * 3
    curve = [
        line_points
        for line, line_points in drawn(steps)
        if line.get_color() == colours["STL"] and line.get_lw() == 1.4
    ]
    assert dict(curve[0])[2000] == pytest.approx(0.4), "0, 1, 0, 1, 0 around line 20"
    assert dict(curve[0])[1000] == pytest.approx(1 / 3), "0, 1, 0 at the search's end"
    render(figure)


def test_a_figure_of_tasks_has_their_order_and_marks(tmp_path: Path) -> None:
    run = logged(tmp_path / "my_$run$", 0, 30)
    figure = draw_tasks(read_success(run, run.name))
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"], "the suite's order"
    assert list(labels(figure)) == ["end of search", "final evaluation"]
    title = figure.legends[0].get_title().get_text()
    assert title.startswith("my_$run$: CoNAL\n") and "faint: each line" in title
    for axes, final in zip(figure.axes, (0.5, 0.25), strict=True):
        assert ends_of_search(axes) == [1000]
        points_of = {line.get_marker(): line_points for line, line_points in drawn(axes)}
        assert points_of["D"] == [(3000, final)]
        faint = [line_points for line, line_points in drawn(axes) if line.get_alpha()]
        assert [y for _, y in faint[0]] == [line % 2 for line in range(1, 31)]
    render(figure)
    heights = [axes.get_window_extent().height for axes in figure.axes]
    assert min(heights) > 40, "the panels have room below the legend"


def test_an_older_log_takes_the_search_from_its_file(tmp_path: Path) -> None:
    run = progress(tmp_path / "run", "time/total_timesteps,success/a\n10,0\n20,1\n30,1\n")
    (run / "search.json").write_text(json.dumps({"steps": 20}))
    assert read_success(run, "run").searched == 2
    (run / "evaluation.json").write_text(json.dumps({"success": {"a": 1}}))
    with refused(CheckpointError, run / "evaluation.json"):
        read_success(run, "run")


def test_every_figure_names_its_run(tmp_path: Path) -> None:
    run = record(tmp_path / "run")
    for figure in (draw_gates(run), draw_conflicts([run])):
        assert figure.legends[0].get_title().get_text() == "run: CoNAL"
    two = [run, record(tmp_path / "hps", "shared")]
    assert draw_conflicts(two).legends[0].get_title().get_text() == "tiny: 2 runs"


@pytest.mark.parametrize(
    "text, value",
    [
        (None, "No such file or directory"),
        ("", "success/TASK"),
        ("time/total_timesteps\n10\n", "success/TASK"),
        ("time/total_timesteps,success/a\n10,often\n", "'often'"),
    ],
)
def test_a_run_without_success_is_named(
    text: str | None, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if text is not None:
        progress(run, text)
    assert report.main(["success", str(run), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith(f"error: {run / 'progress.csv'}: got ")
    assert value in error and "\n" not in error
    assert not (tmp_path / "out").exists()
