"""An agent that kills itself at a given step of its work: ``dying_agent.py FILE ARGUMENT...``.

The arguments are those of `pyproxy`. A step is the moment before or after a system call that writes to the kernel or to
another program, reads from it, or starts it. `Countdown` chooses the step through a file that both processes map.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from pyproxy.cli.program import load_command, main

_CALLS = {"send", "sendto", "sendmsg", "recv", "recv_into", "recvmsg", "fork_exec", "commit"}
"""Names of functions of Python for system calls, and of the one that writes a legacy table."""
_NUMBERS = 3
_STEPS, _LAST, _WITH_CHILDREN = range(_NUMBERS)


class Countdown:
    """The number of steps so far, and the step at which the process dies, in a file."""

    def __init__(self, path: Path) -> None:
        """Map a file, which is created if it does not exist."""
        size = _NUMBERS * 8
        with path.open("a+b") as file:
            file.truncate(size)
            self._numbers = memoryview(mmap.mmap(file.fileno(), size)).cast("Q")

    @property
    def steps(self) -> int:
        """The number of steps since the last `begin`."""
        return self._numbers[_STEPS]

    def begin(self, last: int = 0, *, with_children: bool = False) -> None:
        """Count from 0; the process dies at step `last`, or never if it is 0, alone or with all its children."""
        self._numbers[_LAST], self._numbers[_WITH_CHILDREN] = 0, with_children
        self._numbers[_STEPS] = 0
        self._numbers[_LAST] = last

    def count(self, frame: FrameType, event: str, argument: object) -> None:
        """Count a step, if it is one; a profile function of Python."""
        name = frame.f_code.co_name if event in ("call", "return") else getattr(argument, "__name__", "")
        # Not every `write`: the log has many.
        if name in _CALLS or argument is os.write:
            numbers = self._numbers
            numbers[_STEPS] += 1
            if 0 < numbers[_LAST] <= numbers[_STEPS]:
                if numbers[_WITH_CHILDREN]:
                    os.killpg(0, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    load_command("run")  # without counting its imports
    countdown = Countdown(Path(sys.argv.pop(1)))
    threading.setprofile(countdown.count)
    sys.setprofile(countdown.count)
    main()
