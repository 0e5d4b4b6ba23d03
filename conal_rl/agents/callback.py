"""What a run of the agent does between its updates: progress, log lines, checkpoints, stopping."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from conal_rl.agents.sac import ConalSAC
from conal_rl.config import Config
from conal_rl.runs.progress import PhaseDisplay, Stopped, StopRequest


class RunCallback(BaseCallback):
    """Shows progress, logs, writes checkpoints, and ends `learn` when asked to stop.

    Args:
        phase: name of the phase.
        until: env steps at which the phase ends.
        elapsed: seconds of the whole run.
        seconds_left: after which `learn` is to end before its last step.
        checkpoint: writes a checkpoint; called when nothing is half done. Updates that are put off
            stay so.
        evaluate: returns mean success where an evaluation is due, otherwise None.
    """

    def __init__(
        self,
        config: Config,
        phase: str,
        until: int,
        stop: StopRequest,
        elapsed: Callable[[], float],
        seconds_left: Callable[[], float],
        checkpoint: Callable[[], None],
        evaluate: Callable[[], float | None],
    ):
        super().__init__()
        self.config, self.phase, self.until, self.stop = config, phase, until, stop
        self.elapsed, self.seconds_left = elapsed, seconds_left
        self.checkpoint, self.evaluate = checkpoint, evaluate
        self.evaluated: float | None = None
        self.display: PhaseDisplay | None = None

    def _on_training_start(self) -> None:
        self.saved = time.monotonic()
        self.began = self.num_timesteps
        # A multiple, so that a resumed run logs where it would have without a stop.
        self.next_log = next_multiple(self.config.log_interval, self.num_timesteps)
        self.display = PhaseDisplay(self.phase, self.num_timesteps, self.until, self.seconds_left)

    def _on_rollout_start(self) -> None:
        # Between two rounds of training: envs, replay, networks and counters agree here.
        if self.stop.signal is not None or self.seconds_left() <= 0:
            self._on_training_end()
            raise Stopped
        assert self.display is not None
        evaluated = self.evaluate()
        if evaluated is not None:  # it is in the next line of the log
            self.evaluated = evaluated
            self.logger.record("evaluation/mean_success", evaluated)
        if self.num_timesteps >= self.next_log:
            self.next_log += self.config.log_interval
            self._log()
            self.display.line(self.num_timesteps, self._outcome())
        if time.monotonic() - self.saved > 60 * self.config.checkpoint_minutes:
            self.checkpoint()
            self.saved = time.monotonic()
        if self.display.due():
            self.display.show(self.num_timesteps, self._outcome())

    def _on_step(self) -> bool:
        return True

    def close(self) -> None:
        """Take the progress bar down, also after an error, and let go of the agent's replay."""
        self.locals, self.globals = {}, {}  # SB3's, whose cycle the collector would find late
        if self.display is not None:
            self.display.close()

    def _on_training_end(self) -> None:
        assert self.display is not None
        if self.num_timesteps > self.began:
            self._log()
        self.display.show(self.num_timesteps, self._outcome())

    def _log(self) -> None:
        assert isinstance(self.model, ConalSAC) and self.display is not None
        self.logger.record("time/minutes", self.elapsed() / 60)
        self.logger.record("time/phase_steps_per_s", self.display.rate(self.num_timesteps))
        self.model.dump_logs()

    def _outcome(self) -> str:
        """Success while training (stochastic actions) where tasks define it, otherwise return."""
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
    """The first multiple of `every` beyond `steps`."""
    return (steps // every + 1) * every
