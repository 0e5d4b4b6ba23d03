"""Agents on disk: safetensors and JSON only, so that loading one runs no code.

`save_weights`/`load_weights` are for sharing (what `predict` needs and, unless left out, the
critics); `training_state`/`restore` are everything that going on with training needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from conal_rl.core import Structure, Tree
from conal_rl.errors import CheckpointError, TreeError
from conal_rl.runs.files import read_json
from conal_rl.runs.weights import (
    UNFIT,
    optimizer_tensors,
    read_model,
    reason,
    restore_optimizer,
    structure_from_json,
    structure_to_json,
    write_model,
)

if TYPE_CHECKING:
    from conal_rl.agents.sac import ConalSAC

FORMAT = "conal_rl.agent"
VERSION = 1
TREES_FORMAT = "conal_rl.trees"
CRITIC_GATES = "critic.encoder.gates"

Tensors = dict[str, dict[str, Tensor]]


def trees_to_json(actor: Tree, critic: Tree) -> str:
    """The pair of an agent's trees as one readable JSON text."""
    trees = {"actor": json.loads(actor.to_json()), "critic": json.loads(critic.to_json())}
    return json.dumps({"format": TREES_FORMAT, **trees}, indent=2) + "\n"


def structures_to_json(structures: tuple[Structure, Structure]) -> dict[str, Any]:
    """Trees or search spaces of actor and critics, as JSON types."""
    named = zip(("actor", "critic"), structures, strict=True)
    return {name: structure_to_json(structure) for name, structure in named}


def structures_from_json(data: Any) -> tuple[Structure, Structure]:
    """Inverse of `structures_to_json`.

    Raises:
        TreeError, LookupError, TypeError, ValueError: the data describe no trees or spaces.
    """
    return structure_from_json(data["actor"]), structure_from_json(data["critic"])


def load_trees(path: Path, tasks: tuple[str, ...], depth: int) -> tuple[Tree, Tree]:
    """Read a run's tree.json, or one tree for actor and critics alike.

    Raises:
        TreeError: the file is missing or damaged, or its trees are for other tasks or depths.
    """
    content = read_json(path, TreeError)
    try:
        if isinstance(content, dict) and content.get("format") == TREES_FORMAT:
            missing = [name for name in ("actor", "critic") if name not in content]
            if missing:
                raise TreeError(f"the {missing[0]}'s tree is missing")
            pair = [Tree.from_json(json.dumps(content[name])) for name in ("actor", "critic")]
        else:
            pair = [Tree.from_json(json.dumps(content))] * 2
        actor, critic = (tree.check(tasks, depth) for tree in pair)
    except TreeError as error:
        raise TreeError(f"{path}: {error}") from error
    return actor, critic


def describe(agent: ConalSAC) -> dict[str, Any]:
    """All that is needed to build the agent's networks again, as JSON types."""
    assert isinstance(agent.action_space, spaces.Box)
    assert agent.observation_space.shape is not None
    return {
        "format": FORMAT,
        "version": VERSION,
        "tasks": list(agent.tasks),
        "observation_dim": agent.observation_space.shape[0],
        "action_low": agent.action_space.low.tolist(),
        "action_high": agent.action_space.high.tolist(),
        "architecture": agent.policy.architecture,
        "reward_scale": agent.reward_scale,
        "steps": agent.num_timesteps,
        "trees": structures_to_json(agent.structures),
    }


def build(about: Any, weights: Mapping[str, Tensor], device: str, source: Path) -> ConalSAC:
    """An agent ready for `predict`, from what `describe` said and its policy's tensors.

    Raises:
        CheckpointError: naming `source`, where the two do not describe an agent.
    """
    from conal_rl.agents.sac import ConalSAC

    if not isinstance(about, dict) or (about.get("format"), about.get("version")) != (
        FORMAT,
        VERSION,
    ):
        raise CheckpointError(f"{source}: is not a {FORMAT} of version {VERSION}")
    try:
        structures = structures_from_json(about["trees"])
        agent = ConalSAC(tasks=about["tasks"], device=device, _init_setup_model=False)
        tasks = len(about["tasks"])
        features = about["observation_dim"] - tasks
        agent.observation_space = spaces.Box(
            np.array([-np.inf] * features + [0] * tasks, dtype=np.float32),
            np.array([np.inf] * features + [1] * tasks, dtype=np.float32),
        )
        agent.action_space = spaces.Box(
            np.float32(about["action_low"]), np.float32(about["action_high"])
        )
        agent.n_envs = 1
        agent.buffer_size = 2  # it only predicts
        agent.reward_scale = about["reward_scale"]
        agent.num_timesteps = about["steps"]
        agent._configure(tuple(about["tasks"]), *structures, about["architecture"])
        if not about.get("critics", True):
            unknown = {
                name: torch.full_like(tensor, torch.nan)
                for name, tensor in agent.policy.state_dict().items()
                if name.startswith("critic.")
            }
            weights = unknown | dict(weights)
            agent.has_critics = False
        targets = {
            name.replace("critic.", "critic_target.", 1): tensor
            for name, tensor in weights.items()
            if name.startswith("critic.")
        }
        agent.policy.load_state_dict(targets | dict(weights))
    except UNFIT as error:
        raise CheckpointError(f"{source}: does not describe an agent: {reason(error)}") from error
    return agent


def save_weights(agent: ConalSAC, folder: Path, half: bool = False, critics: bool = True) -> None:
    """Write `model.json` and `model.safetensors` into `folder`, replacing what was there.

    Args:
        half: store weights and biases of products in bfloat16. An agent of mixed precision rounds
            them to that in any case: half of the file, and every output is the same.
        critics: without them there is in the file what acts where actions are deterministic, alone:
            the average of the actor's weights, where there is one, is then the actor. The critics
            of an agent that is loaded from it hold NaN, and it is saved without them.
    """
    about, policy = describe(agent), agent.policy
    weights = {
        name: tensor
        for name, tensor in policy.state_dict().items()
        if not name.startswith("critic_target.")
    }
    if not (critics and agent.has_critics):
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
    write_model(folder, about, weights)


def load_weights(folder: Path, device: str = "auto") -> ConalSAC:
    """An agent ready for `predict`.

    To train further, make a `ConalSAC` with an env and the trees of `derive()`, and load this
    one's `policy.state_dict()` into its policy; of an actor alone (`has_critics` is False), its
    `actor.state_dict()` into its actor.

    Raises:
        CheckpointError: a file is missing, damaged, or of another kind or version.
    """
    about, weights = read_model(folder)
    return build(about, weights, device, folder)


def training_state(agent: ConalSAC) -> tuple[Tensors, dict[str, Any]]:
    """Tensors by group, and JSON-able state: all that `restore` needs on an agent built alike."""
    replay, counters = agent.replay_buffer.state()
    groups: Tensors = {"policy": dict(agent.policy.state_dict()), "replay": replay}
    groups["random"] = {"torch": torch.get_rng_state()}
    if agent.device.type == "cuda":
        groups["random"]["cuda"] = torch.cuda.get_rng_state(agent.device)
    if agent.log_ent_coef is not None:
        groups["temperature"] = {"log": agent.log_ent_coef.detach()}
    state: dict[str, Any] = {
        "model": describe(agent),
        "steps": agent.num_timesteps,
        "updates": agent._n_updates,
        "put_off": agent._pending_updates,
        "progress_left": agent._current_progress_remaining,
        "episodes": agent._episode_num,
        "replay": counters,
        "numpy_random": np.random.get_state(legacy=False),  # noqa: NPY002 - the stream SB3 uses
        "actions_random": agent.action_space.np_random.bit_generator.state,
        "recent": agent.recent.state(),
        "noticing": {},
    }
    state["numpy_random"]["state"]["key"] = state["numpy_random"]["state"]["key"].tolist()
    for name, optimizer in _optimizers(agent).items():
        groups[f"optimizer_{name}"] = optimizer_tensors(optimizer)
    for name, noticing in agent.noticing.items():
        groups[f"conflict_{name}"], state["noticing"][name] = noticing.state()
    for name, learner in agent.learners.items():
        groups[f"loss_weights_{name}"] = learner.loss_weights.state_dict()
    return groups, state


def restore(
    agent: ConalSAC, groups: Mapping[str, dict[str, Tensor]], state: dict[str, Any]
) -> None:
    """Inverse of `training_state`. Environments begin new episodes.

    Raises:
        CheckpointError: the checkpoint is of an agent with other tasks, trees or sizes.
    """
    try:
        agent.policy.load_state_dict(groups["policy"])
        agent.replay_buffer.restore(groups["replay"], state["replay"])
        if agent.log_ent_coef is not None:
            with torch.no_grad():
                agent.log_ent_coef.copy_(groups["temperature"]["log"])
        for name, optimizer in _optimizers(agent).items():
            restore_optimizer(optimizer, groups[f"optimizer_{name}"])
        for name, noticing in agent.noticing.items():
            noticing.restore(groups[f"conflict_{name}"], state["noticing"][name])
        for name, learner in agent.learners.items():
            learner.loss_weights.load_state_dict(groups[f"loss_weights_{name}"])
        agent.recent.restore(state["recent"])
        agent.num_timesteps = state["steps"]
        agent._n_updates = state["updates"]
        agent._pending_updates = state.get("put_off", 0)
        # SB3 sets it after a step of the envs, which updates that wait come before.
        agent._current_progress_remaining = state.get("progress_left", 1.0)
        agent._episode_num = state["episodes"]
        torch.set_rng_state(groups["random"]["torch"])
        if agent.device.type == "cuda" and "cuda" in groups["random"]:
            torch.cuda.set_rng_state(groups["random"]["cuda"], agent.device)
        np.random.set_state(state["numpy_random"])  # noqa: NPY002
        agent.action_space.np_random.bit_generator.state = state["actions_random"]
        agent.forget_recorded()
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else reason(error)
        raise CheckpointError(f"the checkpoint does not fit this config: {what}") from error


def _optimizers(agent: ConalSAC) -> dict[str, torch.optim.Optimizer]:
    named = {
        "actor": agent.actor.optimizer,
        "critic": agent.critic.optimizer,
        "temperature": agent.ent_coef_optimizer,
        "gates": agent.gate_optimizer,
    }
    return {name: optimizer for name, optimizer in named.items() if optimizer is not None}
