"""The test of a trained network: its scores on the test part, and its report."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from stable_baselines3.common.utils import get_device

from conal_rl.config import SupervisedConfig
from conal_rl.errors import CheckpointError, ConalError
from conal_rl.runs import load_checkpoint
from conal_rl.saving import UNFIT, read_model, reason, structure_from_json
from conal_rl.supervised.network import MultiTaskNetwork, autocast
from conal_rl.supervised.problem import Problem, make_problem
from conal_rl.supervised.scoring import from_json, read_reference, scores, summary, table, to_json


def test(
    network: MultiTaskNetwork, problem: Problem, config: SupervisedConfig, device: torch.device
) -> dict[str, Any]:
    """Scores on the test part, and the network's size, as JSON types.

    A reference that is no longer there costs the comparison with it alone.
    """
    try:
        reference = read_reference(config, problem.tasks)
    except ConalError as error:
        print(f"{error}; there is no delta_p", file=sys.stderr)
        reference = None
    loader = problem.loader("test", config.evaluation.batch_size, False)
    precision = autocast(device, config.agent.mixed_precision)
    found = scores(network, problem, loader, device, precision)
    return {
        "set": config.data.set,
        "scores": {task: to_json(metrics) for task, metrics in found.items()},
        **to_json(summary(found, reference)),
        "reference": None if reference is None else config.evaluation.reference,
        "parameters": {
            "encoder": sum(p.numel() for p in network.encoder.parameters()),
            "heads": sum(p.numel() for p in network.heads.parameters()),
        },
    }


def print_report(report: dict[str, Any]) -> None:
    """Print the scores of `test`."""
    found = {task: from_json(metrics) for task, metrics in report["scores"].items()}
    figures = {str(name): report[name] for name in ("total_error", "delta_p") if name in report}
    Console().print(table(found, from_json(figures)))


def load_network(
    path: Path, config: SupervisedConfig, device: str = "auto"
) -> tuple[MultiTaskNetwork, Problem]:
    """The network of a run's folder or of one of its checkpoints, and its problem.

    Raises:
        CheckpointError: the files are missing, damaged or of something else.
    """
    if (path / "model").is_dir():
        about, weights = read_model(path / "model")
    else:
        about = load_checkpoint(path, groups=[])[1]
        group = "best" if about.get("phase") == "done" and about.get("best") else "network"
        weights = load_checkpoint(path, groups=[group])[0][group]
    agent = replace(config.agent, pretrained=None, bert_from_config=True)  # they come from the run
    problem = make_problem(replace(config, agent=agent))
    try:
        if about["tasks"] != list(problem.tasks):
            raise ValueError(f"it is of tasks {', '.join(about['tasks'])}")
        network = MultiTaskNetwork(problem, structure_from_json(about["structure"]))
        network.load_state_dict(weights)
    except UNFIT as error:
        raise CheckpointError(f"{path}: does not fit its config: {reason(error)}") from error
    return network.to(get_device(device)), problem
