"""`TaskEnv`: one env of a task, whose answers are checked, as the agent sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

from conal_rl.errors import ConalError, ObservationError, SuiteError, of_user_code

Observation = npt.NDArray[np.float32]  # (obs_dim + num_tasks,)
_LARGEST = float(np.finfo(np.float32).max)


class TaskEnv(gym.Wrapper[Observation, npt.NDArray[Any], Any, Any]):
    """One env as the agent sees it.

    It pads the observation with zeros to `obs_dim` and appends the one-hot of `task`.

    At the end of an episode `info["is_success"]` is the env's own. If the env does not give it, it
    says whether `info["success"]` was true at any step. If the env does not give that either, it
    says whether the return reached the `reward_threshold` of the env's gymnasium spec. After an
    env has reported success or failure once, an episode without a report counts as failed.

    Raises:
        ObservationError: An observation or reward is not finite numbers of the right shape, or a
            success, terminated or truncated is neither a boolean nor 0 or 1. It never reaches a
            replay buffer.
        SuiteError: The env's own code fails.
    """

    def __init__(
        self, env: gym.Env[Any, Any], name: str, index: int, task: int, num_tasks: int, obs_dim: int
    ) -> None:
        super().__init__(env)
        low = np.full(obs_dim + num_tasks, -np.inf, dtype=np.float32)
        low[obs_dim:] = 0.0
        high = np.full(obs_dim + num_tasks, np.inf, dtype=np.float32)
        high[obs_dim:] = 1.0
        self.observation_space = Box(low, high)
        self._empty = np.zeros(obs_dim + num_tasks, dtype=np.float32)
        self._empty[obs_dim + task] = 1.0
        self._where = f"task {name!r}, env {index} of the task"
        assert env.observation_space.shape is not None
        (self._length,) = env.observation_space.shape
        self._solved: bool | None = None  # None: the env has never reported success or failure
        self._threshold = env.spec.reward_threshold if env.spec else None
        self._begin()

    def _begin(self) -> None:
        self._step = 0
        self._return = 0.0
        self._solved = None if self._solved is None else False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode, as the class says."""
        self._begin()
        try:
            answer: Any = self.env.reset(seed=seed, options=options)
        except ConalError:
            raise
        except Exception as error:  # the env's own code may raise anything
            if isinstance(error, TypeError) and "keyword argument" in str(error):
                problem = (
                    f"reset: got {error}, expected that it takes seed and options. Correct the env"
                )
            else:
                problem = f"reset: got {of_user_code(error)}, expected no error. Correct the env"
            raise SuiteError(f"{self._where}: {problem}") from error
        if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
            raise ObservationError(
                f"{self._where}: reset: got {short(answer)}, expected an observation and an "
                "info. Correct the env"
            )
        return self._observation(answer[0]), dict(answer[1])

    def step(
        self, action: npt.NDArray[Any]
    ) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take one step, as the class says."""
        self._step += 1
        try:
            answer: Any = self.env.step(action)
        except ConalError:
            raise
        except Exception as error:  # the env's own code may raise anything
            raise SuiteError(
                f"{self._where}: step: got {of_user_code(error)} at step {self._step} of the "
                "episode, expected no error. Correct the env"
            ) from error
        fits = isinstance(answer, tuple) and len(answer) == 5 and isinstance(answer[4], Mapping)
        if not fits:
            raise ObservationError(
                f"{self._where}: step: got {short(answer)}, expected an observation, a "
                "reward, terminated, truncated and an info. Correct the env"
            )
        obs, given, terminated, truncated, own_info = answer
        info = dict(own_info)  # a copy, because the env may return the same object again
        reward = self._reward(given)
        self._return += reward
        terminated = self._truth("terminated", terminated)
        truncated = self._truth("truncated", truncated)
        for key in {"success", "is_success"} & info.keys():
            info[key] = self._truth(f"info[{key!r}]", info[key])
        if "success" in info or "is_success" in info:
            self._solved = self._solved or info.get("success", False)
        if (terminated or truncated) and "is_success" not in info:
            if self._solved is not None:
                info["is_success"] = self._solved
            elif self._threshold is not None:
                info["is_success"] = self._return >= self._threshold
        return self._observation(obs), reward, terminated, truncated, info

    def _reward(self, given: Any) -> float:
        number = given if isinstance(given, float) else _item(given)
        if number is None or np.ndim(given):
            raise ObservationError(
                f"{self._where}: reward: got {short(given)} at step {self._step} of the "
                "episode, expected a number. Correct the env"
            )
        reward = float(number)
        if not -_LARGEST <= reward <= _LARGEST:
            raise self._error("reward", reward)
        return reward

    def _truth(self, what: str, given: Any) -> bool:
        """Return a boolean, or a number 0 or 1, or an array of one of these, as a boolean."""
        if isinstance(given, bool):
            return given
        number = _item(given)
        if number is None or number not in (0, 1):
            raise ObservationError(
                f"{self._where}: {what}: got {short(given)} at step {self._step} of the "
                "episode, expected true or false. Correct the env"
            )
        return bool(number)

    def _observation(self, given: Any) -> Observation:
        try:
            obs = np.asarray(given)
            problem = None if obs.dtype.kind in "biuf" else f"values of the type {obs.dtype}"
        except Exception:  # ragged lists, tensors with gradients, objects of any class
            problem = short(given)
        if problem is None and obs.shape != (self._length,):
            problem = f"the shape {obs.shape}"
        if problem is not None:
            raise ObservationError(
                f"{self._where}: observation: got {problem} at step {self._step} of the episode, "
                f"expected numbers of the shape ({self._length},) of its space. Correct the env"
            )
        out: Observation = self._empty.copy()
        with np.errstate(all="ignore"):  # a number too large for float32 becomes inf
            out[: self._length] = obs
        if not np.isfinite(out).all():
            worst = obs[~np.isfinite(out[: self._length])][0]
            raise self._error("observation", float(worst))
        return out

    def _error(self, what: str, value: float) -> ObservationError:
        got = "NaN or inf"
        if np.isfinite(value):
            got = f"{value:g}, which is too large for single precision,"
        return ObservationError(
            f"{self._where}: {what}: got {got} at step {self._step} of the episode, expected "
            "finite numbers. Correct the env"
        )


def _item(value: Any) -> float | None:
    """Return a real number, or that of an array of one; None for anything else."""
    try:
        array = np.asarray(value)
    except Exception:  # tensors with gradients, objects of any class
        return None
    return array.item() if array.size == 1 and array.dtype.kind in "biuf" else None


def short(value: object) -> str:
    """Return a value for an error: in one line, and not longer than 60 letters."""
    return " ".join(repr(value).split())[:60]
