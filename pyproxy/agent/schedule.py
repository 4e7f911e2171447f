"""Computes when the next sync may run. All times are given, in seconds; no clock is read here."""

from dataclasses import dataclass

# A sync that takes less is cheap enough to run as often as Services change.
_CHEAP_SECONDS = 0.010
_LONGEST_REST_SECONDS = 1.0
_FIRST_RETRY_SECONDS = 0.5


@dataclass(slots=True)
class Schedule:
    """The times of one agent's syncs."""

    min_period_seconds: float | None
    """Shortest time from the end of one sync to the start of the next. None means no pause after a short sync, and
    otherwise a pause as long as the last sync, at most 1 s, so that a burst of changes cannot take all CPU time."""
    sync_period_seconds: float
    """Longest time until a failed sync is retried."""
    finished_at: float = float("-inf")
    duration: float = 0.0
    failures: int = 0

    def earliest(self) -> float:
        """Return the earliest time at which the next sync may start."""
        if self.failures:
            # The wait doubles: a short obstacle, such as a lock that another program holds, delays rules little, and a lasting
            # one does not take all CPU time.
            # The shift is limited: after a long outage the number of failures would give an integer of thousands of bits.
            wait = _FIRST_RETRY_SECONDS * (1 << min(self.failures - 1, 16))
            return self.finished_at + min(wait, self.sync_period_seconds)
        if self.min_period_seconds is not None:
            return self.finished_at + self.min_period_seconds
        rest = 0.0 if self.duration < _CHEAP_SECONDS else min(self.duration, _LONGEST_REST_SECONDS)
        return self.finished_at + rest

    def succeeded(self, started: float, finished: float) -> None:
        """Record a successful sync."""
        self.finished_at, self.duration, self.failures = finished, finished - started, 0

    def failed(self, finished: float) -> None:
        """Record a failed sync."""
        self.finished_at = finished
        self.failures += 1
