"""Losses and metrics over a whole part of the data, and the report of a test."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn

from conal_rl.config import SupervisedConfig
from conal_rl.device import resolve_device
from conal_rl.errors import CheckpointError, ConalError, ConfigError
from conal_rl.files import read_json, user_path
from conal_rl.literals import Precision
from conal_rl.runs.checkpoints import load_checkpoint
from conal_rl.runs.folder import is_model
from conal_rl.runs.weights import UNFIT, read_model, reason, structure_from_json
from conal_rl.supervised.data.common import Batch, SharedLoader, TaskLoaders
from conal_rl.supervised.metrics import LOWER_IS_BETTER, Scores, delta_p, total_error
from conal_rl.supervised.network import MultiTaskNetwork, autocast, task_losses, to_device
from conal_rl.supervised.problem import Problem, Task, make_problem

Loader = SharedLoader | TaskLoaders
Progress = Callable[[int, int], None]
"""Takes (batches done, batches wanted) after every batch."""


@torch.no_grad()
def mean_loss(
    network: nn.Module,
    problem: Problem,
    loader: Loader,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> float:
    """Return the sum of the tasks' mean losses, with batches weighted by their labelled samples."""
    total = torch.zeros(len(problem.tasks), dtype=torch.float64)
    counted = torch.zeros_like(total)
    for batch, predictions in _predicted(network, loader, device, autocast):
        labelled = torch.tensor([float(batch.masks[task].sum()) for task in problem.tasks])
        total += task_losses(problem, predictions, batch).cpu() * labelled
        counted += labelled
    return float((total / counted.clamp(min=1)).sum())


@torch.no_grad()
def scores(
    network: nn.Module,
    problem: Problem,
    loader: Loader,
    device: torch.device,
    autocast: AbstractContextManager[Any],
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Return every metric of every task; NaN if nothing is labelled."""
    metrics = {name: task.metric() for name, task in problem.tasks.items()}
    predicted = _predicted(network, loader, device, autocast)
    for done, (batch, predictions) in enumerate(predicted, start=1):
        for name, metric in metrics.items():
            metric.update(predictions[name].float(), batch.targets[name], batch.masks[name])
        if progress is not None:
            progress(done, len(loader))
    return {name: metric.compute() for name, metric in metrics.items()}


def _predicted(
    network: nn.Module,
    loader: Loader,
    device: torch.device,
    autocast: AbstractContextManager[Any],
) -> Iterator[tuple[Batch, dict[str, Tensor]]]:
    """Yield each batch, on the device, with the network's predictions in evaluation mode."""
    network.eval()
    for cpu_batch in loader:
        batch = to_device(cpu_batch, device)
        with autocast:
            predictions = network(batch.inputs)
        yield batch, predictions


def summary(values: Scores, reference: Scores | None) -> dict[str, float]:
    """Return figures over all tasks, in percent: the total error of accuracies, and delta_p.

    Raises:
        ConalError: the reference has different tasks or metrics.
    """
    figures: dict[str, float] = {}
    if all(set(metrics) == {"accuracy"} for metrics in values.values()):
        figures["total_error"] = total_error({t: m["accuracy"] for t, m in values.items()})
    if reference is not None:
        figures["delta_p"] = delta_p(values, reference)
    return figures


def read_reference(config: SupervisedConfig, tasks: Mapping[str, Task]) -> Scores | None:
    """Return the scores in the file `evaluation.reference`; None if the config names no file.

    The file is the evaluation.json of a supervised run.

    Raises:
        ConfigError: the file is missing, or has a different data set, different tasks, or scores
            that are not above 0.
        CheckpointError: the file is damaged, or not from a supervised run.
    """
    if config.evaluation.reference is None:
        return None
    path = user_path(config.evaluation.reference)
    if not path.is_file():
        raise ConfigError(
            f"evaluation.reference: got {path}, which does not exist, expected an evaluation.json. "
            "Check the path"
        )
    content = read_json(path)
    try:
        reference = {str(task): from_json(metrics) for task, metrics in content["scores"].items()}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: got different content, expected the evaluation.json of a supervised run. "
            "Use a different reference"
        ) from error
    if content.get("set") != config.data.set:
        raise ConfigError(
            f"evaluation.reference: got the data set {content.get('set')} in {path}, "
            f"expected {config.data.set}. Use a different reference"
        )
    ours = {name: dict.fromkeys(task.metric().names, 0.0) for name, task in tasks.items()}
    try:
        delta_p(ours, reference)  # raises if the reference does not fit
    except ConalError as error:
        raise ConfigError(f"evaluation.reference: {path}: {error}") from error
    return reference


def to_json(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return named values for JSON; NaN and infinity become null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def from_json(values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the named values that `to_json` wrote; null becomes NaN."""
    return {str(n): math.nan if value is None else float(value) for n, value in values.items()}


def table(values: Scores, figures: Mapping[str, float]) -> Table:
    """Return a table of scores and figures."""
    rows = Table(box=box.SIMPLE_HEAD)
    for heading in ("task", "metric", "better"):
        rows.add_column(heading)
    rows.add_column("test", justify="right")
    for task, metrics in values.items():
        for name, value in metrics.items():
            rows.add_row(task, name, "lower" if LOWER_IS_BETTER[name] else "higher", f"{value:.4f}")
    for name, value in figures.items():
        rows.add_row("all", name, "", format(value, "+.2f" if name == "delta_p" else ".2f") + "%")
    return rows


def test(
    network: MultiTaskNetwork,
    problem: Problem,
    config: SupervisedConfig,
    device: torch.device,
    precision: Precision,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the scores on the test part and the network's size, as JSON types.

    If the reference cannot be read, only `delta_p` is missing.
    """
    try:
        reference = read_reference(config, problem.tasks)
    except ConalError as error:
        print(f"The report has no delta_p: {error}", file=sys.stderr)
        reference = None
    loader = problem.loader("test", config.evaluation.batch_size, False)
    test_scores = scores(network, problem, loader, device, autocast(device, precision), progress)
    passed_over = {part: list(names) for part, names in problem.passed_over.items()}
    return {
        "set": config.data.set,
        "scores": {task: to_json(metrics) for task, metrics in test_scores.items()},
        **({"passed_over": passed_over} if passed_over else {}),
        **to_json(summary(test_scores, reference)),
        "reference": None if reference is None else config.evaluation.reference,
        "parameters": {
            "encoder": sum(p.numel() for p in network.encoder.parameters()),
            "heads": sum(p.numel() for p in network.heads.parameters()),
        },
    }


def report_table(report: dict[str, Any]) -> Table:
    """Return the scores in a report of `test` as a table to print."""
    test_scores = {task: from_json(metrics) for task, metrics in report["scores"].items()}
    figures = {str(name): report[name] for name in ("total_error", "delta_p") if name in report}
    return table(test_scores, from_json(figures))


def load_network(
    path: Path, config: SupervisedConfig, device: str = "auto"
) -> tuple[MultiTaskNetwork, Problem]:
    """Return the network of a run's folder or of one of its checkpoints, and its problem.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the run's config.
        ConfigError: this machine lacks the device.
    """
    chosen = resolve_device("device", str(device))
    model = path if is_model(path) else path / "model"
    if model.is_dir():
        about, weights = read_model(model)
    else:
        about = load_checkpoint(path, groups=[])[1]
        group = "best" if about.get("phase") == "done" and about.get("best") else "network"
        weights = load_checkpoint(path, groups=[group])[0][group]
    agent = replace(
        config.agent, pretrained=None, bert_from_config=True
    )  # weights come from the run
    problem = make_problem(replace(config, agent=agent))
    try:
        if about["tasks"] != list(problem.tasks):
            raise ValueError(
                f"tasks: got {', '.join(about['tasks'])}, expected those of the config"
            )
        network = MultiTaskNetwork(problem, structure_from_json(about["structure"]))
        network.load_state_dict(weights)
    except UNFIT as error:
        raise CheckpointError(
            f"{path}: got weights that do not fit ({reason(error)}), expected those of its config. "
            "Use a different checkpoint"
        ) from error
    return network.to(chosen), problem
