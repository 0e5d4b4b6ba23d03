"""README and docs: Python blocks run, commands are parsed, options and files exist."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from conal_rl.agents import ConalSAC
from conal_rl.config import (
    Config,
    SupervisedConfig,
    load_config,
    parse_command_line,
    presets,
)
from conal_rl.envs import make
from conal_rl.errors import ConalError
from tests.helpers.pages import PAGES, ROOT, Block, Command, blocks, commands, split

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELLS = ("console", "bash", "sh", "shell")
COMMANDS = [c for b in BLOCKS if b.runs and b.language in SHELLS for c in commands(b)]
PYTHON = list(dict.fromkeys(b.page for b in BLOCKS if b.runs and b.language == "python"))
CONFIGS = [b for b in BLOCKS if b.runs and b.language == "yaml" and b.file]
STEPS = 200
"""Env steps after which `learn` ends on a page, which may so show a true budget."""
CURRENT = [page for page in PAGES if page.name not in ("LOG.md", "CHANGELOG.md")]
"""Pages that name no options of earlier versions."""


def test_readme_has_python_and_commands() -> None:
    assert "README.md" in PYTHON
    assert any(command.where.startswith("README.md:") for command in COMMANDS)


def write_files(page: str) -> None:
    """Write the files whose content a page shows into the working folder."""
    for block in BLOCKS:
        if block.page == page and block.file is not None:
            Path(block.file).parent.mkdir(parents=True, exist_ok=True)
            Path(block.file).write_text(block.text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON)
def test_python_blocks_run(page: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, in one namespace per page."""
    learn = ConalSAC.learn

    def learn_briefly(agent: ConalSAC, total_timesteps: int, *rest: Any, **named: Any) -> ConalSAC:
        learn(agent, min(total_timesteps, STEPS), *rest, **named)
        for gates in (agent.actor.gates, agent.critic.gates):
            if gates is not None:  # in so few steps they learn nothing to derive a tree from
                torch.nn.init.normal_(gates)
        return agent

    monkeypatch.setattr(ConalSAC, "learn", learn_briefly)
    write_files(page)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in BLOCKS:
        if block.page == page and block.runs and block.language == "python":
            # Empty lines in front, so that an error names the page's own line.
            code = compile("\n" * (block.line - 1) + block.text, str(ROOT / page), "exec")
            exec(code, namespace)


@pytest.mark.parametrize("block", CONFIGS, ids=lambda block: block.where)
def test_configs_can_be_trained(block: Block, scratch: Path) -> None:
    write_files(block.page)
    config = load_config(scratch / str(block.file))
    if isinstance(config, Config) and isinstance(config.env.suite, tuple):
        make(config.env.suite, 1, 0).close()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.where)
def test_commands_are_parsed(command: Command, scratch: Path) -> None:
    write_files(command.where.split(":")[0])
    parse(command.words)


def parse(words: list[str]) -> None:
    """Give the words of a command to its own parser.

    Raises:
        ConfigError: ours does not understand them.
        AssertionError: make lacks the target, or the script does not exist.
    """
    if words[0] == "make":
        # What make would run; its options, as ARGS, are parsed with it.
        recipe = make_prints(words[1:])
        for line in recipe.splitlines():
            for inner in split(line):
                if inner[0].endswith("python") and inner[1:2] == ["-m"]:
                    parse(["python", *inner[1:]])
    elif words[0] == "conal-rl":
        parse(["python", "-m", f"conal_rl.{words[1]}", *words[2:]])
    elif words[:2] == ["python", "-m"] and words[2].startswith("conal_rl"):
        parse_own(words[2], words[3:])
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file() or Path(words[1]).is_file(), words[1]


def make_prints(words: list[str]) -> str:
    """The commands that `make WORDS` would run.

    Raises:
        AssertionError: make lacks the target.
    """
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # Not the variables of a make that runs these tests, such as its ARGS.
    own = ("MAKE", "MFLAGS", "ARGS")
    env = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    ran = subprocess.run(["make", "-n", *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def parse_own(module: str, words: list[str]) -> None:
    """Parse a command of the package; runs that are resumed are made for it."""
    if module != "conal_rl.train":
        importlib.import_module(module)._parser().parse_args(words)
        return
    if "--resume" in words:
        run = Path(words[words.index("--resume") + 1])
        named = [preset for preset in presets() if run.name.startswith(f"{preset}-")]
        run.mkdir(parents=True, exist_ok=True)
        config = load_config(max(named, key=len, default="mt10"))
        (run / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    with contextlib.suppress(SystemExit):  # of --help
        parse_command_line(words, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"--((?:env|agent|search|evaluation|data)\.[\w-]+)", text)
    unknown = {name for name in named if name.replace(".no-", ".") not in options()}
    assert unknown == set()


def options() -> set[str]:
    """Every field of a section, as an option names it."""
    return {
        f"{section}.{field}".replace("_", "-")
        for config in (Config, SupervisedConfig)
        for section, owner in get_type_hints(config).items()
        if hasattr(owner, "__dataclass_fields__")
        for field in owner.__dataclass_fields__
    }


def test_a_page_with_a_wrong_command_fails(scratch: Path) -> None:
    """The checks above would notice: a wrong option, target or block."""
    for line in (
        "python -m conal_rl.train mt10 --agent.no-such 3",
        "conal-rl evaluate pretrained:nothing",
        "make no-such-target",
        "make mt10 ARGS='--sead 1'",
        "OMP_NUM_THREADS=1 python -m conal_rl.report frobnicate # comment",
        "python examples/no_such.py",
    ):
        (words,) = split(line)
        with pytest.raises((ConalError, AssertionError)):
            parse(words)
