"""The status as it is gathered for a request: the verdict, the list of Services, and what it costs the loop."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from pyproxy.agent import status as status_module
from pyproxy.agent.status import StatusReporter
from pyproxy.agent.status_board import FamilyState, StatusBoard
from pyproxy.agent.status_doctor import DoctorRuns
from pyproxy.config.config import Config, ProxyMode
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName
from pyproxy.plan.service_table import State
from pyproxy.plan.service_values import EndpointsValues, ServiceList, ServiceValues
from pyproxy.serve.agent_status import AgentStatus
from pyproxy.serve.status_text import status_text
from pyproxy.serve.statusz import status_page

NOW = 1_700_000_000.0
MANY = 10_000
MOST_BYTES = 100_000


class Services:
    """The Services of a large cluster, which record which of them were requested in the loop."""

    def __init__(self, count: int) -> None:
        self.names = [NamespacedName("default", f"web-{number:05}") for number in range(count)]
        self.asked: list[NamespacedName] = []

    def find(self, query: str) -> tuple[int, list[NamespacedName]]:
        """Return the names that have the query."""
        return len(self.names), [name for name in self.names if query in name.name]

    async def services(self, names: Iterable[NamespacedName]) -> ServiceList:
        """Return a row for each name."""
        self.asked = list(names)
        nothing = EndpointsValues(0, 0, 0, ["10.0.0.1:80"] * 100)
        rows = [
            ServiceValues(
                name.namespace, name.name, "", None, "Cluster", nothing, None, [], State.OK, None, "", None, []
            )
            for name in self.asked
        ]
        return ServiceList("pyproxy.io/v1alpha1", "ServiceList", "node1", "iptables", "agent", [], rows)


@contextmanager
def running_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Run a loop in another thread, as the agent's is for the threads of requests."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def synced_board() -> StatusBoard:
    """Return the board of an agent that is in order."""
    made = StatusBoard("iptables", "node1", NOW - 60, "nft")
    made.families = {family: FamilyState({"service_port": 1}, synced_at=NOW - 5) for family in Family}
    made.set_watch("Service", "", NOW - 50)
    return made


def status(board: StatusBoard, query: str = "", page: int = 1, findings: str = "[]") -> AgentStatus:
    """Return the status of a board, with what doctor found."""
    command = [sys.executable, "-c", f"print('''{{\"findings\": {findings}}}''')"]
    with running_loop() as loop:
        doctor = DoctorRuns(command, lambda: NOW, wait_seconds=20)
        return StatusReporter(board, Config(proxy_mode=ProxyMode.IPTABLES), doctor, loop, lambda: NOW).status(
            query, page
        )


def finding(check: str, severity: str) -> str:
    """Return findings of one check."""
    return f'[{{"check": "{check}", "severity": "{severity}", "text": "a", "evidence": "b", "fix": "c"}}]'


def test_an_agent_in_order() -> None:
    """An agent that has synced, and whose watches work, has no problems."""
    found = status(synced_board(), findings=finding("node-ip", "ok"))

    assert ("ok", [], None, 60.0) == (found.verdict, found.problems, found.earlier_rules, found.uptime_seconds)
    assert ["IPv4", "IPv6"] == [family.family for family in found.families]
    assert ("watched", 50.0, 50.0) == (found.watches[0].state, found.watches[0].seconds, found.watches[0].heard_seconds)
    assert 1 == found.doctor.ok_count


@pytest.mark.parametrize(
    ("kind", "verdict", "problem"),
    [
        ("sync", "fail", "the last IPv4 sync failed"),
        ("quarantine", "fail", "1 Service port in quarantine (IPv4)"),
        ("lost", "warn", "the API server is lost for 1 min 30 s (Service), the last good state is kept"),
        ("stale", "warn", "nothing arrives on the watch of Service"),
        ("invalid", "warn", "2 problems of input objects; last good versions, if any, are in use"),
        ("doctor fails", "fail", "doctor: 1 failure"),
        ("doctor warns", "warn", "doctor: 1 warning"),
        ("doctor is broken", "warn", "pyproxy doctor failed: exit status 0"),
    ],
)
def test_problems(kind: str, verdict: str, problem: str) -> None:
    """Each problem alone turns the verdict."""
    board, findings = synced_board(), "[]"
    match kind:
        case "sync":
            board.families[Family.IPV4] = FamilyState(synced_at=NOW, error="no memory")
        case "quarantine":
            board.families[Family.IPV4] = FamilyState(synced_at=NOW, quarantined={"default/web (TCP)": "no"})
        case "lost":
            board.set_watch("Service", "refused", NOW - 90)
        case "stale":
            board.watches.clear()
            board.set_watch("Service", "", NOW - 1000)
        case "invalid":
            board.change_problems(["Service a", "Service b"], [])
        case "doctor fails":
            findings = finding("forwarding", "fail")
        case "doctor warns":
            findings = finding("services", "warn")
        case _:
            findings = "3"
    found = status(board, findings=findings)

    assert (verdict, [problem]) == (found.verdict, found.problems)


def test_what_the_status_has_itself_counts_once() -> None:
    """A finding of doctor about the agent itself is listed, but is not a second problem."""
    found = status(synced_board(), findings=finding("watches", "fail"))

    assert ("ok", ["watches"]) == (found.verdict, [each.check for each in found.doctor.findings])


@pytest.mark.parametrize(
    ("query", "page", "first", "shown", "pages"),
    [
        ("", 1, "web-00000", 50, 200),
        ("", 200, "web-09950", 50, 200),
        ("", 999_999, "web-09950", 50, 200),
        ("", 0, "web-00000", 50, 200),
        ("web-0012", 1, "web-00120", 10, 1),
    ],
)
def test_ten_thousand_services(query: str, page: int, first: str, shown: int, pages: int) -> None:
    """Of many Services one page is read in the loop and shown, so that every form of the status stays small."""
    board, services = synced_board(), Services(MANY)
    board.services = services
    found = status(board, query, page)

    assert (first, shown, pages, MANY) == (
        services.asked[0].name,
        len(found.services.items),
        found.services.pages,
        found.services.total,
    )
    assert shown == len(services.asked)
    assert all(len(form) < MOST_BYTES for form in (msgspec.json.encode(found), status_text(found), status_page(found)))


def test_every_list_has_a_limit() -> None:
    """Thousands of problems are counted, and the first of them listed."""
    board = synced_board()
    board.families[Family.IPV4] = FamilyState(
        synced_at=NOW, quarantined={f"default/s{number}": "no" for number in range(5000)}
    )
    board.change_problems([f"Service {number}" for number in range(5000)], [])
    found = status(board)

    assert (5000, 200) == (found.families[0].quarantined_count, len(found.families[0].quarantined))
    assert (5000, 200) == (found.invalid_count, len(found.invalid))


def test_a_busy_loop_delays_a_request_for_a_limited_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the loop does not answer, the page has everything else, and says why Services are missing."""
    monkeypatch.setattr(status_module, "_LOOP_SECONDS", 0.05)
    board = synced_board()
    board.services = Services(1)
    idle = asyncio.new_event_loop()
    doctor = DoctorRuns([sys.executable, "-c", "print('{\"findings\": []}')"], lambda: NOW, wait_seconds=20)
    found = StatusReporter(board, Config(), doctor, idle, lambda: NOW).status("", 1)
    idle.run_until_complete(asyncio.sleep(0))
    idle.close()

    assert ("the agent is busy: it did not answer within 0 s", 1, []) == (
        found.services.error,
        found.services.total,
        found.services.items,
    )
    assert "ok" == found.verdict
