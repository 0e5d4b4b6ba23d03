"""The actor and the critics: networks shaped by a tree or by a search, with a head per task."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import Tensor

from conal_rl.agents.checks import as_observations, warn_of_uneven_episodes
from conal_rl.agents.critic_losses import HLGauss, SquaredError
from conal_rl.config import AgentConfig, marked
from conal_rl.core import ConalSearch, Structure, Tree, linear_chain
from conal_rl.core.conal_pro import inherit_weights
from conal_rl.core.encoder import EncoderNetwork, make_encoder
from conal_rl.core.linear_stack import LinearStack

CONAL = ConalSearch()


def to_task_major(
    observation: Tensor, num_tasks: int, max_rows_per_task: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows sorted by their one-hot task ID.

    Args:
        observation: `(row, feature + task)`, any number of rows in any task order.
        max_rows_per_task: number of rows of the task with most rows. None: it is counted, which
            waits for the device.

    Returns:
        Features `(task, batch, feature)`, padded with zeros for tasks with fewer rows; and for
        every row its task and its position in the task's batch, both `(row,)`.
    """
    task = observation[:, -num_tasks:].argmax(dim=1)
    count = (task.unsqueeze(1) == torch.arange(num_tasks, device=task.device)).sum(dim=0)
    order = task.argsort(stable=True)
    place = torch.empty_like(task)
    start = count.cumsum(0) - count
    place[order] = torch.arange(len(task), device=task.device) - start[task[order]]
    if max_rows_per_task is None:
        max_rows_per_task = int(count.max())
    width = observation.shape[1] - num_tasks
    features = observation.new_zeros(num_tasks, max_rows_per_task, width)
    features[task, place] = observation[:, :-num_tasks]
    return features, task, place


class TaskNetwork(EncoderNetwork):
    """An encoder shaped by a tree or by a search space, and one linear head per task.

    Args:
        tasks: task names.
        tree: the encoder's tree or search space.
        in_features: number of inputs without the task ID, which is appended to them.
        widths: hidden widths, one for each layer of the tree.
        outputs: number of outputs of a head.
        layer_norm: normalise each hidden layer.
        replicas: number of members of an ensemble; each has separate weights.
        mixed_precision: compute matrix multiplications in bfloat16.

    Attributes:
        optimizer, gate_optimizer: those of the network's learner. SB3 saves them under these names.
    """

    task_id: Tensor
    optimizer: torch.optim.Optimizer
    gate_optimizer: torch.optim.Optimizer | None

    def __init__(
        self,
        tasks: Sequence[str],
        tree: Structure,
        in_features: int,
        widths: Sequence[int],
        outputs: int,
        layer_norm: bool = True,
        replicas: int = 1,
        mixed_precision: bool = False,
    ):
        super().__init__()
        self.tasks, self.replicas = tuple(tasks), replicas
        self.mixed_precision = mixed_precision
        self.in_features = in_features + len(tasks)
        chain = linear_chain(self.in_features, widths, layer_norm)
        self.encoder = make_encoder(tree, tasks, chain, replicas)
        rows = range(replicas * len(tasks))
        self.head = LinearStack(rows, widths[-1], outputs, activation=False)
        self.register_buffer(
            "task_id", torch.eye(len(tasks), dtype=torch.float32).unsqueeze(1), persistent=False
        )
        self._compiled: Callable[[Tensor], Tensor] | None = None  # of `_run`, for training

    def forward(self, features: Tensor) -> Tensor:
        """Map `(task, batch, feature)` to `(replica * task, batch, output)`."""
        run = self._compiled if self.training and self._compiled is not None else self._run
        return run(features)

    def compile_training(self) -> None:
        """Let `torch.compile` make passes in training mode faster; the first passes are slow."""
        self._compiled = torch.compile(self._run, dynamic=False)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a pickle, compiles for itself: a compiled function is of these weights.
        return vars(self) | {"_compiled": self._compiled is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state | {"_compiled": None})  # type: ignore[no-untyped-call]
        if state["_compiled"]:
            self.compile_training()

    def _run(self, features: Tensor) -> Tensor:
        task_id = self.task_id.expand(-1, features.shape[1], -1)
        x = torch.cat([features, task_id], dim=-1).repeat(self.replicas, 1, 1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed_precision):
            return self.head(self.encoder(x))


class TaskActor(TaskNetwork):
    """Squashed Gaussian policies, one head per task."""

    def __init__(
        self, tasks: Sequence[str], tree: Structure, features: int, actions: int, **net: Any
    ):
        super().__init__(tasks, tree, features, outputs=2 * actions, **net)
        self.actions = actions

    def _distribution(self) -> SquashedDiagGaussianDistribution:
        # A new one each time: it keeps the graph of its parameters, which nobody can copy.
        return SquashedDiagGaussianDistribution(self.actions)

    def _parameters_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self(features).flatten(0, 1).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def act(self, features: Tensor, deterministic: bool = False) -> Tensor:
        """Actions in [-1, 1], `(task, batch, action)`, for features `(task, batch, feature)`."""
        mean, log_std = self._parameters_of(features)
        action = self._distribution().actions_from_params(
            mean, log_std, deterministic=deterministic
        )
        return action.unflatten(0, features.shape[:2])

    def sample(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised actions `(task, batch, action)` and log-probabilities `(task, batch)`."""
        parameters = self._parameters_of(features)
        action, log_prob = self._distribution().log_prob_from_params(*parameters)
        shape = features.shape[:2]
        return action.unflatten(0, shape), log_prob.unflatten(0, shape)


class TaskCritics(TaskNetwork):
    """Critics that run as one ensemble; its members share the gates of a search."""

    def __init__(
        self,
        tasks: Sequence[str],
        tree: Structure,
        features: int,
        actions: int,
        value_loss: SquaredError | HLGauss,
        critics: int,
        **net: Any,
    ):
        super().__init__(
            tasks, tree, features + actions, outputs=value_loss.outputs, replicas=critics, **net
        )
        self.value_loss = value_loss
        if isinstance(value_loss, HLGauss):
            with torch.no_grad():
                self.head.bias[:] = value_loss.bias_of_zero()

    def outputs(self, features: Tensor, actions: Tensor) -> Tensor:
        """The outputs that `value_loss` trains: `(critic, task, batch, output)`."""
        rows = self(torch.cat([features, actions], dim=-1))
        return rows.unflatten(0, (self.replicas, -1))

    def values(self, features: Tensor, actions: Tensor) -> Tensor:
        """Q of each critic, `(critic, task, batch)`, in units of the scaled reward."""
        return self.value_loss.value(self.outputs(features, actions))


class ConalPolicy(BasePolicy):
    """Policy of `ConalSAC`: observations end in a one-hot task ID, rows come in any task order.

    Args:
        tasks: task names, in the order of the one-hot.
        actor_tree, critic_tree: trees of the encoders, or the spaces to search them in.
        settings: the agent's settings; the networks' fields are read.

    Attributes:
        architecture: the settings that a saved model needs, by name.
        actor_average: the weight-averaged actor (polynomial decay; Shamir & Zhang, ICML 2013). It
            acts if actions are deterministic. None: the last iterate acts.

    Raises:
        ValueError: a tree does not fit, or `use_sde` is True.
    """

    actor_average: TaskActor | None

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        tasks: Sequence[str],
        actor_tree: Structure = CONAL,
        critic_tree: Structure = CONAL,
        settings: AgentConfig | None = None,
        use_sde: bool = False,
    ):
        super().__init__(observation_space, action_space, squash_output=True)
        if use_sde:
            raise ValueError(
                "use_sde: got True, expected False. Leave it out: state-dependent exploration is "
                "not supported"
            )
        self.tasks = tuple(tasks)
        self.actor_tree, self.critic_tree = actor_tree, critic_tree
        self.settings = settings = settings or AgentConfig()
        names = sorted(marked(AgentConfig, "in_model"))
        self.architecture: dict[str, Any] = {name: getattr(settings, name) for name in names}
        features = observation_space.shape[0] - len(self.tasks)
        actions = action_space.shape[0]
        net: dict[str, Any] = {
            "widths": settings.widths,
            "layer_norm": settings.layer_norm,
            "mixed_precision": settings.mixed_precision,
        }

        def make_critics() -> TaskCritics:
            bins = (settings.critic_bins, *settings.critic_range, settings.critic_linear_to)
            loss = HLGauss(*bins) if settings.critic == "hl_gauss" else SquaredError()
            number = settings.critics
            return TaskCritics(self.tasks, critic_tree, features, actions, loss, number, **net)

        self.actor = TaskActor(self.tasks, actor_tree, features, actions, **net)
        self.actor_average = None
        if settings.actor_averaging is not None:
            self.actor_average = copy.deepcopy(self.actor).requires_grad_(False)
        self.critic = make_critics()
        self.critic_target = make_critics()
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)

    @property
    def searching(self) -> bool:
        """Whether the tree of the actor or of the critics is still searched."""
        return not (isinstance(self.actor_tree, Tree) and isinstance(self.critic_tree, Tree))

    def obs_to_tensor(self, observation: Any) -> tuple[Tensor, bool]:
        """Return observations as a tensor, and whether they are rows, like SB3's method.

        Raises:
            ObservationError: they are of a different shape, or one does not end in a one-hot.
        """
        size = self.observation_space.shape[0]  # type: ignore[index]
        rows = as_observations(observation, size, len(self.tasks))
        return super().obs_to_tensor(rows)  # type: ignore[return-value]

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """Return actions, like SB3's method; see `obs_to_tensor` for the observations."""
        if episode_start is not None:  # SB3's `evaluate_policy` gives it
            warn_of_uneven_episodes(observation, self.tasks)
        return super().predict(observation, state, episode_start, deterministic)

    def _predict(
        self,
        observation: PyTorchObs,
        deterministic: bool = False,
        max_rows_per_task: int | None = None,
    ) -> Tensor:
        assert isinstance(observation, Tensor)
        features, task, place = to_task_major(observation, len(self.tasks), max_rows_per_task)
        averaged = self.actor_average if deterministic else None
        actor = self.actor if averaged is None else averaged
        return actor.act(features, deterministic)[task, place]

    @torch.no_grad()
    def sample_actions(self, observation: Tensor, max_rows_per_task: int) -> Tensor:
        """Stochastic actions `(row, action)`; see `to_task_major` for the arguments."""
        return self._predict(observation, max_rows_per_task=max_rows_per_task)

    @torch.no_grad()
    def average_actor(self, updates: int) -> None:
        """Add the actor's weights after `updates` updates (from 1) to their average.

        Gates are copied, as for the target critics, so that both have the same tree.
        """
        eta = self.settings.actor_averaging
        if self.actor_average is not None and eta is not None:
            share = (1 + eta) / (updates + eta)
            torch._foreach_lerp_(self.actor_average.weights(), self.actor.weights(), share)
            if self.actor.gates is not None:
                self.actor_average.gates.copy_(self.actor.gates)  # type: ignore[union-attr]

    @torch.no_grad()
    def reset_weights(self) -> None:
        """Draw all weights except the gates from scratch.

        It draws from torch's random state, like the constructor. Source: Nikishin et al., "The
        Primacy Bias in Deep Reinforcement Learning", ICML 2022.
        """
        fresh = type(self)(**self._get_constructor_parameters())
        for mine, new in zip(self._networks(), fresh._networks(), strict=True):
            for weight, value in zip(mine.weights(), new.weights(), strict=True):
                weight.copy_(value)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Actions `(row, action)` in [-1, 1] for observations `(row, feature + task)`."""
        return self._predict(observation, deterministic)

    def set_training_mode(self, mode: bool) -> None:
        """Put all networks in training or evaluation mode, which matters only to Gumbel gates."""
        if mode == self.training:
            return  # it is called at every step, and setting the mode of all layers is slow
        for network in self.children():
            network.train(mode)
        self.training = mode

    @torch.no_grad()
    def inherit_from(self, before: "ConalPolicy") -> None:
        """Copy the weights that remain from the policy of a search, or of one of its stages."""
        for mine, theirs in zip(self._networks(), before._networks(), strict=True):
            mine.head.load_state_dict(theirs.head.state_dict())
            inherit_weights(mine.encoder, theirs.encoder)

    def _networks(self) -> list[TaskNetwork]:
        named = (self.actor, self.critic, self.critic_target, self.actor_average)
        return [network for network in named if network is not None]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,  # SB3's own, because no optimiser is kept
            "tasks": self.tasks,
            "actor_tree": self.actor_tree,
            "critic_tree": self.critic_tree,
            "settings": self.settings,
        }
