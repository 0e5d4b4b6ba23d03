"""`python -m conal_rl.train NAME_OR_YAML`: search, derive, train, evaluate, in one budget."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from stable_baselines3.common.utils import LinearSchedule
from torch import Tensor

from conal_rl.agents import ConalSAC
from conal_rl.agents.storage import (
    load_trees,
    restore,
    structures_from_json,
    training_state,
    trees_to_json,
)
from conal_rl.commands import exit_status
from conal_rl.config import Config, parse_command_line
from conal_rl.core import (
    BranchingSpace,
    ConalSpace,
    ProStage,
    ReconSpace,
    Rule,
    Space,
    Structure,
    Tree,
)
from conal_rl.envs import SuiteVecEnv, make
from conal_rl.envs.vec_env import Standing
from conal_rl.errors import CheckpointError, ConfigError, SuiteError, TreeError
from conal_rl.progress import RunCallback, Stopped, StopRequest, conflict_report, make_logger
from conal_rl.runs import Run, atomic_write, load_checkpoint, save_checkpoint

Phase = Literal["search", "train", "done"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status: 0, 2 (one line on stderr), or 130 after Ctrl-C."""
    return exit_status(lambda: run(sys.argv[1:] if argv is None else list(argv)))


def run(arguments: Sequence[str]) -> int:
    """Start or resume what the command line asks for; returns the exit status.

    Raises:
        ConalError: whatever is wrong with the command line, the run or the machine.
    """
    command = parse_command_line(arguments, __doc__ or "")
    if command.config.threads is not None:
        torch.set_num_threads(command.config.threads)
    if command.resume is not None:
        training = Training.resume(Run.open(command.resume), command.config)
    else:
        training = Training.start(command.config, command.out)
    return training.run_phases()


class Training:
    """One run: which phase it is in, its agent, and its folder."""

    def __init__(self, config: Config, run: Run, env: SuiteVecEnv, phase: Phase):
        self.config, self.run, self.env = config, run, env
        self.phase: Phase = phase
        self.seconds = 0.0  # wall-clock of earlier processes
        self.search_steps = self.search_seconds = 0.0
        self.stop = StopRequest()
        self._clock = time.monotonic()
        self.agent: ConalSAC

    @classmethod
    def start(cls, config: Config, out: Path | None) -> Training:
        """Begin a run in a new folder. Everything that can be refused is, before it exists."""
        env = _make_env(config)
        env.reset()  # envs that are broken from the start are refused too
        env.seed(config.seed)
        trees = _fixed_trees(config, env.tasks)
        agent = make_agent(config, env, trees or _search_space(config, env.tasks))
        run = Run.create(config, out)
        training = cls(config, run, env, "search" if trees is None else "train")
        training.agent = agent
        if trees is not None:
            training._write_trees(trees)
        return training

    @classmethod
    def resume(cls, run: Run, config: Config) -> Training:
        """Go on from the newest checkpoint of `run`; official environments begin new episodes.

        What `config` changes is kept in the run's config.yaml, for later resumes.
        """
        tensors, state = load_checkpoint(run.folder)
        began = run.config()
        for field, now, then in (
            ("agent.tree", config.agent.tree, began.agent.tree),
            ("search.method", config.search.method, began.search.method),
        ):
            if now != then:
                raise ConfigError(
                    f"{field}: got {now!r}, but {run.folder} began with {then!r}; start a new run "
                    "for another tree"
                )
        env = _make_env(config)
        try:
            training = cls(config, run, env, state["phase"])
            for name in ("seconds", "search_steps", "search_seconds"):
                setattr(training, name, state[name])
            agent_state = state["agent"]
            tasks = agent_state["model"]["tasks"]
            structures = structures_from_json(agent_state["model"]["trees"])
        except (AttributeError, LookupError, TypeError, ValueError, TreeError) as error:
            raise CheckpointError(
                f"{run.folder}: state.json does not describe a run: {error}"
            ) from error
        if tuple(tasks) != env.tasks:
            raise SuiteError(
                f"{run.folder}: the checkpoint is of tasks {', '.join(tasks)}, "
                f"but env.suite has {', '.join(env.tasks)}; resume with the run's own suite"
            )
        training.agent = make_agent(config, env, structures)
        if training.phase != "search" and not config.search.keep_replay:
            training.agent.learning_starts += int(training.search_steps)
        try:
            restore(training.agent, tensors, agent_state)
        except CheckpointError as error:
            raise CheckpointError(f"{run.folder}: {error}") from error
        training._resume_episodes(tensors, state)
        if training.phase == "done" and training.agent.num_timesteps < config.total_steps:
            training.phase = "train"
        atomic_write(run.config_path, config.to_yaml())
        return training

    def run_phases(self) -> int:
        """Do what is left of search, training and evaluation; return the exit status."""
        with self.stop.watching():
            self.agent.set_logger(make_logger(self.run.folder, self.agent.num_timesteps))
            if self.phase == "search":
                if not self._search():
                    return self._interrupted()
                self._derive()
                if self.config.search.only:
                    return 0
            if self.phase == "train":
                if not self._learn(self.config.total_steps):
                    return self._interrupted()
                self.phase = "done"
                self._report_conflicts("training.json", self.config.agent.tree)
                self._checkpoint()
        try:
            self._evaluate_finally()
        except KeyboardInterrupt:
            self._say_how_to_go_on()
            raise
        return 0

    def _search(self) -> bool:
        """All of the search, which for CoNAL-Pro comes in stages; False if stopped before."""
        steps, stages = self.config.search.steps, len(self.config.agent.widths)
        while True:
            numbers = [s.number for s in self.agent.structures if isinstance(s, ProStage)]
            if not self._learn(steps * max(numbers) // stages if numbers else steps):
                return False
            following = self.agent.next_stage()
            if following is None:
                return True
            searched = self._next_agent(following)
            self.agent.go_on_from(searched)
            self._checkpoint()

    def _learn(self, until: int) -> bool:
        """Train until `until` env steps of the whole run; False if stopped before."""
        callback = RunCallback(
            self.config, self.phase, until, self.stop, self._checkpoint, self._evaluate_briefly
        )
        left = until - self.agent.num_timesteps
        try:
            if left > 0:
                self.agent.learn(left, callback, log_interval=None, reset_num_timesteps=False)
        except Stopped:
            return False
        finally:
            callback.close()
        return self.stop.signal is None

    def _derive(self) -> None:
        """From the search's gates to agents of fixed trees; the search's data may be kept."""
        trees = self.agent.derive()
        self.search_steps, self.search_seconds = self.agent.num_timesteps, self._elapsed()
        self._report_conflicts("search.json", self.config.search.method)
        self._write_trees(trees)
        console = Console(stderr=True)
        for name, tree in zip(("actor", "critic"), trees, strict=True):
            console.print(f"[bold]{name}[/bold]: {tree}", highlight=False, soft_wrap=True)

        if self.config.search.only:
            self._checkpoint()
            return
        self.phase = "train"
        self._next_agent(trees, self.config.search.keep_replay)
        self._checkpoint()

    def _next_agent(
        self, structures: tuple[Structure, Structure], keep_replay: bool = True
    ) -> ConalSAC:
        """Go on with an agent of other structures; returns the agent before it."""
        before = self.agent
        self.agent = make_agent(self.config, self.env, structures)
        self.agent.set_logger(before.logger)
        self.agent.num_timesteps = before.num_timesteps
        if keep_replay:
            self.agent.replay_buffer.take_over(before.replay_buffer)
        else:
            self.agent.learning_starts += before.num_timesteps
        self._seed_envs()
        return before

    def _report_conflicts(self, name: str, method: str) -> None:
        if self.agent.noticing:
            report = conflict_report(self.agent) | {"method": method, "seconds": self._elapsed()}
            atomic_write(self.run.folder / name, json.dumps(report) + "\n")

    def _seed_envs(self) -> None:
        """A stream of its own for this agent, or the envs would begin the same episodes again."""
        stream = np.random.SeedSequence([self.config.seed, self.agent.num_timesteps])
        self.env.seed(int(stream.generate_state(1)[0]))

    def _resume_episodes(self, tensors: dict[str, dict[str, Tensor]], state: Any) -> None:
        """Go on within the episodes that the checkpoint was written in, where that can be."""
        saved = state.get("episodes")
        if saved is None:
            self._seed_envs()
            return
        try:
            arrays = {name: tensor.numpy() for name, tensor in tensors["episodes"].items()}
            self.agent._last_obs = self.env.resume(Standing(arrays, saved["streams"]))
            self.agent.replay_buffer.continue_episodes(saved["validating"])
        except ValueError:  # the config now asks for another engine or other envs
            self._seed_envs()
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.run.folder}: the checkpoint does not say where its episodes stand: {error}"
            ) from error

    def _write_trees(self, trees: tuple[Tree, Tree]) -> None:
        from matplotlib.figure import Figure

        atomic_write(self.run.tree_path, trees_to_json(*trees))
        figure = Figure(figsize=(14, 6), layout="constrained")
        for axes, tree, name in zip(figure.subplots(1, 2), trees, ("actor", "critic"), strict=True):
            tree.draw(axes, title=name)
        figure.savefig(self.run.folder / "tree.png", dpi=120)

    def _checkpoint(self) -> None:
        groups, agent_state = training_state(self.agent)
        state: dict[str, Any] = {
            "phase": self.phase,
            "seconds": self._elapsed(),
            "search_steps": self.search_steps,
            "search_seconds": self.search_seconds,
            "agent": agent_state,
            "episodes": None,
        }
        standing = self.env.standing()
        if standing is not None:
            groups["episodes"] = {n: torch.from_numpy(a) for n, a in standing.arrays.items()}
            validating = self.agent.replay_buffer.begun_episodes()
            state["episodes"] = {"streams": standing.streams, "validating": validating}
        save_checkpoint(self.run.folder, self.agent.num_timesteps, groups, state)
        self.agent.save_weights(self.run.folder / "model")

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self._clock

    def _interrupted(self) -> int:
        self._checkpoint()
        self._say_how_to_go_on()
        assert self.stop.signal is not None
        return 128 + self.stop.signal

    def _say_how_to_go_on(self) -> None:
        print(
            f"stopped at {self.agent.num_timesteps:,} steps; go on with: "
            f"python -m conal_rl.train --resume {shlex.quote(str(self.run.folder))}",
            file=sys.stderr,
        )

    def _evaluate_briefly(self) -> float | None:
        from conal_rl.evaluation import evaluate_policy

        settings = self.config.evaluation
        # Another seed than the final evaluation's: nothing is chosen on those episodes.
        return evaluate_policy(
            self.agent, self.config.env.suite, settings.every_episodes, settings.seed + 1
        ).mean_success

    def _evaluate_finally(self) -> None:
        from conal_rl.evaluation import evaluate_policy

        settings = self.config.evaluation
        evaluation = evaluate_policy(
            self.agent, self.config.env.suite, settings.episodes, settings.seed
        )
        report = evaluation.to_json() | {
            "steps": self.agent.num_timesteps,
            "search_steps": self.search_steps,
            "seconds": round(self._elapsed()),
            "search_seconds": round(self.search_seconds),
            "replay_of_search_reused": bool(self.search_steps) and self.config.search.keep_replay,
        }
        atomic_write(self.run.evaluation_path, json.dumps(report, indent=2) + "\n")
        Console().print(evaluation.table())


def _make_env(config: Config) -> SuiteVecEnv:
    env = config.env
    return make(env.suite, env.envs_per_task, config.seed, env.engine)


def _fixed_trees(config: Config, tasks: tuple[str, ...]) -> tuple[Tree, Tree] | None:
    """The trees that `agent.tree` names, or None where they are to be searched."""
    depth = len(config.agent.widths)
    if config.agent.tree == "search":
        return None
    if config.agent.tree == "shared":
        return (Tree.shared(tasks, depth),) * 2
    if config.agent.tree == "independent":
        return (Tree.independent(tasks, depth),) * 2
    return load_trees(Path(config.agent.tree), tasks, depth)


def _search_space(config: Config, tasks: tuple[str, ...]) -> tuple[Space, Space]:
    """What the search begins in, for actor and critics.

    Raises:
        ConfigError: there is only one task.
    """
    search = config.search
    if len(tasks) < 2:
        raise ConfigError(
            f"agent.tree: got 'search', but {tasks[0]} is the only task and has nobody to share "
            "with; give independent"
        )
    space: Space = ConalSpace()
    if search.method == "ltb" or not search.purely_specific:
        space = BranchingSpace(search.copies)
    elif search.method == "conal_pro":
        space = ProStage.first(len(tasks))
    elif search.method == "recon":
        space = ReconSpace(search.specific_layers)
    return space, space


def make_agent(
    config: Config, env: SuiteVecEnv, structures: tuple[Structure, Structure]
) -> ConalSAC:
    """The agent that `config` describes, of fixed trees or searching."""
    agent, search = config.agent, config.search
    searching = not all(isinstance(structure, Tree) for structure in structures)
    end = agent.learning_rate_end
    rule: Rule = "none"
    if searching and search.method in ("conal", "conal_pro"):
        rule = search.rule
    elif not searching and agent.conflict_rule != "ignore":
        rule = agent.conflict_rule
    return ConalSAC(
        env=env,
        tree=structures,
        learning_rate=agent.learning_rate
        if end is None or searching
        else LinearSchedule(agent.learning_rate, end, end_fraction=1.0),
        buffer_size=agent.buffer_size,
        batch_size=agent.batch_size,
        learning_starts=agent.learning_starts * env.num_tasks,
        tau=agent.tau,
        gamma=agent.gamma,
        train_freq=agent.update_every,
        gradient_steps=agent.updates,
        ent_coef=f"auto_{agent.initial_temperature}",
        target_entropy="auto" if agent.target_entropy is None else agent.target_entropy,
        reward_scale=agent.reward_scale,
        critic_reduce=agent.critic_reduce,
        max_grad_norm=agent.max_grad_norm,
        conflict_rule=rule,
        hold_after_search=agent.conflict_rule != "ignore",
        weighting=agent.weighting,
        conflict_margin=search.margin,
        conflict_smoothing=search.smoothing,
        gate_learning_rate=search.gate_learning_rate,
        gate_every=search.gate_every,
        validation_share=search.validation_share,
        gumbel_temperature=search.temperature if search.gumbel or search.method == "ltb" else None,
        policy_kwargs={
            "widths": agent.widths,
            "layer_norm": agent.layer_norm,
            "critic": agent.critic,
            "critic_bins": agent.critic_bins,
            "critic_range": agent.critic_range,
            "actor_averaging": agent.actor_averaging,
        },
        seed=config.seed,
        device=config.device,
    )


if __name__ == "__main__":
    sys.exit(main())
