"""The environment variables of the watchdog, as sd_watchdog_enabled(3) describes them."""

import math
import os

import pytest

from pyproxy.linux.systemd_notify import watchdog_seconds


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, math.inf),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
        ({"WATCHDOG_USEC": "soon"}, math.inf),
    ],
)
def test_watchdog(environment: dict[str, str], seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is in microseconds, and applies to the named process, or to any process if none is named."""
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert seconds == watchdog_seconds()
