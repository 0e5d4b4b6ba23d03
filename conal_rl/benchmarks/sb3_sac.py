"""`python -m conal_rl.benchmarks.sb3_sac`: Stable-Baselines3's own SAC on each task of a suite.

One network per task and SB3's defaults, but for what the comparison fixes: hidden widths, number of
envs, and one update per step of all envs. The reference that no code of this package's agent is in.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stable_baselines3 import SAC

from conal_rl.commands import Parser, exit_status, keep_memory
from conal_rl.config import Config, load_config
from conal_rl.envs import make
from conal_rl.envs.metaworld import suite_tasks
from conal_rl.errors import ConfigError
from conal_rl.evaluation import evaluate_policy
from conal_rl.runs import atomic_write


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m conal_rl.benchmarks.sb3_sac", description=__doc__)
    parser.add_argument("config", help="preset or YAML file whose tasks, envs and widths to take")
    parser.add_argument("--total-steps", type=int, required=True, help="over all tasks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Train and evaluate what is not there yet, then write evaluation.json.

    Raises:
        ConalError: whatever is wrong with the command line.
    """
    options = _parser().parse_args(arguments)
    config = load_config(options.config)
    if not isinstance(config, Config):
        raise ConfigError(f"{options.config}: not an experiment in reinforcement learning")
    tasks = suite_tasks(config.env.suite)
    options.out.mkdir(parents=True, exist_ok=True)
    reports = [_single(config, task, options.total_steps // len(tasks), options) for task in tasks]
    success = {task: report["success"] for task, report in zip(tasks, reports, strict=True)}
    report = {
        "success": success,
        "mean_success": sum(success.values()) / len(success),
        "steps": options.total_steps,
        "seconds": sum(report["seconds"] for report in reports),
    }
    atomic_write(options.out / "evaluation.json", json.dumps(report, indent=2) + "\n")


def _single(config: Config, task: str, steps: int, options: argparse.Namespace) -> dict[str, float]:
    done: Path = options.out / f"{task}.json"
    if done.is_file():
        found: dict[str, float] = json.loads(done.read_text(encoding="utf-8"))
        return found
    env = make(f"mt1:{task}", config.env.envs_per_task, options.seed)
    env.seed(options.seed)
    began = time.monotonic()
    agent = SAC(
        "MlpPolicy",
        env,
        policy_kwargs={"net_arch": list(config.agent.widths)},
        learning_starts=config.agent.learning_starts,
        seed=options.seed,
        device="cpu",
    )
    agent.learn(steps, log_interval=None)  # type: ignore[arg-type]
    seconds = time.monotonic() - began
    env.close()
    settings = config.evaluation
    result = evaluate_policy(agent, f"mt1:{task}", settings.episodes, settings.seed)
    assert result.mean_success is not None
    report = {"success": result.mean_success, "seconds": round(seconds, 1)}
    atomic_write(done, json.dumps(report) + "\n")
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """`run`, as an exit status."""
    keep_memory()
    return exit_status(lambda: run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
