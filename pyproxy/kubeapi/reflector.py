"""List and watch as a state machine: what was heard goes in, what to ask for next and when comes out.

Law of this file: no I/O, no clock, no random number; a time is an argument in seconds of any monotonic clock, a random
number one in [0, 1). No object is kept: a complete list and every event are passed on, the tracker is the store.

    stream ── complete ─────────────────────────────→ watch ── ended ──→ watch
     │  ↑                                               ↑ │
     │  └──────────────────── 410 ──────────────────────┼─┤
     └─ not supported, ended too early ─→ list ── last page  └─ refused ──→ list
                                          │ ↑
                                          └─┴ next page; 410 → everything in one page

A stream (a watch with ``sendInitialEvents``) gives the list as events: the API server makes it from memory without
asking etcd, and neither side ever holds the whole. 20,000 objects of 22 MB take 1.2 s, in pages 2.3 s.

Only a watch that proved good (an event, a bookmark, or `STEADY_SECONDS` of silence) ends a series of failures. A list
alone does not: a server that lists but does not watch would otherwise be listed without a pause.
"""

from dataclasses import dataclass

PAGE_SIZE = 500
"""Objects in one page, as client-go's pager asks for."""
SHORTEST_DELAY_SECONDS = 0.2
LONGEST_DELAY_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 120.0
"""A server cannot keep us away longer than this, whatever its Retry-After says."""
SHORTEST_WATCH_SECONDS = 300
STEADY_SECONDS = 5.0
"""A watch that was open for so long is a good one, even if nothing happened in it."""
HASTY_SECONDS = 1.0
"""A watch that ends earlier and empty is a failure (client-go's «very short watch»): it would become a loop."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Ask for all objects as events, and for all changes after that."""


@dataclass(frozen=True, slots=True)
class ListPage:
    """Ask for a page of a list."""

    continue_token: str = ""
    """Empty asks for the first page."""
    limit: int = PAGE_SIZE
    """0 asks for everything at once."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Ask for all changes after a version."""

    resource_version: str


Request = Stream | ListPage | Watch


def delay_seconds(failures: int, random: float) -> float:
    """Return how long to wait after so many failures in a row: doubling up to 30 s, half of it at random."""
    # The exponent is limited because 2.0**1100 is an OverflowError, and a server may well be away for so long.
    ceiling = min(LONGEST_DELAY_SECONDS, 2 * SHORTEST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16))
    return ceiling * (1 + random) / 2


def watch_seconds(random: float) -> int:
    """Return how long a watch shall last at most: 5 to 10 minutes, so that not all agents reconnect at one time."""
    return int(SHORTEST_WATCH_SECONDS * (1 + random))


class Reflector:
    """One resource's place in list and watch."""

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
        """Return what to ask the server for now."""
        return self._request

    @property
    def failures(self) -> int:
        """Return how many requests in a row came to nothing."""
        return self._failures

    def page_listed(self, resource_version: str, continue_token: str) -> bool:
        """Take note of a page and tell whether it was the last one; the watch then starts at its version."""
        if continue_token:
            self._request = ListPage(continue_token)
            return False
        self._request = Watch(resource_version)
        return True

    def stream_completed(self, resource_version: str) -> None:
        """Take note that a stream has given all objects; it goes on as a watch."""
        self._request = Watch(resource_version)

    def stream_unsupported(self) -> None:
        """Take note that the server cannot stream lists; it gets asked for pages, now and ever after."""
        self._can_stream = False
        self._request = ListPage()

    def watch_opened(self, now: float) -> None:
        """Take note that the server accepted the watch or stream."""
        self._opened_at = now
        self._heard = False

    def observed(self, resource_version: str) -> None:
        """Take note of the version that an event or bookmark of the watch carries; empty says nothing new."""
        self._heard = True
        self._failures = 0
        if resource_version:
            self._request = Watch(resource_version)

    def watch_ended(self, now: float, random: float) -> float:
        """Take note that a watch ended, and return the seconds to wait before the next request."""
        if isinstance(self._request, Watch) and (self._heard or self._open_seconds(now) >= HASTY_SECONDS):
            self._close(now)
            return 0.0
        return self.failed(now, random)

    def failed(self, now: float, random: float, retry_after_seconds: float = 0.0) -> float:
        """Take note that a request failed and return the seconds to wait before it is repeated."""
        self._close(now)
        self._failures += 1
        return max(delay_seconds(self._failures, random), min(retry_after_seconds, LONGEST_RETRY_AFTER_SECONDS))

    def expired(self, now: float, random: float) -> float:
        """Take note of a 410: our version or page is too old. Return the seconds to wait before the new list.

        The history that a continue token needs may be gone at the third page each time, so that the list never ends;
        the next attempt is therefore a single page.
        """
        delay = self.failed(now, random)
        if isinstance(self._request, Watch):
            self._request = Stream() if self._can_stream else ListPage()
        elif isinstance(self._request, ListPage) and self._request.continue_token:
            self._request = ListPage(limit=0)
        return delay

    def refused(self, now: float, random: float, retry_after_seconds: float = 0.0) -> float:
        """Take note that the server refuses the request for another reason, and return the seconds to wait.

        A refused watch starts over with a list, as client-go does: its version may be the reason, and where only
        watching is forbidden the state is at least polled.
        """
        if not isinstance(self._request, ListPage):
            self._request = ListPage()
        return self.failed(now, random, retry_after_seconds)

    def _open_seconds(self, now: float) -> float:
        return 0.0 if self._opened_at is None else now - self._opened_at

    def _close(self, now: float) -> None:
        if self._open_seconds(now) >= STEADY_SECONDS:
            self._failures = 0
        if self._opened_at is not None and isinstance(self._request, Stream):
            self._request = ListPage()  # what a bad network does not let through as a whole it may in parts
        self._opened_at = None
