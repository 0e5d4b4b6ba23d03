"""An agent's networks as tensors and JSON types; they make an agent for `predict`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import check_for_correct_spaces
from torch import Tensor

from conal_rl.agents.arguments import Arguments
from conal_rl.agents.policies import ConalPolicy
from conal_rl.agents.tree_files import structures_from_json, structures_to_json
from conal_rl.config import AgentConfig, marked
from conal_rl.core import Structure
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.runs.weights import UNFIT, reason

FORMAT = "conal_rl.agent"
VERSION = 1
CRITIC_GATES = "critic.encoder.gates"


def describe(policy: ConalPolicy, steps: int) -> dict[str, Any]:
    """Return all that is needed to build the policy's networks again, as JSON types.

    `steps` are the env steps of its training.
    """
    assert isinstance(policy.action_space, spaces.Box)
    assert policy.observation_space.shape is not None
    return {
        "format": FORMAT,
        "version": VERSION,
        "tasks": list(policy.tasks),
        "observation_dim": policy.observation_space.shape[0],
        "action_low": policy.action_space.low.tolist(),
        "action_high": policy.action_space.high.tolist(),
        "architecture": policy.architecture,
        "reward_scale": policy.settings.reward_scale,
        "steps": steps,
        "trees": structures_to_json((policy.actor_tree, policy.critic_tree)),
    }


class Description(NamedTuple):
    """The agent that a model.json describes."""

    tasks: tuple[str, ...]
    structures: tuple[Structure, Structure]
    settings: AgentConfig
    observation_space: spaces.Box
    action_space: spaces.Box
    steps: int
    critics: bool  # whether the file has the weights of critics


def read_description(about: Any, source: Path) -> Description:
    """Return the agent that `about`, an output of `describe`, describes.

    Raises:
        CheckpointError: the format or the version differs. The error names `source`.
        UNFIT: the description is damaged.
    """
    expected = (FORMAT, VERSION)
    if not isinstance(about, dict) or (about.get("format"), about.get("version")) != expected:
        raise CheckpointError(
            f"{source}: got a different file, expected a {FORMAT} of version {VERSION}. "
            "Export the model again"
        )
    tasks = len(about["tasks"])
    features = about["observation_dim"] - tasks
    values = {**about["architecture"], "reward_scale": about["reward_scale"]}
    return Description(
        tuple(about["tasks"]),
        structures_from_json(about["trees"]),
        AgentConfig(**values),
        spaces.Box(
            np.array([-np.inf] * features + [0] * tasks, dtype=np.float32),
            np.array([np.inf] * features + [1] * tasks, dtype=np.float32),
        ),
        spaces.Box(np.float32(about["action_low"]), np.float32(about["action_high"])),
        about["steps"],
        about.get("critics", True),
    )


def fill(policy: ConalPolicy, weights: Mapping[str, Tensor], critics: bool = True) -> None:
    """Load the weights of a model; without critics, the weights of critics become NaN.

    Raises:
        RuntimeError: the weights are of different networks.
    """
    if not critics:
        unknown = {
            name: torch.full_like(tensor, torch.nan)
            for name, tensor in policy.state_dict().items()
            if name.startswith("critic.")
        }
        weights = unknown | dict(weights)
    targets = {
        name.replace("critic.", "critic_target.", 1): tensor
        for name, tensor in weights.items()
        if name.startswith("critic.")
    }
    policy.load_state_dict(targets | dict(weights))


def predicting_agent(
    kind: type[Any],
    about: Any,
    weights: Mapping[str, Tensor],
    device: str,
    source: Path,
    settings: AgentConfig | None = None,
) -> Any:
    """Return an agent ready for `predict`, from a description and its policy's tensors.

    Args:
        kind: `ConalSAC`.
        about: an output of `describe`.
        weights: the policy's tensors.
        device: the device of its networks.
        source: the file, for errors.
        settings: what it is to learn with, if it gets an env. None: the defaults.

    Raises:
        CheckpointError: they do not describe an agent. The error names `source`.
        ConfigError: this machine lacks the device.
    """
    agent = kind(device=device, _init_setup_model=False)
    with of_an_agent(source):
        model = read_description(about, source)
        agent.observation_space, agent.action_space = model.observation_space, model.action_space
        agent.n_envs, agent.num_timesteps, agent.has_critics = 1, model.steps, model.critics
        of_networks = {n: getattr(model.settings, n) for n in marked(AgentConfig, "in_model")}
        agent.learns_with = dataclasses.replace(settings or model.settings, **of_networks)
        # It only predicts, so that its replay may be tiny.
        agent._arguments = Arguments(dataclasses.replace(model.settings, buffer_size=2))
        agent._configure(model.tasks, model.structures)
        fill(agent.policy, weights, model.critics)
    return agent


def learning_agent(loaded: Any, env: Any, given: Mapping[str, Any]) -> Any:
    """Return a new agent with the weights of a `loaded` one, which only predicts.

    Args:
        loaded: a `ConalSAC` of `load_weights`.
        env: the env to learn in.
        given: keywords of `ConalSAC`, which win over the settings that `loaded` is to learn with.

    Raises:
        ConfigError: the weights lack critics, or a keyword asks for different networks.
        ValueError: the env does not fit the weights.
    """
    if not loaded.has_critics:
        raise ConfigError(
            "env: got an env for weights without critics, which cannot learn, expected critics. "
            "Save the weights with critics=True"
        )
    keywords = {"settings": loaded.learns_with, "device": str(loaded.device), **given}
    agent = type(loaded)(env=env, tasks=loaded.tasks, tree=loaded.structures, **keywords)
    check_for_correct_spaces(agent.env, loaded.observation_space, loaded.action_space)
    new, old = agent.policy.architecture, loaded.policy.architecture
    for name in sorted(old.keys() - {"mixed_precision"}):
        if new[name] != old[name]:
            raise ConfigError(
                f"agent.{name}: got {new[name]!r}, expected {old[name]!r}, which the weights are "
                "of. Leave it out"
            )
    agent.policy.load_state_dict(loaded.policy.state_dict())
    agent.num_timesteps = loaded.num_timesteps
    return agent


def to_share(
    policy: ConalPolicy, steps: int, half: bool, critics: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return description and tensors of a model to share.

    Args:
        policy: the networks.
        steps: the env steps of its training.
        half: store weights and biases of matrix multiplications in bfloat16. The file is half as
            long. An agent with mixed precision has the same outputs, because it rounds to bfloat16.
        critics: keep the critics. Without them the file holds only the actor of deterministic
            actions: the weight-averaged actor, if the agent averages.
    """
    about = describe(policy, steps)
    weights = {
        name: tensor
        for name, tensor in policy.state_dict().items()
        if not name.startswith("critic_target.")
    }
    if not critics:
        acting = policy.actor if policy.actor_average is None else policy.actor_average
        gates = {name: tensor for name, tensor in weights.items() if name == CRITIC_GATES}
        weights = {f"actor.{name}": tensor for name, tensor in acting.state_dict().items()} | gates
        about["critics"] = False
        about["architecture"] = {**about["architecture"], "actor_averaging": None}
    if half:
        weights = {
            name: tensor.bfloat16() if name.endswith((".weight", ".bias")) else tensor
            for name, tensor in weights.items()
        }
    return about, weights


@contextmanager
def of_an_agent(source: Path) -> Iterator[None]:
    """Raise a CheckpointError of `source` for any error of a damaged model in this context."""
    try:
        yield
    except UNFIT as error:
        raise CheckpointError(
            f"{source}: got a damaged file ({reason(error)}), expected the description of an "
            "agent. Export the model again"
        ) from error
