"""Trees and search spaces of an agent's actor and critics, as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conal_rl.core import Structure, Tree
from conal_rl.errors import TreeError
from conal_rl.files import read_json
from conal_rl.runs.weights import structure_from_json, structure_to_json

TREES_FORMAT = "conal_rl.trees"


def trees_to_json(actor: Tree, critic: Tree) -> str:
    """Return the trees of actor and critics as one readable JSON text."""
    trees = {"actor": json.loads(actor.to_json()), "critic": json.loads(critic.to_json())}
    return json.dumps({"format": TREES_FORMAT, **trees}, indent=2) + "\n"


def structures_to_json(structures: tuple[Structure, Structure]) -> dict[str, Any]:
    """Return the trees or search spaces of actor and critics as JSON types."""
    named = zip(("actor", "critic"), structures, strict=True)
    return {name: structure_to_json(structure) for name, structure in named}


def structures_from_json(data: Any) -> tuple[Structure, Structure]:
    """Return the structures that `structures_to_json` was given.

    Raises:
        TreeError, LookupError, TypeError, ValueError: the data describe no trees or spaces.
    """
    return structure_from_json(data["actor"]), structure_from_json(data["critic"])


def load_trees(path: Path, tasks: tuple[str, ...], depth: int) -> tuple[Tree, Tree]:
    """Return the trees of actor and critics from a run's tree.json, or one tree twice.

    Raises:
        TreeError: the file is missing or damaged, or its trees are for other tasks or depths.
    """
    content = read_json(path, TreeError)
    try:
        if isinstance(content, dict) and content.get("format") == TREES_FORMAT:
            missing = [name for name in ("actor", "critic") if name not in content]
            if missing:
                raise TreeError(f"{missing[0]}: got no tree, expected one for each network")
            pair = [Tree.from_json(json.dumps(content[name])) for name in ("actor", "critic")]
        else:
            pair = [Tree.from_json(json.dumps(content))] * 2
        actor, critic = (tree.check(tasks, depth) for tree in pair)
    except TreeError as error:
        raise TreeError(f"{path}: {error}. Correct the file, or use a different one") from error
    return actor, critic
