"""Updates that a CUDA device can record: they ask nothing of it, and recorded they are the same."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecCheckNan
from torch.distributions import Distribution
from torch.utils._python_dispatch import TorchDispatchMode

from conal_rl.agents import ConalSAC
from conal_rl.agents.graphs import GraphCache
from conal_rl.core import ConalSearch, LTBSearch, Structure, Tree
from conal_rl.core.linear_stack import LinearStack, gram_at_once
from tests.helpers.toy import make_agent, make_env, same_tensors

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TARGETS = (-0.5, 0.0, 0.5)
BRANCHED = Tree.from_branch_points([3, 2, 3], depth=2, tasks=make_env(TARGETS).tasks)
ELSE: dict[str, Any] = {
    "critic_reduce": "mean",
    "max_grad_norm": 1.0,
    "smoothing": 0.5,
    "weighting": "uncertainty",
}
WAITING = ("_local_scalar_dense", "nonzero", "lift_fresh", "bincount", "masked_select")
"""Operations that wait for a device, or bring it something from memory that moves."""


class Waiting(TorchDispatchMode):
    """Notes the operations in which a CUDA device would be waited for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if any(name in str(operation) for name in WAITING):
            stack = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_stack()]
            self.found.append(f"{operation} at {stack[-5:-1]}")
        return operation(*args, **(kwargs or {}))


def test_copied_graphs_are_captured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __reduce__(self) -> str:
            raise AssertionError("a stream was copied")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    cache = GraphCache(torch.device("cuda", 1))
    cache._graphs["update",] = object()  # type: ignore[assignment]
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert twin.kinds() == {} and twin._stream.device == torch.device("cuda", 1)
        assert twin._stream is not cache._stream


def trained(structure: Structure, device: str = "cpu", **settings: Any) -> ConalSAC:
    agent = make_agent(structure, env=make_env(TARGETS, 2), device=device, **settings)
    agent.learn(240, log_interval=None)
    assert agent._n_updates > 0
    return agent


@pytest.mark.parametrize(
    "structure", [BRANCHED, ConalSearch(), LTBSearch(copies=2)], ids=["tree", "search", "ltb"]
)
@pytest.mark.parametrize("settings", [{}, ELSE], ids=["", "else"])
def test_an_update_asks_nothing_of_the_device(
    structure: Structure, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if settings and isinstance(structure, Tree):
        settings = {**settings, "conflict_rule": "any_pair"}
    agent = trained(structure, **settings)
    for noticing in agent.noticing.values():
        noticing.study_every = 1
    monkeypatch.setattr(Distribution, "_validate_args", False)  # as where it is recorded
    # On a CUDA device these are at once, too; see below.
    monkeypatch.setattr(LinearStack, "gram", lambda layer, rows: gram_at_once(layer.rows, rows))
    assert isinstance(agent._last_obs, np.ndarray)
    observation = torch.from_numpy(agent._last_obs)
    with Waiting() as waiting:
        _unrecorded(agent, 4)
        agent.policy.sample_actions(observation, 2)
    # Adam's step counts are on the device only there.
    assert [found for found in waiting.found if "adam.py" not in found] == []


def test_the_dispatch_mode_sees_what_waits() -> None:
    with Waiting() as waiting:
        float(torch.ones(()) + 1)
    assert len(waiting.found) == 1


def _unrecorded(agent: ConalSAC, batch_size: int) -> dict[str, torch.Tensor]:
    parts = agent.update.parts_due(agent._n_updates)
    return agent.update(agent.replay_buffer, batch_size, parts)


class Uncaptured(GraphCache):
    """Runs kernel by kernel, on any device, and counts the calls of each kind."""

    def __init__(self) -> None:
        self.calls: Counter[Any] = Counter()

    def run(
        self, kind: Any, function: Any, *inputs: torch.Tensor, replayed: Any = None
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        self.calls[kind[0]] += 1
        outputs: torch.Tensor | dict[str, torch.Tensor] = function(*inputs)
        return outputs

    def forget(self) -> None:
        pass


def as_with_graphs(agent: ConalSAC) -> Uncaptured:
    """Updates wait for the envs as on a CUDA device, and are done as on a CPU."""
    agent.queue.graphs = graphs = Uncaptured()
    return graphs


@pytest.mark.parametrize(
    ("waits", "tells", "circle"),
    [
        (False, True, ["act", "begin", "end", "update"]),
        (True, True, ["act", "begin", "update", "end"]),
        (True, False, ["act", "update", "begin", "end"]),
    ],
    ids=["no graphs", "graphs", "graphs, envs wrapped"],
)
def test_updates_in_learn_run_while_the_environments_step(
    waits: bool, tells: bool, circle: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_env(TARGETS, 2)
    agent = make_agent(BRANCHED, env=env if tells else VecCheckNan(env))
    if waits:
        as_with_graphs(agent)
    events: list[str] = []

    def noting(event: str, function: Any) -> Any:
        def noted(*given: Any, **named: Any) -> Any:
            events.append(event)
            return function(*given, **named)

        return noted

    monkeypatch.setattr(agent, "predict", noting("act", agent.predict))
    monkeypatch.setattr(env, "step_async", noting("begin", env.step_async))
    monkeypatch.setattr(env, "step_wait", noting("end", env.step_wait))
    monkeypatch.setattr(agent.queue, "run", noting("update", agent.queue.run))
    agent.learn(120, log_interval=None)
    assert agent.queue.pending == 0
    rounds = events.count("update")
    assert agent._n_updates == rounds > 10
    assert env.on_step_started is None
    in_the_middle = events[events.index("update") + 1 :]
    start = in_the_middle.index("act")
    assert in_the_middle[start : start + 12] == 3 * circle


def test_a_checkpoint_does_not_change_pending_updates() -> None:
    """The step size falls, and is that of the update's time also after a restore."""
    falls = LinearSchedule(1e-2, 1e-4, end_fraction=1.0)
    agents = []
    for written in (True, False):
        agent = make_agent(BRANCHED, env=make_env(TARGETS, 2), learning_rate=falls)
        as_with_graphs(agent)
        checkpoints = Checkpoints(written)
        agent.learn(180, checkpoints, log_interval=None)
        assert bool(checkpoints.put_off) == written
        assert max(checkpoints.put_off, default=1) == 1
        agents.append(agent)
    assert same_tensors(*(agent.policy.state_dict() for agent in agents))

    before, after = agents[0], make_agent(BRANCHED, env=make_env(TARGETS, 2), learning_rate=falls)
    as_with_graphs(after)
    before.queue.pending = 1
    after.restore(*copy.deepcopy(before.training_state()))
    assert after.queue.pending == 1
    for agent in (before, after):
        torch.manual_seed(0)
        agent.finish_updates()
    assert after._n_updates == before._n_updates
    assert same_tensors(before.policy.state_dict(), after.policy.state_dict())


def test_actions_and_updates_go_through_the_graphs() -> None:
    agent = make_agent(BRANCHED, env=make_env(TARGETS, 2), learning_starts=10)
    graphs = as_with_graphs(agent)
    agent.learn(120, log_interval=None)
    assert graphs.calls["update"] == agent._n_updates > 10
    assert graphs.calls["actions"] == 120 // 6 - 5  # steps of all envs, after the random ones
    assert isinstance(agent._last_obs, np.ndarray)
    torch.manual_seed(0)
    actions, _ = agent.predict(agent._last_obs)
    torch.manual_seed(0)
    np.testing.assert_array_equal(agent.predict(agent._last_obs.copy())[0], actions)


class Checkpoints(BaseCallback):
    """Writes one between all updates, as runs do now and then."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.written = written
        self.put_off: list[int] = []

    def _on_rollout_start(self) -> None:
        assert isinstance(self.model, ConalSAC)
        if self.written:
            _, state = self.model.training_state()
            self.put_off.append(state["put_off"])

    def _on_step(self) -> bool:
        return True


@needs_cuda
@pytest.mark.parametrize("structure", [BRANCHED, ConalSearch()], ids=["tree", "search"])
@pytest.mark.parametrize("settings", [{}, {"gate_every": 2, "actor_every": 3}])
def test_recorded_updates_are_those_without_recording(
    structure: Structure, settings: dict[str, Any]
) -> None:
    source = trained(structure, "cuda", **settings)
    agents = []
    for graphs in (True, False):
        env = make_env(TARGETS, 2)
        agent = make_agent(structure, env=env, device="cuda", cuda_graphs=graphs, **settings)
        agent.policy.load_state_dict(source.policy.state_dict())
        agent.replay_buffer.inherit_from(source.replay_buffer)
        torch.cuda.manual_seed(0)
        agent.train(150, 16)
        agents.append(agent)
    with_graphs, without = agents
    assert with_graphs.queue.graphs is not None and without.queue.graphs is None
    assert all(with_graphs.queue.graphs.kinds().values())
    for name, value in without.policy.state_dict().items():
        torch.testing.assert_close(
            with_graphs.policy.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name
        )
    for name, noticing in without.noticing.items():
        found, expected = with_graphs.noticing[name].statistics(), noticing.statistics()
        assert found is not None and expected is not None
        assert found.steps == expected.steps
        torch.testing.assert_close(found.counted, expected.counted)
        torch.testing.assert_close(found.cosine, expected.cosine, rtol=0, atol=0.05)


@needs_cuda
def test_recorded_actions_are_of_the_newest_weights() -> None:
    agent = trained(BRANCHED, "cuda")
    assert agent.queue.graphs is not None
    assert any(
        recorded for kind, recorded in agent.queue.graphs.kinds().items() if "actions" in kind
    )
    assert isinstance(agent._last_obs, np.ndarray)
    with torch.no_grad():
        agent.actor.head.bias[:] = torch.tensor([3.0, -20.0], device="cuda")  # mean, log std
        agent.actor.head.weight[:] = 0
    actions, _ = agent.predict(agent._last_obs)
    np.testing.assert_allclose(actions, np.tanh(3.0), atol=1e-4)


@needs_cuda
def test_a_step_size_that_falls_reaches_the_graphs() -> None:
    agent = make_agent(
        BRANCHED, env=make_env(TARGETS, 2), device="cuda", learning_rate=lambda left: 1e-2 * left
    )
    agent.learn(600, log_interval=None)
    before = [weight.clone() for weight in agent.actor.weights()]
    agent._current_progress_remaining = 0.0
    agent.train(5, 8)
    assert agent.queue.graphs is not None
    assert all(
        recorded for kind, recorded in agent.queue.graphs.kinds().items() if "update" in kind
    )
    assert all(map(torch.equal, before, agent.actor.weights()))
