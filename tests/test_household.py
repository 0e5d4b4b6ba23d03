"""Rules of the tests themselves: what they import, and how they are called."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent


def modules() -> Iterator[tuple[str, ast.Module]]:
    """The parsed files of all tests and helpers, by their path."""
    for path in sorted(TESTS.rglob("*.py")):
        yield str(path.relative_to(TESTS)), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> Iterator[str]:
    """The dotted names that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_test_is_imported() -> None:
    """What several tests need is in tests/helpers."""
    found = [
        f"{file} imports {name}"
        for file, tree in modules()
        for name in imported(tree)
        if any(part.startswith(("test_", "conftest")) for part in name.split(".")[:-1])
    ]
    assert found == []


def test_names_are_under_60_letters() -> None:
    found = [
        f"{file}: {node.name}"
        for file, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if len(node.name) >= 60
    ]
    assert found == []
