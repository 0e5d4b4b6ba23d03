"""stdout and stderr of a command: broken, closed or of a different encoding, they never end it."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_NO_READER = (errno.EPIPE, errno.EIO)  # of a pipe, and of a terminal that was closed


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let this process print in the block, also if nobody reads it or it has no such stream.

    Text for a broken pipe or a closed terminal is dropped, and so is text that stderr cannot take
    for any other reason. A letter that the encoding lacks is replaced. Streams that are not the
    process's own, such as those of a notebook, stay as they are.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lasting(before[0], 1), _lasting(before[1], 2)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before


def can_redraw(console: Console) -> bool:
    """Return whether a bar can be drawn. FORCE_COLOR asks for colours, and not for bars."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


@contextmanager
def announced(text: str, seconds: float = 5.0) -> Iterator[None]:
    """Print a line on stderr if the block takes longer than `seconds`, and could seem to hang."""
    timer = threading.Timer(seconds, lambda: print(text, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Lasting(io.FileIO):
    """The file of a stream; it drops what nobody reads."""

    def __init__(self, descriptor: int, drops_all: bool):
        super().__init__(descriptor, "w", closefd=False)
        self.drops_all = drops_all

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NO_READER and not self.drops_all:
                raise
            return memoryview(data).nbytes


def _lasting(stream: Any, descriptor: int) -> Any:
    if stream is None:  # closed, as by `2>&-`
        _occupy(descriptor)
        return open(os.devnull, "w", encoding="utf-8")
    if stream not in (sys.__stdout__, sys.__stderr__) or not isinstance(stream, io.TextIOWrapper):
        return stream
    with suppress(OSError):
        stream.flush()
    errors = "replace" if descriptor == 1 else stream.errors
    file = io.BufferedWriter(_Lasting(descriptor, drops_all=descriptor == 2))
    return io.TextIOWrapper(
        file, stream.encoding, errors, line_buffering=stream.line_buffering, write_through=False
    )


def _occupy(descriptor: int) -> None:
    """Open /dev/null as a closed stream, so that no file takes its place, here or in a child."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null == descriptor:
            os.set_inheritable(null, True)
        else:
            os.dup2(null, descriptor)
            os.close(null)
