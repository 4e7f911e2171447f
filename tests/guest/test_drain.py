"""Draining: a removed endpoint gets no new connections, and its real server stays until the last one has ended."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

from tests.guest.ipvs import virtual_servers, weights
from tests.lab import Connection, tcp, udp
from tests.lab.waiting import wait_until
from tests.packets.cluster import Cluster
from tests.packets.objects import JsonObject, On, port, service, slices, terminating

pytestmark = pytest.mark.needs_ipvs

FIRST, SECOND = "10.244.1.11:8080", "10.244.2.11:8080"
_numbers = itertools.count(150)


@dataclass(frozen=True, slots=True)
class Web:
    """A separate Service for each test, because the kernel keeps closed connections for two minutes."""

    cluster: Cluster
    service: JsonObject

    @property
    def ip(self) -> str:
        """The cluster IP."""
        return str(self.service["spec"]["clusterIP"])

    def weights(self, protocol: str = "TCP") -> dict[str, int]:
        """Return the weights of its real servers on the first node."""
        return weights(self.cluster.lab["node1"], f"{protocol} {self.ip}:80")

    def wait_for_weights(self, expected: Mapping[str, int]) -> None:
        """Wait until the real servers for TCP have these weights."""
        wait_until(lambda: self.weights() == expected, f"weights {expected}")

    def put(self, *endpoints: str | On) -> None:
        """Set the endpoints."""
        self.cluster.put(self.service, *slices(self.service, *endpoints))

    def leave(self) -> None:
        """Replace the first endpoint by the second, and wait until the first is draining."""
        self.put("pod2-1")
        self.wait_for_weights({FIRST: 0, SECOND: 1})


@pytest.fixture
def web(ipvs: Cluster) -> Iterator[Web]:
    """Provide a Service with one endpoint."""
    number = next(_numbers)
    item = service(f"web-{number}", number, port(80, "TCP", name="t"), port(80, "UDP", name="u"))
    with ipvs.having(item, *slices(item, "pod1-1")):
        yield Web(ipvs, item)


@pytest.fixture
def connection(web: Web) -> Iterator[Connection]:
    """Provide a connection to the endpoint."""
    with web.cluster.lab.client_pod.connect(tcp(web.ip, 80)) as opened:
        yield opened


def test_terminating_endpoint_keeps_its_connections(web: Web, connection: Connection) -> None:
    """A terminating endpoint has weight 0, and its connections continue."""
    web.put(terminating("pod1-1"), "pod2-1")

    web.wait_for_weights({FIRST: 0, SECOND: 1})
    newcomers = web.cluster.lab.client_pod.probe(*[tcp(web.ip, 80)] * 8)
    assert "pod1-1" == connection.ask().server
    assert {"pod2-1"} == {outcome.server for outcome in newcomers}


def test_endpoint_that_is_gone_stays_until_its_last_connection_ends(web: Web, connection: Connection) -> None:
    """The real server of an endpoint that is in no slice is deleted after its last connection has ended."""
    node = web.cluster.lab["node1"]
    web.leave()
    assert "pod1-1" == connection.ask().server
    assert {FIRST: 0, SECOND: 1} == web.weights()

    # The kernel keeps a closed connection for two minutes, and an idle one for the configured time-out.
    node.run("ipvsadm", "--set", "2", "0", "0")
    assert "pod1-1" == connection.ask().server
    web.wait_for_weights({SECOND: 1})
    node.run("ipvsadm", "--set", "900", "0", "0")


def test_idle_endpoint_is_deleted_soon(web: Web) -> None:
    """The real server of a removed endpoint without connections is deleted soon."""
    web.put("pod2-1")

    web.wait_for_weights({SECOND: 1})
    assert {SECOND: 1} == web.weights("UDP")


def test_udp_moves_at_once(web: Web) -> None:
    """A UDP flow of a removed endpoint moves to another one with its next packet."""
    with web.cluster.lab.client_pod.connect(udp(web.ip, 80)) as flow:
        assert "pod1-1" == flow.greeting.server

        web.put("pod2-1")

        wait_until(lambda: flow.ask().server == "pod2-1", "the other endpoint")
    assert {SECOND: 1} == web.weights("UDP")


def test_returning_endpoint_gets_its_weight_back(web: Web, connection: Connection) -> None:
    """An endpoint that returns is used again, and has kept its connection meanwhile."""
    web.leave()

    web.put("pod1-1", "pod2-1")

    web.wait_for_weights({FIRST: 1, SECOND: 1})
    assert "pod1-1" == connection.ask().server


def test_restart_in_the_middle_changes_nothing(web: Web, connection: Connection) -> None:
    """A new agent continues the draining: weight, start time and connection stay the same."""
    web.leave()
    node = web.cluster.lab["node1"]
    before = node.run("ipvsadm", "-Ln", "--thresholds", "-t", f"{web.ip}:80")

    web.cluster.restart()

    assert before == node.run("ipvsadm", "-Ln", "--thresholds", "-t", f"{web.ip}:80")
    assert "pod1-1" == connection.ask().server


def test_service_that_is_gone_keeps_its_connections(web: Web, connection: Connection) -> None:
    """The virtual server of a removed Service stays, with weight 0, while it has connections; an unused one is deleted at once."""
    web.cluster.remove(web.service, *slices(web.service, "pod1-1"))

    web.wait_for_weights({FIRST: 0})
    assert "pod1-1" == connection.ask().server
    assert f"UDP {web.ip}:80" not in virtual_servers(web.cluster.lab["node1"])
