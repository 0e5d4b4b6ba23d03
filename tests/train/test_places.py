"""Where a run's files are, and what may be in the place of a file that a command reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from rich.table import Table

import tests.helpers.toy  # noqa: F401 - its envs are registered before `scratch` looks
from conal_rl import evaluate, report, train
from conal_rl.agents import ConalSAC
from conal_rl.core import Tree
from tests.helpers.toy_runs import CONFIG, ROOT, TASKS, copied, evaluation

# An env that changes the working folder

MOVES = """
import os
import gymnasium
from tests.helpers.toy import Target

class Moves(Target):
    '''Its simulator wants to be in a folder of its own.'''
    def __init__(self, at, folder):
        super().__init__()
        self.at, self.folder = at, folder
        self.go("init")
    def go(self, now):
        if now == self.at:
            os.chdir(self.folder)
    def reset(self, **options):
        self.go("reset")
        return super().reset(**options)

for at in ("init", "reset"):
    gymnasium.register(
        f"Moves_{at}-v0", Moves, disable_env_checker=True, kwargs={"at": at, "folder": FOLDER}
    )
"""


@pytest.mark.parametrize("at", ["init", "reset"])
@pytest.mark.parametrize("out", [["--out", "run"], []])
def test_a_run_stays_where_it_began(at: str, out: list[str], scratch: Path) -> None:
    elsewhere = scratch / "simulator"
    elsewhere.mkdir()
    (scratch / "moving_envs.py").write_text(MOVES.replace("FOLDER", repr(str(elsewhere))))
    tasks = (f"moving_envs:Moves_{at}-v0",)
    Path("tree.json").write_text(Tree.independent(tasks, 1).to_json())
    config = CONFIG | {"env": {"suite": list(tasks)}, "total_steps": 40, "search": {}}
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    assert train.main(["mine.yaml", *out, "--agent.tree", "tree.json"]) == 0
    assert Path.cwd() == elsewhere and not any(elsewhere.iterdir())
    (run,) = [scratch / "run"] if out else (scratch / "runs").iterdir()
    assert evaluation(run)["steps"] == 40
    recorded = yaml.safe_load((run / "config.yaml").read_text())["agent"]["tree"]
    assert recorded == str(scratch / "tree.json")
    os.chdir(scratch)
    assert train.main(["--resume", str(run.relative_to(scratch)), "--total-steps", "80"]) == 0
    assert evaluation(run)["steps"] == 80
    os.chdir(scratch)
    words = ["--episodes", "1", "--seed", "9", "--json", "result.json"]
    assert evaluate.main([str(run.relative_to(scratch)), *words]) == 0
    assert (scratch / "result.json").is_file() and not any(elsewhere.iterdir())


# Pipes and devices


@pytest.fixture(params=["pipe", "device"])
def special(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Puts a pipe without a writer, or a device that never ends, in the place of a file."""

    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        if request.param == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")

    return put


def one_error(status: int, capfd: pytest.CaptureFixture[str], name: str) -> None:
    error = capfd.readouterr().err
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert name in error


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "versions.json",
        "progress.csv",
        "checkpoints/*/manifest.json",
        "checkpoints/*/state.json",
        "checkpoints/*/policy.safetensors",
    ],
)
def test_resume_refuses_pipes_and_devices(
    name: str,
    special: Callable[[Path], None],
    stopped: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = copied(stopped["train"], tmp_path)
    (path,) = run.glob(name)
    special(path)
    one_error(train.main(["--resume", str(run)]), capfd, path.name)


@pytest.mark.parametrize("name", ["config.yaml", "model/model.json", "model/model.safetensors"])
def test_evaluate_refuses_pipes_and_devices(
    name: str,
    special: Callable[[Path], None],
    finished: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = copied(finished, tmp_path)
    special(run / name)
    one_error(evaluate.main([str(run)]), capfd, Path(name).name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("progress.csv", "success"),
        ("search.json", "conflicts"),
        ("events.out.tfevents.0", "conflicts"),
        ("config.yaml", "conflicts"),
    ],
)
def test_report_refuses_pipes_and_devices(
    name: str,
    what: str,
    special: Callable[[Path], None],
    finished: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = copied(finished, tmp_path)
    special(run / name)
    status = report.main([what, str(run), "--out", str(tmp_path / "out")])
    one_error(status, capfd, name)


def test_train_refuses_pipes_and_devices(
    special: Callable[[Path], None], toy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    special(tmp_path / "tree.json")
    options = ["--agent.tree", str(tmp_path / "tree.json"), "--out", str(tmp_path / "run")]
    one_error(train.main([toy, *options]), capfd, "tree.json")
    special(tmp_path / "mine.yaml")
    one_error(train.main([str(tmp_path / "mine.yaml")]), capfd, "mine.yaml")
    assert not (tmp_path / "run").exists()


# Files that users name


def test_json_goes_where_its_path_leads(finished: Path, tmp_path: Path) -> None:
    words = [str(finished), "--episodes", "1", "--seed", "9", "--json"]
    (tmp_path / "real.json").write_text("{}")
    (tmp_path / "link.json").symlink_to("real.json")
    assert evaluate.main([*words, str(tmp_path / "link.json")]) == 0
    assert (tmp_path / "link.json").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        assert evaluate.main([*words, str(tmp_path / "pipe")]) == 0
        content, _ = reader.communicate()
    assert json.loads(content) == json.loads((tmp_path / "real.json").read_text())
    (tmp_path / "null").symlink_to("/dev/null")
    assert evaluate.main([*words, str(tmp_path / "null")]) == 0
    assert not Path("/dev/null").is_file() and (tmp_path / "null").is_symlink()


def test_a_tilde_is_the_home_folder_in_every_command(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    copied(finished, tmp_path)
    words = ["~/finished", "--episodes", "1", "--seed", "9"]
    assert evaluate.main([*words, "--json=~/result.json"]) == 0
    assert (tmp_path / "result.json").is_file()
    assert report.main(["success", "~/finished", "--out=~/figures"]) == 0
    assert (tmp_path / "figures" / "success.png").is_file()
    agent = ConalSAC.load_weights("~/finished/model", "cpu")
    agent.save_weights("~/weights")
    assert (tmp_path / "weights" / "model.json").is_file()
    agent.derive()[0].save("~/tree.json")
    assert Tree.load("~/tree.json") == Tree.load(tmp_path / "tree.json")


def test_weights_are_saved_into_the_working_folder(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = ConalSAC.load_weights(finished / "model", "cpu")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        agent.save_weights(".")
        assert {path.name for path in Path.cwd().iterdir()} == {"model.json", "model.safetensors"}
    ConalSAC.load_weights(".", "cpu")


# Text


@pytest.mark.slow
def test_files_are_utf_8_in_any_locale(tmp_path: Path) -> None:
    """A table that stdout cannot take is printed with replacements."""
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\nfrom tests.helpers.toy import Target\n"
        "gymnasium.register('Tür-v0', Target, disable_env_checker=True)\n",
        encoding="utf-8",
    )
    config = CONFIG | {"env": {"suite": ["my_envs:Tür-v0"]}, "total_steps": 80, "search": {}}
    config["agent"] = CONFIG["agent"] | {"tree": "independent"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "LC_ALL": "C",
    }
    for words in (
        ["train", "mine.yaml", "--out", "run"],
        ["train", "--resume", "run", "--total-steps", "120"],
        ["evaluate", "run", "--json", "result.json", "--episodes", "1"],
    ):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", f"conal_rl.{words[0]}", *words[1:]],
            cwd=tmp_path, env=environment, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert b"T?r-v0" in done.stdout
    assert "return/my_envs:Tür-v0" in (tmp_path / "run" / "progress.csv").read_text("utf-8")
    assert "my_envs:Tür-v0" in json.loads((tmp_path / "result.json").read_text())["success"]


def test_a_result_is_written_before_it_is_printed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed = Console.print

    def fails(console: Console, *given: Any, **options: Any) -> None:
        if given and isinstance(given[0], Table):
            raise RuntimeError("no table")
        printed(console, *given, **options)

    monkeypatch.setattr(Console, "print", fails)
    words = [str(finished), "--episodes", "1", "--seed", "9"]
    with pytest.raises(RuntimeError, match="no table"):
        evaluate.main([*words, "--json", str(tmp_path / "result.json")])
    assert json.loads((tmp_path / "result.json").read_text())["suite"] == ",".join(TASKS)
    with pytest.raises(RuntimeError, match="no table"):
        report.main(["conflicts", str(finished), "--out", str(tmp_path / "figures")])
    assert (tmp_path / "figures" / "conflicts.png").is_file()
