"""Imports go one way, and no file imports in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
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
    allowed = ("conal_rl.core", "conal_rl.errors", "conal_rl.literals", "conal_rl.files")
    # `from conal_rl import x` is listed as conal_rl and conal_rl.x; the latter tells.
    forbidden = ("gymnasium", "stable_baselines3", "metaworld", *own(*parts()))
    assert offences("core", forbidden, allowed) == []


def test_envs_import_nothing_above_them() -> None:
    assert offences("envs", own("agents", "supervised", "runs", "evaluation", *COMMANDS)) == []


def test_runs_and_evaluation_know_no_kind_of_learning() -> None:
    above = own("agents", "supervised", *COMMANDS)
    assert offences("runs", above + own("evaluation", "envs")) == []
    assert offences("evaluation", above + own("runs")) == []


def test_agents_and_supervised_import_no_command() -> None:
    assert offences("agents", own("supervised", *COMMANDS)) == []
    assert offences("supervised", own("agents", *COMMANDS)) == []


@pytest.mark.parametrize("command", ["train", "evaluate", "report"])
def test_commands_are_light(command: str) -> None:
    """What answers --help does not wait for figures and physics."""
    assert imported(f"conal_rl.{command}", "matplotlib", "mujoco", "metaworld") == []


@pytest.mark.slow
def test_runs_leave_figures_and_physics_out() -> None:
    assert imported("conal_rl.runs.trainer", "matplotlib", "mujoco", "metaworld") == []


def test_config_is_light() -> None:
    heavy = ["torch", "gymnasium", "stable_baselines3", "metaworld", "matplotlib"]
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


# Circles


Graph = dict[str, set[str]]
"""By module, the modules of conal_rl that it imports."""

KNOWN_CIRCLES = [
    {"conal_rl.supervised.images", "conal_rl.supervised.problem", "conal_rl.supervised.text"},
]
"""Circles that only imports in functions or for type checkers close. Add none, remove some."""


def module_names(package: Path = PACKAGE) -> dict[str, Path]:
    """Return every module of a package by its dotted name; a package is its `__init__.py`."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        names[".".join(parts).removesuffix(".__init__")] = path
    return names


def statements(body: list[ast.stmt], lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run when the module is imported; with `lazy` all others too."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from statements(node.body, lazy) if lazy else ()
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from statements(node.body, lazy) if lazy else ()
            yield from statements(node.orelse, lazy)
        else:  # a class, `try`, `with`, a loop or a condition
            for name in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, name, []), lazy)
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body, lazy)


def import_graph(modules: dict[str, Path], lazy: bool) -> Graph:
    """Return which modules import which; a name imported from a package counts as the package."""
    graph: Graph = {}
    for name, path in modules.items():
        graph[name] = set()
        here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in statements(ast.parse(path.read_text(encoding="utf-8")).body, lazy):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                base = here[: len(here) - node.level + 1] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                targets = [
                    full if (full := f"{source}.{alias.name}") in modules else source
                    for alias in node.names
                ]
            graph[name] |= {target for target in targets if target in modules}
    return graph


def circles(graph: Graph) -> list[set[str]]:
    """Return the sets of modules that import each other, directly or over others."""
    reached = {name: reachable(graph, name) for name in graph}
    sets = {
        frozenset(other for other in reached[name] if name in reached[other])
        for name in graph
        if name in reached[name]
    }
    return sorted((set(names) for names in sets), key=sorted)


def reachable(graph: Graph, start: str) -> set[str]:
    """Return what `start` imports, directly or over others; itself only if that is a circle."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def test_no_module_imports_in_a_circle() -> None:
    assert circles(import_graph(module_names(), lazy=False)) == []


def test_circles_of_later_imports_are_known() -> None:
    graph = import_graph(module_names(), lazy=True)
    graph["conal_rl"] = set()  # what it exports for users, no part of the package imports from it
    found = circles(graph)
    assert [circle for circle in found if circle not in KNOWN_CIRCLES] == []


@pytest.mark.parametrize(
    ("imports", "at_import", "later"),
    [
        ("from pack import b", True, True),
        ("from .b import other", True, True),
        ("import pack.b", True, True),
        ("from . import b", True, True),
        ("try:\n    import pack.b\nexcept ImportError:\n    pass", True, True),
        ("class A:\n    from pack import b", True, True),
        ("def f():\n    from pack import b", False, True),
        ("if TYPE_CHECKING:\n    from pack import b", False, True),
        ("if typing.TYPE_CHECKING:\n    pass\nelse:\n    from pack import b", True, True),
        ("import a", False, False),
        ("from pack import c", False, False),
    ],
)
def test_a_circle_is_seen(imports: str, at_import: bool, later: bool, tmp_path: Path) -> None:
    """Module b imports c, which imports a."""
    package = tmp_path / "pack"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(imports)
    (package / "b.py").write_text("import pack.c")
    (package / "c.py").write_text("from pack import a" if "import c" not in imports else "")
    expected = [{"pack.a", "pack.b", "pack.c"}]
    for lazy, there in ((False, at_import), (True, later)):
        assert circles(import_graph(module_names(package), lazy)) == (expected if there else [])
