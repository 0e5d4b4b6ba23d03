"""`Calls`: in which order the methods of envs may be called, from any thread and after a fork."""

from __future__ import annotations

import os
import threading
from typing import Any, Literal, Protocol
from weakref import WeakSet

from conal_rl.errors import CallError

State = Literal["new", "ready", "stepping", "broken", "closed"]
"""What the last call has left behind; "broken" if it failed, was interrupted, or still runs."""

_PROBLEMS: dict[State, str] = {
    "new": "envs before their first reset, expected an episode. Call reset",
    "ready": "no step that has begun, expected one. Call step_async before",
    "stepping": "a step that has begun, expected its end. Call step_wait, or reset",
    "broken": "envs whose last call failed or was interrupted, expected an episode. Call reset",
    "closed": "closed envs, expected open ones. Make new envs",
}


class _Renewed(Protocol):
    def after_fork(self) -> None: ...


_renewed: WeakSet[Any] = WeakSet()


def renew_after_fork(thing: _Renewed) -> None:
    """Call `thing.after_fork` in every process that is forked while `thing` exists."""
    _renewed.add(thing)


def _renew() -> None:
    for thing in list(_renewed):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew)


class Calls:
    """The state of some envs between two calls of their methods.

    Calls from several threads run one after the other. A method reads as follows. If it fails or
    is interrupted between the last two lines, then only `reset` and `close` are allowed.

        with self.calls.turn("step"):
            self.calls.begin("step", "ready")
            ...
            self.calls.state = "stepping"
    """

    def __init__(self) -> None:
        self.state: State = "new"
        self._lock: Any = threading.RLock()
        renew_after_fork(self)

    def turn(self, call: str) -> Any:
        """Return the lock that a call holds while it runs.

        Raises:
            CallError: The call comes from inside a running one, for example from a handler.
        """
        if self._lock._is_owned():
            raise CallError(
                f"{call}: got a call from inside a running call of these envs, expected one call "
                f"at a time. Call {call} after the other call has ended"
            )
        return self._lock

    def require(self, call: str, *allowed: State) -> None:
        """Check that the envs are in one of the states in which a call is allowed.

        Raises:
            CallError: They are in a different one.
        """
        if self.state not in allowed:
            raise CallError(f"{call}: got {_PROBLEMS[self.state]}")

    def begin(self, call: str, *allowed: State) -> None:
        """Check as `require`. The envs then count as broken until the call sets their state."""
        if self.state not in allowed:
            self.require(call, *allowed)
        self.state = "broken"

    def begin_reset(self, call: str = "reset") -> None:
        """Begin a call that is allowed in every state, except if the envs are closed."""
        self.begin(call, "new", "ready", "stepping", "broken")

    def after_fork(self) -> None:
        """Forget the calls of other threads, which a forked process does not have."""
        self._lock = threading.RLock()
        if self.state == "stepping":
            self.state = "broken"

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs.

        Raises:
            CallError: The envs cannot be copied now.
        """
        self.require("copy", "new", "ready")
        return {"state": self.state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the copy."""
        self.__init__()  # type: ignore[misc]
        self.state = state["state"]
