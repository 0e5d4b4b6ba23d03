"""Imports go one way: commands -> agents, supervised -> envs, core; and config stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import conal_rl

PACKAGE = Path(conal_rl.__file__).parent
COMMANDS = ("train", "evaluate", "report", "benchmark")


def imports_of(path: Path) -> set[str]:
    """Return the dotted names that a file imports, anywhere in it."""
    package = ("conal_rl", *path.relative_to(PACKAGE).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


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


def test_envs_never_import_agents() -> None:
    assert offences("envs", own("agents", "supervised", *COMMANDS)) == []


def test_agents_and_supervised_import_no_command() -> None:
    assert offences("agents", own("supervised", *COMMANDS)) == []
    assert offences("supervised", own("agents", *COMMANDS)) == []


def test_config_is_light() -> None:
    heavy = ["torch", "gymnasium", "stable_baselines3", "metaworld", "matplotlib", "tyro"]
    code = f"import sys, conal_rl.config; print(*[m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert ran.stdout.split() == []
    imported = {n for path in (PACKAGE / "config").glob("*.py") for n in imports_of(path)}
    assert not [n for n in imported if within(n, "torch") or within(n, "gymnasium")]


def parts() -> list[str]:
    """Return the names of the modules and packages right under conal_rl."""
    return sorted(p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir())
