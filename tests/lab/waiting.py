"""Waiting for a condition, which tests do instead of sleeping: a busy machine only makes them slower."""

import time
from collections.abc import Callable

WAIT_SECONDS = 20.0
"""For a change that takes milliseconds on an idle machine."""


def wait_until(
    condition: Callable[[], bool],
    what: str = "the condition",
    timeout_seconds: float = WAIT_SECONDS,
    *,
    poll_seconds: float = 0.01,
) -> None:
    """Poll until a condition holds.

    Raises:
        TimeoutError: it did not hold in time; the message names it.
    """
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            message = f"not within {timeout_seconds} s: {what}"
            raise TimeoutError(message)
        time.sleep(poll_seconds)
