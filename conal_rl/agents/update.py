"""One update of soft actor-critic: temperatures, critics, actor, gates, targets.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (2018), algorithm 1, for all tasks
at once and with one temperature per task. `Learner`s step the weights and notice conflicts. Gate
steps minimise the same losses on validation episodes.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from conal_rl.agents.critic_losses import HLGauss
from conal_rl.agents.losses import SACLosses
from conal_rl.agents.policies import ConalPolicy
from conal_rl.agents.replay import TaskBatch, TaskReplayBuffer
from conal_rl.config import AgentConfig, SearchConfig
from conal_rl.core import ConalProStage, ConflictNoticing, SearchNetwork, Structure, Tree
from conal_rl.core.bilevel import apply_gradients
from conal_rl.core.learner import Learner
from conal_rl.core.optimizers import set_learning_rate
from conal_rl.errors import ConalError
from conal_rl.runs.structures import learner_settings

CLAMPED = "clamped_targets"


class Parts(NamedTuple):
    """The parts of an update that are not due every time."""

    actor: bool
    gates: bool
    targets: bool


class Temperatures:
    """One entropy temperature per task, learnt or fixed.

    Args:
        tasks: number of tasks.
        target_entropy: target entropy of every task's policy, in nats.
        fixed: the temperature `()` of every task; None if they are learnt.
        log: logarithm `(1,)` of the learnt temperatures at the start; None if they are fixed.
        learning_rate: learning rate of learnt temperatures.

    Attributes:
        log: logarithms of learnt temperatures, `(task,)`; None if they are fixed.
        optimizer: the optimiser of `log`; None if they are fixed.
    """

    def __init__(
        self,
        tasks: int,
        target_entropy: float,
        fixed: Tensor | None,
        log: Tensor | None,
        learning_rate: float,
    ):
        self._target_entropy = target_entropy
        self._fixed = None if fixed is None else fixed.float().expand(tasks)
        self.log = None if log is None else log.detach().float().repeat(tasks).requires_grad_()
        self.optimizer = (
            None if self.log is None else torch.optim.Adam([self.log], lr=learning_rate)
        )

    def values(self) -> Tensor:
        """The current temperatures, `(task,)`."""
        if self._fixed is not None:
            return self._fixed
        assert self.log is not None
        return self.log.detach().exp()

    def step(self, log_prob: Tensor) -> dict[str, Tensor]:
        """Step towards the target entropy, given log-probabilities `(task, batch)`.

        Returns:
            `ent_coef_loss`, the mean `()` of the tasks' losses; nothing if they are fixed.
        """
        if self.log is None or self.optimizer is None:
            return {}
        gap = log_prob.detach().mean(dim=1) + self._target_entropy
        losses = -(self.log * gap)
        losses.sum().backward()
        apply_gradients(self.optimizer)
        return {"ent_coef_loss": losses.detach().mean()}


class SACUpdate:
    """One update of a policy's weights, its gates and its temperatures.

    Args:
        policy: the actor, the critics and the target critics.
        temperatures: the temperatures of the tasks.
        settings: the agent's settings; every update reads them, so that they may change.
        search: the settings of conflict noticing and of gate steps.
        learning_rate: learning rate of weights and temperatures at the start.
        targets_every: number of critic updates per step of the target critics.

    Attributes:
        learners: the learners of the `actor` and the `critic`.
        gates: the gates of the networks that have gates, by the same names.
        captures: whether updates can be captured, because each runs the same kernels.
    """

    def __init__(
        self,
        policy: ConalPolicy,
        temperatures: Temperatures,
        settings: AgentConfig,
        search: SearchConfig,
        learning_rate: float,
        targets_every: int = 1,
    ):
        self.policy, self.temperatures = policy, temperatures
        self._gates_every, self._targets_every = search.gate_every, targets_every
        how = learner_settings(settings, search, policy.searching)
        adam = partial(torch.optim.Adam, lr=learning_rate, fused=True)
        self.learners: dict[str, Learner] = {}
        for name, network, structure in (
            ("actor", policy.actor, policy.actor_tree),
            ("critic", policy.critic, policy.critic_tree),
        ):
            learner = Learner(
                network.encoder,
                network.weights(),
                structure,
                policy.tasks,
                adam,
                how,
                likelihoods=name == "critic",
            )
            self.learners[name] = learner
            network.optimizer, network.gate_optimizer = learner.optimizer, learner.gate_optimizer
        self.gates = {n: one.gates for n, one in self.learners.items() if one.gates is not None}
        self.losses = SACLosses(policy.actor, policy.critic, policy.critic_target, settings)
        if settings.compile:
            self._compile()
        rules = [learner.rule for learner in self.learners.values()]
        self.captures = (
            settings.cuda_graphs
            and not settings.normalize_returns
            and not (search.gumbel_temperature is not None and self.gates)
            and all(rule is None or isinstance(rule, ConflictNoticing) for rule in rules)
        )

    def _compile(self) -> None:
        torch.compiler.reset()  # torch compiles a function only for a few networks
        if self.learners["actor"].rule is None:
            self.policy.actor.compile_training()
        if self.learners["critic"].rule is None:
            self.policy.critic.compile_training()
            self.policy.critic_target.compile_training()

    @property
    def noticing(self) -> dict[str, ConflictNoticing]:
        """The conflict noticing of the networks that have one, by `actor` and `critic`."""
        return {
            name: learner.noticing
            for name, learner in self.learners.items()
            if learner.noticing is not None
        }

    @property
    def loss_weights(self) -> nn.ModuleDict:
        """The weights of the tasks' losses in actor and critics."""
        return nn.ModuleDict({n: learner.loss_weights for n, learner in self.learners.items()})

    def derive(self) -> tuple[Tree, Tree]:
        """Return the trees of actor and critics, by the strongest gates or by the conflicts.

        Raises:
            ConalError: the gates have not moved or are not finite, or no conflicts were counted.
        """
        if self.gates and all(bool((g == g[:, :1]).all()) for g in self.gates.values()):
            raise ConalError(
                "tree: got gates that have not moved, expected moved ones. Search for longer"
            )
        return self.learners["actor"].tree(), self.learners["critic"].tree()

    def next_stage(self) -> tuple[Structure, Structure] | None:
        """Return CoNAL-Pro's next stage by the strongest gates; None after the last one.

        If only the actor or only the critics are settled, their tree comes with the other's stage.

        Raises:
            ConalError: the gates are not finite.
        """
        actor, critic = self.learners["actor"], self.learners["critic"]
        stages = actor.next_stage(), critic.next_stage()
        if not any(stages):
            return None
        return stages[0] or actor.tree(), stages[1] or critic.tree()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return all optimisers."""
        of_learners = [
            optimizer
            for learner in self.learners.values()
            for optimizer in learner.optimizers().values()
        ]
        of_temperatures = self.temperatures.optimizer
        return of_learners if of_temperatures is None else [*of_learners, of_temperatures]

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of weights and temperatures; the gates keep theirs."""
        for learner in self.learners.values():
            set_learning_rate(learner.optimizer, learning_rate)
        if self.temperatures.optimizer is not None:
            set_learning_rate(self.temperatures.optimizer, learning_rate)

    def set_gate_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the gates."""
        for learner in self.learners.values():
            if learner.gate_optimizer is not None:
                set_learning_rate(learner.gate_optimizer, learning_rate)

    def anneal_gates(self, left: float) -> None:
        """Set the temperature of Gumbel gates; `left` is the remaining share, from 1 to 0."""
        for learner in self.learners.values():
            stage = learner.structure
            # This is the last of CoNAL-Pro's first N stages, which are equally long.
            stages = stage.number if isinstance(stage, ConalProStage) else 1
            learner.anneal(min(1.0, stages * left))
        critic, target = self.policy.critic.encoder, self.policy.critic_target.encoder
        if isinstance(critic, SearchNetwork) and isinstance(target, SearchNetwork):
            target.gumbel_temperature = critic.gumbel_temperature

    @torch.no_grad()
    def inherit_from(self, before: SACUpdate) -> None:
        """Copy weights, loss weights and temperatures of the agent `before` in a search."""
        self.policy.inherit_from(before.policy)
        self.loss_weights.load_state_dict(before.loss_weights.state_dict())
        log, old = self.temperatures.log, before.temperatures.log
        if log is not None and old is not None:
            log.copy_(old)

    def reset_weights(self) -> None:
        """Draw all weights except the gates from scratch, and forget their optimisers' moments."""
        self.policy.reset_weights()
        for learner in self.learners.values():
            learner.optimizer.state.clear()

    @property
    def settings(self) -> AgentConfig:
        """The settings of the next update; the losses have the same."""
        return self.losses.settings

    @settings.setter
    def settings(self, settings: AgentConfig) -> None:
        self.losses.settings = settings

    def parts_due(self, number: int) -> Parts:
        """Return the parts of the update of this `number`, which counts from 0."""

        def due(every: int) -> bool:
            return number % every == 0

        gates = bool(self.gates) and due(self._gates_every)
        return Parts(due(self.settings.actor_every), gates, due(self._targets_every))

    def __call__(
        self,
        replay: TaskReplayBuffer,
        batch_size: int,
        parts: Parts,
        env: VecNormalize | None = None,
    ) -> dict[str, Tensor]:
        """Learn from `batch_size` transitions of every task; returns scalars for the log.

        An `env` scales the rewards, as in SB3.
        """
        self.policy.set_training_mode(True)
        metrics = self.step_weights(replay.sample(batch_size, env), parts.actor)
        if parts.gates:
            metrics |= self.step_gates(replay.sample_validation(batch_size, env))
        if parts.targets:
            self.step_targets()
        return metrics

    def step_weights(self, batch: TaskBatch, acting: bool = True) -> dict[str, Tensor]:
        """Step the critics and, if `acting`, the temperatures before them and the actor after them.

        Returns:
            Scalars `()` on the device for the log, by their names under `train/`.
        """
        temperature = self.temperatures.values()
        actor, critic = self.policy.actor, self.policy.critic
        if acting:
            with self.learners["actor"].capture():
                actions, log_prob = actor.sample(batch.observations)
            of_temperatures = self.temperatures.step(log_prob)

        target = self.losses.target(batch, temperature)
        with self.learners["critic"].capture():
            critic_losses = self.losses.of_critics(batch, target)
        self.learners["critic"].step(critic_losses, self.settings.max_grad_norm)
        metrics = {"critic_loss": critic_losses.detach().mean(), "target_q": target.mean()}
        if isinstance(critic.value_loss, HLGauss):
            metrics[CLAMPED] = critic.value_loss.outside(target).float().mean()
        if acting:
            actor_losses = self.losses.of_actor(batch, actions, log_prob, temperature)
            self.learners["actor"].step(actor_losses, self.settings.max_grad_norm)
            metrics |= {
                "actor_loss": actor_losses.detach().mean(),
                "ent_coef": temperature.mean(),
                "entropy": -log_prob.detach().mean(),
            } | of_temperatures
        return metrics

    def step_gates(self, batch: TaskBatch) -> dict[str, Tensor]:
        """Step the gates down the losses of validation transitions.

        No network's loss depends on the gates of the other. The target critics copy the critics'
        gates.

        Returns:
            `gate_loss`, a scalar `()` on the device.
        """
        temperature = self.temperatures.values()
        losses: dict[str, Tensor] = {}
        if "critic" in self.gates:
            target = self.losses.target(batch, temperature)
            losses["critic"] = self.losses.of_critics(batch, target)
        if "actor" in self.gates:
            actions, log_prob = self.policy.actor.sample(batch.observations)
            losses["actor"] = self.losses.of_actor(batch, actions, log_prob, temperature)
        for (
            name,
            of_tasks,
        ) in losses.items():  # after both forward passes, because the gates mix them
            self.learners[name].step_gates(of_tasks)
        if "critic" in self.gates:
            with torch.no_grad():
                self.policy.critic_target.gates.copy_(self.gates["critic"])  # type: ignore[union-attr]
        return {"gate_loss": torch.stack([each.detach().sum() for each in losses.values()]).sum()}

    @torch.no_grad()
    def step_targets(self) -> None:
        """Polyak averaging of the critics' weights."""
        targets, critics = self.policy.critic_target.weights(), self.policy.critic.weights()
        torch._foreach_lerp_(targets, critics, self.settings.tau)
