"""A run of multi-task SAC: its envs, its agent, what it saves and how it is judged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from rich.console import Console
from stable_baselines3.common.utils import LinearSchedule, get_device
from torch import Tensor

from conal_rl.agents import ConalSAC
from conal_rl.agents.callback import RunCallback, next_multiple
from conal_rl.agents.storage import (
    load_trees,
    restore,
    structures_from_json,
    training_state,
    trees_to_json,
)
from conal_rl.cli import loading_mujoco
from conal_rl.config import Config
from conal_rl.core import Structure, Tree
from conal_rl.core.learner import Learner
from conal_rl.device import has_bfloat16
from conal_rl.envs import SuiteVecEnv, make
from conal_rl.envs.vec_env import EnvState
from conal_rl.errors import (
    CheckpointError,
    ConalError,
    ConfigError,
    ObservationError,
    SuiteError,
    TreeError,
)
from conal_rl.runs.checkpoints import load_checkpoint, save_checkpoint
from conal_rl.runs.files import atomic_write
from conal_rl.runs.folder import Run
from conal_rl.runs.progress import Stopped, make_logger
from conal_rl.runs.trainer import (
    Phase,
    Trainer,
    conflict_rule,
    gumbel_temperature,
    require_compiler,
    search_space,
)
from conal_rl.runs.weights import require_finite


class SACExperiment(Trainer[Config]):
    """A run of multi-task SAC."""

    def __init__(self, config: Config, run: Run, env: SuiteVecEnv, phase: Phase):
        super().__init__(config, run, phase)
        self.env = env
        self.agent: ConalSAC
        self._next_evaluation = config.evaluation.every  # the step from which on it is due
        if config.agent.mixed_precision and not has_bfloat16(get_device(config.device)):
            print("bfloat16 would be slower here: all is in single precision", file=sys.stderr)

    @classmethod
    def start(cls, config: Config, out: Path | None) -> SACExperiment:
        """Begin a run in a new folder. Everything that can be refused is, before it exists."""
        _require_other_goals(config)
        _require_evaluation()
        env = _make_env(config)
        env.reset()  # envs that are broken from the start are refused too
        assert isinstance(env.action_space, Box)
        middle = (env.action_space.low + env.action_space.high) / 2
        env.step(np.tile(middle, (env.num_envs, 1)))
        env.seed(config.seed)
        trees = _fixed_trees(config, env.tasks)
        if trees is None:
            _require_updates(config, env.num_tasks)
        agent = make_agent(config, env, trees or (search_space(config, env.tasks),) * 2)
        run = Run.create(config, out)
        training = cls(config, run, env, "search" if trees is None else "train")
        training.agent = agent
        return training

    @classmethod
    def resume(cls, run: Run, config: Config) -> SACExperiment:
        """Go on from the newest checkpoint of `run`; official environments begin new episodes.

        What `config` changes is kept in the run's config.yaml, for later resumes, where there is
        something left to train.
        """
        _require_other_goals(config)
        _require_evaluation()
        tensors, state = load_checkpoint(run.folder)
        began = run.config()
        env = _make_env(config)
        try:
            training = cls(config, run, env, state["phase"])
            training._restore_progress(state)
            training._plan_evaluation(state["agent"]["steps"])
            planned, every = state.get("next_evaluation", 0), config.evaluation.every
            if planned and every and planned % every == 0:  # it may have been due at the stop
                training._next_evaluation = min(training._next_evaluation, planned)
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
        training._require_same_run(began)
        training.agent = make_agent(config, env, structures)
        if training.phase != "search" and not config.search.keep_replay:
            training.agent.learning_starts += int(training.search_steps)
        try:
            restore(training.agent, tensors, agent_state)
        except CheckpointError as error:
            raise CheckpointError(f"{run.folder}: {error}") from error
        training._resume_episodes(tensors, state)
        training._go_on(began)
        return training

    @property
    def steps(self) -> int:
        """Env steps of the whole run so far."""
        return self.agent.num_timesteps

    @property
    def learners(self) -> dict[str, Learner]:
        """The actor's and the critics'."""
        return self.agent.learners

    def _begin(self) -> None:
        self.agent.set_logger(make_logger(self.run.folder, self.steps))

    def _next_stage(self) -> bool:
        following = self.agent.next_stage()
        if following is not None:
            searched = self._next_agent(following)
            self.agent.inherit_from(searched)
        return following is not None

    def _learn(self, until: int) -> bool:
        """Train until `until` env steps of the whole run; False if stopped before."""
        callback = RunCallback(
            self.config,
            self.phase,
            until,
            self.stop,
            self._elapsed,
            self._seconds_left,
            self._checkpoint,
            self._evaluate_briefly,
        )
        left = until - self.agent.num_timesteps
        try:
            if left > 0:
                self.agent.learn(left, callback, log_interval=None, reset_num_timesteps=False)
        except Stopped:
            pass  # on a signal, or as the time is up
        except (ValueError, ObservationError):  # what torch, or an env, says of NaN
            require_finite(self.agent.policy, self.agent._n_updates)
            raise
        finally:
            callback.close()
        if self.stop.signal is None:
            self.agent.finish_updates()
        return self.stop.signal is None

    def _derive_trees(self) -> tuple[Tree, ...]:
        if self.agent._n_updates == 0:
            raise ConalError(
                f"no tree can be derived: the {self.steps:,} steps of the search were without an "
                f"update; they must go beyond the {self.agent.learning_starts:,} random ones of "
                "all tasks, and every task must have ended two episodes: give more search.steps, "
                "or envs a time limit (max_episode_steps)"
            )
        return self.agent.derive()

    def _train_trees(self, trees: tuple[Tree, ...]) -> None:
        """The search's data may be kept, and what it has learnt."""
        actor, critic = trees
        searched = self._next_agent((actor, critic), self.config.search.keep_replay)
        if self.config.search.keep_weights:
            self.agent.inherit_from(searched)

    def _trees_json(self, trees: tuple[Tree, ...]) -> str:
        return trees_to_json(*trees)

    def _next_agent(
        self, structures: tuple[Structure, Structure], keep_replay: bool = True
    ) -> ConalSAC:
        """Go on with an agent of other structures; returns the agent before it."""
        before = self.agent
        self.agent = make_agent(self.config, self.env, structures)
        self.agent.set_logger(before.logger)
        self.agent.num_timesteps = before.num_timesteps
        if keep_replay:
            self.agent.replay_buffer.inherit_from(before.replay_buffer)
        else:
            self.agent.learning_starts += before.num_timesteps
        self._seed_envs()
        self._plan_evaluation(self.steps)
        return before

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
            self.agent._last_obs = self.env.restore(EnvState(arrays, saved["streams"]))
            self.agent.replay_buffer.continue_episodes(saved["validating"])
        except ValueError:  # the config now asks for another engine or other envs
            self._seed_envs()
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.run.folder}: the checkpoint does not say where its episodes stand: {error}"
            ) from error

    def _checkpoint(self) -> None:
        require_finite(self.agent.policy, self.agent._n_updates)
        groups, agent_state = training_state(self.agent)
        state: dict[str, Any] = {
            **self._progress(),
            "agent": agent_state,
            "episodes": None,
            "next_evaluation": self._next_evaluation,
        }
        # An agent that has not acted yet begins new episodes, also after a resume.
        episodes = None if self.agent._last_obs is None else self.env.state()
        if episodes is not None:
            groups["episodes"] = {n: torch.from_numpy(a) for n, a in episodes.arrays.items()}
            validating = self.agent.replay_buffer.begun_episodes()
            state["episodes"] = {"streams": episodes.streams, "validating": validating}
        save_checkpoint(self.run.folder, self.agent.num_timesteps, groups, state)
        self.agent.save_weights(self.run.folder / "model")

    def _plan_evaluation(self, steps: int) -> None:
        if self.config.evaluation.every:
            self._next_evaluation = next_multiple(self.config.evaluation.every, steps)

    def _evaluate_briefly(self) -> float | None:
        """Mean success where an evaluation is due and can be made; training goes on if not."""
        settings, env = self.config.evaluation, self.config.env
        if not settings.every or self.steps < self._next_evaluation:
            return None
        from conal_rl.envs.metaworld import is_published
        from conal_rl.evaluation import evaluate_policy  # not above: this is asked every round

        self._plan_evaluation(self.steps)
        try:
            engine = env.engine if is_published(env.suite) else "official"
            return evaluate_policy(
                self.agent, env.suite, settings.every_episodes, settings.brief_seed, engine
            ).mean_success
        except ConalError as error:
            print(f"not evaluated at {self.steps:,} steps: {error}", file=sys.stderr)
            return None

    def _evaluate_finally(self) -> None:
        from conal_rl.evaluation import evaluate_policy

        settings, seconds = self.config.evaluation, self._elapsed()
        if self.agent._n_updates == 0:
            print("there was no update: what is evaluated has learnt nothing", file=sys.stderr)
        evaluation = evaluate_policy(
            self.agent, self.config.env.suite, settings.episodes, settings.seed
        )
        report = evaluation.to_json() | {
            "steps": self.agent.num_timesteps,
            "search_steps": self.search_steps,
            "seconds": round(seconds),
            "search_seconds": round(self.search_seconds),
            "replay_of_search_reused": bool(self.search_steps) and self.config.search.keep_replay,
        }
        atomic_write(self.run.evaluation_path, json.dumps(report, indent=2) + "\n")
        Console().print(evaluation.table())


def _make_env(config: Config) -> SuiteVecEnv:
    env = config.env
    return make(env.suite, env.envs_per_task, config.seed, env.engine)


def _require_other_goals(config: Config) -> None:
    """Raise ConfigError where evaluation would be on the goals of training."""
    settings = config.evaluation
    if config.seed in [settings.seed] + [settings.brief_seed] * bool(settings.every):
        raise ConfigError(
            f"seed: got {config.seed}, from which evaluation draws its goals (evaluation.seed is "
            f"{settings.seed}): it would be on those of training"
        )


def _require_evaluation() -> None:
    """Raise ConalError where what comes last cannot be loaded."""
    with loading_mujoco():
        import conal_rl.evaluation  # noqa: F401


def _require_updates(config: Config, tasks: int) -> None:
    """Raise ConfigError where a search, or the first stage of one, would be without an update."""
    search, random = config.search, config.agent.learning_starts * tasks
    stages = config.agent.depth if search.method == "conal_pro" else 1
    if search.steps // stages <= random:
        raise ConfigError(
            f"search.steps: got {search.steps}, expected more than {stages * random}: every one of "
            f"{tasks} tasks begins with agent.learning_starts = {config.agent.learning_starts} "
            f"random steps{', and every stage takes its share' * (stages > 1)}"
        )


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


def make_agent(
    config: Config, env: SuiteVecEnv, structures: tuple[Structure, Structure]
) -> ConalSAC:
    """The agent that `config` describes, of fixed trees or searching.

    Raises:
        ConfigError: it is to be compiled, and there is no compiler.
    """
    agent, search = config.agent, config.search
    device = get_device(config.device)
    if agent.compile:
        require_compiler(device)
    searching = not all(isinstance(structure, Tree) for structure in structures)
    end = agent.learning_rate_end
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
        normalize_returns=agent.normalize_returns,
        reset_at=() if searching else agent.reset_at,
        critic_reduce=agent.critic_reduce,
        n_steps=agent.n_steps,
        normalize_actor_loss=agent.normalize_actor_loss,
        actor_every=agent.actor_every,
        max_grad_norm=agent.max_grad_norm,
        conflict_rule=conflict_rule(config, searching),
        # In a search, also for a network that CoNAL-Pro has settled before the other.
        hold_after_search=searching or agent.conflict_rule != "ignore",
        weighting=agent.weighting,
        conflict_margin=search.margin,
        conflict_smoothing=search.smoothing,
        specific_decay=search.specific_decay,
        gate_learning_rate=search.gate_learning_rate,
        gate_every=search.gate_every,
        validation_share=search.validation_share,
        gumbel_temperature=gumbel_temperature(config),
        compile=agent.compile,
        cuda_graphs=agent.cuda_graphs,
        policy_kwargs={
            "widths": agent.widths,
            "layer_norm": agent.layer_norm,
            "critic": agent.critic,
            "critic_bins": agent.critic_bins,
            "critic_range": agent.critic_range,
            "critic_linear_to": agent.critic_linear_to,
            "critics": agent.critics,
            "mixed_precision": agent.mixed_precision and has_bfloat16(device),
            "actor_averaging": agent.actor_averaging,
        },
        seed=config.seed,
        device=config.device,
    )
