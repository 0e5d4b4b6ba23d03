"""Errors of supervised runs: status 2, one line, and no half-written files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from conal_rl import train
from conal_rl.core import Tree
from conal_rl.runs.checkpoints import load_checkpoint, save_checkpoint
from conal_rl.supervised.experiment import SupervisedExperiment
from tests.helpers.supervised_runs import DIGITS, METHODS, TASKS, run, stop_at
from tests.helpers.supervised_sets import WRITERS, options_of, write_text


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that Ctrl-C stopped, by the phase that it stopped."""
    folders = {}
    for phase, step in (("search", 3), ("train", 9)):
        folders[phase] = tmp_path_factory.mktemp("runs") / phase
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            assert train.main([*DIGITS, "--out", str(folders[phase])]) == 130
    return folders


@pytest.mark.parametrize(
    "options, part",
    [
        (["--agent.batch-size", "2000"], "agent.batch_size: got 2000, expected at most 1074"),
        (["--agent.batch-size", "400"], "agent.batch_size: got 400, expected at most 359"),
        (["--data.tasks", "digit", "ink", "colour"], "data.tasks: got 'colour'"),
        (["--data.tasks", "ink"], "agent.tree: got 'search'"),
        (["--agent.patience", "3"], "agent.patience: "),
        (["--agent.mixed-precision", "--agent.weighting", "nash_mtl"], "nash_mtl"),
        (["--agent.encoder", "resnet18"], "agent.encoder: got 'resnet18', expected small"),
        (["--agent.tree", "none.json"], "none.json: "),
        (["--agent.tree", "broken.json"], "broken.json: text: "),
        (["--agent.tree", "other.json"], "other.json: tasks: got 'a'"),
        (["--agent.tree", "deep.json"], "deep.json: layers: got 3 "),
        (["--search.steps", "12"], "search.steps: got 12, expected at most 11"),
        (
            ["--evaluation.reference", "none.json"],
            "none.json, which does not exist, expected an evaluation.json",
        ),
        (["--evaluation.reference", "broken.json"], "broken.json: "),
        (["--evaluation.reference", "agents.json"], "agents.json: got"),
        (["--evaluation.reference", "tasks.json"], "tasks.json: tasks: got ['at_least_five'"),
        (
            ["--evaluation.reference", "set.json"],
            "set.json, expected digits. Use a different reference",
        ),
        (["--evaluation.reference", "huge.json"], "huge.json: got"),
        (["--evaluation.reference", "infinite.json"], "infinite.json: squared_error of ink: got"),
        (["--evaluation.reference", "metrics.json"], "metrics.json: metrics of ink: got ['squared"),
        (["--evaluation.reference", "null.json"], "null.json: squared_error of ink: got the refe"),
        (["--device", "gpu"], "device: got 'gpu'"),
    ],
)
def test_wrong_options_start_nothing(
    options: list[str], part: str, one_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text(Tree.shared(TASKS, 2).to_json()[:-3])
    Path("other.json").write_text(Tree.shared("ab", 2).to_json())
    Path("deep.json").write_text(Tree.shared(TASKS, 3).to_json())
    Path("agents.json").write_text(json.dumps({"success": {"reach-v3": 0.5}}))
    scores: dict[str, dict[str, float | None]] = {task: {"accuracy": 0.5} for task in TASKS}
    for name, of_ink in (
        ("metrics", {"accuracy": 0.5}),
        ("null", {"squared_error": None}),
        ("huge", {"squared_error": 10**400}),
        ("infinite", {"squared_error": float("inf")}),
        ("tasks", None),
    ):
        tasks_scores = {k: v for k, v in (scores | {"ink": of_ink}).items() if v is not None}
        Path(f"{name}.json").write_text(json.dumps({"set": "digits", "scores": tasks_scores}))
        Path("set.json").write_text(json.dumps({"set": "terrain", "scores": tasks_scores}))
    files = set(tmp_path.iterdir())
    assert part in one_line(*DIGITS, *options, "--out", "run")
    assert part in one_line(*DIGITS, *options)
    assert set(tmp_path.iterdir()) == files


def cut_off(root: Path, pattern: str) -> None:
    for path in root.glob(pattern):
        os.truncate(path, path.stat().st_size - 1)


def take_away(root: Path, pattern: str) -> None:
    for path in list(root.glob(pattern)):
        path.unlink()


@pytest.mark.parametrize(
    "name, spoil, pattern, part",
    [
        ("nyuv2", take_away, "train/depth/*.npy", "depth"),
        ("nyuv2", cut_off, "train/image/*.npy", "image"),
        ("cityscapes", take_away, "val/label/*.npy", "val"),
        ("pascal_context", cut_off, "JPEGImages/*.jpg", "JPEGImages"),
        ("taskonomy", cut_off, "taskonomy.json", "taskonomy.json"),
        ("celeba9", take_away, "Img/*/*.png", "img_align_celeba"),
        ("pawsx", take_away, "pawsx/dev-de.tsv", "dev-de.tsv"),
        ("panx", take_away, "bert/config.json", "config.json"),
    ],
)
@pytest.mark.parametrize("tree", ["search", "shared"])
def test_wrong_files_start_nothing(
    name: str,
    spoil: Callable[[Path, str], None],
    pattern: str,
    part: str,
    tree: str,
    one_line: Any,
    tmp_path: Path,
) -> None:
    if name in ("pawsx", "panx"):
        pytest.importorskip("transformers")
    options = options_of(name, tmp_path / "data")
    spoil(tmp_path / "data", pattern)
    assert part in one_line(name, *options, "--agent.tree", tree, "--out", str(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    "options", [["--agent.tree", "shared", "--agent.select"], METHODS["recon"]]
)
def test_files_of_later_phases_are_checked_at_the_start(
    options: list[str], one_line: Any, tmp_path: Path
) -> None:
    """The first phase of these runs does not read the validation part."""
    pytest.importorskip("transformers")
    words = ["pawsx", *options_of("pawsx", tmp_path / "data"), *options]
    take_away(tmp_path / "data", "pawsx/dev-zh.tsv")
    assert "dev-zh.tsv" in one_line(*words, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_data_folder_is_named(name: str, one_line: Any, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    bert: list[str] = []
    if name in ("pawsx", "xnli", "udpos", "panx"):
        pytest.importorskip("transformers")
        write_text(tmp_path / "elsewhere")
        bert = ["--agent.bert", str(tmp_path / "elsewhere" / "bert"), "--data.tokens", "8"]
        bert += ["--agent.modules", "2"]
    assert one_line(name, *bert, *out).startswith("data.root: got no value")
    assert str(tmp_path / "no") in one_line(name, *bert, *out, "--data.root", str(tmp_path / "no"))
    assert not (tmp_path / "run").exists()


def test_a_diverged_training_writes_no_results(one_line: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fast = ["--agent.learning-rate", "1e30", "--agent.tree", "shared", "--out", str(folder)]
    line = one_line(*DIGITS, *fast)
    assert "the loss of " in line and "diverged" in line
    assert not (folder / "evaluation.json").exists() and not (folder / "checkpoints").exists()
    line = one_line("--resume", str(folder))
    assert str(folder / "checkpoints") in line


def test_a_diverged_training_replaces_no_checkpoint(
    stopped: dict[str, Path], one_line: Any, tmp_path: Path
) -> None:
    """Not even if the losses are still finite and only the weights are not."""
    folder = Path(shutil.copytree(stopped["train"], tmp_path / "run"))
    update = SupervisedExperiment._update

    def spoilt(self: SupervisedExperiment, *batches: Any) -> None:
        update(self, *batches)
        if self.steps == 10:
            next(self.network.parameters()).data[:] = torch.inf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupervisedExperiment, "_update", spoilt)
        line = one_line("--resume", str(folder), "--checkpoint-minutes", "1e-9", lines=None)
    assert "a weight" in line and "after 11 updates" in line and "diverged" in line
    assert load_checkpoint(folder, groups=[])[1]["step"] == 10
    assert train.main(["--resume", str(folder)]) == 0


CHECKPOINT_FILES = ("manifest.json", "state.json", "network.safetensors", "optimizer_weights")


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_damaged_checkpoint_is_named(
    name: str, stopped: dict[str, Path], one_line: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(stopped["train"], tmp_path / "run"))
    cut_off(folder, f"checkpoints/*/{name}*")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert name in one_line("--resume", str(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_a_checkpoint_without_its_entries_is_refused(
    stopped: dict[str, Path], one_line: Any, tmp_path: Path
) -> None:
    """JSON and tensors are not damaged, but an entry is missing."""
    folder = Path(shutil.copytree(stopped["search"], tmp_path / "run"))
    tensors, state = load_checkpoint(folder)
    for name in state.keys() - {"scalers"}:  # a CPU has no scalers
        lacking = {key: value for key, value in state.items() if key != name}
        save_checkpoint(folder, 1_000, tensors, lacking)
        line = one_line("--resume", str(folder))
        assert str(folder) in line and f"'{name}'" in line
    for name in tensors:
        lacking = {key: value for key, value in tensors.items() if key != name}
        save_checkpoint(folder, 1_000, lacking, state)
        line = one_line("--resume", str(folder))
        assert str(folder) in line and f"'{name}'" in line
    for structure in ({}, {"space": "conal_pro"}, {"space": "x"}, 3):
        save_checkpoint(folder, 1_000, tensors, state | {"structure": structure})
        assert str(folder) in one_line("--resume", str(folder))


@pytest.mark.parametrize("phase", ["search", "train"])
@pytest.mark.parametrize(
    "options, part",
    [
        (["--agent.tree", "shared"], "agent.tree: got 'shared'"),
        (["--search.specific-decay", "1"], "search.specific_decay: got 1.0"),
        (["--search.method", "ltb"], "search.method: got 'ltb'"),
        (["--data.tasks", *TASKS[:3]], "digit, parity"),
        (["--data.tasks", *TASKS[::-1]], "digit, parity"),
        (["--data.set", "terrain"], "data.set: got 'terrain'"),
        (["--agent.channels", "4", "5"], "size mismatch"),
        # A different network with the same weights would load them without an error.
        (["--agent.strides", "1", "1"], "agent.strides: got (1, 1)"),
        (["--agent.weighting", "uncertainty"], "agent.weighting: got 'uncertainty'"),
        (["--agent.optimizer", "sgd"], "agent.optimizer: got 'sgd'"),
        (["--evaluation.reference", "none.json"], "none.json"),
    ],
)
def test_a_resume_cannot_change_the_run(
    phase: str, options: list[str], part: str, stopped: dict[str, Path], one_line: Any
) -> None:
    folder = stopped[phase]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert part in one_line("--resume", str(folder), *options)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_damaged_file_of_the_test_keeps_the_checkpoint(
    one_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is damaged during training ends the run at its end, and it can be resumed."""
    words = ["nyuv2", *options_of("nyuv2", tmp_path / "data"), "--agent.tree", "shared"]
    words += ["--checkpoint-minutes", "1e-9", "--total-steps", "4"]
    folder = tmp_path / "run"
    update = SupervisedExperiment._update

    def spied(self: SupervisedExperiment, *batches: Any) -> None:
        update(self, *batches)
        if self.steps == 2:
            cut_off(tmp_path / "data", "val/normal/*.npy")

    monkeypatch.setattr(SupervisedExperiment, "_update", spied)
    assert "val/normal" in one_line(*words, "--out", str(folder), lines=None)
    assert load_checkpoint(folder, groups=[])[1]["phase"] == "done"
    assert not (folder / "evaluation.json").exists()
    shutil.rmtree(tmp_path / "data")
    WRITERS["nyuv2"](tmp_path / "data")
    assert train.main(["--resume", str(folder)]) == 0


def test_a_folder_with_files_is_not_overwritten(one_line: Any, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", *DIGITS, "--agent.tree", "shared")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert str(folder) in one_line(*DIGITS, "--out", str(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "conal_rl.train", *DIGITS, "--agent.compile"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"CXX": "none-such", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    last_line = done.stderr.splitlines()[-1]
    assert last_line.startswith("error: agent.compile: ") and "InvalidCxx" in last_line


def test_a_missing_package_is_named_with_its_extra(
    one_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*DIGITS, "--out", str(tmp_path / "run")]
    monkeypatch.setattr("conal_rl.core.weighting.find_spec", lambda name: None)
    line = one_line(*words, "--agent.tree", "shared", "--agent.weighting", "upgrad")
    assert "upgrad" in line and "qpsolvers" in line and "pip install" in line
    assert not (tmp_path / "run").exists()
