"""Ctrl-C, SIGTERM and SIGHUP: what a process does when it is asked to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType


@contextmanager
def handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Call `handler` with the number of a signal that asks this process to end, in the block.

    SIGHUP stays ignored if it was, as `nohup` asks. A thread that is not the main one cannot
    handle signals, so nothing changes in it. In a forked child the handler is not called: Ctrl-C
    is the parent's, which ends the child, and the other signals end the child at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            handler(number)
        elif number != signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, signal.SIG_DFL if previous is None else previous)


class StopRequest:
    """Notes a signal, so that training can stop between two updates.

    Attributes:
        signal: the number of the first signal that came; None before it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def watching(self) -> AbstractContextManager[None]:
        """Handle signals in this block: the first asks training to stop.

        A later Ctrl-C interrupts it. A later SIGTERM or SIGHUP changes nothing, because some
        senders, such as `timeout` and a closed terminal, send it twice.
        """
        return handled(self._note)

    def _note(self, number: int) -> None:
        if self.signal is None:
            self.signal = number
            with suppress(RuntimeError):  # the signal came while a different line was printed
                print("The run stops after this step and writes a checkpoint.", file=sys.stderr)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
