"""The contents of an agent's log: means over updates, and the last episodes of each task."""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import HumanOutputFormat, Logger
from torch import Tensor

from conal_rl.agents.update import CLAMPED
from conal_rl.core.findings import log_scalars
from conal_rl.core.learner import Learner
from conal_rl.errors import diverged

EPISODES = 20
MUCH_CLAMPED = 0.2


class Means:
    """Means of scalar tensors, each over the updates that computed it."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._latest: dict[str, list[Tensor]] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take the metrics of an update, without waiting for a device."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._latest.setdefault(name, []).append(value)
        self._counts.update(metrics.keys())

    def latest(self) -> dict[str, float]:
        """Return the means since the last call of `latest`, and wait for the device once.

        Captured graphs write into the same tensors at each update. Then it is the last update.
        """
        latest, self._latest = self._latest, {}
        if not latest:
            return {}
        values = iter(torch.stack([v for each in latest.values() for v in each]).tolist())
        return {name: _mean(islice(values, len(each))) for name, each in latest.items()}

    def take(self) -> dict[str, float]:
        """Return the means since the last call."""
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
        """Take a finished episode; success is NaN if the env does not define it."""
        self._episodes[task].append((episode_return, success))

    def take(self, infos: Sequence[Mapping[str, Any]], observations: np.ndarray) -> None:
        """Take the episodes that ended in a step of the environments.

        `observations` `(env, feature + task)` are from before the step.
        """
        tasks = list(self._episodes)
        for env, info in enumerate(infos):
            if "episode" in info:
                task = int(observations[env, -len(tasks) :].argmax())
                outcome = float(info.get("is_success", np.nan))
                self.add(tasks[task], info["episode"]["r"], outcome)

    def success(self) -> dict[str, float]:
        """Return each task's share of successful episodes; NaN if no episode reported success.

        If some episodes reported it, all others count as failed.
        """
        shares = {}
        for task, episodes in self._episodes.items():
            successes = np.array([success for _, success in episodes])
            known = bool(np.isfinite(successes).any())
            shares[task] = float(np.nan_to_num(successes).mean()) if known else np.nan
        return shares

    def returns(self) -> dict[str, float]:
        """Return each task's mean return; NaN before its first episode."""
        return {task: _mean(total for total, _ in each) for task, each in self._episodes.items()}

    def scalars(self) -> dict[str, float]:
        """Return the returns and successes that are known, for a log, by tag."""
        known = {task: share for task, share in self.success().items() if np.isfinite(share)}
        returns = self.returns().items()
        scalars = {f"return/{task}": total for task, total in returns if np.isfinite(total)}
        scalars |= {f"success/{task}": share for task, share in known.items()}
        return scalars | ({"success/mean": _mean(known.values())} if known else {})

    def state(self) -> dict[str, list[tuple[float, float]]]:
        """Return the state that `restore` needs, as JSON types."""
        return {task: list(episodes) for task, episodes in self._episodes.items()}

    def restore(self, state: Mapping[str, Iterable[Sequence[float]]]) -> None:
        """Inverse of `state`."""
        for task, episodes in state.items():
            self._episodes[task].clear()
            self._episodes[task].extend((total, success) for total, success in episodes)


def record(
    logger: Logger,
    means: Mapping[str, float],
    recent: RecentEpisodes,
    learners: Mapping[str, Learner],
    updates: int,
    critic_range: tuple[float, float],
) -> None:
    """Record a line of the log: means over updates, results per task, gates and conflicts.

    Raises:
        ConalError: a mean is not finite, so that training cannot continue.
    """
    for name, mean in means.items():
        if not np.isfinite(mean):
            raise diverged(f"{name} is {mean}", updates)
        logger.record(f"train/{name}", mean)
    if means.get(CLAMPED, 0.0) > MUCH_CLAMPED:
        warnings.warn(
            f"critic_range: got {critic_range}, expected a range that holds the critics' targets. "
            f"Over {MUCH_CLAMPED:.0%} of them are outside and clamped. Start a new run with a "
            "different reward_scale or a wider critic_range",
            stacklevel=3,
        )
    logger.record("train/n_updates", updates)
    for tag, value in recent.scalars().items():
        logger.record(tag, value)
    for name, learner in learners.items():
        for tag, value in log_scalars(learner, name).items():
            # As many as tasks times layers: for curves, not for SB3's tables.
            logger.record(tag, value, exclude=("csv", "stdout", "log"))
    for output in logger.output_formats:
        if isinstance(output, HumanOutputFormat):  # it refuses names that are equal once cut
            output.max_length = max(output.max_length, 8 + max(map(len, recent.returns())))


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else np.nan
