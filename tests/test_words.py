"""Rules of the text: words that are not used, the form of errors and help, the length of files."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KINDS = (".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cff", "")
AVOIDED = {  # the word, and the plain word for it
    "anew": "again, from scratch",
    "another": "a different",
    "beside": "next to",
    "but for": "except",
    "go on": "resume, continue",
    "goes on": "resumes, continues",
    "gone on": "resumed, continued",
    "has none": "say what is missing",
    "have none": "say what is missing",
    "is no": "is not a; say what is missing",
    "are no": "are not; say what is missing",
    "in place of": "instead of",
    "of those": "say of what",
    "told": "says",
    "what there is": "say what",
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
    """The files of the checkout that people read, except the licence, which is not ours."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [ROOT / line for line in listed.stdout.splitlines() if line != "LICENSE"]
    return [path for path in paths if path.suffix in KINDS and path.is_file()]


def package() -> Iterator[tuple[Path, str]]:
    """The files of the package, with their text."""
    for path in sorted((ROOT / "conal_rl").rglob("*.py")):
        yield path.relative_to(ROOT), path.read_text(encoding="utf-8")


def avoided(text: str) -> list[tuple[int, str]]:
    """The avoided words of a text, with their lines; a line break may divide them.

    The name of a test is a text too.
    """
    joined = re.sub(r"\n[ \t]*#", lambda match: "\n" + " " * (len(match[0]) - 1), text)
    joined = re.sub(r"def test_\w+", lambda match: match[0].replace("_", " "), joined)
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
        ("def test_one_goes_on(): ...", [(1, "goes on")]),
        ("There is no\ntyro: isno, is not", [(1, "is no")]),
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


WITH_ADVICE = ("config", "runs", "reports", "benchmarks", "evaluation")
"""Folders whose errors, like those of the commands, say what to do."""
CALLERS_ERRORS = ("ValueError", "TypeError", "AttributeError")
"""Errors of code that calls the package; its author reads the docstring."""


def literal(node: ast.expr) -> str:
    """The text of a string, with `{}` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            "{}" if isinstance(v, ast.FormattedValue) else literal(v) for v in node.values
        )
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def test_errors_of_commands_say_what_to_do() -> None:
    """They read `field: got X, expected Y. Do Z`, or add a place to such an error."""
    offences = []
    for path, text in package():
        if len(path.parts) > 2 and path.parts[1] not in WITH_ADVICE:
            continue
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            message = literal(node.exc.args[0]) if node.exc.args else ""
            own = ast.unparse(node.exc.func) not in CALLERS_ERRORS
            if own and " got " in message and not re.search(r"\. ([A-Z]|\{)", message):
                offences.append(f"{path}:{node.lineno}: {message}")
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


def help_of(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    """What `python -m conal_rl.COMMAND WORDS --help` prints, in lines of 1,000 letters."""
    with pytest.raises(SystemExit):
        importlib.import_module(f"conal_rl.{command}").run([*words, "--help"])
    return capsys.readouterr().out


def entries_of(text: str) -> list[tuple[str, str]]:
    """The options and arguments of a help, each with its text in one line."""
    entries: list[list[str]] = []
    for line in text.partition("\n\n")[2].splitlines():
        if re.match(r" {2,4}\S", line):  # what is deeper belongs to the entry above
            entries.append(re.split(r" {2,}", line.strip(), maxsplit=1))
        elif line.startswith(" ") and entries:
            entries[-1] = [entries[-1][0], " ".join([*entries[-1][1:], line.strip()])]
    return [(entry[0], entry[1] if len(entry) > 1 else "") for entry in entries]


@pytest.mark.parametrize(
    "words",
    ["train", "train digits", "evaluate", "report", "benchmark"],
)
def test_help_has_full_sentences(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a command and its sub-commands: a text for each option, a full stop, no text twice."""
    monkeypatch.setenv("COLUMNS", "1000")
    command, *preset = words.split()
    shown = [help_of(capsys, command, *preset)]
    for what in re.findall(r"^ {4}([a-z0-9-]+)", shown[0], re.MULTILINE):
        shown.append(help_of(capsys, command, what))
    assert len(shown) == {"report": 6, "benchmark": 8}.get(command, 1)
    for text in shown:
        description = text.split("\n\n")[1]
        assert re.match(r"(?!positional|options)\S.*\.\Z", description, re.DOTALL), text
        entries = [  # without the title of a list, and without the text below a group's name
            entry for entry in entries_of(text) if entry[0] != "WHAT" and entry[0][-1] != "."
        ]
        assert entries
        for option, about in entries:
            assert re.fullmatch(r"[A-Z].*\.", about), (option, about)
        assert Counter(about for _, about in entries).most_common(1)[0][1] == 1
