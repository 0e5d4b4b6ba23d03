"""`python -m conal_rl.report WHAT` draws figures and prints tables of runs."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conal_rl.cli import Parser, add_data_root, exit_status, wide_console
from conal_rl.config import SupervisedConfig
from conal_rl.device import resolve_device
from conal_rl.errors import ConfigError
from conal_rl.files import user_path, write_together
from conal_rl.reports.run_data import ConflictRecord, read_record
from conal_rl.runs.folder import run_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AGAINST = ":against:"
"""Stands for the -- between the two groups of `compare`."""
_OUT_HELP = "The folder for the figures. The default is %(default)s/."


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m conal_rl.report", description=__doc__)
    what = parser.add_subparsers(
        dest="what",
        metavar="WHAT",
        required=True,
        parser_class=Parser,
        help="The figure or table. WHAT --help lists its options.",
    )
    conflicts = what.add_parser(
        "conflicts",
        help="Show how often the tasks' gradients conflict, which tasks conflict, and the gates.",
        description="Draw how often the tasks' gradients conflict (conflicts.png), which tasks "
        "conflict (cosines-RUN.png) and the gates (gates-RUN.png). Print how often each rule "
        "would have dropped a gradient.",
    )
    conflicts.add_argument(
        "runs",
        type=user_path,
        nargs="+",
        metavar="RUN",
        help="The folders of runs that have a search or --agent.conflict-rule.",
    )
    conflicts.add_argument(
        "--out", type=user_path, default=Path("report"), metavar="DIR", help=_OUT_HELP
    )
    conflicts.set_defaults(make=_conflicts)
    success = what.add_parser(
        "success",
        help="Draw the success during training, over env steps and minutes.",
        description="Draw the mean success of each run during training, over env steps and "
        "minutes (success.png), and the success of each task (success-RUN.png).",
    )
    success.add_argument(
        "runs", type=user_path, nargs="+", metavar="RUN", help="The folders of RL runs."
    )
    success.add_argument(
        "--out", type=user_path, default=Path("report"), metavar="DIR", help=_OUT_HELP
    )
    success.set_defaults(make=_success)
    _add_compare(
        what.add_parser("compare", help="Say whether two groups of finished RL runs differ.")
    )
    _add_predictions(
        what.add_parser(
            "predictions",
            help="Draw input, prediction and truth of a supervised run that predicts pixels.",
        )
    )
    _add_results(
        what.add_parser("results", help="Print the tables of results/, or add a run to it.")
    )
    return parser


def _add_compare(compare: argparse.ArgumentParser) -> None:
    compare.usage = "%(prog)s RUN... -- RUN... [--tasks TASK...] [--paired] [--out DIR]"
    compare.description = (
        "Compare two groups of finished runs, such as the seeds of two methods: the runs before "
        "-- and those after it. Print means over runs with 95%% t intervals, the difference with "
        "its interval and p-value, the probability of improvement, and a verdict. "
        "Draw the curves of both groups in bands (compare.png)."
    )
    compare.add_argument(
        "runs", type=user_path, nargs="+", metavar="RUN", help="The folders of finished RL runs."
    )
    compare.add_argument(
        "--tasks",
        nargs="+",
        default=[],
        metavar="TASK",
        help="The tasks whose mean is a run's outcome. The default is all tasks.",
    )
    compare.add_argument(
        "--paired",
        action="store_true",
        help="Compare the runs of each seed with each other: for runs whose seed decides more than "
        "chance, as a tree that is trained again does.",
    )
    compare.add_argument(
        "--out", type=user_path, default=Path("report"), metavar="DIR", help=_OUT_HELP
    )
    compare.set_defaults(make=_compare)


def _add_predictions(predictions: argparse.ArgumentParser) -> None:
    predictions.description = (
        "Draw test images of a supervised run that predicts pixels: input, prediction and truth of "
        "each task (predictions-RUN.png)."
    )
    predictions.add_argument("run", type=user_path, metavar="RUN", help="The folder of the run.")
    predictions.add_argument(
        "--out", type=user_path, default=Path("report"), metavar="DIR", help=_OUT_HELP
    )
    predictions.add_argument(
        "--images",
        type=int,
        default=4,
        metavar="N",
        help="The number of test images, one per row. The default is %(default)s.",
    )
    add_data_root(predictions)
    predictions.add_argument(
        "--device",
        default="cpu",
        help="The device that computes the predictions, such as cpu or cuda. The default is "
        "%(default)s.",
    )
    predictions.set_defaults(make=_predictions)


def _add_results(results: argparse.ArgumentParser) -> None:
    results.description = (
        "Print every table of the documents from the data in results/. With --write, put the "
        "tables into the documents. With --add, make a finished run part of the data."
    )
    what = results.add_mutually_exclusive_group()
    what.add_argument(
        "--write",
        action="store_true",
        help="Rewrite the documents between their markers instead of printing the tables.",
    )
    what.add_argument(
        "--add",
        type=user_path,
        metavar="RUN",
        help="Add the finished run in this folder to the data.",
    )
    what.add_argument(
        "--trees", metavar="STUDY", help="Draw the trees of this study into the folder of --out."
    )
    add = results.add_argument
    add(
        "--results",
        type=user_path,
        default=Path("results"),
        metavar="DIR",
        help="The folder of the data. Documents are next to it. The default is results.",
    )
    add("--study", help="The study of an added run, such as study-mt10. --add needs it.")
    add("--method", help="The method of an added run, such as hps or conal_pro. --add needs it.")
    add(
        "--machine",
        default="unnamed",
        metavar="NAME",
        help="The machine of an added run, by its name in results/README.md. "
        "The default is unnamed.",
    )
    add("--name", help="The name of an added run. The default is STUDY-METHOD-SEED.")
    add(
        "--out",
        type=user_path,
        default=Path("docs"),
        metavar="DIR",
        help="The folder for the picture of --trees. The default is docs.",
    )
    results.set_defaults(make=_results)


def run(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, draw the figures, print the tables and the paths of the figures.

    Raises:
        ConalError: the command line, a run or the machine does not allow it.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["compare"]:  # argparse takes -- for itself
        given = [_AGAINST if word == "--" else word for word in given]
    options = _parser().parse_args(given)
    for path in (options.out, *options.out.parents):
        if path.exists() and not path.is_dir():
            raise ConfigError(
                f"--out: got {options.out}, expected a folder, but {path} is a file. "
                "Give a different folder"
            )
    options.make(options)


def _results(options: argparse.Namespace) -> None:
    from conal_rl.reports.results import read_results

    if options.add is not None:
        _add_run(options)
        return
    results = read_results(options.results)
    if options.trees is not None:
        from conal_rl.reports.result_trees import draw_study

        name = f"trees-{options.trees}.png"
        for path in write({name: _png(draw_study(results, options.trees))}, options.out):
            print(path)
        return
    from conal_rl.reports.result_pages import pages, rewritten, tables
    from conal_rl.reports.results import write_files

    paths = pages(options.results.resolve().parent)
    if options.write:
        texts = {path: rewritten(path, results) for path in paths}
        changed = {p: text for p, text in texts.items() if p.read_text(encoding="utf-8") != text}
        write_files(changed)
        for path in changed:
            print(path)
        return
    for path in paths:
        for name, text in tables(path, results):
            print(f"{path}: {name}\n\n{text}\n")


def _add_run(options: argparse.Namespace) -> None:
    from conal_rl.reports.result_adding import Label, add_run

    for option in ("study", "method"):
        if getattr(options, option) is None:
            raise ConfigError(f"--{option}: got nothing, expected a name. Give it with --add")
    label = Label(options.study, options.method, options.machine, options.name)
    print(add_run(options.add, options.results, label))


def _predictions(options: argparse.Namespace) -> None:
    from conal_rl.reports.predictions import draw_predictions

    config = run_of(options.run).config()
    if not isinstance(config, SupervisedConfig):
        raise ConfigError(
            f"{options.run}: got an RL run, expected a supervised run. Give a different folder"
        )
    if options.images < 1:
        raise ConfigError(
            f"--images: got {options.images}, expected 1 or more. Give a different number"
        )
    resolve_device("--device", options.device)
    config = config.with_root(options.root)
    figure = draw_predictions(options.run, config, options.images, options.device)
    name = f"predictions-{options.run.resolve().name}.png"
    for path in write({name: _png(figure)}, options.out):
        print(path)


def _success(options: argparse.Namespace) -> None:
    from conal_rl.reports.success import draw_success, draw_tasks, read_success

    logs = [read_success(folder, name) for name, folder in _named(options.runs).items()]
    figures = {"success.png": draw_success(logs)}
    figures |= {f"success-{log.name}.png": draw_tasks(log) for log in logs}
    for path in write({name: _png(figure) for name, figure in figures.items()}, options.out):
        print(path)


def _compare(options: argparse.Namespace) -> None:
    from conal_rl.reports.compare import read_comparison, tables
    from conal_rl.reports.success import draw_success, read_success

    words = [str(path) for path in options.runs]
    where = words.index(_AGAINST) if words.count(_AGAINST) == 1 else 0
    if not 0 < where < len(words) - 1:
        raise ConfigError(
            "compare: got one group of runs, expected two with -- between them. "
            "Give them as in RUN RUN -- RUN RUN"
        )
    named = _named([*options.runs[:where], *options.runs[where + 1 :]])
    if len(named) < len(words) - 1:
        raise ConfigError("compare: got a run twice, expected every run once. Leave it out")
    logs = [read_success(folder, name) for name, folder in named.items()]
    comparison = read_comparison(logs[:where], logs[where:], options.tasks, options.paired)
    paths = write({"compare.png": _png(draw_success(logs, comparison.lines))}, options.out)
    console = wide_console()
    for rows in tables(comparison):
        console.print(rows)
    for path in paths:
        print(path)


def _named(runs: Sequence[Path]) -> dict[str, Path]:
    """Return each folder once, by a unique name."""
    folders = list({folder.resolve(): folder for folder in runs}.values())
    names = unique_names([folder.resolve().name for folder in folders])
    return dict(zip(names, folders, strict=True))


def _conflicts(options: argparse.Namespace) -> None:
    from conal_rl.reports.conflicts import table

    records = [read_record(folder, name) for name, folder in _named(options.runs).items()]
    # All figures are drawn before the first is written, so that an error leaves no partial report.
    images = {name: _png(figure) for name, figure in draw(records).items()}
    paths = write(images, options.out)
    console = wide_console()
    for record in records:
        console.print(table(record))
    for path in paths:
        print(path)


def unique_names(folders: Sequence[str]) -> list[str]:
    """Return the names of `folders`; a repeated name gets a number at its end."""
    names: list[str] = []
    taken: set[str] = set()
    for folder in folders:
        name, number = folder, 1
        # The figures of a training phase have "-training" at the end of the name.
        while {name, f"{name}-training"} & taken:
            number += 1
            name = f"{folder}-{number}"
        taken |= {name, f"{name}-training"}
        names.append(name)
    return names


def draw(records: Sequence[ConflictRecord]) -> dict[str, Figure]:
    """Draw each figure that the runs have data for; the keys are the names of the files."""
    from conal_rl.reports.conflicts import draw_conflicts, draw_cosines
    from conal_rl.reports.gates import draw_gates

    figures = {}
    if any(record.negative for record in records):
        figures["conflicts.png"] = draw_conflicts(records)
    for record in records:
        drawn = [p for p in record.phases if any(len(s.cosine) for s in p.networks.values())]
        for number, phase in enumerate(drawn):
            suffix = f"-{phase.name}" if number else ""
            figures[f"cosines-{record.name}{suffix}.png"] = draw_cosines(record, phase)
        if record.gates:
            figures[f"gates-{record.name}.png"] = draw_gates(record)
    return figures


def _png(figure: Figure) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=200, bbox_inches="tight", pad_inches=0.05)
    return image.getvalue()


def write(images: dict[str, bytes], out: Path) -> list[Path]:
    """Write `images` into the folder `out` and return their paths.

    A missing folder is made. All files appear, or none.

    Raises:
        ConfigError: a file cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_together({out / name: image for name, image in images.items()})
    except OSError as error:
        raise ConfigError(
            f"--out: got {out} ({error.strerror}), expected a writable folder. "
            "Give a different folder"
        ) from error
    return [out / name for name in images]


def main(arguments: Sequence[str] | None = None) -> int:
    """Call `run` and return the exit status: 0, 2 after an error, 130 after Ctrl-C."""
    return exit_status(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
