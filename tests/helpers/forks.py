"""Work in a forked process."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable


def assert_works_in_a_fork(work: Callable[[], object]) -> None:
    """Call `work` in a forked process. It fails if `work` does, or takes longer than a minute."""
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(process, 0)[1] == 0
