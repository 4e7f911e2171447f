"""When the next sync may run: times in, times out."""

import pytest

from pyproxy.agent.schedule import Schedule


def synced(min_period_seconds: float | None, duration: float) -> Schedule:
    """Return the schedule of an agent whose sync took some seconds until time 100."""
    schedule = Schedule(min_period_seconds, sync_period_seconds=30.0)
    schedule.succeeded(100.0 - duration, 100.0)
    return schedule


def test_first_sync() -> None:
    """Before the first sync nothing has to be waited for."""
    assert Schedule(1.0, 30.0).earliest() == float("-inf")


@pytest.mark.parametrize(
    ("min_period_seconds", "duration", "rest"),
    [
        pytest.param(None, 0.004, 0.0, id="cheap"),
        pytest.param(None, 0.5, 0.5, id="as long as it took"),
        pytest.param(None, 7.0, 1.0, id="a second at most"),
        pytest.param(2.0, 0.004, 2.0, id="as configured"),
        pytest.param(0.0, 7.0, 0.0, id="configured to none"),
    ],
)
def test_rest(min_period_seconds: float | None, duration: float, rest: float) -> None:
    """After a sync the agent pauses for the configured time, else as long as the sync took, to leave CPU time to other programs."""
    assert 100.0 + rest == synced(min_period_seconds, duration).earliest()


def test_retries() -> None:
    """Failed syncs are tried again after half a second, then twice as long each time, up to the sync period."""
    schedule = synced(0.0, 0.001)
    waits: list[float] = []
    for failure in range(1, 100):
        schedule.failed(100.0 + failure)
        waits.append(schedule.earliest() - schedule.finished_at)

    assert [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0] == waits[:8]
    assert 30.0 == waits[-1]


def test_success_after_failures() -> None:
    """A sync that goes through ends the waiting."""
    schedule = synced(0.0, 0.001)
    schedule.failed(101.0)
    schedule.succeeded(102.0, 102.001)

    assert 102.001 == schedule.earliest()
