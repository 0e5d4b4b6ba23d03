"""`python -m conal_rl.benchmarks.sb3_sac`: Stable-Baselines3's own SAC on each task of a suite.

One network per task and SB3's defaults, but for what the comparison fixes: hidden widths, number of
envs, random steps at the start, and one update per step of all envs. The reference that no code of
this package's agent is in. A task that has been done is its TASK.json, and a later call goes on
behind it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from stable_baselines3 import SAC

from conal_rl.benchmarks.one_per_task import write_together
from conal_rl.benchmarks.study import require_config
from conal_rl.cli import Parser, exit_status
from conal_rl.config import Config, load_config
from conal_rl.device import tune_malloc
from conal_rl.envs import make
from conal_rl.envs.metaworld import suite_tasks
from conal_rl.errors import ConfigError
from conal_rl.evaluation import evaluate_policy
from conal_rl.runs.files import atomic_write, draft_file


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
    # These agents search nothing, so that a search may be longer than they are.
    config = load_config(options.config, ["--agent.tree", "independent"])
    if not isinstance(config, Config):
        raise ConfigError(f"{options.config}: not an experiment in reinforcement learning")
    config = dataclasses.replace(config, total_steps=options.total_steps, seed=options.seed)
    tasks = suite_tasks(config.env.suite)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    require_config(out, config)
    if (out / "evaluation.json").is_file():
        return
    atomic_write(out / "config.yaml", config.to_yaml())
    parts = {task: out / f"{task}.json" for task in tasks}
    for task, done in parts.items():
        if not done.is_file():
            _train_and_evaluate(config, task, done)
    write_together(list(parts.values()), config.env.suite, out / "evaluation.json")


def _train_and_evaluate(config: Config, task: str, done: Path) -> None:
    """Train on a task, keep the agent beside `done`, and write its evaluation there."""
    suite = f"mt1:{task}"
    env = make(suite, config.env.envs_per_task, config.seed)
    env.seed(config.seed)
    began = time.monotonic()
    agent = SAC(
        "MlpPolicy",
        env,
        policy_kwargs={"net_arch": list(config.agent.widths)},
        learning_starts=config.agent.learning_starts,
        seed=config.seed,
        device="cpu",
    )
    steps = config.total_steps // len(suite_tasks(config.env.suite))
    agent.learn(steps, log_interval=None)  # type: ignore[arg-type]
    seconds = time.monotonic() - began
    env.close()
    with draft_file(done.with_suffix(".zip")) as draft:
        agent.save(draft)
    settings = config.evaluation
    result = evaluate_policy(agent, suite, settings.episodes, settings.seed)
    report = result.to_json() | {"steps": agent.num_timesteps, "seconds": round(seconds, 1)}
    atomic_write(done, json.dumps(report, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """`run`, as an exit status."""
    tune_malloc()
    return exit_status(lambda: run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
