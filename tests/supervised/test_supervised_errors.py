"""What a supervised run refuses: status 2, one line, and nothing half-written behind."""

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
from tests.supervised.test_problem import WRITERS, options_of, write_text
from tests.supervised.test_supervised_commands import DIGITS, METHODS, TASKS, run, stop_at


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that Ctrl-C ended, by the phase in which it came."""
    folders = {}
    for phase, step in (("search", 3), ("train", 9)):
        folders[phase] = tmp_path_factory.mktemp("runs") / phase
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            assert train.main([*DIGITS, "--out", str(folders[phase])]) == 130
    return folders


@pytest.mark.parametrize(
    "options, told",
    [
        (["--agent.batch-size", "2000"], "agent.batch_size: got 2000, but there are 1074 samples"),
        (["--agent.batch-size", "400"], "got 400, but there are 359 samples in the validation par"),
        (["--data.tasks", "digit", "ink", "colour"], "data.tasks: got 'colour', expected some of"),
        (["--data.tasks", "ink"], "agent.tree: got 'search', "),
        (["--agent.patience", "3"], "agent.patience: it needs agent.select"),
        (["--agent.mixed-precision", "--agent.weighting", "nash_mtl"], "agent.weighting: nash_mtl"),
        (["--agent.encoder", "resnet18"], "agent.encoder: got 'resnet18', expected small"),
        (["--agent.tree", "none.json"], "none.json: No such file"),
        (["--agent.tree", "broken.json"], "broken.json: not JSON"),
        (["--agent.tree", "other.json"], "other.json: the tree has a task 'a'"),
        (["--agent.tree", "deep.json"], "deep.json: the tree has 3 layers, the network 2"),
        (["--search.steps", "12"], "search.steps: got 12, expected at most 11"),
        (
            ["--evaluation.reference", "none.json"],
            "evaluation.reference: none.json: no such file",
        ),
        (["--evaluation.reference", "broken.json"], "broken.json: is not JSON"),
        (
            ["--evaluation.reference", "agents.json"],
            "agents.json: not the evaluation.json of a sup",
        ),
        (
            ["--evaluation.reference", "tasks.json"],
            "evaluation.reference: tasks.json: tasks: ['at_",
        ),
        (["--evaluation.reference", "set.json"], "of the data set terrain, not of digits"),
        (["--evaluation.reference", "huge.json"], "huge.json: not the evaluation.json of a sup"),
        (["--evaluation.reference", "infinite.json"], "relative to a reference of inf"),
        (["--evaluation.reference", "metrics.json"], "metrics.json: metrics of ink: ['squared_err"),
        (["--evaluation.reference", "null.json"], "null.json: squared_error of ink: no change is"),
        (["--device", "gpu"], "device: got 'gpu'"),
    ],
)
def test_wrong_options_start_nothing(
    options: list[str], told: str, one_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        own = {k: v for k, v in (scores | {"ink": of_ink}).items() if v is not None}
        Path(f"{name}.json").write_text(json.dumps({"set": "digits", "scores": own}))
        Path("set.json").write_text(json.dumps({"set": "terrain", "scores": own}))
    files = set(tmp_path.iterdir())
    assert told in one_line(*DIGITS, *options, "--out", "run")
    assert told in one_line(*DIGITS, *options)
    assert set(tmp_path.iterdir()) == files


def cut_off(root: Path, pattern: str) -> None:
    for path in root.glob(pattern):
        os.truncate(path, path.stat().st_size - 1)


def take_away(root: Path, pattern: str) -> None:
    for path in list(root.glob(pattern)):
        path.unlink()


@pytest.mark.parametrize(
    "name, spoil, pattern, told",
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
    told: str,
    tree: str,
    one_line: Any,
    tmp_path: Path,
) -> None:
    if name in ("pawsx", "panx"):
        pytest.importorskip("transformers")
    options = options_of(name, tmp_path / "data")
    spoil(tmp_path / "data", pattern)
    assert told in one_line(name, *options, "--agent.tree", tree, "--out", str(tmp_path / "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    "options", [["--agent.tree", "shared", "--agent.select"], METHODS["recon"]]
)
def test_what_is_needed_later_is_looked_for_before(
    options: list[str], one_line: Any, tmp_path: Path
) -> None:
    """Nothing of validation is read by the first phase here."""
    pytest.importorskip("transformers")
    words = ["pawsx", *options_of("pawsx", tmp_path / "data"), *options]
    take_away(tmp_path / "data", "pawsx/dev-zh.tsv")
    assert "dev-zh.tsv" in one_line(*words, "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_without_its_folder(name: str, one_line: Any, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "run")]
    bert: list[str] = []
    if name in ("pawsx", "xnli", "udpos", "panx"):
        pytest.importorskip("transformers")
        write_text(tmp_path / "elsewhere")
        bert = ["--agent.bert", str(tmp_path / "elsewhere" / "bert"), "--data.tokens", "8"]
        bert += ["--agent.modules", "2"]
    assert one_line(name, *bert, *out).startswith("data.root: missing; give --data.root DIR")
    assert str(tmp_path / "no") in one_line(name, *bert, *out, "--data.root", str(tmp_path / "no"))
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges(one_line: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fast = ["--agent.learning-rate", "1e30", "--agent.tree", "shared", "--out", str(folder)]
    line = one_line(*DIGITS, *fast)
    assert line.startswith("the loss of ") and "training diverged" in line
    assert not (folder / "evaluation.json").exists() and not (folder / "checkpoints").exists()
    line = one_line("--resume", str(folder))
    assert line.startswith(f"{folder / 'checkpoints'}: ")


def test_a_diverged_training_replaces_no_checkpoint(
    stopped: dict[str, Path], one_line: Any, tmp_path: Path
) -> None:
    """Also where no loss has told yet that the last update was one too many."""
    folder = Path(shutil.copytree(stopped["train"], tmp_path / "run"))
    update = SupervisedExperiment._update

    def spoilt(self: SupervisedExperiment, *batches: Any) -> None:
        update(self, *batches)
        if self.steps == 10:
            next(self.network.parameters()).data[:] = torch.inf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SupervisedExperiment, "_update", spoilt)
        line = one_line("--resume", str(folder), "--checkpoint-minutes", "1e-9", lines=None)
    assert line.startswith("a weight is not finite after 11 updates: training diverged")
    assert load_checkpoint(folder, groups=[])[1]["step"] == 10
    assert train.main(["--resume", str(folder)]) == 0


CHECKPOINT_FILES = ("manifest.json", "state.json", "network.safetensors", "optimizer_weights")


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_damaged_checkpoint(
    name: str, stopped: dict[str, Path], one_line: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(stopped["train"], tmp_path / "run"))
    cut_off(folder, f"checkpoints/*/{name}*")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert name in one_line("--resume", str(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_strangers_state(stopped: dict[str, Path], one_line: Any, tmp_path: Path) -> None:
    """JSON and tensors that are whole, but lack what a run needs."""
    folder = Path(shutil.copytree(stopped["search"], tmp_path / "run"))
    tensors, state = load_checkpoint(folder)
    for name in state.keys() - {"scalers"}:  # there are none on a CPU
        lacking = {key: value for key, value in state.items() if key != name}
        save_checkpoint(folder, 1_000, tensors, lacking)
        assert one_line("--resume", str(folder)).endswith(f"'{name}'")
    for name in tensors:
        lacking = {key: value for key, value in tensors.items() if key != name}
        save_checkpoint(folder, 1_000, lacking, state)
        assert one_line("--resume", str(folder)).endswith(f"'{name}'")
    for structure in ({}, {"space": "conal_pro"}, {"space": "x"}, 3):
        save_checkpoint(folder, 1_000, tensors, state | {"structure": structure})
        assert one_line("--resume", str(folder)).startswith(f"{folder}: ")


@pytest.mark.parametrize("phase", ["search", "train"])
@pytest.mark.parametrize(
    "options, told",
    [
        (["--agent.tree", "shared"], "agent.tree: got 'shared', "),
        (["--search.specific-decay", "1"], "search.specific_decay: got 1.0, "),
        (["--search.method", "ltb"], "search.method: got 'ltb', "),
        (["--data.tasks", *TASKS[:3]], f"data.tasks: got {', '.join(TASKS[:3])}, "),
        (["--data.tasks", *TASKS[::-1]], f"data.tasks: got {', '.join(TASKS[::-1])}, "),
        (["--data.set", "terrain"], "data.set: got 'terrain', "),
        (["--agent.channels", "4", "5"], "size mismatch"),
        # Of the same weights, which another network would read without a word.
        (["--agent.strides", "1", "1"], "agent.strides: got (1, 1), "),
        (["--agent.weighting", "uncertainty"], "agent.weighting: got 'uncertainty', "),
        (["--agent.optimizer", "sgd"], "agent.optimizer: got 'sgd', "),
        (["--evaluation.reference", "none.json"], "none.json: no such file"),
    ],
)
def test_resume_as_another_run(
    phase: str, options: list[str], told: str, stopped: dict[str, Path], one_line: Any
) -> None:
    folder = stopped[phase]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert told in one_line("--resume", str(folder), *options)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_file_that_spoils_later(
    one_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found only when its batch comes: in one line, with the checkpoint before it to go on from."""
    words = ["nyuv2", *options_of("nyuv2", tmp_path / "data"), "--agent.tree", "shared"]
    words += ["--checkpoint-minutes", "1e-9", "--total-steps", "4"]
    cut_off(tmp_path / "data", "val/normal/*.npy")
    folder = tmp_path / "run"
    assert "val/normal" in one_line(*words, "--out", str(folder), lines=None)
    assert load_checkpoint(folder, groups=[])[1]["phase"] == "done"
    assert not (folder / "evaluation.json").exists()
    shutil.rmtree(tmp_path / "data")
    WRITERS["nyuv2"](tmp_path / "data")
    assert train.main(["--resume", str(folder)]) == 0


def test_a_folder_in_use(one_line: Any, tmp_path: Path) -> None:
    folder = run(tmp_path / "run", *DIGITS, "--agent.tree", "shared")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert f"--out: got {folder}, " in one_line(*DIGITS, "--out", str(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.slow
def test_a_compiler_that_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "conal_rl.train", *DIGITS, "--agent.compile"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "run")],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"CXX": "none-such", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert done.stderr.splitlines()[-1].startswith("error: agent.compile: got True, ")
    assert "InvalidCxx" in done.stderr


def test_an_extra_that_is_missing(
    one_line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*DIGITS, "--out", str(tmp_path / "run")]
    monkeypatch.setattr("conal_rl.core.weighting.find_spec", lambda name: None)
    told = one_line(*words, "--agent.tree", "shared", "--agent.weighting", "upgrad")
    assert told.startswith("upgrad needs qpsolvers and quadprog: pip install")
    assert not (tmp_path / "run").exists()
