"""Sizes that no machine has are refused before they are tried, by estimates that are never high."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
import torch

import conal_rl.envs
from conal_rl import device, train
from conal_rl.agents import ConalSAC, checks
from conal_rl.config import SupervisedConfig, load_config
from conal_rl.core import LTBSearch, Tree
from conal_rl.device import require_memory, total_memory
from conal_rl.envs.native import episodes
from conal_rl.envs.native.physics import Envs
from conal_rl.errors import ConfigError
from conal_rl.supervised import images
from conal_rl.supervised.experiment import SupervisedExperiment
from tests.helpers.refusals import refused
from tests.helpers.supervised_sets import options_of
from tests.helpers.toy import make_agent, make_env
from tests.helpers.toy_runs import CONFIG

SIZES_OF_AGENTS = ("buffer_size", "batch_size", "n_steps", "widths", "critics", "critic_bins")


def names_memory(error: str, field: str) -> bool:
    """Whether an error names the field, the estimate and the machine's memory."""
    return error.startswith(f"{field}: got ") and error.count(" GB of ") == 2 and "machine" in error


@pytest.mark.parametrize("size", ["1e12", "1e30"])
@pytest.mark.parametrize("field", ["env.envs_per_task", *SIZES_OF_AGENTS, "search.copies"])
def test_the_command_refuses_huge_agents(
    field: str, size: str, one_line: Any, tmp_path: Path
) -> None:
    field = field if "." in field else f"agent.{field}"
    option = [f"--{field}", *[size] * (1 + (field == "agent.widths"))]
    others = ["--search.method", "ltb", "--out", str(tmp_path / "run")]
    assert names_memory(one_line("cartpole", *option, *others), field.removeprefix("env."))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", ["1e12", "1e30"])
@pytest.mark.parametrize(
    "field",
    ["data.workers", "agent.channels", "agent.aspp_width", "agent.batch_size", "search.copies"],
)
def test_the_command_refuses_huge_networks(
    field: str, size: str, one_line: Any, tmp_path: Path
) -> None:
    option = [f"--{field}", *[size] * (4 if field == "agent.channels" else 1)]
    others = ["--total-steps", "9", "--search.method", "ltb", "--out", str(tmp_path / "run")]
    assert names_memory(one_line("terrain", *option, *others), field)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("field, name", [("agent.batch_size", "xnli"), ("data.size", "celeba9")])
def test_the_command_refuses_huge_samples(
    field: str, name: str, one_line: Any, tmp_path: Path
) -> None:
    options = options_of(name, tmp_path / "data")
    size = ["1e12"] * (1 + (field == "data.size"))
    assert names_memory(one_line(name, "--total-steps", "9", *options, f"--{field}", *size), field)


@pytest.mark.parametrize("field", ["strides", "aspp_rates"])
def test_numbers_beyond_those_of_images_are_refused(field: str, one_line: Any) -> None:
    assert f"agent.{field}: got " in one_line("terrain", f"--agent.{field}", *["1e12"] * 4)


@pytest.mark.parametrize("size", [10**12, 10**30, 1e30])
@pytest.mark.parametrize("field", SIZES_OF_AGENTS)
def test_the_library_refuses_huge_agents(field: str, size: float) -> None:
    sizes: Any = {field: (size, size) if field == "widths" else size}
    with refused(ConfigError, f"agent.{field}: got ", " GB of memory"):
        ConalSAC(env=make_env([0.5, -0.5]), **sizes)
    if field in ("buffer_size", "batch_size", "n_steps"):  # a live agent stays as it is
        return
    with refused(ConfigError, "search.copies: got ", " GB of memory"):
        ConalSAC(env=make_env([0.5, -0.5]), tree=LTBSearch(int(size)))


@pytest.mark.parametrize("size", [10**9, 10**30])
@pytest.mark.parametrize("official", [False, True])
def test_the_library_refuses_huge_numbers_of_envs(size: int, official: bool) -> None:
    for suite in ("mt1:reach-v3", "cartpole"):
        with refused(ConfigError, "envs_per_task: got ", " GB of memory"):
            conal_rl.envs.make(suite, size, engine="official" if official else "native")
    with refused(ConfigError, "num_envs: got ", " GB of memory"):
        gymnasium.make_vec("conal_rl/MT10-v3", num_envs=10 * size)


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Fills with the estimates that are made, by their fields."""
    made: dict[str, int] = {}

    def noted(field: str, value: Any, needed: int, device: Any = "cpu") -> None:
        made[field] = needed

    for module in (checks, images, episodes):
        monkeypatch.setattr(module, "require_memory", noted)
    return made


def bytes_of(*modules: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


@pytest.mark.parametrize("critic", ["mse", "hl_gauss"])
@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("tree", [Tree.shared(("task-0", "task-1"), 2), None])
def test_an_agent_takes_at_least_its_estimates(
    critic: str, n_steps: int, tree: Tree | None, estimates: dict[str, int]
) -> None:
    sizes: dict[str, Any] = {"n_steps": n_steps, "critics": 3, "buffer_size": 50}
    agent = make_agent(tree, critic=critic, critic_range=(-50, 50), **sizes)
    rings = agent.replay_buffer.training.data, agent.replay_buffer.validation.data
    assert 0 < estimates["agent.buffer_size"] <= sum(ring.nbytes for ring in rings)
    assert 0 < estimates["agent.widths"] <= bytes_of(agent.actor)
    assert 0 < estimates["agent.critic_bins"] <= bytes_of(agent.critic.head)
    assert 0 < estimates["agent.critics"] <= bytes_of(agent.critic, agent.critic_target)
    agent.learn(40)
    opened = 0 if agent.replay_buffer.returns is None else agent.replay_buffer.returns.open.nbytes
    assert estimates["agent.n_steps"] <= opened
    row = 4 * agent.replay_buffer.training.data.shape[-1] * 2
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    batch = agent.replay_buffer.sample(agent.batch_size)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        agent.critic.outputs(batch.observations, batch.actions)
    activations = sum(saved.values()) - bytes_of(agent.critic)
    assert estimates["agent.batch_size"] <= row * agent.batch_size + activations


def test_a_network_of_images_takes_at_least_its_estimates(estimates: dict[str, int]) -> None:
    config = load_config("terrain", ["--total-steps", "9", "--agent.tree", "shared"])
    assert isinstance(config, SupervisedConfig)
    experiment = SupervisedExperiment(config)
    experiment.start()
    network, batch = experiment.network, next(experiment._batches())
    assert 0 < estimates["agent.channels"] <= bytes_of(network.encoder)
    assert 0 < estimates["agent.aspp_width"] * len(experiment.tasks) <= bytes_of(network.heads)
    assert estimates["agent.batch_size"] == batch.inputs.nbytes
    assert estimates["data.size"] * config.agent.batch_size == batch.inputs.nbytes


def test_an_env_takes_at_least_its_estimate(estimates: dict[str, int]) -> None:
    env = conal_rl.envs.make("mt1:reach-v3", 3)
    rows: Envs = env.episodes.engine.rows  # type: ignore[attr-defined]
    assert 0 < estimates["envs_per_task"] <= sum(array.nbytes for array in rows)


def test_what_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "total_memory", lambda device: 1000)
    require_memory("field", 1, 1000)
    with refused(ConfigError, "field: got 1, "):
        require_memory("field", 1, 1001)


MEMINFO = "MemTotal:       2000 kB\nMemFree:        50 kB\nSwapTotal:      1000 kB\n"


def test_the_memory_of_a_machine_includes_swap(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO, encoding="utf-8")
    assert total_memory("cpu", tmp_path) == 3000 * 1024
    assert total_memory("cpu") >= 2**28


@pytest.mark.parametrize("content", [None, "", "MemTotal: many kB", "nonsense"])
def test_a_machine_without_meminfo_has_memory(content: str | None, tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    if content is not None:
        (tmp_path / "proc" / "meminfo").write_text(content, encoding="utf-8")
    assert total_memory("cpu", tmp_path) >= 2**28


def test_a_round_of_steps_is_within_the_run() -> None:
    with refused(ConfigError, "agent.update_every: got 101, expected at most total_steps, 100"):
        load_config("cartpole", ["--total-steps", "100", "--agent.update-every", "101"])


COUNTS = [
    *("log_interval", "minutes", "checkpoint_minutes", "agent.actor_every", "agent.reset_at"),
    *("agent.learning_starts", "evaluation.every", "evaluation.interim_episodes"),
]


def test_counts_have_no_end(tmp_path: Path) -> None:
    """They are only compared, so that a run with huge ones ends as one without them."""
    (tmp_path / "toy.yaml").write_text(str(CONFIG), encoding="utf-8")
    options = [word for field in COUNTS for word in (f"--{field}", "1e30")]
    fixed = ["--agent.tree", "shared", "--out", str(tmp_path / "run")]
    assert train.main([str(tmp_path / "toy.yaml"), *fixed, *options]) == 0


def test_the_memory_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=5 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    with refused(ConfigError, "field: got 1, ", " 6.0 GB of memory", " 5.0 GB ", "cuda:1"):
        require_memory("field", 1, 6 * 10**9, torch.device("cuda:1"))
