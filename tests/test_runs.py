"""A run's folder and its checkpoints, whole and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from conal_rl.config import load_config
from conal_rl.errors import CheckpointError, ConfigError
from conal_rl.runs.checkpoints import load_checkpoint, save_checkpoint
from conal_rl.runs.folder import Run, run_of

FILES = ["agent.safetensors", "replay.safetensors", "state.json", "manifest.json"]
STATE: dict[str, Any] = {"step": 7, "rng": [2**63, 0.1], "phase": "search"}


def tensors(value: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "agent": {"weight": torch.full((3, 4), value).T, "count": torch.tensor(5)},
        "replay": {"done": torch.tensor([True, False]), "action": torch.randn(5, 2)},
    }


def assert_same(
    loaded: dict[str, dict[str, torch.Tensor]], expected: dict[str, dict[str, torch.Tensor]]
) -> None:
    assert loaded.keys() == expected.keys()
    for group, named in expected.items():
        assert loaded[group].keys() == named.keys()
        assert all(torch.equal(loaded[group][name], named[name]) for name in named)


def test_a_created_run_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config("mt10")
    first, second = Run.create(config), Run.create(config)
    assert first.folder != second.folder
    assert first.folder.parent == tmp_path / "runs"
    assert first.folder.name.startswith("mt10-0-")
    assert first.config() == config
    versions = json.loads((first.folder / "versions.json").read_text())
    # A build of the same version may be marked, as 2.13.0+cu130, in only one of the two.
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"conal_rl", "commit", "python", "platform", "cpus", "numpy", "mujoco"} <= set(versions)
    save_checkpoint(first.folder, 7, tensors(), STATE)
    assert Run.open(first.folder) == first


def test_create_refuses_a_folder_in_use(tmp_path: Path) -> None:
    config = load_config("mt10")
    (tmp_path / "new").mkdir()
    Run.create(config, tmp_path / "new")
    with pytest.raises(ConfigError, match=r"^--out: got .*new") as caught:
        Run.create(config, tmp_path / "new")
    assert "--resume" not in str(caught.value)
    save_checkpoint(tmp_path / "new", 7, tensors(), STATE)
    with pytest.raises(ConfigError, match=r"--resume .*new"):
        Run.create(config, tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file"):
        Run.create(config, tmp_path / "file")


def test_open_says_what_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(CheckpointError, match="run: "):
        Run.open(folder)
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"run: .* empty"):
        Run.open(folder)
    (folder / "notes.txt").touch()
    with pytest.raises(ConfigError, match=r"config\.yaml: "):
        Run.open(folder)
    (folder / "config.yaml").write_text(load_config("mt10").to_yaml())
    with pytest.raises(CheckpointError, match="checkpoints: "):
        Run.open(folder)


def test_run_of_a_run_and_of_its_checkpoint(tmp_path: Path) -> None:
    run = Run.create(load_config("mt10"), tmp_path / "run")
    checkpoint = save_checkpoint(run.folder, 7, tensors(), STATE)
    assert run_of(run.folder).config() == run_of(checkpoint).config() == load_config("mt10")
    for wrong in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match=f"^{wrong}: "):
            run_of(wrong).config()


def test_a_checkpoint_loads_as_it_was_saved(tmp_path: Path) -> None:
    expected = tensors()
    path = save_checkpoint(tmp_path, 123, expected, STATE)
    assert path == tmp_path / "checkpoints" / "step-000000123"
    for place in (tmp_path, path):  # the run, or the checkpoint itself
        loaded, state = load_checkpoint(place)
        assert_same(loaded, expected)
        assert state == STATE
    only, _ = load_checkpoint(tmp_path, groups=["agent"])
    assert only.keys() == {"agent"}
    with pytest.raises(CheckpointError, match=r"critic\.safetensors"):
        load_checkpoint(tmp_path, groups=["critic"])


def test_others_may_read_what_they_may_read_elsewhere(tmp_path: Path) -> None:
    """safetensors makes files that only their owner may read, under any umask."""
    folder = save_checkpoint(tmp_path, 7, tensors(), STATE)
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (*folder.iterdir(), tmp_path / "plain")}
    assert len(modes) == 1


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in (5, 40, 40, 1_000_000_000):
        last = save_checkpoint(tmp_path, step, tensors(step), {"step": step}, keep=keep)
        assert load_checkpoint(tmp_path)[1] == {"step": step}
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert last.name in names
    assert len(names) == keep


def test_saving_a_step_again_supersedes_it(tmp_path: Path) -> None:
    for attempt in range(4):
        save_checkpoint(tmp_path, 3, tensors(), {"attempt": attempt})
        assert load_checkpoint(tmp_path)[1] == {"attempt": attempt}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damage_is_found_and_named(tmp_path: Path, name: str, damage: str) -> None:
    path = save_checkpoint(tmp_path, 7, tensors(), STATE) / name
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "altered":
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=name) as caught:
        load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_cannot_lead_elsewhere(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, tensors(), STATE) / "manifest.json"
    path.write_text(path.read_text().replace("agent.safetensors", "../agent.safetensors"))
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("moment", ["json.dumps", "os.rename", "safetensors.torch.save_file"])
def test_a_crash_during_save_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    expected = tensors(1.0)
    save_checkpoint(tmp_path, 1, expected, {"step": 1})

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt  # as a killed process: no clean-up that only a CheckpointError gets

    with monkeypatch.context() as patched:
        patched.setattr(moment, die)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, tensors(2.0), {"step": 2})
    loaded, state = load_checkpoint(tmp_path)
    assert_same(loaded, expected)
    assert state == {"step": 1}
    save_checkpoint(tmp_path, 3, tensors(3.0), {"step": 3})
    left = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert left == ["step-000000003"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    save_checkpoint(tmp_path, 1, tensors(), STATE)
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(tmp_path, 2, tensors(), STATE)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000001"]


def test_loaded_tensors_outlive_their_file(tmp_path: Path) -> None:
    expected = tensors()
    save_checkpoint(tmp_path, 1, expected, STATE)
    loaded, _ = load_checkpoint(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert_same(loaded, expected)
    loaded["agent"]["weight"].zero_()  # and may be written to
