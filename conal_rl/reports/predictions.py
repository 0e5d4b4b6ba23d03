"""The figure of input, prediction and truth of each task that predicts pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from conal_rl.config import SupervisedConfig
from conal_rl.errors import ConfigError
from conal_rl.reports.run_data import method_label
from conal_rl.reports.style import INK, name_figure
from conal_rl.supervised.evaluation import load_network
from conal_rl.supervised.losses import has_normal
from conal_rl.supervised.metrics import Edges, Saliency
from conal_rl.supervised.problem import Problem

Image = NDArray[np.float64]


def draw_predictions(folder: Path, config: SupervisedConfig, count: int, device: str) -> Figure:
    """Draw one row for each of `count` images, evenly spread over the test part.

    Raises:
        CheckpointError: a file of the run is missing or damaged.
        ConfigError: no task of the run predicts pixels.
    """
    network, problem = load_network(folder, config, device)
    network.eval()
    target_device = next(network.parameters()).device
    loader = problem.loader("test", 1, False)
    rows = []
    for number in np.linspace(0, len(loader) - 1, min(count, len(loader))).astype(int):
        batch = next(loader.endless(int(number)))
        tasks = [task for task in problem.tasks if batch.targets[task].ndim >= 3]
        if not tasks:
            raise ConfigError(
                f"{folder}: got a run on {config.data.set}, expected a task that predicts pixels. "
                "Give a different folder"
            )
        with torch.no_grad():
            predictions = network(batch.inputs.to(target_device))
        row = [_stretched(batch.inputs[0, 0])]
        for task in tasks:
            pair = _pair(problem, task, predictions[task].cpu(), batch.targets[task])
            if not batch.masks[task][0]:
                pair[1] = np.full_like(pair[1], np.nan)
            row += pair
        rows.append(row)
    figure = _grid(rows, tasks)
    name_figure(figure, f"{folder.resolve().name}: {method_label(config)}")
    return figure


def _pair(problem: Problem, task: str, prediction: Tensor, target: Tensor) -> list[Image]:
    """Return prediction and truth of one image, from 0 to 1; unlabelled pixels are NaN."""
    metric = problem.tasks[task].metric()
    if target.dtype == torch.int64:  # classes
        classes, truth = prediction.shape[1], target[0].double()
        truth[(truth < 0) | (truth >= classes)] = torch.nan
        return [(x / max(classes - 1, 1)).numpy() for x in (prediction[0].argmax(dim=0), truth)]
    if target.shape[1] == 3:  # normals
        target = target.where(has_normal(prediction, target)[:, None], torch.nan)
        return [(x[0].movedim(0, -1) / 2 + 0.5).numpy() for x in (F.normalize(prediction), target)]
    truth = target[0, 0].double()
    if metric.void is not None:
        truth[truth == metric.void] = torch.nan
    if isinstance(metric, Edges | Saliency):
        return [prediction[0, 0].sigmoid().numpy(), truth.numpy()]
    labelled = truth[truth.isfinite()]
    scale = labelled if len(labelled) else prediction[0, 0].double()
    low, high = scale.min(), scale.max()
    scaled = [(x - low) / (high - low).clamp(min=1e-9) for x in (prediction[0, 0].double(), truth)]
    return [x.clamp(0, 1).numpy() for x in scaled]


def _stretched(image: Tensor) -> Image:
    """Scale `(channel, height, width)` from its range to 0 to 1, with the channel last."""
    image = (image - image.min()) / (image.max() - image.min()).clamp(min=1e-9)
    return image.movedim(0, -1).squeeze(-1).numpy()


def _grid(rows: Sequence[Sequence[Image]], tasks: Sequence[str]) -> Figure:
    columns = len(rows[0])
    figure = Figure(figsize=(1.5 * columns, 1.5 * len(rows) + 0.4), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    titles = ["input", *(f"{task}\n{what}" for task in tasks for what in ("predicted", "true"))]
    for panel, title in zip(axes[0], titles, strict=True):
        panel.set_title(title, fontsize=8, color=INK)
    for panels, row in zip(axes, rows, strict=True):
        for number, (panel, image) in enumerate(zip(panels, row, strict=True)):
            panel.imshow(image, cmap="viridis" if number else "gray", vmin=0, vmax=1)
            panel.set_axis_off()
    return figure
