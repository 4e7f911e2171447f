"""An agent whose clock a test sets: ``clock_agent.py FILE ARGUMENT...``; the file contains the offset in seconds.

The monotonic clock stays as it is, because the kernel does not let a program set it. All code of the agent that reads the wall clock does so by `time.time`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path


def shifted(clock: Callable[[], float], path: Path) -> Callable[[], float]:
    """Return a clock that is ahead of another by the number in a file."""
    return lambda: clock() + float(path.read_text() or 0)


if __name__ == "__main__":
    time.time = shifted(time.time, Path(sys.argv.pop(1)))
    from pyproxy.cli.program import main  # after the clock was replaced, because modules import the function

    main()
