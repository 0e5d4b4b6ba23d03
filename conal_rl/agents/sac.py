"""Multi-task SAC whose actor and critics learn their sharing structure with CoNAL.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), on Stable-Baselines3's
loop; the networks, the conflict noticing and the gates are conal_rl.core's.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import HumanOutputFormat
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback
from torch import Tensor, nn

from conal_rl.agents import storage
from conal_rl.agents.checks import (
    require_ranges,
    require_task_ids,
    require_tasks,
    require_tree,
    task_names,
)
from conal_rl.agents.episode_stats import Means, RecentEpisodes
from conal_rl.agents.graphs import GraphCache, prepare_optimizer, set_step_size
from conal_rl.agents.policies import CONAL, ConalPolicy, TaskActor, TaskCritics
from conal_rl.agents.replay import TaskReplayBuffer
from conal_rl.agents.update import CLAMPED, SACUpdate, Temperatures, make_learners
from conal_rl.core import (
    ConalProStage,
    ConflictNoticing,
    ReconSearch,
    Rule,
    SearchNetwork,
    Structure,
    Tree,
)
from conal_rl.core.bilevel import decay_specific
from conal_rl.core.learner import ConflictSettings
from conal_rl.envs.vec_env import SuiteVecEnv
from conal_rl.errors import ConalError, diverged

MUCH_CLAMPED = 0.2


class ConalSAC(SAC):
    """SB3's SAC for many tasks at once. Use it as SB3's, with these differences.

    Observations end in a one-hot task ID (as `conal_rl.envs.make` gives them). `batch_size` and
    `buffer_size` count transitions per task. Without a `tree` the networks are supernets and
    `learn` searches: gates step on validation episodes, weights on the others, and shared modules
    are held while tasks conflict on them; `derive()` then gives the learnt trees.

    Args:
        policy: "ConalPolicy".
        env: a `VecEnv`; `tasks` is read from it unless given.
        tree: a `Tree` for actor and critics, a search space (`ConalSearch`, `ConalProStage`,
            `LTBSearch`, `ReconSearch`), None for `ConalSearch()`, or a pair of these
            `(actor's, critics')`.
        tasks: task names in the order of the one-hot; those of the env where it has any.
        reward_scale: factor on rewards before they enter the critics. Scaled returns must lie in
            the policy's `critic_range`, by default -1 to 11, unless `critic` is `mse`.
        normalize_returns: divide each task's rewards by the largest magnitude that their discounted
            sum has had, before `reward_scale` (after Nauman et al., "Bigger, Regularized,
            Categorical", 2025, who divide by the largest return).
        reset_at: numbers of updates after which all weights but the gates begin anew, with new
            optimisers; replay, temperatures and learnt loss weights stay (Nikishin et al., "The
            Primacy Bias in Deep Reinforcement Learning", ICML 2022).
        critic_reduce, normalize_actor_loss: see `conal_rl.agents.losses.Settings`.
        actor_every: updates of the critics for each update of the actor and its temperatures.
        max_grad_norm: clip for actor and critics, None for none.
        conflict_rule, conflict_margin, conflict_smoothing: see `conal_rl.core.ConflictNoticing`.
        hold_after_search: notice conflicts also while training a fixed tree, in place of an
            aggregation.
        weighting: `equal`, `random` or `uncertainty` weights of the tasks' losses, or one of
            `conal_rl.core.weighting.AGGREGATIONS` for the gradients of what a fixed tree shares.
            Uncertainty weights take losses for likelihoods, so that the actor's stay equal.
        specific_decay: weight decay of purely-specific modules in a search.
        gate_learning_rate, gate_every: Adam on the gates; weight steps per gate step.
        validation_share: share of episodes kept for the gates.
        gumbel_temperature: `(start, end)` of straight-through Gumbel gates over `learn`, or over a
            stage of CoNAL-Pro; None for the softmax.
        compile: let `torch.compile` make the networks of fixed trees faster in updates, where each
            task's own gradients are not needed. What was compiled before in this process is
            forgotten, and compiled again if it is used.
        cuda_graphs: on a CUDA device, record updates and stochastic actions as CUDA graphs, and let
            the device update while the environments step, so that an update learns from what was
            there before that step. Settings count as they were at the first update. Not in searches
            with Gumbel gates, nor with aggregations or `normalize_returns`.
        Others: as SB3's SAC.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of its range, or the env or a
            tree is of other tasks.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"ConalPolicy": ConalPolicy}
    policy: ConalPolicy  # type: ignore[assignment]
    actor: TaskActor  # type: ignore[assignment]
    critic: TaskCritics  # type: ignore[assignment]
    critic_target: TaskCritics  # type: ignore[assignment]
    replay_buffer: TaskReplayBuffer
    has_critics = True
    """Whether the critics are there: not where the weights of an actor alone were read."""

    def __init__(
        self,
        policy: str | type[ConalPolicy] = "ConalPolicy",
        env: GymEnv | str | None = None,
        *,
        tree: Structure | tuple[Structure | None, Structure | None] | None = None,
        tasks: Sequence[str] | None = None,
        reward_scale: float = 1.0,
        normalize_returns: bool = False,
        reset_at: Sequence[int] = (),
        critic_reduce: str = "min",
        normalize_actor_loss: bool = False,
        actor_every: int = 1,
        max_grad_norm: float | None = None,
        conflict_rule: Rule = "any_pair",
        conflict_margin: float = 0.0,
        conflict_smoothing: float = 0.0,
        hold_after_search: bool = False,
        weighting: str = "equal",
        specific_decay: float = 0.0,
        gate_learning_rate: float = 3e-4,
        gate_every: int = 1,
        validation_share: float = 0.1,
        gumbel_temperature: tuple[float, float] | None = None,
        compile: bool = False,
        cuda_graphs: bool = True,
        batch_size: int = 128,
        buffer_size: int = 100_000,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **sac: Any,
    ):
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,  # type: ignore[arg-type]
            batch_size=batch_size,
            buffer_size=buffer_size,
            policy_kwargs=policy_kwargs,
            _init_setup_model=False,
            **sac,
        )
        for argument in ("replay_buffer_class", "optimize_memory_usage"):
            if sac.pop(argument, None):
                raise ValueError(f"{argument} is not supported: a task-balanced replay is used")
        self.reward_scale = reward_scale
        self.normalize_returns = normalize_returns
        self.reset_at = tuple(reset_at)
        self.critic_reduce = critic_reduce
        self.normalize_actor_loss = normalize_actor_loss
        self.actor_every = actor_every
        self.max_grad_norm = max_grad_norm
        self.conflict_rule = conflict_rule
        self.conflict_margin = conflict_margin
        self.conflict_smoothing = conflict_smoothing
        self.hold_after_search = hold_after_search
        self.weighting = weighting
        self.specific_decay = specific_decay
        self.gate_learning_rate = gate_learning_rate
        self.gate_every = gate_every
        self.gumbel_temperature = gumbel_temperature
        self.validation_share = validation_share
        self.compile = compile
        self.cuda_graphs = cuda_graphs
        self.replay_buffer_class = TaskReplayBuffer
        self._counted: dict[str, Any] = {}  # what `save` keeps of conflicts and episodes
        if not _init_setup_model:  # `load` fills in the saved attributes and sets up
            return
        pair = tree if isinstance(tree, tuple) else (tree, tree)
        if len(pair) != 2:
            raise ValueError(f"tree is a pair of actor's and critics', not {len(pair)} of them")
        actor_tree, critic_tree = (CONAL if tree is None else tree for tree in pair)
        self._configure(task_names(tasks, self.env), actor_tree, critic_tree)

    def _configure(
        self,
        tasks: tuple[str, ...],
        actor_tree: Structure,
        critic_tree: Structure,
        architecture: dict[str, Any] | None = None,
    ) -> None:
        """Build networks and replay for `tasks` and structures; forgets what was learnt.

        Raises:
            TypeError: a tree is something else.
            ValueError: a tree is for other tasks, or to be searched for a single one.
        """
        for tree in (actor_tree, critic_tree):
            require_tree(tree, tasks)
        self.tasks = tasks
        trees = {"actor_tree": actor_tree, "critic_tree": critic_tree}
        # New dicts: the caller's own may serve several agents.
        self.policy_kwargs = {
            **self.policy_kwargs,
            "tasks": tasks,
            **trees,
            **(architecture or {}),
        }
        self.largest_returns = np.zeros(len(tasks), dtype=np.float32)
        self._setup_model()

    def _setup_model(self) -> None:
        self.tasks = tuple(self.tasks)  # SB3's `load` makes a list of it
        require_tasks(self.tasks, self.env)
        require_ranges(self)
        if self._vec_normalize_env is not None:
            raise ValueError("VecNormalize is not supported: it would change the one-hot task ID")
        if self.target_entropy == "auto":
            self.target_entropy = -float(np.prod(self.action_space.shape or ()))
        trees = (self.policy_kwargs["actor_tree"], self.policy_kwargs["critic_tree"])
        gated = any(map(_has_gates, trees))
        if gated and not 0 < self.validation_share < 1:
            raise ValueError(
                f"validation_share is between 0 and 1 in a search, not {self.validation_share}"
            )
        self.replay_buffer_kwargs = {  # here, as SB3's `load` may change the settings
            **self.replay_buffer_kwargs,
            "num_tasks": len(self.tasks),
            "n_steps": self.n_steps,
            "gamma": self.gamma,
            "normalize_returns": self.normalize_returns,
            "validation_share": self.validation_share * gated,
        }
        with warnings.catch_warnings():
            # SB3 warns that a replay buffer which is not its own may ignore this.
            warnings.filterwarnings("ignore", "`n_steps=")
            super()._setup_model()
        if self.replay_buffer.largest_returns is not None:  # the agent's, as SB3 saves no replay
            self.replay_buffer.largest_returns.largest = self.largest_returns
        if self.log_ent_coef is not None:  # one temperature per task
            self.log_ent_coef = self.log_ent_coef.detach().repeat(len(self.tasks))
            self.log_ent_coef.requires_grad_(True)
            self.ent_coef_optimizer = torch.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        for network in (self.actor, self.critic):
            if self.specific_decay and isinstance(network.encoder, SearchNetwork):
                specific = network.encoder.specific_weights()
                decay_specific(network.optimizer, specific, self.specific_decay)
        self.gates = {
            name: network.gates
            for name, network in (("actor", self.actor), ("critic", self.critic))
            if network.gates is not None
        }
        self.gate_optimizer = (
            torch.optim.Adam(self.gates.values(), lr=self.gate_learning_rate)
            if self.gates
            else None
        )
        conflicts = ConflictSettings(
            self.conflict_rule, self.conflict_margin, self.conflict_smoothing
        )
        self.learners = make_learners(
            self.policy, conflicts, self.hold_after_search, self.weighting
        )
        fixed = None
        if self.log_ent_coef is None:
            fixed = self.ent_coef_tensor.expand(len(self.tasks))
        self.update = SACUpdate(
            self.policy,
            self.learners,
            self.gates,
            self.gate_optimizer,
            Temperatures(fixed, self.log_ent_coef, self.ent_coef_optimizer),
            settings=self,
        )
        if self.compile:
            self._compile()
        self._recorder = GraphCache(self.device) if self._can_record() else None
        self._prepare_optimizers()
        self._learning = False
        self._pending_updates = 0  # updates that wait for the environments to step
        self._means = Means()
        self.recent = RecentEpisodes(self.tasks)
        self.recent.restore(self._counted.get("recent", {}))
        for name, noticing in self.noticing.items():
            if name in self._counted:
                noticing.restore(*self._counted[name])

    def _compile(self) -> None:
        torch.compiler.reset()  # it compiles one function for a few networks only
        if self.learners["actor"].rule is None:
            self.actor.compile_training()
        if self.learners["critic"].rule is None:
            self.critic.compile_training()
            self.critic_target.compile_training()

    def _can_record(self) -> bool:
        """Whether updates are the same kernels time and again, on a device that can record them."""
        rules = [learner.rule for learner in self.learners.values()]
        return (
            self.cuda_graphs
            and self.device.type == "cuda"
            and not (self.gumbel_temperature is not None and self.gates)
            and not self.normalize_returns
            and all(rule is None or isinstance(rule, ConflictNoticing) for rule in rules)
        )

    def _prepare_optimizers(self) -> None:
        self._step_size: float | None = None  # that the recorded steps have
        own = self.actor.optimizer, self.critic.optimizer
        for optimizer in (*own, self.ent_coef_optimizer, self.gate_optimizer):
            if optimizer is not None:
                prepare_optimizer(optimizer, self.device if self._recorder else None)

    @property
    def noticing(self) -> dict[str, ConflictNoticing]:
        """The conflict noticing of actor and critics, where there is one."""
        return {
            name: learner.noticing
            for name, learner in self.learners.items()
            if learner.noticing is not None
        }

    @property
    def loss_weights(self) -> nn.ModuleDict:
        """How actor and critics weigh the tasks' losses."""
        return nn.ModuleDict({n: learner.loss_weights for n, learner in self.learners.items()})

    @property
    def structures(self) -> tuple[Structure, Structure]:
        """What shapes the actor and the critics: a tree, or what it is searched in."""
        return self.policy.actor_tree, self.policy.critic_tree

    @property
    def searching(self) -> bool:
        """Whether the tree of the actor or of the critics is not decided."""
        return not all(isinstance(structure, Tree) for structure in self.structures)

    def derive(self) -> tuple[Tree, Tree]:
        """The trees of actor and critics: by the strongest gates or the conflicts, or the fixed.

        Raises:
            ConalError: the gates have not moved or are not finite, or there were no steps to count
                conflicts in.
        """
        if self.gates and all(bool((g == g[:, :1]).all()) for g in self.gates.values()):
            raise ConalError("no tree can be derived: the gates have not moved, as with no update")
        return self.learners["actor"].tree(), self.learners["critic"].tree()

    def next_stage(self) -> tuple[Structure, Structure] | None:
        """CoNAL-Pro's next stage by the strongest gates; None where there is none to come.

        Where actor or critics alone are settled, their tree stands beside the other's stage.

        Raises:
            ConalError: the gates are not finite.
        """
        actor, critic = self.learners["actor"], self.learners["critic"]
        stages = actor.next_stage(), critic.next_stage()
        if not any(stages):
            return None
        return stages[0] or actor.tree(), stages[1] or critic.tree()

    @torch.no_grad()
    def inherit_from(self, before: "ConalSAC") -> None:
        """Take over weights, also of losses, temperatures and largest returns from such an agent.

        It is that of the search, or of a stage of it, of the same tasks and settings.
        """
        self.policy.inherit_from(before.policy)
        self.loss_weights.load_state_dict(before.loss_weights.state_dict())
        self.largest_returns[:] = before.largest_returns
        if self.log_ent_coef is not None and before.log_ent_coef is not None:
            self.log_ent_coef.copy_(before.log_ent_coef)

    # When updates are done, and what beside them.

    def train(self, gradient_steps: int, batch_size: int = 128) -> None:
        """Do `gradient_steps` updates on `batch_size` transitions of every task each.

        In `learn`, those that are CUDA graphs wait until the next actions are known, and where
        the environments can tell, until these step: the device then works beside them.
        """
        if not self.replay_buffer.ready():
            return  # a task has no finished validation data yet
        self._pending_updates += gradient_steps
        if self._recorder is None or not self._learning:
            self.finish_updates(batch_size)

    def finish_updates(self, batch_size: int | None = None) -> None:
        """Do the updates that wait, if there are any."""
        waiting, self._pending_updates = self._pending_updates, 0
        if not waiting:
            return
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)
        self._anneal_gates()
        for _ in range(waiting):
            metrics = self._run_update(batch_size or self.batch_size)
            self._n_updates += 1
            if self._n_updates in self.reset_at:
                self.policy.reset_weights()
                self.forget_recorded()
            reset = max(at for at in (0, *self.reset_at) if at <= self._n_updates)
            self.policy.average_actor(max(1, self._n_updates - reset))
            self._means.add(metrics)

    def _run_update(self, batch_size: int) -> dict[str, Tensor]:
        parts = self.update.parts_due(self._n_updates)
        if self._recorder is None:
            return self.update(self.replay_buffer, batch_size, parts)
        stepping = [name for name in self.noticing if parts.actor or name != "actor"]
        noticing = [self.noticing[name] for name in stepping if self.noticing[name].layers]
        rings = self.replay_buffer.training, self.replay_buffer.validation
        places = [ring.data.data_ptr() for ring in rings]  # another replay may be loaded
        kind = "update", batch_size, parts, *places, *(own.studying for own in noticing)

        def count() -> None:
            for own in noticing:
                own.count_step()

        update = partial(self.update, self.replay_buffer, batch_size, parts)
        metrics = self._recorder.run(kind, update, replayed=count)
        assert isinstance(metrics, dict)
        return metrics

    def _anneal_gates(self) -> None:
        if self.gumbel_temperature is None:
            return
        start, end = self.gumbel_temperature
        actor, critic = self.structures
        networks = ((self.actor, actor), (self.critic, critic), (self.critic_target, critic))
        for network, structure in networks:
            if isinstance(network.encoder, SearchNetwork):
                # Of CoNAL-Pro's first N stages, which are equally long, this is the last.
                stages = structure.number if isinstance(structure, ConalProStage) else 1
                left = min(1.0, stages * self._current_progress_remaining)
                network.encoder.gumbel_temperature = end + (start - end) * left

    # What is recorded on a CUDA device, beside the updates.

    def _update_learning_rate(self, optimizers: Any) -> None:
        if self._recorder is None:
            super()._update_learning_rate(optimizers)
            return
        size = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", size)
        if size != self._step_size:
            self._step_size = size
            for optimizer in optimizers:
                set_step_size(optimizer, size)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """As SB3's.

        Raises:
            ObservationError: an observation does not end in the one-hot of a task.
        """
        if deterministic or self._recorder is None or observation is not self._last_obs:
            require_task_ids(observation, len(self.tasks))
            return super().predict(observation, state, episode_start, deterministic)
        # The environments that it learns from: as many, of the same tasks, each time.
        self.policy.set_training_mode(False)
        assert isinstance(observation, np.ndarray)
        most = int(observation[:, -len(self.tasks) :].sum(axis=0).max())
        kind = "actions", len(observation), most
        act = partial(self.policy.sample_actions, most=most)
        actions = self._recorder.run(kind, act, torch.from_numpy(observation))
        assert isinstance(actions, Tensor)
        return self.policy.unscale_action(actions.cpu().numpy()), state

    def _sample_action(self, *given: Any) -> tuple[np.ndarray, np.ndarray]:
        actions = super()._sample_action(*given)
        if not isinstance(self.env, SuiteVecEnv):  # those call it once their step has begun
            self.finish_updates()
        return actions

    def save(self, *given: Any, **named: Any) -> None:
        """As SB3's."""
        self._counted = {"recent": self.recent.state()}
        for name, noticing in self.noticing.items():
            tensors, counters = noticing.state()
            self._counted[name] = {n: t.cpu() for n, t in tensors.items()}, counters
        super().save(*given, **named)

    def load_replay_buffer(self, *given: Any, **named: Any) -> None:
        """As SB3's; the environments' next transitions are of new episodes.

        Raises:
            ValueError: the replay is of other settings than the agent, which keeps its own.
        """
        own = self.replay_buffer
        super().load_replay_buffer(*given, **named)
        loaded, self.replay_buffer = self.replay_buffer, own
        if not isinstance(loaded, TaskReplayBuffer):
            raise ValueError(f"a {type(loaded).__name__} is no replay of a ConalSAC")
        found = loaded.settings()
        for name, wanted in own.settings().items():
            if found[name] != wanted:
                raise ValueError(
                    f"the replay buffer has {name} {found[name]}, the agent {wanted}; "
                    "load it into an agent of the same settings"
                )
        self.replay_buffer = loaded
        self.replay_buffer.move(self.device)
        self.replay_buffer.cut_episodes()
        if self.replay_buffer.largest_returns is not None:  # which `save` keeps
            self.largest_returns = self.replay_buffer.largest_returns.largest

    def set_parameters(self, *given: Any, **named: Any) -> None:
        """As SB3's."""
        super().set_parameters(*given, **named)
        self._prepare_optimizers()  # what was read may have been written on another device
        self.forget_recorded()

    def forget_recorded(self) -> None:
        """Record anew, as tensors have been replaced."""
        if self._recorder is not None:
            self._recorder.forget()

    # Logging, as SB3's, and per task.

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str = "ConalSAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> "ConalSAC":
        """Train for `total_timesteps` steps of all environments together, as SB3's SAC."""
        self._learning = True
        if isinstance(self.env, SuiteVecEnv):
            self.env.on_step_started = self.finish_updates
        try:
            super().learn(
                total_timesteps,
                callback,
                log_interval,  # type: ignore[arg-type]  # None: the caller logs
                tb_log_name,
                reset_num_timesteps,
                progress_bar,
            )
        finally:
            self._learning = False
            if isinstance(self.env, SuiteVecEnv):
                self.env.on_step_started = None
        self.finish_updates()
        return self

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        *rest: Any,
    ) -> Any:
        if reset_num_timesteps or self._last_obs is None:  # then SB3 resets the envs
            self.replay_buffer.cut_episodes()
        learning = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, *rest)
        require_task_ids(self._last_obs, len(self.tasks))
        return learning

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """As SB3's.

        Raises:
            ValueError: the env is of other tasks, or of other spaces or numbers of them.
        """
        require_tasks(self.tasks, env)
        super().set_env(env, force_reset)

    def _update_info_buffer(
        self, infos: list[dict[str, Any]], dones: np.ndarray | None = None
    ) -> None:
        super()._update_info_buffer(infos, dones)
        for env, info in enumerate(infos):
            if "episode" in info:
                task = int(self._last_obs[env, -len(self.tasks) :].argmax())  # type: ignore[index]
                outcome = float(info.get("is_success", np.nan))
                self.recent.add(self.tasks[task], info["episode"]["r"], outcome)

    def dump_logs(self) -> None:
        """Write one log line: SB3's, training means, success per task, gates and conflicts.

        Raises:
            ConalError: a loss is not finite; the run cannot be saved by going on.
        """
        for name, mean in self._means.take().items():
            if not np.isfinite(mean):
                raise diverged(f"{name} is {mean}", self._n_updates)
            self.logger.record(f"train/{name}", mean)
            if name == CLAMPED and mean > MUCH_CLAMPED:
                warnings.warn(
                    f"over {MUCH_CLAMPED:.0%} of the critics' targets are outside of critic_range "
                    f"{self.policy.architecture['critic_range']} and clamped to it: scale the "
                    "rewards by another reward_scale, or widen the range, in a new run",
                    stacklevel=2,
                )
        self.logger.record("train/n_updates", self._n_updates)
        for tag, value in self.recent.scalars().items():
            self.logger.record(tag, value)
        for name, learner in self.learners.items():
            for tag, value in learner.scalars(name).items():
                # As many as tasks times layers: for curves, not for SB3's tables.
                self.logger.record(tag, value, exclude=("csv", "stdout", "log"))
        for output in self.logger.output_formats:
            if isinstance(output, HumanOutputFormat):  # it refuses names that it would cut alike
                output.max_length = max(output.max_length, 8 + max(map(len, self.tasks)))
        super().dump_logs()

    def save_weights(self, folder: Path | str, half: bool = False, critics: bool = True) -> None:
        """Write the networks as safetensors and JSON, to share or to ship.

        With `half`, products' weights are in bfloat16, which changes nothing where
        `mixed_precision` computes in that. Without `critics`, only what acts deterministically.
        """
        storage.save_weights(self, Path(folder), half, critics)

    @classmethod
    def load_weights(cls, folder: Path | str, device: str = "auto") -> "ConalSAC":
        """Read what `save_weights` wrote; runs no code from the files. See `CheckpointError`."""
        return storage.load_weights(Path(folder), device)

    def _excluded_save_params(self) -> list[str]:
        live = ["update", "gates", "learners", "gate_optimizer", "_means", "_recorder"]
        return [*super()._excluded_save_params(), *live]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        learnt = any(True for _ in self.loss_weights.parameters())
        own = ["gate_optimizer"] * bool(self.gates) + ["loss_weights"] * learnt
        return [*state_dicts, *own], tensors


def _has_gates(structure: Structure) -> bool:
    return not isinstance(structure, Tree | ReconSearch)
