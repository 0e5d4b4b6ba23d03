"""Documents with tables from `results/`: found by their markers, checked and rewritten.

A table is between `<!-- table: NAME -->` and `<!-- end -->`, each on a separate line. `NAME` is a
name of `result_tables.table`. Everything outside of the markers is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from conal_rl.errors import ConalError, ConfigError
from conal_rl.files import read_text
from conal_rl.reports.result_tables import table
from conal_rl.reports.results import Results

_BEGIN = re.compile(r"<!-- table: (.+?) -->")
_END = "<!-- end -->"


def pages(root: Path) -> list[Path]:
    """Return the documents of a checkout: Markdown files at its root and below `docs/`."""
    return [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]


def tables(page: Path, results: Results) -> Iterator[tuple[str, str]]:
    """Yield the name and the current text of every table that a document asks for.

    Raises:
        ConfigError: a marker is not closed, or names a table that cannot be made.
    """
    for _, name in _markers(page, _read(page)):
        yield name, _made(page, name, results)


def rewritten(page: Path, results: Results) -> str:
    """Return the document with every table made from the current data.

    Raises:
        ConfigError: a marker is not closed, or names a table that cannot be made.
    """
    text = _read(page)
    lines = text.splitlines()
    for begin, name in reversed(_markers(page, text)):
        end = lines.index(_END, begin)
        lines[begin + 1 : end] = _made(page, name, results).splitlines()
    return "\n".join(lines) + "\n" if lines else text


def _read(page: Path) -> str:
    try:
        return read_text(page)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{page}: got {error}, expected a readable file. Check the path"
        ) from error


def _markers(page: Path, text: str) -> list[tuple[int, str]]:
    """Return the line, from 0, and the name of every marker."""
    markers: list[tuple[int, str]] = []
    opened = False
    for number, line in enumerate(text.splitlines()):
        if match := _BEGIN.fullmatch(line):
            if opened:
                break
            markers.append((number, match[1]))
            opened = True
        elif line == _END:
            opened = False
    if opened:
        number, name = markers[-1]
        raise ConfigError(f"{page}:{number + 1}: got no {_END} after table {name}. Add the line")
    return markers


def _made(page: Path, name: str, results: Results) -> str:
    try:
        return table(name, results)
    except ConalError as error:
        raise ConfigError(f"{page}: {error}") from error
