"""What health endpoints answer, by a clock that the test turns: kube-proxy's conditions, bodies, headers and codes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from wsgiref.types import WSGIApplication
from wsgiref.util import setup_testing_defaults

import pytest

from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName
from pyproxy.serve.health import WATCHES_LOST_SECONDS, Health, Moment, health_application, service_application

TIMEOUT_SECONDS = 60.0
START = 1_700_000_000.25
WEB = NamespacedName("default", "web")
JSON_HEADERS = {"Content-Type": "application/json", "X-Content-Type-Options": "nosniff"}


@dataclass
class Clock:
    """A clock that does not advance by itself."""

    seconds: float = 0.0
    step: float = 0.0
    """Seconds by which the wall clock was set forward."""

    def __call__(self) -> Moment:
        """Return the current moment."""
        return Moment(1000.0 + self.seconds, START + self.seconds + self.step)


@dataclass
class Node:
    """The health of an agent that has begun with both families, on a node that is there to stay."""

    clock: Clock
    health: Health

    def statuses(self) -> list[int]:
        """Return what /healthz, /livez and the health check node port of a Service with an endpoint answer."""
        return [*(self.get(path)[0] for path in ("/healthz", "/livez")), self.check(1)[0]]

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Get a path, and return status and body."""
        status, _, body = call(health_application(self.health), path)
        return status, json.loads(body)

    def check(self, count: int) -> tuple[int, dict[str, str], bytes]:
        """Ask the health check node port of a Service with so many local endpoints."""
        return call(service_application(WEB, lambda: count, self.health))


def call(
    app: WSGIApplication, path: str = "/", method: str = "GET", query: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """Ask a server, without a network."""
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_URI": path, "REQUEST_METHOD": method, "QUERY_STRING": query}
    setup_testing_defaults(environ)
    reported: list[tuple[str, Iterable[tuple[str, str]]]] = []

    def start(status: str, headers: list[tuple[str, str]], _: object = None) -> Any:  # noqa: ANN401  # WSGI's
        reported.append((status, headers))

    body = b"".join(app(environ, start))
    [(status, headers)] = reported
    return int(status.split()[0]), dict(headers), body


@pytest.fixture
def node() -> Node:
    """Give an agent that has done its first sync."""
    clock = Clock()
    health = Health(TIMEOUT_SECONDS, clock)
    health.begin(Family)
    health.set_node_eligible(True)
    health.synced(Family)
    return Node(clock, health)


def test_body_of_healthz(node: Node) -> None:
    """While all is well the body has kube-proxy's fields in kube-proxy's order, and «updated» means now."""
    node.clock.seconds = 3.5
    status, headers, body = call(health_application(node.health), "/healthz")

    assert (200, JSON_HEADERS) == (status, headers)
    expected = (
        '{"lastUpdated":"2023-11-14T22:13:23.75Z","currentTime":"2023-11-14T22:13:23.75Z","nodeEligible":true,'
        '"healthy":true,"status":{"IPv4":{"lastUpdated":"2023-11-14T22:13:20.25Z","healthy":true},'
        '"IPv6":{"lastUpdated":"2023-11-14T22:13:20.25Z","healthy":true}}}'
    )
    assert expected == body.decode()


def test_body_of_livez(node: Node) -> None:
    """/livez says the same, and nothing of the node."""
    (_, healthz), (_, livez) = node.get("/healthz"), node.get("/livez")

    assert livez == {key: value for key, value in healthz.items() if key != "nodeEligible"}


def test_before_there_are_families() -> None:
    """Before the mode is known no work is pending; without a Node load balancers must not use this node."""
    health = health_application(Health(TIMEOUT_SECONDS, Clock()))
    status, _, body = call(health, "/livez")

    assert 200 == status
    assert {"lastUpdated", "currentTime", "healthy"} == json.loads(body).keys()
    assert 503 == call(health, "/healthz")[0]


def test_work_that_is_pending_for_too_long(node: Node) -> None:
    """From the time-out on that one work is pending all endpoints say no, until it is done."""
    node.health.queued()
    node.clock.seconds = TIMEOUT_SECONDS - 1
    node.health.queued()  # more work does not make the first younger
    in_time = node.statuses()
    node.clock.seconds = TIMEOUT_SECONDS
    late, body = node.statuses(), node.get("/healthz")[1]
    node.health.synced(Family)

    assert ([200] * 3, [503] * 3, [200] * 3) == (in_time, late, node.statuses())
    assert (False, True, "2023-11-14T22:13:20.25Z") == (body["healthy"], body["nodeEligible"], body["lastUpdated"])


def test_one_family_alone(node: Node) -> None:
    """A family whose syncs fail makes the whole agent unhealthy, and the body says which it is."""
    node.health.queued()
    node.clock.seconds = 1
    node.health.synced([Family.IPV4])
    node.clock.seconds = TIMEOUT_SECONDS
    status, body = node.get("/livez")

    assert (503, "2023-11-14T22:13:21.25Z") == (status, body["lastUpdated"])
    assert {"IPv4": True, "IPv6": False} == {family: each["healthy"] for family, each in body["status"].items()}


def test_old_syncs_are_no_harm(node: Node) -> None:
    """Where nothing is pending nothing is late, however long ago the last sync was."""
    node.clock.seconds = 1e6

    assert [200] * 3 == node.statuses()


def test_a_node_on_its_way_out(node: Node) -> None:
    """/healthz alone says no, with a body that calls the proxy healthy."""
    node.health.set_node_eligible(False)
    node.clock.seconds = 1
    status, body = node.get("/healthz")

    assert [503, 200, 200] == node.statuses()
    assert (503, False, True) == (status, body["nodeEligible"], body["healthy"])
    assert "2023-11-14T22:13:20.25Z" == body["lastUpdated"]


def test_ten_minutes_without_the_api_server(node: Node) -> None:
    """A lost API server turns neither of kube-proxy's endpoints, nor a health check node port, at any time."""
    node.health.set_watching(False)
    for node.clock.seconds in range(601):
        assert [200] * 3 == node.statuses()


def test_readiness_without_the_api_server(node: Node) -> None:
    """/readyz says no from the documented time on, and yes once changes arrive again."""
    node.health.set_watching(False)
    node.clock.seconds = WATCHES_LOST_SECONDS - 1
    node.health.set_watching(False)  # one more kind is lost
    before = node.get("/readyz")
    node.clock.seconds = WATCHES_LOST_SECONDS
    after = node.get("/readyz")
    node.health.set_watching(True)

    assert [200, 503, 200] == [before[0], after[0], node.get("/readyz")[0]]
    assert {
        "ready": False,
        "firstSyncDone": True,
        "lastSyncGood": True,
        "watchesLostSeconds": WATCHES_LOST_SECONDS,
    } == after[1]


def test_readiness_by_syncs() -> None:
    """Ready is who has done a first sync, and whose last one was good in all families."""
    health = Health(TIMEOUT_SECONDS, Clock())
    node = Node(Clock(), health)
    reported = []
    for families in (None, (), [Family.IPV4], Family, [Family.IPV6], Family):
        if families is None:
            health.begin(Family)
        else:
            health.synced(families)
        status, body = node.get("/readyz")
        reported.append((status, body["firstSyncDone"], body["lastSyncGood"]))

    not_yet, good = (503, False, False), (200, True, True)
    assert [not_yet, not_yet, not_yet, good, (503, True, False), good] == reported


def test_waiting_for_readiness() -> None:
    """A request that may wait is answered with 200 once the first sync is done, and with 503 if that takes longer."""
    health = Health(TIMEOUT_SECONDS, Clock())
    health.begin(Family)
    statuses = [call(health_application(health), "/readyz", query=query)[0] for query in ("wait=0", "wait=x", "")]
    syncing = threading.Timer(0.05, health.synced, [Family])

    syncing.start()

    assert 200 == call(health_application(health), "/readyz", query="wait=20")[0]
    assert [503] * 3 == statuses
    syncing.join()


def test_a_clock_that_is_set(node: Node) -> None:
    """Setting the wall clock does not make work look old."""
    node.health.queued()
    node.clock.step = 1e6

    assert [200] * 3 == node.statuses()


@pytest.mark.parametrize("path", ["/", "/healthz/", "/metrics"])
def test_other_paths(node: Node, path: str) -> None:
    """Other paths are not there, in Go's words."""
    text = {"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"}

    assert (404, text, b"404 page not found\n") == call(health_application(node.health), path)


def test_answers_are_reported(node: Node) -> None:
    """The callback for answers gets the path and status of each."""
    reported: list[tuple[str, int]] = []
    application = health_application(node.health, lambda path, code: reported.append((path, code)))
    for path in ("/healthz", "/nowhere", "/livez"):
        call(application, path)
    node.health.set_node_eligible(False)
    call(application, "/healthz")

    assert [("/healthz", 200), ("/livez", 200), ("/healthz", 503)] == reported


def test_health_check_node_port(node: Node) -> None:
    """The body is kube-proxy's to the byte, and the header says how many endpoints there are."""
    expected = """{
	"service": {
		"namespace": "default",
		"name": "web"
	},
	"localEndpoints": 2,
	"serviceProxyHealthy": true
}"""
    assert (200, JSON_HEADERS | {"X-Load-Balancing-Endpoint-Weight": "2"}, expected.encode()) == node.check(2)


def test_health_check_node_port_without_endpoints(node: Node) -> None:
    """Without a local endpoint the node is none for the load balancer."""
    status, headers, body = node.check(0)

    assert (503, "0") == (status, headers["X-Load-Balancing-Endpoint-Weight"])
    assert (0, True) == (json.loads(body)["localEndpoints"], json.loads(body)["serviceProxyHealthy"])
