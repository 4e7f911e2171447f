"""Computes the answers of the health servers. It opens no socket, and the clock is an argument.

``/healthz`` and ``/livez`` are kube-proxy's (``pkg/proxy/healthcheck/proxy_health.go``). They fail if work is pending for
too long; ``/healthz`` also fails if the node is being removed. If the API server is unavailable, no work is pending, so
neither changes. ``/readyz`` exists only in pyproxy. A health check node port (``service_health.go``) reports to load
balancers how many endpoints of its Service this node has.

The agent's thread sets values, and the threads of requests read them: each value is replaced as a whole.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName
from pyproxy.serve.http_exchange import redirect

WATCHES_LOST_SECONDS = 300.0
"""Time for which watches may be lost before ``/readyz`` fails: longer than an API server takes to restart."""
_MOST_WAIT_SECONDS = 20
"""Less than the maximum duration of a connection (``listeners.py``)."""
_WAIT = re.compile(r"wait=(\d{1,2})")
"""The query of ``/readyz``: seconds to wait for the first sync."""
_JSON = ("Content-Type", "application/json")
_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_NO_SNIFF = ("X-Content-Type-Options", "nosniff")


class Moment(NamedTuple):
    """A time on two clocks, in seconds, so that a step of the wall clock does not make work look old."""

    monotonic: float
    wall: float
    """Seconds since 1970."""

    @classmethod
    def now(cls) -> "Moment":
        """Return the current time."""
        return cls(time.monotonic(), time.time())

    def seconds_since(self, earlier: "Moment") -> float:
        """Return the time since another moment."""
        return self.monotonic - earlier.monotonic

    def __str__(self) -> str:
        """Return the time as Go marshals it: RFC 3339, without zeros at the end of the fraction."""
        text = f"{datetime.fromtimestamp(self.wall, UTC):%Y-%m-%dT%H:%M:%S.%f}"
        return text.rstrip("0").rstrip(".") + "Z"


@dataclass(frozen=True, slots=True)
class FamilyHealth:
    """Pending work and syncs of one family."""

    synced: Moment
    """Time of the last successful sync, or of the start."""
    queued: Moment | None = None
    """Time since which work is pending; None if none is."""
    is_good: bool = False
    """Whether the last sync succeeded; False before the first."""


class Health:
    """The health of one agent.

    Args:
        timeout_seconds: time for which work may be pending; kube-proxy uses two sync periods.
        clock: returns the current time.
    """

    def __init__(self, timeout_seconds: float, clock: Callable[[], Moment] = Moment.now) -> None:
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._families: Mapping[Family, FamilyHealth] = {}
        self._is_node_eligible = False
        self._first_sync = threading.Event()
        self._watches_lost: Moment | None = None

    def begin(self, families: Iterable[Family]) -> None:
        """Record the families, and that their work starts."""
        now = self._clock()
        self._families = {family: FamilyHealth(now) for family in families}

    def queued(self) -> None:
        """Record that there is work to do, in all families, until `synced` reports that a family is done."""
        now = self._clock()
        self._families = {
            family: state if state.queued else replace(state, queued=now) for family, state in self._families.items()
        }

    def synced(self, families: Iterable[Family]) -> None:
        """Record the families whose sync succeeded; all other families failed."""
        now, done = self._clock(), set(families)
        self._families = {
            family: FamilyHealth(now, is_good=True) if family in done else replace(state, is_good=False)
            for family, state in self._families.items()
        }
        # Once set it stays: later failures concern changes, while the rules of the first sync stay in place.
        if all(state.is_good for state in self._families.values()):
            self._first_sync.set()

    def set_node_eligible(self, is_eligible: bool) -> None:  # noqa: FBT001  # a value to be kept
        """Record whether load balancers may use this node."""
        self._is_node_eligible = is_eligible

    def set_watching(self, is_watching: bool) -> None:  # noqa: FBT001  # a value to be kept
        """Record whether changes arrive."""
        if is_watching:
            self._watches_lost = None
        elif self._watches_lost is None:
            self._watches_lost = self._clock()

    @property
    def is_healthy(self) -> bool:
        """Return whether no work is pending for too long."""
        now = self._clock()
        return all(self._is_family_healthy(state, now) for state in self._families.values())

    def _is_family_healthy(self, state: FamilyHealth, now: Moment) -> bool:
        return state.queued is None or now.seconds_since(state.queued) < self._timeout_seconds

    def wait_for_first_sync(self, seconds: float) -> None:
        """Wait in the thread of a request until all families are synced for the first time, at most for this time."""
        self._first_sync.wait(seconds)

    def livez(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether the agent is alive, and the body of the answer."""
        # A node that is being removed is still alive: its connections must be served until they end.
        return self._answer({}, is_eligible=True)

    def healthz(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether load balancers should use this node, and the body of the answer."""
        is_eligible = self._is_node_eligible
        return self._answer({"nodeEligible": is_eligible}, is_eligible=is_eligible)

    def _answer(self, more: Mapping[str, bool], *, is_eligible: bool) -> tuple[bool, Mapping[str, Any]]:
        now, families = self._clock(), self._families
        status = {
            str(family): {"lastUpdated": str(state.synced), "healthy": self._is_family_healthy(state, now)}
            for family, state in families.items()
        }
        is_healthy = all(each["healthy"] for each in status.values())
        # kube-proxy reports the current time while it is healthy, else the last sync, or Go's zero time before the first.
        last = max((state.synced for state in families.values()), default=None)
        updated = str(now) if is_healthy and is_eligible else str(last) if last else "0001-01-01T00:00:00Z"
        body = {"lastUpdated": updated, "currentTime": str(now), **more, "healthy": is_healthy}
        return is_healthy and is_eligible, body | ({"status": status} if status else {})

    def readyz(self) -> tuple[bool, Mapping[str, Any]]:
        """Return whether this node's rules are complete and up to date, and the body of the answer with the reasons."""
        # Of `_watches_lost` a copy: the agent's thread may set it to None between two uses.
        now, lost, is_synced = self._clock(), self._watches_lost, self._first_sync.is_set()
        lost_seconds = now.seconds_since(lost) if lost else 0.0
        is_last_good = all(state.is_good for state in self._families.values())
        is_ready = is_synced and is_last_good and lost_seconds < WATCHES_LOST_SECONDS
        body = {
            "ready": is_ready,
            "firstSyncDone": is_synced,
            "lastSyncGood": is_synced and is_last_good,
            "watchesLostSeconds": round(lost_seconds, 3),
        }
        return is_ready, body


Answered = Callable[[str, int], None]
"""Called with the path and the status code of an answer."""


def health_application(health: Health, answered: Answered = lambda _path, _code: None) -> WSGIApplication:
    """Return the application of ``--healthz-bind-address``."""
    answers = {"/healthz": health.healthz, "/livez": health.livez, "/readyz": health.readyz}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        # The method does not matter for a page: kube-proxy's handlers do not look at it.
        # As in ``http.ServeMux``: an asterisk is valid for OPTIONS only, and other paths are redirected to the clean form.
        if environ["REQUEST_URI"] == "*":
            start_response(_line(HTTPStatus.BAD_REQUEST), [])
            return []
        if method != "CONNECT" and path != (clean := _clean(path)):
            query = f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else ""
            return redirect(quote(clean, "/!$&'()*+,:;=@", "latin-1") + query, method, start_response)
        if path not in answers:
            # Text and headers are those of ``http.Error``, which ends the text with a newline.
            start_response(_line(HTTPStatus.NOT_FOUND), [_TEXT, _NO_SNIFF])
            return [b"404 page not found\n"]
        if path == "/readyz" and (wait := _WAIT.fullmatch(environ["QUERY_STRING"])):
            health.wait_for_first_sync(min(int(wait[1]), _MOST_WAIT_SECONDS))
        is_good, body = answers[path]()
        status = HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE
        answered(path, status)
        start_response(_line(status), [_JSON, _NO_SNIFF])
        return [json.dumps(body, separators=(",", ":")).encode()]

    return answer


def service_application(name: NamespacedName, local_endpoints: Callable[[], int], health: Health) -> WSGIApplication:
    """Return the application of a health check node port; it gives the same answer on every path.

    Args:
        name: name of the Service.
        local_endpoints: returns the number of its ready endpoints on this node.
        health: health of the agent.
    """

    def answer(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # Load balancers that know the header distribute by the number of endpoints; older ones look at the status only.
        count, is_healthy = local_endpoints(), health.is_healthy
        status = HTTPStatus.OK if count and is_healthy else HTTPStatus.SERVICE_UNAVAILABLE
        body = {
            "service": {"namespace": name.namespace, "name": name.name},
            "localEndpoints": count,
            "serviceProxyHealthy": is_healthy,
        }
        start_response(_line(status), [_JSON, _NO_SNIFF, ("X-Load-Balancing-Endpoint-Weight", str(count))])
        return [json.dumps(body, indent="\t").encode()]

    return answer


def _clean(path: str) -> str:
    # As Go's `cleanPath` (net/http/server.go): without empty segments, `.` and `..`; a slash at the end stays.
    segments: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del segments[-1:]
        elif segment not in {"", "."}:
            segments.append(segment)
    end = "/" if segments and path.endswith("/") else ""
    return f"/{'/'.join(segments)}{end}"


def _line(status: HTTPStatus) -> str:
    return f"{status.value} {status.phrase}"
