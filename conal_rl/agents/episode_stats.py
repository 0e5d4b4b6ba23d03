"""What an agent's log is made of: means over updates, and the last episodes of each task."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

EPISODES = 20


class Means:
    """Means of scalar tensors over the updates that had them: the gates' come at some only."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take the metrics of an update; nothing waits for a device."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._counts.update(metrics.keys())

    def take(self) -> dict[str, float]:
        """The means since the last call."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, Counter()
        return means


class RecentEpisodes:
    """Return and success of each task's last 20 training episodes."""

    def __init__(self, tasks: Sequence[str]) -> None:
        self._episodes: dict[str, deque[tuple[float, float]]] = {
            task: deque(maxlen=EPISODES) for task in tasks
        }

    def add(self, task: str, episode_return: float, success: float) -> None:
        """Take a finished episode; NaN where the env does not say whether it succeeded."""
        self._episodes[task].append((episode_return, success))

    def success(self) -> dict[str, float]:
        """Share of successful episodes; NaN where nothing was said of any.

        Where something was, an episode of which nothing was said has failed.
        """
        shares = {}
        for task, own in self._episodes.items():
            said = np.array([success for _, success in own])
            known = bool(np.isfinite(said).any())
            shares[task] = float(np.nan_to_num(said).mean()) if known else np.nan
        return shares

    def returns(self) -> dict[str, float]:
        """Mean return (NaN: no episodes yet)."""
        return {task: _mean(total for total, _ in own) for task, own in self._episodes.items()}

    def scalars(self) -> dict[str, float]:
        """Returns, and success where it is known, for a log, by tag."""
        known = {task: share for task, share in self.success().items() if np.isfinite(share)}
        found = {f"return/{task}": total for task, total in self.returns().items()}
        found |= {f"success/{task}": share for task, share in known.items()}
        return found | ({"success/mean": _mean(known.values())} if known else {})

    def state(self) -> dict[str, list[tuple[float, float]]]:
        """What `restore` needs, as JSON types."""
        return {task: list(own) for task, own in self._episodes.items()}

    def restore(self, state: Mapping[str, Iterable[Sequence[float]]]) -> None:
        """Inverse of `state`."""
        for task, own in state.items():
            self._episodes[task].clear()
            self._episodes[task].extend((total, success) for total, success in own)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else np.nan
