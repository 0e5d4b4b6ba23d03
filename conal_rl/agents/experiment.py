"""A run of multi-task SAC: its envs, its agent, what it saves and how it is evaluated."""

from __future__ import annotations

import dataclasses
import operator
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from rich.table import Table
from stable_baselines3.common.utils import get_device

from conal_rl.agents import ConalSAC
from conal_rl.agents.callback import RunCallback, Stopped, next_multiple
from conal_rl.agents.model_files import predicting_agent
from conal_rl.agents.tree_files import load_trees, structures_from_json, trees_to_json
from conal_rl.config import AgentConfig, Config, EnvConfig
from conal_rl.core import Structure, Tree
from conal_rl.core.learner import Learner
from conal_rl.envs import SuiteVecEnv, make, suite_of
from conal_rl.envs.vec_env import EnvState
from conal_rl.errors import (
    CheckpointError,
    ConalError,
    ConfigError,
    SuiteError,
    TreeError,
)
from conal_rl.files import user_path
from conal_rl.literals import Precision
from conal_rl.runs.checkpoints import load_checkpoint
from conal_rl.runs.experiment import (
    Tensors,
    decide_precision,
    require_compiler,
    search_space,
)
from conal_rl.runs.folder import find_run, is_model, is_shared_model, run_of
from conal_rl.runs.progress import Session
from conal_rl.runs.weights import read_model, require_finite


class SACExperiment:
    """Envs, and an agent that learns from them.

    Args:
        config: the config of the run.

    Raises:
        ConalError: the envs cannot be made, or the last evaluation could not run.
    """

    def __init__(self, config: Config):
        _require_other_goals(config)
        import conal_rl.evaluation  # noqa: F401 - it runs last; fail now if it does not load

        self.config = config
        self.env = make(config.env.suite, config.env.envs_per_task, config.seed, config.env.engine)
        self.agent: ConalSAC
        self.precision: Precision
        self._next_evaluation = config.evaluation.every  # the first step at which it is due

    def start(self) -> None:
        """Make the first agent. Errors that could come later are raised now.

        Raises:
            ConalError: an env is broken, a tree does not fit, or a search would be too short.
        """
        config, env = self.config, self.env
        env.reset()
        assert isinstance(env.action_space, Box)
        middle = (env.action_space.low + env.action_space.high) / 2
        env.step(np.tile(middle, (env.num_envs, 1)))
        env.seed(config.seed)
        trees = _fixed_trees(config, env.tasks)
        if trees is None:
            _require_updates(config, env.num_tasks)
        self._decide_precision(None)
        self._make_agent(trees or (search_space(config, env.tasks),) * 2)
        _say_if_slow(config, env, self.agent.device)

    def restore(
        self, tensors: Tensors, state: Mapping[str, Any], precision: Precision | None
    ) -> None:
        """Make the agent of a checkpoint and fill it.

        The native engine resumes its episodes; official envs begin new ones.

        Raises:
            CheckpointError: the checkpoint is damaged or does not fit the config.
            SuiteError: the checkpoint belongs to different tasks.
        """
        try:
            saved = state["agent"]
            tasks = tuple(saved["model"]["tasks"])
            structures = structures_from_json(saved["model"]["trees"])
            searched = 0 if state["phase"] == "search" else int(state["search_steps"])
            self._plan_evaluation(saved["steps"])
            planned, every = state.get("next_evaluation", 0), self.config.evaluation.every
            if planned and every and planned % every == 0:  # it may have been due at the stop
                self._next_evaluation = min(self._next_evaluation, planned)
        except (AttributeError, LookupError, TypeError, ValueError, TreeError) as error:
            raise CheckpointError(
                f"state.json: got a damaged file ({error}), expected the state of a run. "
                "Start a new run"
            ) from error
        if tasks != self.env.tasks:
            raise SuiteError(
                f"env.suite: got the tasks {', '.join(self.env.tasks)}, expected "
                f"{', '.join(tasks)}, which the run began with. Start a new run"
            )
        self._decide_precision(precision)
        self._make_agent(structures)
        if not self.config.search.keep_replay:
            self.agent.learning_starts += searched
        self.agent.restore(tensors, saved)
        self.agent.updates_before = int(state.get("updates_before", 0))
        self._resume_episodes(tensors, state)

    @property
    def steps(self) -> int:
        """Env steps of the whole run so far."""
        return self.agent.num_timesteps

    @property
    def learners(self) -> dict[str, Learner]:
        """The actor's and the critics'."""
        return self.agent.learners

    def learn(self, session: Session) -> None:
        """Train up to `session.until` env steps, or until it is stopped or out of time."""
        self.agent.set_logger(session.logger)
        callback = RunCallback(session, self.config.log_interval, self._evaluate_if_due)
        left = session.until - self.steps
        try:
            if left > 0:
                self.agent.learn(left, callback, log_interval=None, reset_num_timesteps=False)
        except Stopped:
            pass
        except ValueError:  # torch or an env may see the NaN first
            require_finite(self.agent.policy, self.agent._n_updates)
            raise
        finally:
            callback.release()
        if not session.stopped:
            self.agent.finish_updates()

    def next_stage(self) -> bool:
        """Move to CoNAL-Pro's next stage, with what was learnt; False if no stage is left."""
        structures = self.agent.next_stage()
        if structures is None:
            return False
        searched = self._replace_agent(structures)
        self.agent.inherit_from(searched)
        return True

    def derive(self) -> tuple[Tree, Tree]:
        """Return the trees of actor and critics.

        Raises:
            ConalError: the search had no update.
        """
        if self.agent._n_updates == 0:
            raise ConalError(
                f"search.steps: got {self.steps:,}, expected enough for an update. An update needs "
                f"more than the {self.agent.learning_starts:,} random steps of all tasks, and two "
                "ended episodes per task. Give more steps, or give the envs a time limit "
                "(max_episode_steps)"
            )
        return self.agent.derive()

    def train_trees(self, trees: tuple[Tree, ...]) -> None:
        """Continue with an agent of these trees, which may keep the search's data and weights."""
        actor, critic = trees
        searched = self._replace_agent((actor, critic), self.config.search.keep_replay)
        if self.config.search.keep_weights:
            self.agent.inherit_from(searched)

    def trees_json(self, trees: tuple[Tree, ...]) -> str:
        """Return the content of tree.json."""
        return trees_to_json(*trees)

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return all that `restore` needs: tensors, and JSON types.

        Raises:
            ConalError: a weight is not finite.
        """
        require_finite(self.agent.policy, self.agent._n_updates)
        groups, agent_state = self.agent.training_state()
        state: dict[str, Any] = {
            "agent": agent_state,
            "episodes": None,
            "next_evaluation": self._next_evaluation,
            "updates_before": self.agent.updates_before,
        }
        # An agent that has not acted yet begins new episodes, after a resume too.
        episodes = None if self.agent._last_obs is None else self.env.state()
        if episodes is not None:
            groups["episodes"] = {n: torch.from_numpy(a) for n, a in episodes.arrays.items()}
            validating = self.agent.replay_buffer.begun_episodes()
            state["episodes"] = {"streams": episodes.streams, "validating": validating}
        return groups, state

    def save_weights(self, folder: Path, finished: bool) -> None:
        """Write the agent's weights; these are the last iterate, also in a finished run."""
        self.agent.save_weights(folder)

    figures, counted = ("success",), "episodes"

    def evaluate(self, progress: Callable[[int, int], None]) -> tuple[dict[str, Any], Table]:
        """Return success per task by the final protocol, as JSON types and as a table."""
        from conal_rl.evaluation import evaluate_policy

        settings, search = self.config.evaluation, self.config.search
        if self.agent._n_updates == 0:
            print("The run made no update: the agent has learnt nothing.", file=sys.stderr)
        evaluation = evaluate_policy(
            self.agent, self.config.env.suite, settings.episodes, settings.seed, progress=progress
        )
        searched = self.config.agent.tree == "search"
        reused = {"replay_of_search_reused": searched and search.keep_replay}
        return evaluation.to_json() | reused, evaluation.table()

    def _decide_precision(self, recorded: Precision | None) -> None:
        device, mixed = get_device(self.config.device), self.config.agent.mixed_precision
        self.precision = decide_precision(device, mixed, recorded)

    def _make_agent(self, structures: tuple[Structure, Structure]) -> None:
        half = self.precision == "bfloat16"
        self.agent = make_agent(self.config, self.env, structures, half)

    def _replace_agent(
        self, structures: tuple[Structure, Structure], keep_replay: bool = True
    ) -> ConalSAC:
        """Continue with an agent of different structures; return the agent before it."""
        before = self.agent
        self._make_agent(structures)
        self.agent.num_timesteps = before.num_timesteps
        # For the log, whose counters are of the whole run.
        self.agent.updates_before = before.updates_before + before._n_updates
        self.agent._episode_num = before._episode_num
        if keep_replay:
            self.agent.replay_buffer.inherit_from(before.replay_buffer)
        else:
            self.agent.learning_starts += before.num_timesteps
        self._seed_envs()
        self._plan_evaluation(self.steps)
        return before

    def _seed_envs(self) -> None:
        """Give this agent's envs a new random stream, so that they begin different episodes."""
        stream = np.random.SeedSequence([self.config.seed, self.agent.num_timesteps])
        self.env.seed(int(stream.generate_state(1)[0]))

    def _resume_episodes(self, tensors: Tensors, state: Mapping[str, Any]) -> None:
        """Continue the episodes of the checkpoint if the envs can; otherwise begin new ones."""
        saved = state.get("episodes")
        if saved is None:
            self._seed_envs()
            return
        try:
            arrays = {name: tensor.numpy() for name, tensor in tensors["episodes"].items()}
            self.agent._last_obs = self.env.restore(EnvState(arrays, saved["streams"]))
            self.agent.replay_buffer.continue_episodes(saved["validating"])
        except ValueError:  # the engine or the number of envs has changed
            self._seed_envs()
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"state.json: got damaged episodes ({error}), expected those of the envs. "
                "Start a new run"
            ) from error

    def _plan_evaluation(self, steps: int) -> None:
        if self.config.evaluation.every:
            self._next_evaluation = next_multiple(self.config.evaluation.every, steps)

    def _evaluate_if_due(self) -> float | None:
        """Return the mean success, or None if no evaluation is due or it fails."""
        settings, env = self.config.evaluation, self.config.env
        if not settings.every or self.steps < self._next_evaluation:
            return None
        from conal_rl.envs.metaworld import is_published
        from conal_rl.evaluation import evaluate_policy

        self._plan_evaluation(self.steps)
        try:
            engine = env.engine if is_published(env.suite) else "official"
            return evaluate_policy(
                self.agent, env.suite, settings.interim_episodes, settings.interim_seed, engine
            ).mean_success
        except ConalError as error:
            print(f"The evaluation at {self.steps:,} steps failed: {error}", file=sys.stderr)
            return None


def load_run(run: str | Path, device: str = "auto") -> ConalSAC:
    """Return the agent of a run, ready for `predict`.

    Args:
        run: the run's folder, one of its checkpoints, a copy of its `model/`, or
            `pretrained:NAME` for weights that come with the package.
        device: auto, cpu, cuda, cuda:N or mps.

    Raises:
        CheckpointError: the run does not exist, or its files are damaged.
        ConfigError: the run's config.yaml is damaged, the run is a supervised one, or this machine
            lacks the device.
    """
    return load_policy(find_run(str(run)), device)[0]


def load_policy(path: Path, device: str = "auto") -> tuple[ConalSAC, Config]:
    """Return the agent of a run or of one of its checkpoints, and the config of its training.

    A shared model's config has the suite of its tasks, and otherwise defaults.

    Raises:
        CheckpointError: `path` is neither, or its files are damaged.
        ConfigError: the run's config.yaml is damaged, or the run is a supervised one.
    """
    path = path.resolve()
    if is_shared_model(path):
        agent = ConalSAC.load_weights(path, device)
        env, fixed = EnvConfig(suite_of(agent.tasks)), AgentConfig(tree="shared")
        steps = max(agent.num_timesteps, 1)
        return agent, Config(name="model", total_steps=steps, env=env, agent=fixed)
    config = run_of(path).config()
    if not isinstance(config, Config):
        raise ConfigError(f"{path}: got a supervised run, expected an RL run. Give a different run")
    model = path if is_model(path) else path / "model"
    if model.is_dir():
        return predicting_agent(ConalSAC, *read_model(model), device, model, config.agent), config
    tensors, state = load_checkpoint(path, groups=["policy"])
    about = state.get("agent", {}).get("model")
    return predicting_agent(ConalSAC, about, tensors["policy"], device, path, config.agent), config


def _require_other_goals(config: Config) -> None:
    """Raise ConfigError if evaluation would use the goals of training."""
    settings = config.evaluation
    seeds = {settings.seed, settings.interim_seed} if settings.every else {settings.seed}
    if config.seed in seeds:
        raise ConfigError(
            f"seed: got {config.seed}, expected a number other than {sorted(seeds)}, which "
            "evaluation draws its goals from. Give a different seed"
        )


_OF_A_GPU = {"width": 400, "layers": 3, "batch": 128, "tasks": 10}
"""The size of the update that `docs/results/cost.md` measured on a CPU, in its table `update`."""


def _say_if_slow(config: Config, env: SuiteVecEnv, device: torch.device) -> None:
    """Say before a run on a CPU that its networks are meant for a GPU, as in mt10_paper."""
    agent = config.agent
    sizes = min(agent.widths), len(agent.widths), agent.batch_size, env.num_tasks
    if device.type != "cpu" or any(map(operator.lt, sizes, _OF_A_GPU.values())):
        return
    updates = config.total_steps // (env.num_envs * agent.update_every) * agent.updates
    print(
        f"device: got cpu for networks that are meant for a GPU. On an H200, mt10_paper took 9.9 "
        f"minutes. This run has about {updates:,} updates of {agent.batch_size} transitions per "
        "task. On two CPU cores, one of 128 took 81 to 122 ms, and 386 to 576 ms in a search. The "
        "preset mt10 takes 2 to 2.6 hours there.",
        file=sys.stderr,
    )


def _require_updates(config: Config, tasks: int) -> None:
    """Raise ConfigError if a search, or the first stage of one, would end before an update."""
    search, random = config.search, config.agent.learning_starts * tasks
    stages = config.agent.depth if search.method == "conal_pro" else 1
    if search.steps // stages <= random:
        raise ConfigError(
            f"search.steps: got {search.steps}, expected more than {stages * random}, because each "
            f"of {tasks} tasks begins with agent.learning_starts = {config.agent.learning_starts} "
            f"random steps{f' and each of {stages} stages takes its share' * (stages > 1)}. Give "
            "more steps"
        )


def _fixed_trees(config: Config, tasks: tuple[str, ...]) -> tuple[Tree, Tree] | None:
    """Return the trees that `agent.tree` names, or None for a search."""
    depth = len(config.agent.widths)
    if config.agent.tree == "search":
        return None
    if config.agent.tree == "shared":
        return (Tree.shared(tasks, depth),) * 2
    if config.agent.tree == "independent":
        return (Tree.independent(tasks, depth),) * 2
    return load_trees(user_path(config.agent.tree), tasks, depth)


def make_agent(
    config: Config, env: SuiteVecEnv, structures: tuple[Structure, Structure], half: bool = False
) -> ConalSAC:
    """Return the agent that `config` describes; with `half`, in bfloat16.

    Raises:
        ConfigError: agent.compile is set, and the machine lacks a compiler.
    """
    device = get_device(config.device)
    if config.agent.compile:
        require_compiler(device)
    settings = dataclasses.replace(config.agent, mixed_precision=half)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "mixed_precision: ")  # the run has said it
        return ConalSAC(
            env=env,
            tree=structures,
            settings=settings,
            search=config.search,
            seed=config.seed,
            device=config.device,
        )
