"""Imports go one way: commands -> agents, supervised -> runs, evaluation -> envs, core, config."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import conal_rl

PACKAGE = Path(conal_rl.__file__).parent
COMMANDS = ("train", "evaluate", "report", "benchmark", "cli", "benchmarks", "reports")


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a file imports, anywhere in it."""
    package = ("conal_rl", *path.relative_to(PACKAGE).parent.parts)
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def offences(folder: str, forbidden: tuple[str, ...], allowed: tuple[str, ...] = ()) -> list[str]:
    return [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for name in sorted(imports_of(path))
        if any(within(name, parent) for parent in forbidden)
        and not any(within(name, parent) for parent in allowed)
    ]


def own(*names: str) -> tuple[str, ...]:
    return tuple(f"conal_rl.{name}" for name in names)


def test_core_knows_no_rl() -> None:
    allowed = ("conal_rl.core", "conal_rl.errors", "conal_rl.literals")
    # `from conal_rl import x` is listed as conal_rl and conal_rl.x; the latter tells.
    forbidden = ("gymnasium", "stable_baselines3", "metaworld", *own(*parts()))
    assert offences("core", forbidden, allowed) == []


def test_envs_import_nothing_above_them() -> None:
    assert offences("envs", own("agents", "supervised", "runs", "evaluation", *COMMANDS)) == []


def test_runs_and_evaluation_know_no_kind_of_learning() -> None:
    above = own("agents", "supervised", *COMMANDS)
    assert offences("runs", above + own("evaluation", "envs")) == []
    assert offences("evaluation", above + own("runs"), allowed=own("runs.files")) == []


def test_agents_and_supervised_import_no_command() -> None:
    assert offences("agents", own("supervised", *COMMANDS)) == []
    assert offences("supervised", own("agents", *COMMANDS)) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "report"])
def test_commands_are_light(command: str) -> None:
    """What answers --help does not wait for figures and physics."""
    assert imported(f"conal_rl.{command}", "matplotlib", "mujoco", "metaworld") == []


def test_runs_leave_figures_and_physics_out() -> None:
    assert imported("conal_rl.runs.trainer", "matplotlib", "mujoco", "metaworld") == []


def test_config_is_light() -> None:
    heavy = ["torch", "gymnasium", "stable_baselines3", "metaworld", "matplotlib", "tyro"]
    assert imported("conal_rl.config", *heavy) == []
    assert offences("config", ("torch", "gymnasium")) == []


def imported(module: str, *heavy: str) -> list[str]:
    """Return which of the heavy packages come with a module."""
    code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    return ran.stdout.split()


def parts() -> list[str]:
    """Return the names of the modules and packages right under conal_rl."""
    return sorted(p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir())
