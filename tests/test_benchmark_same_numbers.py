"""The comparison of run folders, the list of cases, and what the same-numbers command keeps."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conal_rl import benchmark
from conal_rl.benchmarks import forking, run_differences, same_numbers
from conal_rl.benchmarks.run_differences import compare_runs, declared_differences
from conal_rl.config import load_config
from conal_rl.errors import ConalError

CHECKPOINT = "checkpoints/step-000000020.1"
TREE = {"tasks": ["a", "b"], "layers": [[["a", "b"]], [["a"], ["b"]]]}
EVALUATION = {"success": {"a": 0.5, "b": None}, "returns": {"a": 1.25}, "seconds": 3}
PROGRESS = """time/fps,loss/a,time/total_timesteps,success/b
100,0.5,10,nan
101,0.25,20,
"""


def make_run(folder: Path) -> Path:
    weights = {"layer.weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(7)}
    moments = {"0.exp_avg": torch.full((2, 3), torch.nan), "0.step": torch.tensor(2.0)}
    older = {"0.exp_avg": torch.zeros(1)}
    for place, name, tensors in (
        ("model", "model", weights),
        (CHECKPOINT, "network", weights),
        (CHECKPOINT, "optimizer_weights", moments),
        ("checkpoints/step-000000020", "optimizer_weights", older),
        ("checkpoints/step-000000009", "optimizer_weights", older),
    ):
        (folder / place).mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / place / f"{name}.safetensors")
    (folder / "progress.csv").write_text(PROGRESS)
    (folder / "tree.json").write_text(json.dumps(TREE))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two equal runs."""
    return make_run(tmp_path / "old"), make_run(tmp_path / "new")


def change_json(path: Path, *place: Any, to: Any) -> None:
    data = json.loads(path.read_text())
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = to
    path.write_text(json.dumps(data))


def change_tensors(path: Path, **changed: torch.Tensor) -> None:
    save_file({**load_file(path), **changed}, path)


def test_equal_runs_have_no_difference(runs: tuple[Path, Path]) -> None:
    assert compare_runs(*runs) == []


def test_clock_and_column_order_do_not_matter(runs: tuple[Path, Path]) -> None:
    (runs[1] / "progress.csv").write_text(
        "success/b,time/total_timesteps,time/seconds,loss/a\nnan,10,1,0.50\n,20,2,0.25\n"
    )
    change_json(runs[1] / "evaluation.json", "seconds", to=9)
    change_json(runs[1] / "evaluation.json", "a_new_entry", to=1)
    (runs[1] / "tree.json").write_text(json.dumps(TREE, indent=4))
    assert compare_runs(*runs) == []


def test_declared_columns_are_named_and_not_differences(runs: tuple[Path, Path]) -> None:
    assert declared_differences(*runs) == []
    (runs[0] / "progress.csv").write_text("loss/a,train/n_updates\n1,5\n1,1\n")
    (runs[1] / "progress.csv").write_text("loss/a,train/n_updates,phase\n1,5,search\n1,6,train\n")
    assert compare_runs(*runs) == []
    assert declared_differences(*runs) == ["phase", "train/n_updates"]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("0.25", "0.26", ("loss/a", "row 2", "step 20", "0.25 before", "0.26 now")),
        ("nan", "1.5", ("success/b", "row 1", "nan before", "1.5 now")),
        ("20,\n", "20,1\n", ("success/b", "row 2", "empty before", "1 now")),
        ("loss/a", "loss/c", ("loss/a", "loss/c")),
        ("101,0.25,20,\n", "", ("2 rows before", "1 now")),
    ],
)
def test_changed_cell_is_named(
    runs: tuple[Path, Path], old: str, new: str, named: tuple[str, ...]
) -> None:
    (runs[1] / "progress.csv").write_text(PROGRESS.replace(old, new))
    found = compare_runs(*runs)
    assert found and all(line.startswith("progress.csv: ") for line in found)
    assert all(word in " ".join(found) for word in named)


def test_changed_tree_is_named(runs: tuple[Path, Path]) -> None:
    change_json(runs[1] / "tree.json", "layers", 1, to=[["b"], ["a"]])
    found = compare_runs(*runs)
    assert found == [
        "tree.json: layers[1][0][0]: a before, b now",
        "tree.json: layers[1][1][0]: b before, a now",
    ]


def test_changed_return_is_named(runs: tuple[Path, Path]) -> None:
    change_json(runs[1] / "evaluation.json", "returns", "a", to=1.25000000001)
    (line,) = compare_runs(*runs)
    assert line == "evaluation.json: returns: a: 1.25 before, 1.25000000001 now"


@pytest.mark.parametrize("name", ["progress.csv", "tree.json", "evaluation.json", "model"])
def test_missing_file_is_named(runs: tuple[Path, Path], name: str) -> None:
    for run in runs:
        (run / name).rename(run / "elsewhere")
        found = " ".join(compare_runs(*runs))
        assert (name in found) == (run == runs[0])


def test_changed_bit_of_a_weight_is_named(runs: tuple[Path, Path]) -> None:
    path = runs[1] / "model" / "model.safetensors"
    weight = load_file(path)["layer.weight"]
    weight[1, 2] = torch.nextafter(weight[1, 2], torch.tensor(9.0))
    weight[0, 0] = -0.0  # equal to 0.0, in other bits
    change_tensors(path, **{"layer.weight": weight})
    (line,) = compare_runs(*runs)
    assert line.startswith("model: model/layer.weight: 2 of 6 values, first at [0, 0]: ")
    assert line.endswith("0.0 before, -0.0 now")


def test_changed_types_and_names_of_tensors_are_named(runs: tuple[Path, Path]) -> None:
    path = runs[1] / CHECKPOINT / "optimizer_weights.safetensors"
    save_file({"0.exp_avg": torch.zeros(2, 3).half(), "1.step": torch.tensor(2.0)}, path)
    found = " ".join(compare_runs(*runs))
    for name in ("0.exp_avg: torch.float32 [2, 3]", "0.step", "1.step"):
        assert f"checkpoint: optimizer_weights/{name}" in found


def test_tensors_are_those_of_the_newest_checkpoint(runs: tuple[Path, Path]) -> None:
    older = runs[1] / "checkpoints" / "step-000000009" / "optimizer_weights.safetensors"
    change_tensors(older, **{"0.exp_avg": torch.ones(1)})
    assert compare_runs(*runs) == []
    newest = runs[1] / CHECKPOINT
    newest.rename(newest.with_name("step-000000021"))
    (line,) = compare_runs(*runs)
    assert line.startswith("checkpoints: ")


def test_renamed_tensors_are_compared(
    runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = runs[1] / CHECKPOINT / "optimizer_weights.safetensors"
    path.rename(path.with_name("weight_optimizer.safetensors"))
    assert len(compare_runs(*runs)) == 4
    renamed = (("optimizer_weights/(.*)", r"weight_optimizer/\1"),)
    monkeypatch.setattr(run_differences, "RENAMED_TENSORS", renamed)
    assert compare_runs(*runs) == []


def test_every_case_is_a_config_with_a_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = same_numbers.cases()
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for preset in ("mt10", "cartpole", "digits", "terrain"):
        methods = ("conal", "conal-no-specific", "conal_pro", "ltb", "recon")
        assert {f"{preset}-{method}" for method in methods} < set(names)
    for case in cases:
        assert load_config(case.arguments[0], case.arguments[1:]).total_steps > 0
        assert case.resumes


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository of a package whose train command writes a run and the words it got."""
    folder = tmp_path / "checkout"
    package = folder / "conal_rl"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "train.py").write_text(
        "import pathlib, sys\n"
        "value = '1'\n"
        "words = sys.argv[1:]\n"
        "run = pathlib.Path(words[words.index('--out' if '--out' in words else '--resume') + 1])\n"
        "run.mkdir(exist_ok=True)\n"
        "with open(run / 'progress.csv', 'a') as file:\n"
        "    file.write('loss\\n' * ('--out' in words) + value + '\\n')\n"
    )
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    monkeypatch.setattr(same_numbers, "CHECKOUT", folder)
    monkeypatch.setattr(forking, "PACKAGES", ())
    cases = [same_numbers.Case(name, ("toy",), (("--more",),)) for name in ("one", "two")]
    monkeypatch.setattr(same_numbers, "cases", lambda: cases)
    return folder


def edit(repository: Path, old: str, new: str) -> None:
    path = repository / "conal_rl" / "train.py"
    path.write_text(path.read_text().replace(old, new))


def test_command_compares_with_a_commit(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept"
    command = ["same-numbers", "--base", "HEAD", "--keep", str(kept)]
    assert benchmark.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("equal") == 2 and "log has changed" not in printed
    began = (kept / "one.json").stat().st_mtime_ns
    edit(repository, "value = '1'", "value = '2'")
    assert benchmark.main([*command, "--only", "o*"]) == 1
    printed = capsys.readouterr().out
    assert "one: progress.csv: loss, 2 rows, first row 1" in printed
    assert "two" not in printed
    assert (kept / "one.json").stat().st_mtime_ns == began
    assert (kept / "one" / "progress.csv").read_text() == "loss\n1\n1\n"
    worktrees = subprocess.run(
        ["git", "worktree", "list"], cwd=repository, capture_output=True, text=True, check=True
    )
    assert len(worktrees.stdout.splitlines()) == 1


@pytest.mark.slow
def test_kept_runs_of_a_different_commit_run_again(repository: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    command = ["same-numbers", "--base", "HEAD", "--keep", str(kept)]
    assert benchmark.main(command) == 0
    edit(repository, "value = '1'", "value = '2'")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, "commit", "-qam", "second"], cwd=repository, check=True)
    assert benchmark.main(command) == 0
    assert (kept / "two" / "progress.csv").read_text() == "loss\n2\n2\n"


def test_declared_columns_are_printed(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(repository, "loss\\n", "loss,phase\\n")
    edit(repository, "value = '1'", "value = '1,search'")
    assert benchmark.main(["same-numbers", "--base", "HEAD"]) == 0
    printed = capsys.readouterr().out
    assert "These columns differ, because the log has changed: phase\n" in printed


def test_failure_of_the_new_side_is_a_difference(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(repository, "value = '1'", "sys.exit('error: broken')")
    assert benchmark.main(["same-numbers", "--base", "HEAD", "--only", "one"]) == 1
    assert "error: broken" in capsys.readouterr().out


def test_wrong_options_are_refused(repository: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "kept" / "one"
    foreign.mkdir(parents=True)
    for field, options in (
        ("--only", ["--base", "HEAD", "--only", "three"]),
        ("git", ["--base", "no-such-commit"]),
        ("--keep", ["--base", "HEAD", "--keep", str(foreign.parent)]),
    ):
        with pytest.raises(ConalError, match=f"^{field}"):
            benchmark.run(["same-numbers", *options])
    assert foreign.is_dir()
