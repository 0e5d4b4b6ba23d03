"""Multi-task SAC whose actor and critics learn their sharing structure with CoNAL.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), on Stable-Baselines3's
loop. Networks, conflict noticing and gates are those of `conal_rl.core`.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.save_util import load_from_pkl
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from torch import Tensor, nn

from conal_rl.agents import arguments, checks
from conal_rl.agents.arguments import LIVE_LOOP, LOOP, POLICIES, Arguments
from conal_rl.agents.episode_stats import Means, RecentEpisodes, record
from conal_rl.agents.learning_state import LearningState, Tensors, zip_of_this_version
from conal_rl.agents.model_files import learning_agent, predicting_agent, to_share
from conal_rl.agents.policies import ConalPolicy, TaskActor, TaskCritics
from conal_rl.agents.replay import TaskReplayBuffer, require_replay
from conal_rl.agents.update import SACUpdate, Temperatures
from conal_rl.agents.update_queue import UpdateQueue
from conal_rl.config import AgentConfig, SearchConfig
from conal_rl.core import ConflictNoticing, Structure, Tree
from conal_rl.core.learner import Learner
from conal_rl.device import EMULATED, has_bfloat16
from conal_rl.envs.vec_env import SuiteVecEnv
from conal_rl.runs.structures import first_structure
from conal_rl.runs.weights import read_model, write_model


class ConalSAC(SAC):
    """SB3's SAC for many tasks at once.

    Observations end in a one-hot task ID, like those of `conal_rl.envs.make`. Without a `tree`,
    `learn` searches: gates learn from validation episodes and weights from all others; conflicting
    tasks hold shared modules. `derive()` then returns the learnt trees.

    What differs from SB3's SAC:

    - `batch_size`, `buffer_size` and `learning_starts` count per task, and so do temperatures.
    - `net_arch` (one list) is `widths`, and `n_critics` is `critics`; either name works. ReLU, Adam
      and the replay class are fixed, without gSDE. Arguments after `env` are keywords.
    - Observations and actions are 1-D Boxes. `VecNormalize` may scale rewards, by one number for
      all tasks (`normalize_returns` has one for each), but not observations.
    - `learn` needs an env or transitions of each task, and a search two ended episodes of each.
    - SB3's `n_eval_episodes` counts the episodes of all envs together. Give a multiple of
      `env.num_envs`, or tasks are left out, with a warning.
    - A log line has means since the last one. With captured graphs (CUDA), updates happen in the
      next step of the envs, so that `train` leaves the losses of earlier updates in the logger.
    - A batch is a `TaskBatch`. The replay lacks arrays such as `observations`, the actor `predict`.
    - A copy or a pickle has a logger only after it learns.

    Args:
        policy: "ConalPolicy", or "MlpPolicy", which is the same.
        env: a `VecEnv`.
        tasks: task names in the order of the one-hot. The default is the env's.
        tree: a `Tree` for actor and critics, a search space (`ConalSearch`, `ConalProStage`,
            `LTBSearch`, `ReconSearch`), or a pair of these `(actor's, critics')`. None: the space
            that `search` describes.
        settings: the agent; `conal_rl.config.AgentConfig` documents each field.
        search: the search; `conal_rl.config.SearchConfig` documents each field.
        overrides: fields of both as keywords, which win. All other keywords are SB3's. SB3's
            `train_freq`, `gradient_steps` and `ent_coef` win over `update_every`, `updates` and
            `initial_temperature`; `learning_rate` may be a schedule.

    Raises:
        ConfigError: a setting is of the wrong type or out of its range.
        TypeError, ValueError: an argument is of the wrong kind, or the env or a tree is of
            different tasks.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = dict.fromkeys(POLICIES, ConalPolicy)
    policy: ConalPolicy  # type: ignore[assignment]
    actor: TaskActor  # type: ignore[assignment]
    critic: TaskCritics  # type: ignore[assignment]
    critic_target: TaskCritics  # type: ignore[assignment]
    replay_buffer: TaskReplayBuffer
    has_critics = True
    """Whether the critics hold weights; False after loading a model without them."""
    learns_with: AgentConfig | None = None
    """Settings for learning, of an agent of `load_weights` before it has an env; else None."""
    updates_before = 0  # of the search's agents, for the log

    def __init__(
        self,
        policy: str | type[ConalPolicy] = "ConalPolicy",
        env: GymEnv | str | None = None,
        *,
        tasks: Sequence[str] | None = None,
        tree: Structure | tuple[Structure | None, Structure | None] | None = None,
        settings: AgentConfig | None = None,
        search: SearchConfig | None = None,
        _init_setup_model: bool = True,
        **overrides: Any,
    ):
        own_policy = arguments.require_policy(policy, given=_init_setup_model)
        given = arguments.split_keywords(overrides, own_policy)
        super().__init__(
            policy,  # type: ignore[arg-type]
            checks.require_env(env),  # type: ignore[arg-type]
            replay_buffer_class=TaskReplayBuffer,
            policy_kwargs=given.policy,
            _init_setup_model=False,
            **given.sb3,
        )
        for name in LOOP:  # `_setup_model` sets them, or SB3's `load` has done so before
            vars(self).pop(name, None)
        self._counted: dict[str, Any] = {}  # conflicts and episodes, for `save`
        if not _init_setup_model:  # SB3's `load` fills in the saved attributes and sets up
            return
        self._arguments = Arguments.of(settings, search).with_keywords(given.ours)
        if self.settings.mixed_precision and not has_bfloat16(self.device):
            warnings.warn(f"mixed_precision: {EMULATED}. Give False", stacklevel=2)
        names = checks.task_names(tasks, self.env)
        space = first_structure(self.search, len(names))
        structures = checks.structures_of(tree, space, names, self.settings.depth)
        arguments.require_fitting(given.ours, structures, tree)
        self._configure(names, structures)

    def _configure(self, tasks: tuple[str, ...], structures: tuple[Structure, Structure]) -> None:
        """Build networks and replay for tasks and structures, from scratch."""
        self.tasks = tasks
        trees = dict(zip(("actor_tree", "critic_tree"), structures, strict=True))
        self.policy_kwargs = {**self.policy_kwargs, "tasks": tasks, **trees}
        self.largest_returns = np.zeros(len(tasks), dtype=np.float32)
        self._setup_model()

    def _setup_model(self) -> None:
        self.tasks = tuple(self.tasks)  # a list after SB3's `load`
        self._arguments = arguments.move_arguments(vars(self), self.structures)
        checks.require_tasks(self.tasks, self.env, self.settings.normalize_returns)
        checks.require_sizes_to_fit(self)
        vars(self).update(self._loop())
        self.policy_kwargs = {**self.policy_kwargs, "settings": self.settings}
        self.replay_buffer_kwargs = self._arguments.replay(len(self.tasks), self.structures)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`n_steps=")  # SB3's, of replay buffers of others
            super()._setup_model()
        if self.replay_buffer.largest_returns is not None:  # kept here, because SB3 saves no replay
            self.replay_buffer.largest_returns.largest = self.largest_returns
        rate, every = self.lr_schedule(1), self.target_update_interval
        fixed = self.ent_coef_tensor if self.log_ent_coef is None else None
        entropies = float(self.target_entropy), fixed, self.log_ent_coef
        temperatures = Temperatures(len(self.tasks), *entropies, rate)
        self.log_ent_coef, self.ent_coef_optimizer = temperatures.log, temperatures.optimizer
        self.update = SACUpdate(self.policy, temperatures, self.settings, self.search, rate, every)
        self.queue = UpdateQueue(self.update, self.device)
        self._means = Means()
        self.recent = RecentEpisodes(self.tasks)
        LearningState.of(self).restore_counted(self._counted)

    @property
    def settings(self) -> AgentConfig:
        """The agent's settings. Assign new ones to change those that every update reads."""
        return self._arguments.settings

    @settings.setter
    def settings(self, settings: AgentConfig) -> None:
        self._arguments = self._arguments.with_settings(settings)
        self.update.settings = settings
        vars(self).update({name: self._loop()[name] for name in LIVE_LOOP})
        self.queue.forget()

    def _loop(self) -> dict[str, Any]:
        actions = get_action_dim(self.action_space)
        return self._arguments.loop(len(self.tasks), actions, self.searching)

    @property
    def search(self) -> SearchConfig:
        """The settings of the search."""
        return self._arguments.search

    @property
    def learners(self) -> dict[str, Learner]:
        """The learners of the `actor` and the `critic`."""
        return self.update.learners

    @property
    def gates(self) -> dict[str, nn.Parameter]:
        """The gates by the networks' names; networks without gates are left out."""
        return self.update.gates

    @property
    def noticing(self) -> dict[str, ConflictNoticing]:
        """The conflict noticing by the networks' names; networks without it are left out."""
        return self.update.noticing

    @property
    def structures(self) -> tuple[Structure, Structure]:
        """The trees of actor and critics, or the spaces that they are searched in."""
        return self.policy_kwargs["actor_tree"], self.policy_kwargs["critic_tree"]

    @property
    def searching(self) -> bool:
        """Whether the tree of the actor or of the critics is still searched."""
        return arguments.are_searched(self.structures)

    def derive(self) -> tuple[Tree, Tree]:
        """Return the trees of actor and critics; see `SACUpdate.derive`."""
        return self.update.derive()

    def next_stage(self) -> tuple[Structure, Structure] | None:
        """Return CoNAL-Pro's next stage, None after the last; see `SACUpdate.next_stage`."""
        return self.update.next_stage()

    def inherit_from(self, before: "ConalSAC") -> None:
        """Copy what was learnt from the agent `before`, of the search or one of its stages."""
        self.update.inherit_from(before.update)
        self.largest_returns[:] = before.largest_returns

    def train(self, gradient_steps: int, batch_size: int = 128) -> None:
        """Do `gradient_steps` updates on `batch_size` transitions of every task each.

        Their mean losses are then in the logger, as in SB3. In `learn`, updates that are captured
        graphs are pending while the environments step. The losses are then of the updates before.
        """
        if not self.replay_buffer.ready():
            steps = (self.num_timesteps - self._num_timesteps_at_start) // self.n_envs
            if checks.is_time_to_warn(steps, self.train_freq):
                checks.warn_of_missing_data(self.tasks, self.replay_buffer)
            return
        self.queue.pending += gradient_steps
        if not self.queue.waits:
            self.finish_updates(batch_size)
        for name, mean in self._means.latest().items():
            self.logger.record(f"train/{name}", mean)
        self.logger.record("train/n_updates", self.updates_before + self._n_updates)

    def finish_updates(self, batch_size: int | None = None) -> None:
        """Do all pending updates."""
        waiting = self.queue.take()
        if not waiting:
            return
        left = self._current_progress_remaining
        learning_rate = self.lr_schedule(left)
        self.logger.record("train/learning_rate", learning_rate)
        self.queue.set_learning_rate(learning_rate)
        self.update.anneal_gates(left)
        for _ in range(waiting):
            size = batch_size or self.batch_size
            done = self._n_updates, self._vec_normalize_env
            self._means.add(self.queue.run(self.replay_buffer, size, *done))
            self._n_updates += 1

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions, like SB3's method; a list or a tensor is checked as an array is.

        Raises:
            ObservationError: they are of a different shape, or one does not end in a one-hot.
        """
        if deterministic or self.queue.graphs is None or observation is not self._last_obs:
            return super().predict(observation, state, episode_start, deterministic)
        assert isinstance(observation, np.ndarray)
        actions: Tensor = self.queue.act(torch.from_numpy(observation))
        return self.policy.unscale_action(actions.cpu().numpy()), state

    def _sample_action(self, *given: Any) -> tuple[np.ndarray, np.ndarray]:
        actions = super()._sample_action(*given)
        if not isinstance(self.env, SuiteVecEnv):  # a SuiteVecEnv calls it during its step
            self.finish_updates()
        return actions

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str = "ConalSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "ConalSAC":
        """Train for `total_timesteps` steps of all environments together, like SB3's SAC."""
        interval: Any = log_interval  # None: the caller logs
        with self.queue.learning(self.env, self.finish_updates):
            super().learn(
                total_timesteps, callback, interval, tb_log_name, reset_num_timesteps, progress_bar
            )
        self.finish_updates()
        if self.num_timesteps > self.learning_starts and not self.replay_buffer.ready():
            checks.warn_of_missing_data(self.tasks, self.replay_buffer)
        return self

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *rest: Any,
    ) -> Any:
        if reset_num_timesteps or self._last_obs is None or not checks.in_episode(self.env):
            self._last_obs = None  # SB3 then resets the envs
            self.replay_buffer.cut_episodes()
        learning = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *rest)
        assert isinstance(self._last_obs, np.ndarray)
        checks.require_task_ids(self._last_obs, len(self.tasks))
        checks.require_every_task(self._last_obs, self.tasks, self.replay_buffer)
        return learning

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Replace the env, like SB3's method. An agent of `load_weights` can then learn.

        Raises:
            ConfigError: the agent has no critics.
            ValueError: the tasks, the spaces or the number of envs differ.
        """
        normalize_returns = self.settings.normalize_returns
        checks.require_tasks(self.tasks, checks.require_env(env), normalize_returns)
        if self.learns_with is not None:
            vars(self).update(vars(learning_agent(self, env, {})), learns_with=None)
        super().set_env(env, force_reset)

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: Any = None) -> None:
        super()._update_info_buffer(infos, dones)
        assert isinstance(self._last_obs, np.ndarray)
        self.recent.take(infos, self._last_obs)

    def dump_logs(self) -> None:
        """Write one log line: SB3's, training means, success per task, gates and conflicts.

        Raises:
            ConalError: a loss is not finite, so that training cannot continue.
        """
        means, updates = self._means.take(), self.updates_before + self._n_updates
        record(self.logger, means, self.recent, self.learners, updates, self.settings.critic_range)
        super().dump_logs()

    @classmethod
    def load(
        cls, path: Any, env: GymEnv | None = None, device: Any = "auto", *rest: Any, **named: Any
    ) -> "ConalSAC":
        """Return the agent in a zip file, like SB3's method; keywords replace its settings.

        A folder of `save_weights` is read too. With an env, the agent can then learn.

        Raises:
            CheckpointError: the file is of a different version of conal_rl, or of SB3's SAC.
            ConfigError: a keyword is wrong, the saved networks depend on it, or it has no effect.
            TypeError: a keyword is unknown.
        """
        if isinstance(path, str | Path) and Path(path).is_dir():
            agent = cls.load_weights(path, device)
            return agent if env is None else learning_agent(agent, env, named)
        new, env = arguments.for_load(named, device), checks.require_env(env)
        with zip_of_this_version(path):
            return super().load(path, env, new.pop("device"), *rest, **new)

    def save(self, *given: Any, **named: Any) -> None:
        """Write a zip file, like SB3's method."""
        self._arguments = self._arguments.with_loop(vars(self), self._loop())
        self._counted = LearningState.of(self).counted()
        super().save(*given, **named)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        """Load a replay, like SB3's method; the next transitions are of new episodes.

        Raises:
            ValueError: the replay has settings that differ from the agent's. The agent is
                unchanged.
        """
        spaces = self.observation_space, self.action_space
        found = load_from_pkl(path, self.verbose)
        loaded = require_replay(found, *spaces, **self.replay_buffer_kwargs)
        loaded.move(self.device)
        loaded.cut_episodes()
        self.replay_buffer = loaded
        if self.replay_buffer.largest_returns is not None:  # `save` keeps them
            self.largest_returns = self.replay_buffer.largest_returns.largest

    def set_parameters(self, *given: Any, **named: Any) -> None:
        """Load parameters, like SB3's method; they may come from a different device."""
        super().set_parameters(*given, **named)
        self.update.set_gate_learning_rate(self.search.gate_learning_rate)
        self.queue.prepare()

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a pickle, gets a logger when it learns: files and streams cannot be copied.
        state = vars(self) | {"_logger": Logger(None, []), "_custom_logger": False}
        scaling = self._vec_normalize_env
        return state if scaling is None else state | {"_scaled": (scaling.venv, scaling.returns)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        venv, returns = state.pop("_scaled", (None, None))  # SB3's copies of VecNormalize lack them
        vars(self).update(state)
        scaling = self._vec_normalize_env
        if scaling is not None and vars(scaling)["venv"] is None:
            scaling.set_venv(venv)
            scaling.returns = returns

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "update", "queue", "_means", *LOOP]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        learnt = any(True for _ in self.update.loss_weights.parameters())
        gates = [f"{name}.gate_optimizer" for name in self.gates]
        return [*state_dicts, *gates, *["update.loss_weights"] * learnt], tensors

    def save_weights(self, folder: Path | str, half: bool = False, critics: bool = True) -> None:
        """Write the networks as `model.json` and `model.safetensors`, to share or to ship.

        Args:
            folder: the folder to make; a model in it is replaced.
            half: store weights in bfloat16; with mixed precision all outputs stay the same.
            critics: False keeps only the actor of deterministic actions. The critics of a loaded
                agent are then NaN.
        """
        with_critics = critics and self.has_critics
        about, weights = to_share(self.policy, self.num_timesteps, half, with_critics)
        write_model(Path(folder), about, weights)

    @classmethod
    def load_weights(cls, folder: Path | str, device: str = "auto") -> "ConalSAC":
        """Return an agent ready for `predict` from the files of `save_weights`; runs no code.

        `set_env` lets it learn further, with default settings. `load` takes different ones.

        Raises:
            CheckpointError: a file is missing, damaged, or of a different kind or version.
            ConfigError: this machine lacks the device.
        """
        about, weights = read_model(Path(folder))
        return predicting_agent(cls, about, weights, device, Path(folder))

    def training_state(self) -> tuple[Tensors, dict[str, Any]]:
        """Return tensors by group, and JSON types: the state that `restore` needs."""
        return LearningState.of(self).save()

    def restore(self, groups: Tensors, state: Mapping[str, Any]) -> None:
        """Load the `training_state` of an agent with equal settings. Envs begin new episodes.

        Raises:
            CheckpointError: the checkpoint is of an agent with different tasks, trees or sizes.
        """
        LearningState.of(self).restore(groups, state)
