"""The differences between two run folders: numbers, trees, and weights bit by bit."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RENAMED_TENSORS: tuple[tuple[str, str], ...] = ()
"""Tensors that a redesign renames: a regular expression for `FILE/NAME` of the old side, such as
`optimizer_weights/(.*)`, and what it becomes on the new side, such as `weight_optimizer/\\1`."""
NOT_COMPARED = ("seconds", "search_seconds")
"""Entries of evaluation.json that depend on the clock."""
STEPS = "time/total_timesteps"


def compare_runs(old: Path, new: Path) -> list[str]:
    """Return the differences between two run folders, a line each: file, place, both values.

    Compared are progress.csv without `time/*` and `DECLARED`, tree.json, evaluation.json without
    the clock, the weights and the tensors of the newest checkpoint. Entries of evaluation.json that
    only the new side has are not compared.
    """
    lines = compare_progress(old / "progress.csv", new / "progress.csv")
    lines += _compare_json(old / "tree.json", new / "tree.json")
    lines += _compare_json(old / "evaluation.json", new / "evaluation.json", only_old=True)
    lines += compare_tensors("model", _tensors(old / "model"), _tensors(new / "model"))
    newest = [_newest_checkpoint(run) for run in (old, new)]
    steps = [checkpoint.name.partition(".")[0] for checkpoint in newest]
    if steps[0] != steps[1]:
        lines.append(f"checkpoints: the newest is {steps[0]} before, {steps[1]} now")
    return lines + compare_tensors("checkpoint", *map(_tensors, newest))


DECLARED = (
    *("phase", "train/n_updates", "rollout/success_rate"),
    *("rollout/ep_len_mean", "rollout/ep_rew_mean", "train/ent_coef_loss"),
)
"""Columns that commits up to 0e2ad22 lack, or begin from scratch after a search or a resume.

Commits up to 5f53861 lack `train/ent_coef_loss`.
"""


def compare_progress(old: Path, new: Path) -> list[str]:
    """Return the differences between two progress.csv, by the columns' names; NaN equals NaN."""
    sides = [_rows(path) for path in (old, new)]
    lines = []
    if len(sides[0]) != len(sides[1]):
        lines.append(f"progress.csv: {len(sides[0])} rows before, {len(sides[1])} now")
    found = _compare_columns(*sides)
    return lines + [line for name, line in found.items() if name not in DECLARED]


def declared_differences(old: Path, new: Path) -> list[str]:
    """Return the columns in which two runs differ as `DECLARED` says, by name."""
    found = _compare_columns(*(_rows(run / "progress.csv") for run in (old, new)))
    return [name for name in DECLARED if name in found]


def _compare_columns(*sides: list[dict[str, str]]) -> dict[str, str]:
    """Return a line for each column that differs, except those of the clock."""
    lines: dict[str, str] = {}
    columns = [{name: None for row in rows for name in row} for rows in sides]
    for name in columns[0] | columns[1]:
        if name.startswith("time/"):
            continue
        if all(_same(_number(row.get(name, "")), math.nan) for rows in sides for row in rows):
            continue  # a log without the column says the same
        if name not in columns[0] or name not in columns[1]:
            lines[name] = f"progress.csv: column {name} {_only(name in columns[0])}"
            continue
        differing = [
            (number, row.get(STEPS), row[name], other[name])
            for number, (row, other) in enumerate(zip(*sides, strict=False), start=1)
            if not _same(_number(row[name]), _number(other[name]))
        ]
        if differing:
            number, steps, before, now = differing[0]
            lines[name] = (
                f"progress.csv: {name}, {len(differing)} rows, first row {number} "
                f"(step {steps}): {before or 'empty'} before, {now or 'empty'} now"
            )
    return lines


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, restval=""))


def _number(cell: str) -> float | str:
    try:
        return float(cell or "nan")
    except ValueError:
        return cell


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


def _compare_json(old: Path, new: Path, only_old: bool = False) -> list[str]:
    values = []
    for path in (old, new):
        if not path.is_file():
            return [f"{path.name}: {_only(path is new)}"] if old.exists() or new.exists() else []
        values.append(json.loads(path.read_text(encoding="utf-8")))
    if only_old:
        kept = [name for name in values[0] if name not in NOT_COMPARED]
        values = [{name: side[name] for name in kept if name in side} for side in values]
    return compare_data(old.name, values[0], values[1])


def compare_data(place: str, old: Any, new: Any) -> list[str]:
    """Return the differences between two values of JSON types; each line names its place."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in dict(old) | dict(new):
            if key in old and key in new:
                lines += compare_data(f"{place}: {key}", old[key], new[key])
            else:
                lines.append(f"{place}: {key} {_only(key in old)}")
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [line for i, pair in pairs for line in compare_data(f"{place}[{i}]", *pair)]
    return [] if _same(old, new) else [f"{place}: {old} before, {new} now"]


def compare_tensors(place: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the differences between named tensors: names, types, shapes or bits.

    `RENAMED_TENSORS` is applied to the old names.
    """
    renamed = {_new_name(name): tensor for name, tensor in old.items()}
    lines = []
    for name in renamed | dict(new):
        if name not in renamed or name not in new:
            lines.append(f"{place}: {name} {_only(name in renamed)}")
            continue
        before, now = renamed[name], new[name]
        kinds = [f"{tensor.dtype} {list(tensor.shape)}" for tensor in (before, now)]
        if kinds[0] != kinds[1]:
            lines.append(f"{place}: {name}: {kinds[0]} before, {kinds[1]} now")
            continue
        differing = _differing(before, now)
        if differing:
            first = differing[0]
            values = [tensor.flatten()[first].item() for tensor in (before, now)]
            lines.append(
                f"{place}: {name}: {len(differing)} of {before.numel()} values, first at "
                f"{_index(first, before.shape)}: {values[0]!r} before, {values[1]!r} now"
            )
    return lines


def _new_name(name: str) -> str:
    for pattern, replacement in RENAMED_TENSORS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name, count=1)
    return name


def _differing(old: Any, new: Any) -> list[int]:
    """Return the places of the flattened tensors whose bits differ."""
    import torch

    bits = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in (old, new)]
    unequal = (bits[0] != bits[1]).view(old.numel(), old.element_size()).any(dim=1)
    return list(unequal.nonzero().flatten().tolist())


def _index(place: int, shape: Sequence[int]) -> list[int]:
    """Return a place of a flattened tensor as an index of each dimension."""
    index = []
    for size in reversed(shape):
        place, inner = divmod(place, size)
        index.append(inner)
    return index[::-1]


def _tensors(folder: Path) -> dict[str, Any]:
    """Return the tensors of a folder's safetensors files, as `FILE/NAME`."""
    from safetensors.torch import load_file

    return {
        f"{path.stem}/{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def _newest_checkpoint(run: Path) -> Path:
    def order(path: Path) -> tuple[int, int]:
        step, _, again = path.name.removeprefix("step-").partition(".")
        return int(step), int(again or 0)

    checkpoints = list((run / "checkpoints").glob("step-*"))
    return max(checkpoints, key=order) if checkpoints else run / "checkpoints" / "none"


def _only(in_old: bool) -> str:
    return "is missing now" if in_old else "was missing before"
