"""Actor and twin critics shaped by a tree, or by the search's supernet, with a head per task."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import Tensor, nn

from conal_rl.agents.critic_losses import HLGauss, SquaredError
from conal_rl.core import ConalSearch, SearchNetwork, Structure, Tree, TreeNetwork, linear_chain
from conal_rl.core.conal_pro import inherit_weights
from conal_rl.core.linear_stack import LinearStack

CRITICS = 2
CONAL = ConalSearch()


def to_task_major(
    observation: Tensor, num_tasks: int, most: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort rows by their one-hot task ID.

    Args:
        observation: `(row, feature + task)`, any number of rows in any task order.
        most: rows of the task that has most, which a device is waited for where it is not given.

    Returns:
        Features `(task, batch, feature)`, short tasks padded with zeros; and for every row its
        task and its place in that task's batch, both `(row,)`.
    """
    task = observation[:, -num_tasks:].argmax(dim=1)
    count = (task.unsqueeze(1) == torch.arange(num_tasks, device=task.device)).sum(dim=0)
    order = task.argsort(stable=True)
    place = torch.empty_like(task)
    start = count.cumsum(0) - count
    place[order] = torch.arange(len(task), device=task.device) - start[task[order]]
    most = int(count.max()) if most is None else most
    features = observation.new_zeros(num_tasks, most, observation.shape[1] - num_tasks)
    features[task, place] = observation[:, :-num_tasks]
    return features, task, place


class TaskNetwork(nn.Module):
    """An encoder shaped by a tree, or one to search in, and one linear head per task.

    Args:
        tasks: task names.
        tree: the encoder's tree or search space.
        in_features: inputs without the task ID, which is appended to them.
        widths: hidden widths, one layer of the tree each.
        outputs: outputs of a head.
        replicas: members of an ensemble, each with all weights of its own.
        mixed_precision: compute matrix products in bfloat16.
    """

    encoder: SearchNetwork | TreeNetwork
    task_id: Tensor

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
        if isinstance(tree, Tree):
            self.encoder = TreeNetwork(tree.replicate(replicas), chain)
        else:
            self.encoder = tree.network(tasks, chain, replicas)
        self._weights: tuple[nn.Parameter, ...] = ()
        rows = range(replicas * len(tasks))
        self.head = LinearStack(rows, widths[-1], outputs, activation=False)
        self.register_buffer("task_id", torch.eye(len(tasks)).unsqueeze(1), persistent=False)
        self._compiled: Callable[[Tensor], Tensor] | None = None  # of `_run`, for training

    def forward(self, features: Tensor) -> Tensor:
        """Map `(task, batch, feature)` to `(replica * task, batch, output)`."""
        run = self._compiled if self.training and self._compiled is not None else self._run
        return run(features)

    def compile_training(self) -> None:
        """Let `torch.compile` make passes in training mode faster; their first ones are slow."""
        self._compiled = torch.compile(self._run, dynamic=False)

    def _run(self, features: Tensor) -> Tensor:
        task_id = self.task_id.expand(-1, features.shape[1], -1)
        x = torch.cat([features, task_id], dim=-1).repeat(self.replicas, 1, 1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed_precision):
            return self.head(self.encoder(x))

    @property
    def gates(self) -> nn.Parameter | None:
        """The search space's gates `(choice, option)`; None where there are none."""
        return self.encoder.gates if isinstance(self.encoder, SearchNetwork) else None

    def weights(self) -> tuple[nn.Parameter, ...]:
        """Every parameter but the gates."""
        if not self._weights:  # looking for them takes longer than to average them
            self._weights = tuple(p for p in self.parameters() if p is not self.gates)
        return self._weights


class TaskActor(TaskNetwork):
    """Squashed Gaussian policies, a head per task."""

    optimizer: torch.optim.Optimizer

    def __init__(
        self, tasks: Sequence[str], tree: Structure, features: int, actions: int, **net: Any
    ):
        super().__init__(tasks, tree, features, outputs=2 * actions, **net)
        self.distribution = SquashedDiagGaussianDistribution(actions)

    def _parameters_of(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self(features).flatten(0, 1).chunk(2, dim=-1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def act(self, features: Tensor, deterministic: bool = False) -> Tensor:
        """Actions in [-1, 1], `(task, batch, action)`, for features `(task, batch, feature)`."""
        mean, log_std = self._parameters_of(features)
        action = self.distribution.actions_from_params(mean, log_std, deterministic=deterministic)
        return action.unflatten(0, features.shape[:2])

    def sample(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Reparameterised actions `(task, batch, action)` and log-probabilities `(task, batch)`."""
        action, log_prob = self.distribution.log_prob_from_params(*self._parameters_of(features))
        shape = features.shape[:2]
        return action.unflatten(0, shape), log_prob.unflatten(0, shape)


class TaskCritics(TaskNetwork):
    """Critics run as one ensemble, whose members share the gates of a search."""

    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        tasks: Sequence[str],
        tree: Structure,
        features: int,
        actions: int,
        value_loss: SquaredError | HLGauss,
        critics: int = CRITICS,
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
        """What `value_loss` trains: `(critic, task, batch, output)`."""
        rows = self(torch.cat([features, actions], dim=-1))
        return rows.unflatten(0, (self.replicas, -1))

    def values(self, features: Tensor, actions: Tensor) -> Tensor:
        """Q of each critic, `(critic, task, batch)`, in units of the scaled reward."""
        return self.value_loss.value(self.outputs(features, actions))


class ConalPolicy(BasePolicy):
    """Policy of `ConalSAC`: observations end in a one-hot task ID, rows come in any task order.

    Args:
        tasks: task names, in the order of the one-hot.
        actor_tree, critic_tree: trees of the encoders, or what to search them in.
        widths, layer_norm: hidden layers.
        critic: `mse` or `hl_gauss`; the latter with `critic_bins` over `critic_range`, in
            equal steps, or as `critic_linear_to` says (see `HLGauss`).
        critics: members of the critics' ensemble.
        mixed_precision: matrix products of encoders and heads in bfloat16.
        actor_averaging: `eta` of a polynomial-decay average of the actor's weights (Shamir &
            Zhang, ICML 2013), in which update `t` counts as `t ** eta`; it is what acts where
            actions are deterministic. None: the newest weights act.

    Raises:
        ValueError: one of these is unknown or out of its range, or `use_sde` is wanted.
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
        widths: Sequence[int] = (256, 256, 256),
        layer_norm: bool = True,
        critic: str = "hl_gauss",
        critic_bins: int = 101,
        critic_range: tuple[float, float] = (-1.0, 11.0),
        critic_linear_to: float | None = None,
        critics: int = CRITICS,
        mixed_precision: bool = False,
        actor_averaging: float | None = None,
        use_sde: bool = False,
    ):
        super().__init__(observation_space, action_space, squash_output=True)
        if use_sde:
            raise ValueError("state-dependent exploration is not supported; leave use_sde False")
        if critic not in ("mse", "hl_gauss"):
            raise ValueError(f"unknown critic {critic!r}; there are mse, hl_gauss")
        if not widths or min(widths) < 1:
            raise ValueError(f"widths are one or more numbers of units above 0, not {widths}")
        if critics < 1:
            raise ValueError(f"critics is at least 1, not {critics}")
        if actor_averaging is not None and actor_averaging < 0:
            raise ValueError(f"actor_averaging is None or at least 0, not {actor_averaging}")
        self.tasks = tuple(tasks)
        self.actor_tree, self.critic_tree = actor_tree, critic_tree
        self.architecture: dict[str, Any] = {
            "widths": tuple(widths),
            "layer_norm": layer_norm,
            "critic": critic,
            "critic_bins": critic_bins,
            "critic_range": tuple(critic_range),
            "critic_linear_to": critic_linear_to,
            "critics": critics,
            "mixed_precision": mixed_precision,
            "actor_averaging": actor_averaging,
        }
        features = observation_space.shape[0] - len(self.tasks)
        actions = action_space.shape[0]
        net: dict[str, Any] = {
            "widths": tuple(widths),
            "layer_norm": layer_norm,
            "mixed_precision": mixed_precision,
        }

        def make_critics() -> TaskCritics:
            bins = (critic_bins, *critic_range, critic_linear_to)
            loss = HLGauss(*bins) if critic == "hl_gauss" else SquaredError()
            return TaskCritics(self.tasks, critic_tree, features, actions, loss, critics, **net)

        self.actor = TaskActor(self.tasks, actor_tree, features, actions, **net)
        self.actor_averaging = actor_averaging
        self.actor_average = None
        if actor_averaging is not None:
            self.actor_average = copy.deepcopy(self.actor).requires_grad_(False)
        self.critic = make_critics()
        self.critic_target = make_critics()
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False)
        for network in (self.actor, self.critic):
            network.optimizer = torch.optim.Adam(network.weights(), lr=lr_schedule(1), fused=True)

    def _predict(
        self, observation: PyTorchObs, deterministic: bool = False, most: int | None = None
    ) -> Tensor:
        assert isinstance(observation, Tensor)
        features, task, place = to_task_major(observation, len(self.tasks), most)
        averaged = self.actor_average if deterministic else None
        actor = self.actor if averaged is None else averaged
        return actor.act(features, deterministic)[task, place]

    @torch.no_grad()
    def sample_actions(self, observation: Tensor, most: int) -> Tensor:
        """Stochastic actions `(row, action)`; see `to_task_major`."""
        return self._predict(observation, most=most)

    @torch.no_grad()
    def average_actor(self, updates: int) -> None:
        """Take the actor's weights after `updates` updates (from 1) into their average.

        Gates are copied, as the target critics', so that both stand for the same tree.
        """
        if self.actor_average is not None and self.actor_averaging is not None:
            share = (1 + self.actor_averaging) / (updates + self.actor_averaging)
            torch._foreach_lerp_(self.actor_average.weights(), self.actor.weights(), share)
            if self.actor.gates is not None:
                self.actor_average.gates.copy_(self.actor.gates)  # type: ignore[union-attr]

    @torch.no_grad()
    def reset_weights(self) -> None:
        """All weights but the gates begin anew, and what the optimisers know of them is forgotten.

        Draws from torch's random state, as building the policy does.
        """
        fresh = type(self)(**self._get_constructor_parameters())
        for mine, new in zip(self._networks(), fresh._networks(), strict=True):
            for weight, value in zip(mine.weights(), new.weights(), strict=True):
                weight.copy_(value)
        for network in (self.actor, self.critic):
            network.optimizer.state.clear()

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Actions `(row, action)` in [-1, 1] for observations `(row, feature + task)`."""
        return self._predict(observation, deterministic)

    def set_training_mode(self, mode: bool) -> None:
        """Put all networks in training or evaluation mode, which matters to Gumbel gates alone."""
        if mode == self.training:
            return  # as it is at every step, and to tell every layer takes a while
        for network in self.children():
            network.train(mode)
        self.training = mode

    @torch.no_grad()
    def inherit_from(self, before: "ConalPolicy") -> None:
        """Take over what a search, or a stage of it, has learnt and this policy still needs."""
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
            "lr_schedule": self._dummy_schedule,  # as SB3's: there is no optimiser to go on with
            "tasks": self.tasks,
            "actor_tree": self.actor_tree,
            "critic_tree": self.critic_tree,
            **self.architecture,
        }
