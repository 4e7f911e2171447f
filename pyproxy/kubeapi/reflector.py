"""List and watch as a state machine: it receives the results of requests, and returns the next request and its delay.

It does no I/O and uses no clock or random number: times are arguments in seconds of any monotonic clock, random numbers
arguments in [0, 1). It keeps no objects; the tracker does.

    stream ── complete ─────────────────────────────→ watch ── ended ──→ watch
     │  ↑                                               ↑ │
     │  └──────────────────── 410 ──────────────────────┼─┤
     └─ not supported, ended too early ─→ list ── last page  └─ refused ──→ list
                                          │ ↑
                                          └─┴ next page; 410 → everything in one page

A stream (a watch with ``sendInitialEvents``) delivers the list as events: the API server serves it from memory without
a request to etcd, and neither side holds the whole list. 20,000 objects of 22 MB take 1.2 s, and 2.3 s in pages.

Only a working watch (an event, a bookmark, or `STEADY_SECONDS` of silence) ends a series of failures. A list does not:
if a server lists but does not watch, it would otherwise be listed without a pause.
"""

from dataclasses import dataclass

PAGE_SIZE = 500
"""Objects in one page, as in client-go (``tools/pager/pager.go``, ``defaultPageSize``)."""
SHORTEST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 30.0
"""As in client-go (``tools/cache/reflector.go``, ``defaultBackoffMax``)."""
LONGEST_RETRY_AFTER_SECONDS = 120.0
"""Upper limit for a server's Retry-After."""
SHORTEST_WATCH_SECONDS = 300
"""As in client-go (``tools/cache/reflector.go``, ``defaultMinWatchTimeout``)."""
STEADY_SECONDS = 5.0
"""A watch that was open for this time counts as working, even without events."""
HASTY_SECONDS = 1.0
"""A watch that ends earlier without events is a failure (client-go's "very short watch"), to avoid a busy loop."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Request all objects as events, and then all changes."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """Request a page of a list."""

    continue_token: str = ""
    """Empty for the first page."""
    limit: int = PAGE_SIZE
    """0 for all objects in one page."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Request all changes after a resource version."""

    resource_version: str


Request = Stream | ListPage | Watch


def delay_seconds(failures: int, random: float) -> float:
    """Return the delay after a number of consecutive failures: doubling up to 30 s, half of it random."""
    # Random, because all agents of a cluster lose the same server at the same moment.
    # The exponent is limited because 2.0**1100 is an OverflowError, and a long outage reaches such numbers.
    ceiling = min(LONGEST_DELAY_SECONDS, 2 * SHORTEST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16))
    return ceiling * (1 + random) / 2


def watch_seconds(random: float) -> int:
    """Return the time limit of a watch: 5 to 10 minutes, so that agents do not all reconnect at the same time."""
    return int(SHORTEST_WATCH_SECONDS * (1 + random))


class Reflector:
    """The state of list and watch for one resource."""

    def __init__(self) -> None:
        self._request: Request = Stream()
        self._can_stream = True
        self._failures = 0
        self._opened_at: float | None = None
        self._heard = False

    def __repr__(self) -> str:
        return f"<Reflector {self._request} after {self._failures} failures>"

    @property
    def request(self) -> Request:
        """Return the next request to the server."""
        return self._request

    @property
    def failures(self) -> int:
        """Return the number of consecutive failures."""
        return self._failures

    def page_listed(self, resource_version: str, continue_token: str) -> bool:
        """Record a page and return whether it was the last one; the watch then starts at its version."""
        if continue_token:
            self._request = ListPage(continue_token)
            return False
        self._request = Watch(resource_version)
        return True

    def stream_completed(self, resource_version: str) -> None:
        """Record that a stream has delivered all objects; it continues as a watch."""
        self._request = Watch(resource_version)

    def stream_unsupported(self) -> None:
        """Record that the server cannot stream lists; from now on they are requested in pages."""
        self._can_stream = False
        self._request = ListPage()

    def watch_opened(self, now: float) -> None:
        """Record that the server accepted the watch or stream."""
        self._opened_at = now
        self._heard = False

    def observed(self, resource_version: str) -> None:
        """Record the resource version of an event or bookmark; an empty one changes nothing."""
        self._heard = True
        self._failures = 0
        # A resource version is opaque: it is sent back as it came, never compared or computed (API conventions).
        if resource_version:
            self._request = Watch(resource_version)

    def watch_ended(self, now: float, random: float) -> float:
        """Record the end of a watch, and return the delay of the next request in seconds."""
        # The server ends each watch at its time limit, which does not count as a failure: the next one continues at the last version.
        if isinstance(self._request, Watch) and (self._heard or self._open_seconds(now) >= HASTY_SECONDS):
            self._close(now)
            return 0.0
        return self.failed(now, random)

    def failed(self, now: float, random: float, retry_after_seconds: float = 0.0) -> float:
        """Record a failed request, and return the delay of its repetition in seconds."""
        self._close(now)
        self._failures += 1
        return max(delay_seconds(self._failures, random), min(retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS))

    def expired(self, now: float, random: float) -> float:
        """Record a 410: the resource version or page is too old. Return the delay of the new list in seconds."""
        delay = self.failed(now, random)
        # The history for a continue token could expire at the third page each time, and the list would never be complete;
        # the next attempt is therefore a single page.
        if isinstance(self._request, Watch):
            self._request = Stream() if self._can_stream else ListPage()
        elif isinstance(self._request, ListPage) and self._request.continue_token:
            self._request = ListPage(limit=0)
        return delay

    def refused(self, now: float, random: float, retry_after_seconds: float = 0.0) -> float:
        """Record a refusal for another reason, and return the delay of the next request in seconds."""
        # After a refused watch the next request is a list, as in client-go: the version may be the reason, and if only
        # watching is forbidden the state is at least polled.
        if not isinstance(self._request, ListPage):
            self._request = ListPage()
        return self.failed(now, random, retry_after_seconds)

    def _open_seconds(self, now: float) -> float:
        return 0.0 if self._opened_at is None else now - self._opened_at

    def _close(self, now: float) -> None:
        if self._open_seconds(now) >= STEADY_SECONDS:
            self._failures = 0
        if self._opened_at is not None and isinstance(self._request, Stream):
            self._request = ListPage()  # pages may succeed in a bad network where a stream of all objects does not
        self._opened_at = None
