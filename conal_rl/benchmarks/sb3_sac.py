"""Train Stable-Baselines3's own SAC on each task of a suite, as a reference.

It uses no code of this package's agent. Every task has its own network. All settings are SB3's
defaults, with four exceptions. The preset gives the hidden widths, the number of envs and the
random steps at the start, and every step of all envs has one update. A finished task has the file
TASK.json, and a later call skips this task.
"""

from __future__ import annotations

import argparse
import dataclasses
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
from conal_rl.evaluation.protocol import closing
from conal_rl.files import atomic_write, draft_file, user_path, write_json


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m conal_rl.benchmarks.sb3_sac", description=__doc__)
    parser.add_argument(
        "config", help="Take the tasks, envs and hidden widths from this preset or YAML file."
    )
    parser.add_argument(
        "--total-steps",
        type=int,
        required=True,
        metavar="N",
        help="Train for this number of env steps over all tasks.",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="Train with this seed. The default is %(default)s."
    )
    parser.add_argument(
        "--out",
        type=user_path,
        required=True,
        metavar="DIR",
        help="Keep the agents in this folder.",
    )
    return parser


def run(arguments: Sequence[str]) -> None:
    """Train and evaluate the tasks that are not finished, then write evaluation.json.

    Raises:
        ConalError: The command line is wrong, or the folder has a run of different settings.
    """
    options = _parser().parse_args(arguments)
    # These agents do not search, so the limits on a search's length do not apply.
    config = load_config(options.config, ["--agent.tree", "independent"])
    if not isinstance(config, Config):
        raise ConfigError(
            f"config: got {options.config}, expected an experiment in reinforcement learning. "
            "Give a different config"
        )
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
    """Train an agent on a task, save it next to the file `done`, and write its evaluation."""
    suite = f"mt1:{task}"
    env = make(suite, config.env.envs_per_task, config.seed)
    env.seed(config.seed)
    began = time.monotonic()
    with closing(env):
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
    with draft_file(done.with_suffix(".zip")) as draft:
        agent.save(draft)
    settings = config.evaluation
    result = evaluate_policy(agent, suite, settings.episodes, settings.seed)
    report = result.to_json() | {"steps": agent.num_timesteps, "seconds": round(seconds, 1)}
    write_json(done, report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Call `run` and return the exit status."""
    tune_malloc()
    return exit_status(lambda: run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
