"""SB3's own SAC with the weights of a one-task `ConalSAC`: the independent reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3 import SAC
from torch import Tensor, nn

from conal_rl.agents import ConalSAC
from conal_rl.agents.policies import TaskActor, TaskNetwork
from conal_rl.core.linear_stack import LinearStack
from conal_rl.core.tree_network import TreeNetwork
from tests.helpers.toy import FEATURES

Weights = list[tuple[Tensor, Tensor]]
"""Weight `(out, in)` and bias `(out,)` of every linear layer, from input to output."""


def _layers(network: TaskNetwork) -> list[LinearStack]:
    assert isinstance(network.encoder, TreeNetwork)
    layers = [*network.encoder.layers, network.head]
    assert all(isinstance(layer, LinearStack) for layer in layers)
    return layers


def weights_of(network: TaskNetwork, row: int = 0) -> Weights:
    """What the row's modules hold, in the layout of `nn.Linear`."""
    found = []
    for layer in _layers(network):
        module = layer.index[row]
        found.append((layer.weight[module].T.detach(), layer.bias[module, 0].detach()))
    return found


def actor_weights_in(sac: SAC) -> Weights:
    """SB3's actor as `weights_of` lists ours: its two heads are one layer."""
    linears = [m for m in sac.actor.latent_pi if isinstance(m, nn.Linear)]
    heads = (sac.actor.mu, sac.actor.log_std)
    head = tuple(
        torch.cat([getattr(h, name).detach() for h in heads]) for name in ("weight", "bias")
    )
    return [(m.weight.detach(), m.bias.detach()) for m in linears] + [head]  # type: ignore[list-item]


def critic_weights_in(networks: Sequence[nn.Module]) -> list[Weights]:
    """SB3's critics as `weights_of` lists ours; its inputs are (features, task ID, actions)."""
    found = []
    for network in networks:
        linears = [m for m in network.modules() if isinstance(m, nn.Linear)]
        weights = [(m.weight.detach().clone(), m.bias.detach().clone()) for m in linears]
        first = weights[0][0]
        features, task_id, actions = first.split([FEATURES, 1, first.shape[1] - FEATURES - 1], 1)
        weights[0] = (torch.cat([features, actions, task_id], dim=1), weights[0][1])
        found.append(weights)
    return found


@torch.no_grad()
def _fill(network: TaskNetwork, row: int, weights: Weights) -> None:
    for layer, (weight, bias) in zip(_layers(network), weights, strict=True):
        layer.weight[layer.index[row]] = weight.T
        layer.bias[layer.index[row], 0] = bias


def fill_actor(actor: TaskActor, sac: SAC) -> None:
    """Give a one-task actor the weights of SB3's."""
    _fill(actor, 0, actor_weights_in(sac))


def twin(agent: ConalSAC, **settings: Any) -> SAC:
    """An SB3 SAC made like the one-task `agent`, which then gets its weights."""
    widths: Any = agent.policy.architecture["widths"]
    sac = SAC(
        "MlpPolicy",
        agent.env,  # type: ignore[arg-type]
        policy_kwargs={"net_arch": list(widths)},
        ent_coef=agent.ent_coef,
        learning_rate=agent.learning_rate,
        gamma=agent.gamma,
        tau=agent.tau,
        buffer_size=10,
        seed=1,
        device="cpu",
        **settings,
    )
    with torch.no_grad():  # targets of their own, so that averaging shows from the first update
        for parameter in sac.critic_target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fill_actor(agent.actor, sac)
    for mine, theirs in (
        (agent.critic, sac.critic.q_networks),
        (agent.critic_target, sac.critic_target.q_networks),
    ):
        for row, weights in enumerate(critic_weights_in(theirs)):
            _fill(mine, row, weights)
    return sac


def differences(agent: ConalSAC, sac: SAC) -> dict[str, float]:
    """The largest absolute difference of any parameter, by network."""
    pairs = {"actor": [(weights_of(agent.actor), actor_weights_in(sac))]}
    for name, mine, theirs in (
        ("critic", agent.critic, sac.critic.q_networks),
        ("target", agent.critic_target, sac.critic_target.q_networks),
    ):
        pairs[name] = [
            (weights_of(mine, row), weights)
            for row, weights in enumerate(critic_weights_in(theirs))
        ]
    found = {
        name: max(
            float((a - b).abs().max())
            for ours, reference in networks
            for layer, other in zip(ours, reference, strict=True)
            for a, b in zip(layer, other, strict=True)
        )
        for name, networks in pairs.items()
    }
    if agent.log_ent_coef is not None and sac.log_ent_coef is not None:
        gap = agent.log_ent_coef.detach() - sac.log_ent_coef.detach()
        found["temperature"] = float(gap.abs().max())
    return found
