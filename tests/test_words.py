"""Rules of the text: words that are not used, the form of errors, the length of files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXTS = ("conal_rl", "docs", "examples", "tests", "Makefile", "*.md")
AVOIDED = {  # the word, and the plain word for it
    "anew": "again, from scratch",
    "another": "a different",
    "beside": "next to",
    "but for": "except",
    "gone on with": "resumed",
    "go on with": "resume",
    "has none": "say what is missing",
    "have none": "say what is missing",
    "in place of": "instead of",
    "told": "says",
    "whatever": "say what",
    "alone": "only",
}
ALLOWED = {  # file and word: why it may stay
    ("conal_rl/envs/native/rewards/grasping.py", "beside"): "a variable",
    ("conal_rl/envs/native/rewards/mechanisms.py", "beside"): "a variable",
    ("conal_rl/envs/native/rewards/sliding.py", "beside"): "a variable",
    ("conal_rl/envs/native/rewards/tools.py", "beside"): "a function",
    ("docs/results/cost.md", "alone"): "a column of measurements.csv",
    ("docs/results/study-plan.md", "another"): "a plan that is registered word by word",
    ("tests/test_words.py", "*"): "this list",
}
PATTERN = re.compile(
    rf"(?<![\w'])({'|'.join(AVOIDED).replace(' ', chr(92) + 's+')})(?!\w)", re.IGNORECASE
)
FILE_LINES, FUNCTION_LINES = 450, 60


def texts() -> list[Path]:
    """The files of the checkout that people read."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *TEXTS]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    kinds = (".py", ".md", ".yaml", "")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.suffix in kinds and path.is_file()]


def package() -> Iterator[tuple[Path, str]]:
    """The files of the package, with their text."""
    for path in sorted((ROOT / "conal_rl").rglob("*.py")):
        yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def avoided(text: str) -> list[tuple[int, str]]:
    """The avoided words of a text, with their lines; a line break may divide them."""
    joined = re.sub(r"\n[ \t]*#", lambda match: "\n" + " " * (len(match[0]) - 1), text)
    return [
        (joined.count("\n", 0, match.start()) + 1, " ".join(match[0].lower().split()))
        for match in PATTERN.finditer(joined)
    ]


def test_texts_use_plain_words() -> None:
    offences = []
    for path in texts():
        file = path.relative_to(ROOT).as_posix()
        for line, word in avoided(path.read_text(encoding="utf-8")):
            if not {(file, word), (file, "*")} & ALLOWED.keys():
                offences.append(f"{file}:{line}: {word} (rather: {AVOIDED[word]})")
    assert offences == []


def test_allowed_words_exist() -> None:
    """An exception that is not needed is removed."""
    for file, word in ALLOWED:
        found = {word for _, word in avoided((ROOT / file).read_text(encoding="utf-8"))}
        assert word == "*" or word in found, file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It is made anew.", [(1, "anew")]),
        ("All but\n    for one.", [(1, "but for")]),
        ("# Nothing but\n# for one.", [(1, "but for")]),
        ("A\nstand-alone tool", [(2, "alone")]),
        ("_alone(x), renewed, untold", []),
    ],
)
def test_an_avoided_word_is_seen(text: str, words: list[tuple[int, str]]) -> None:
    assert avoided(text) == words


def test_errors_end_without_a_full_stop() -> None:
    """So that a message may be a part of a different one."""
    offences = [
        f"{path}:{node.lineno}"
        for path, text in package()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        if (ast.get_source_segment(text, node.exc.args[0]) or "").rstrip("\"'").endswith(".")
    ]
    assert offences == []


def test_files_and_functions_are_short() -> None:
    offences = []
    for path, text in package():
        if text.count("\n") > FILE_LINES:
            offences.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                if (length := node.end_lineno - node.lineno + 1) > FUNCTION_LINES:
                    offences.append(f"{path}: {node.name}: {length} lines")
    assert offences == []


@pytest.mark.parametrize("command", ["train", "evaluate", "report", "benchmark"])
def test_help_has_full_sentences(command: str) -> None:
    """Every text of an option or an argument ends with a full stop."""
    module = f"conal_rl.{command}"
    ran = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    entries = re.split(r"\n(?=  \S)|\n\n", ran.stdout.partition("\n\n")[2])
    for entry in entries:
        text = entry.strip()
        if text and not text.endswith(":") and not re.fullmatch(r"(\S+ options|WHAT)", text):
            assert text.endswith("."), text
