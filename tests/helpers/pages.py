"""What the pages of the documentation hold: code blocks, and commands in console blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
_FENCE = re.compile(r"^ *```([\w-]*) *$")
_NO_RUN = re.compile(r"^ *<!-- no-run: \S.*-->$")
_NAMED = re.compile(r"^# ([\w./-]+\.\w+)$")
_COMMAND = re.compile(r"^(\$ |python -m conal_rl|conal-rl |make( |$))")


class Block(NamedTuple):
    """A fenced block: its page, language, text, first line's number, and whether it is to run."""

    page: str
    language: str
    text: str
    line: int
    runs: bool

    @property
    def where(self) -> str:
        """The page and the line."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that holds this block, if the first line names it: `# my_package/envs.py`."""
        named = _NAMED.match(self.text.split("\n", 1)[0])
        return named.group(1) if named else None


class Command(NamedTuple):
    """The words of one command, and where it stands."""

    where: str
    words: list[str]


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block; `<!-- no-run: REASON -->` above a block keeps it from being run."""
    name = str(page.relative_to(ROOT))
    language: str | None = None
    inside: list[str] = []
    above = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if fence is None:
            inside.append(line)
        elif language is None:
            language, inside, runs = fence.group(1), [], not _NO_RUN.match(above)
        else:
            text = "".join(f"{content}\n" for content in inside)
            yield Block(name, language, text, number - len(inside), runs)
            language = None
        above = line if line.strip() else above
    assert language is None, f"{page}: the last block has no end"


def commands(block: Block) -> Iterator[Command]:
    """The commands of a console block: lines after `$ `, and lines that begin with one of ours.

    A line that ends in a backslash continues in the next. `&&`, `;` and `|` separate commands,
    `#` begins a comment, and settings of the environment are left out.
    """
    before = ""
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        whole = before + line.strip()
        if whole.endswith("\\"):
            before = whole[:-1]
            continue
        before = ""
        if _COMMAND.match(whole):
            for words in split(whole.removeprefix("$ ")):
                yield Command(f"{block.page}:{number}", words)


def split(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell's line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not set(word) <= set("&;|"):
            words.append(word)
            continue
        while words and re.match(r"^\w+=", words[0]):
            words.pop(0)
        if words:
            yield words
        words = []
