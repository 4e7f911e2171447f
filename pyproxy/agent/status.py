"""Gathers the status of the agent for ``/statusz``, in the thread of a request.

It never waits for the agent's loop for more than a few seconds, and reads at most one page of Services in it, so that
neither a busy loop nor a request delays the other.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Literal

from pyproxy import __version__
from pyproxy.agent.service_text import cells, state_text
from pyproxy.agent.status_board import FamilyState, ServiceSource, StatusBoard
from pyproxy.agent.status_doctor import DoctorRuns
from pyproxy.backends.registry import open_dumper
from pyproxy.config.config import Config
from pyproxy.errors import PyproxyError
from pyproxy.model.address import Family, ip_text
from pyproxy.model.names import ServicePortName
from pyproxy.plan.service_values import is_problem
from pyproxy.serve.agent_status import (
    MOST_ITEMS,
    AgentStatus,
    Change,
    DoctorStatus,
    EarlierRules,
    FamilyStatus,
    NodeStatus,
    QuarantinedPort,
    ServicePage,
    ServiceStatus,
    WatchStatus,
)
from pyproxy.serve.status_text import counted, duration_text, time_text

_PAGE_SIZE = 50
# Time for which a request waits for the agent's loop.
_LOOP_SECONDS = 3.0
# The API server ends a watch after at most ten minutes, so a watch that is open for longer without a change is broken.
_STALE_SECONDS = 900.0
# Age up to which what was read from the kernel is shown again.
_FRESH_SECONDS = 30.0
# Checks of doctor whose findings the status has itself.
_OWN_CHECKS = frozenset({"agent", "last-sync", "watches", "quarantine"})


class StatusReporter:
    """Gathers the status. Call `status` in any thread but the one of the loop.

    Args:
        board: what the loop publishes.
        config: of the agent, with the mode in use.
        doctor: runs the checks.
        loop: the agent's loop.
        clock: returns the time in seconds since 1970.
    """

    def __init__(
        self,
        board: StatusBoard,
        config: Config,
        doctor: DoctorRuns,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float],
    ) -> None:
        self._board = board
        self._config = config
        self._doctor = doctor
        self._loop = loop
        self._clock = clock
        self._lock = threading.Lock()
        self._earlier: tuple[float, int, int, str] | None = None
        """When the kernel was read, as `monotonic` counts, the numbers of Services and of ports with rules, and the error."""

    def status(self, query: str, page: int) -> AgentStatus:
        """Return the status, with a page of the Services that match a query."""
        board, doctor, now = self._board, self._doctor.status(), self._clock()
        # Copies: the agent's loop may add an entry while this thread iterates.
        families = [
            _family(family, state, now)
            for family, state in sorted(dict(board.families).items(), key=lambda one: str(one[0]))
        ]
        is_synced = bool(families) and all(family.last_sync is not None for family in families)
        earlier, watches, invalid = (
            None if is_synced else self._earlier_rules(now),
            _watches(board, now),
            [*board.invalid],
        )
        problems = [
            *_own_problems(families, earlier, watches, len(invalid)),
            *_doctor_problems(doctor),
        ]
        is_failed = any(severity == "fail" for severity, _ in problems)
        return AgentStatus(
            api_version="pyproxy.io/v1alpha1",
            kind="AgentStatus",
            time=time_text(now),
            verdict="fail" if is_failed else "warn" if problems else "ok",
            problems=[text for wanted in ("fail", "warn") for severity, text in problems if severity == wanted],
            node=NodeStatus(
                board.node.name,
                [*map(ip_text, board.node.ips)],
                [*map(str, board.node.pod_cidrs)],
                [*map(str, self._config.cluster_cidr)],
                board.node.zone,
            ),
            version=__version__,
            mode=board.mode,
            variant=board.variant,
            started=time_text(board.started_at),
            uptime_seconds=round(max(0.0, now - board.started_at), 1),
            families=families,
            earlier_rules=earlier,
            watches=watches,
            invalid_count=len(invalid),
            invalid=invalid[:MOST_ITEMS],
            doctor=doctor,
            changes=[
                Change(time_text(each.at), _age(each.at, now), str(each.family), each.subject, each.text)
                for each in board.changes
            ],
            services=self._services(board.services, query, page),
        )

    def _earlier_rules(self, now: float) -> EarlierRules:
        with self._lock:
            if self._earlier is None or monotonic() - self._earlier[0] > _FRESH_SECONDS:
                # The time counts from before the read, which takes seconds if the tables are large.
                read_at, names, reason = monotonic(), set[ServicePortName](), ""
                try:
                    names = {name for each in asyncio.run(open_dumper(self._config).live()) for name in each.services}
                except (PyproxyError, OSError) as failure:
                    reason = str(failure)
                self._earlier = (read_at, len({name.service for name in names}), len(names), reason)
            _, services, ports, error = self._earlier
        at = self._board.current_at
        seconds = None if at is None else _age(at, now)
        return EarlierRules(services, ports, None if at is None else time_text(at), seconds, error)

    def _services(self, source: ServiceSource | None, query: str, page: int) -> ServicePage:
        if source is None:
            return ServicePage(query, 0, 0, 1, 1, [], "the agent has not started to work yet")
        total, names = source.find(query)
        pages = max(1, -(-len(names) // _PAGE_SIZE))
        page = min(max(1, page), pages)
        shown, error = names[(page - 1) * _PAGE_SIZE : page * _PAGE_SIZE], ""
        items: list[ServiceStatus] = []
        if shown:
            asked = asyncio.run_coroutine_threadsafe(source.services(shown), self._loop)
            try:
                found = asked.result(_LOOP_SECONDS).items
                items = [ServiceStatus(*cells(each), state_text(each), is_problem=is_problem(each)) for each in found]
            except TimeoutError:
                # Otherwise the busy loop would still compute an answer that is not used any more.
                asked.cancel()
                error = f"the agent is busy: it did not answer within {_LOOP_SECONDS:.0f} s"
        return ServicePage(query, total, len(names), page, pages, items, error)


def _age(at: float, now: float) -> float:
    return round(max(0.0, now - at), 1)


def _family(family: Family, state: FamilyState, now: float) -> FamilyStatus:
    at, quarantined = state.synced_at, sorted(state.quarantined.items())
    return FamilyStatus(
        str(family),
        dict(state.programmed),
        None if at is None else time_text(at),
        None if at is None else _age(at, now),
        state.error,
        len(quarantined),
        [QuarantinedPort(*each) for each in quarantined[:MOST_ITEMS]],
    )


def _watches(board: StatusBoard, now: float) -> list[WatchStatus]:
    found = []
    for kind, watch in sorted(dict(board.watches).items()):
        heard = None if watch.heard_at is None else _age(watch.heard_at, now)
        is_stale = not watch.reason and heard is not None and heard > _STALE_SECONDS
        state: Literal["watched", "lost", "stale"] = "lost" if watch.reason else "stale" if is_stale else "watched"
        found.append(WatchStatus(kind, state, _age(watch.since, now), heard, watch.reason))
    return found


def _own_problems(
    families: list[FamilyStatus], earlier: EarlierRules | None, watches: list[WatchStatus], invalid: int
) -> Iterator[tuple[str, str]]:
    """Yield severity and text of each problem of the rules, of objects and of their source."""
    if earlier is not None:
        text = "this run has not written any rules yet"
        if earlier.services:
            age = earlier.current_seconds
            known = "of unknown age" if age is None else f"last known to be up to date {duration_text(age)} ago"
            text += f"; the kernel has those of an earlier run for {counted(earlier.services, 'Service')}, {known}"
        yield "fail", text
    for family in families:
        if family.error:
            yield "fail", f"the last {family.family} sync failed"
        if family.quarantined_count:
            yield "fail", f"{counted(family.quarantined_count, 'Service port')} in quarantine ({family.family})"
    # Only warnings: without the API server the rules keep working, and an object that is not valid has its last good version.
    if lost := [watch for watch in watches if watch.state == "lost"]:
        lost_for = duration_text(max(watch.seconds for watch in lost))
        kinds = ", ".join(watch.kind for watch in lost)
        yield "warn", f"the API server is lost for {lost_for} ({kinds}), the last good state is kept"
    if stale := [watch.kind for watch in watches if watch.state == "stale"]:
        yield "warn", f"nothing arrives on the watch of {', '.join(stale)}"
    if invalid:
        yield "warn", f"{counted(invalid, 'problem')} of input objects; last good versions, if any, are in use"


def _doctor_problems(doctor: DoctorStatus) -> Iterator[tuple[str, str]]:
    """Yield severity and text of what doctor found, except for what the status has itself."""
    if doctor.error:
        yield "warn", doctor.error
    found: list[str] = [each.severity for each in doctor.findings if each.check not in _OWN_CHECKS]
    counts = [
        (severity, counted(count, noun))
        for severity, noun in (("fail", "failure"), ("warn", "warning"))
        if (count := found.count(severity))
    ]
    if counts:
        yield counts[0][0], f"doctor: {', '.join(text for _, text in counts)}"
