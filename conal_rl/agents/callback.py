"""The work between two rounds of an agent's training: log lines, checkpoints, stopping."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from conal_rl.agents.sac import ConalSAC
from conal_rl.runs.progress import Session


class Stopped(Exception):
    """Ends `learn` between two rounds of training."""


class RunCallback(BaseCallback):
    """Shows progress, logs, saves, and ends `learn` when the user stops it or its time is over.

    Args:
        session: the part of the training that `learn` covers. It saves between two rounds; pending
            updates stay pending.
        log_interval: env steps between lines of the log.
        evaluate: returns the mean success if an evaluation is due, otherwise None.
    """

    def __init__(
        self, session: Session, log_interval: int, evaluate: Callable[[], float | None]
    ) -> None:
        super().__init__()
        self.session, self.display = session, session.display
        self.log_interval, self.evaluate = log_interval, evaluate
        self.evaluated: float | None = None

    def _on_training_start(self) -> None:
        self.began = self.num_timesteps
        # SB3 measures time and speed since these; so they are of the whole run.
        self.model.start_time = time.time_ns() - int(1e9 * self.session.elapsed())
        self.model._num_timesteps_at_start = 0
        # A multiple, so that a resumed run logs at the same steps as an uninterrupted one.
        self.next_log = next_multiple(self.log_interval, self.num_timesteps)

    def _on_rollout_start(self) -> None:
        # Between two rounds of training: envs, replay, networks and counters agree here.
        if self.session.stopped or self.session.out_of_time:
            self._on_training_end()
            raise Stopped
        evaluated = self.evaluate()
        if evaluated is not None:  # it goes into the next line of the log
            self.evaluated = evaluated
            self.logger.record("evaluation/mean_success", evaluated)
        if self.num_timesteps >= self.next_log:
            self.next_log += self.log_interval
            self._log()
            self.display.line(self.num_timesteps, self._outcome())
        self.session.save_if_due()
        if self.display.due():
            self.display.show(self.num_timesteps, self._outcome())

    def _on_step(self) -> bool:
        return True

    def release(self) -> None:
        """Release the agent's replay, which SB3 keeps in a cycle of references."""
        self.locals, self.globals = {}, {}

    def _on_training_end(self) -> None:
        if self.num_timesteps > self.began:
            self._log()
        self.display.show(self.num_timesteps, self._outcome())

    def _log(self) -> None:
        assert isinstance(self.model, ConalSAC)
        # SB3's rate of success forgets its episodes at each resume; success/mean says it.
        if self.model.ep_success_buffer is not None:
            self.model.ep_success_buffer.clear()
        self.logger.record("phase", self.session.phase, exclude="tensorboard")
        self.logger.record("time/minutes", self.session.elapsed() / 60)
        self.logger.record("time/phase_steps_per_s", self.display.rate(self.num_timesteps))
        self.model.dump_logs()

    def _outcome(self) -> str:
        """Success during training (stochastic actions) if tasks define it, otherwise return."""
        assert isinstance(self.model, ConalSAC)
        success = np.array(list(self.model.recent.success().values()))
        parts = []
        if np.isfinite(success).any():
            parts.append(f"success {np.nanmean(success):.2f}")
        returns = np.array(list(self.model.recent.returns().values()))
        if np.isfinite(returns).any():
            parts.append(f"return {np.nanmean(returns):.1f}")
        if self.evaluated is not None:
            parts.append(f"evaluated {self.evaluated:.2f}")
        return ", ".join(parts)


def next_multiple(every: int, steps: int) -> int:
    """Return the first multiple of `every` above `steps`."""
    return (steps // every + 1) * every
