"""The relay of localhost node ports, over real UDP on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from pyproxy.agent.observer import Observer
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.node.localhost_relay import Relay
from pyproxy.plan.localhost import RelayTarget
from tests.lab.waiting import wait_until

LOCALHOST = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
DOMAINS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
SECONDS = 20.0
IDLE_SECONDS = 0.3
V4 = Family.IPV4


@pytest.fixture
def relay() -> Iterator[Relay]:
    """Give a relay that tries often, has room for few flows and forgets them soon."""
    made = Relay(Observer(), retry_seconds=0.05, most_flows=2, idle_seconds=IDLE_SECONDS)
    yield made
    made.close()


def bound(family: Family = V4) -> socket.socket:
    """Return a socket with a port of its own."""
    made = socket.socket(DOMAINS[family], socket.SOCK_DGRAM)
    made.bind((LOCALHOST[family], 0))
    made.settimeout(SECONDS)
    return made


class Backend:
    """An endpoint that answers each datagram with its name and the port that it came from."""

    def __init__(self, name: bytes, family: Family = V4) -> None:
        self._name = name
        self._socket = bound(family)
        self._socket.settimeout(None)
        self.endpoint = Endpoint(parse_ip(LOCALHOST[family]), self._socket.getsockname()[1])
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            data, sender = self._socket.recvfrom(1 << 16)
            self._socket.sendto(b"%s %d %s" % (self._name, sender[1], data), sender)


def target(*backends: Backend, affinity: int | None = None, serving: tuple[Backend, ...] = ()) -> RelayTarget:
    """Return a target with these endpoints."""
    endpoints = tuple(each.endpoint for each in backends)
    return RelayTarget(
        endpoints, affinity, NamespacedName("default", "dns"), frozenset(each.endpoint for each in serving)
    )


def serve(relay: Relay, family: Family, now: RelayTarget) -> int:
    """Have the relay serve a free port, and return it once it does."""
    with bound(family) as free:
        port = int(free.getsockname()[1])
    relay.change(family, {(Protocol.UDP, port): now}).result(SECONDS)

    def is_served() -> bool:
        try:
            with socket.socket(DOMAINS[family], socket.SOCK_DGRAM) as other:
                other.bind((LOCALHOST[family], port))
        except OSError:
            return True
        return False

    wait_until(is_served)
    return port


def client(port: int, family: Family = V4) -> socket.socket:
    """Return a client of a node port."""
    made = socket.socket(DOMAINS[family], socket.SOCK_DGRAM)
    made.connect((LOCALHOST[family], port))
    made.settimeout(SECONDS)
    return made


def ask(asking: socket.socket) -> tuple[bytes, bytes]:
    """Return who answers, and the relay's port that it saw."""
    asking.send(b"hello")
    name, port, _ = asking.recv(1 << 16).split(b" ")
    return name, port


@pytest.mark.parametrize("family", list(Family))
def test_datagrams_pass_both_ways(relay: Relay, family: Family) -> None:
    """A large datagram reaches the endpoint and its answer the client."""
    port = serve(relay, family, target(Backend(b"a", family)))
    with client(port, family) as asking:
        asking.send(b"x" * 9000)

        assert asking.recv(1 << 16).endswith(b" " + b"x" * 9000)


def test_flow_stays_with_its_endpoint_while_that_serves(relay: Relay) -> None:
    """A flow stays while its endpoint serves, and goes to another endpoint with the first datagram after that."""
    old, new = Backend(b"old"), Backend(b"new")
    port = serve(relay, V4, target(old))
    with client(port) as asking:
        first = ask(asking)[0]
        relay.change(V4, {(Protocol.UDP, port): target(new, serving=(old,))}).result(SECONDS)
        with client(port) as other:
            assert b"new" == ask(other)[0]
        kept = ask(asking)[0]
        relay.change(V4, {(Protocol.UDP, port): target(new)}).result(SECONDS)
        wait_until(lambda: ask(asking)[0] == b"new")

    assert (b"old", b"old") == (first, kept)


def test_node_port_without_endpoints_refuses(relay: Relay) -> None:
    """When a node port is not relayed any more its clients are refused."""
    port = serve(relay, V4, target(Backend(b"a")))
    with client(port) as asking:
        ask(asking)
        # What is still in the queue when the socket is closed is lost: no answer, and no refusal.
        asking.settimeout(0.1)
        relay.change(V4, {(Protocol.UDP, port): None}).result(SECONDS)

        def is_refused() -> bool:
            try:
                ask(asking)
            except ConnectionRefusedError:
                return True
            except TimeoutError:
                pass
            return False

        wait_until(is_refused)


def test_affinity_pins_all_flows(relay: Relay) -> None:
    """With session affinity all flows of a port have one endpoint."""
    port = serve(relay, V4, target(*(Backend(name) for name in (b"a", b"b", b"c")), affinity=10))
    met = set()
    for _ in range(20):
        with client(port) as asking:
            met.add(ask(asking)[0])

    assert 1 == len(met)


def test_idle_flow_is_forgotten(relay: Relay) -> None:
    """After its idle time-out a flow is replaced by a new one, with another source port of the relay."""
    port = serve(relay, V4, target(Backend(b"a")))
    with client(port) as asking:
        _, first = ask(asking)
        assert first == ask(asking)[1]
        threading.Event().wait(IDLE_SECONDS * 2)

        assert first != ask(asking)[1]


def test_flows_are_bounded(relay: Relay) -> None:
    """One flow more than there is room for ends the one that was idle for the longest time, and no other."""
    port = serve(relay, V4, target(Backend(b"a")))
    with client(port) as first, client(port) as second, client(port) as third:
        before = [ask(each)[1] for each in (first, second)]
        ask(third)
        after = [ask(each)[1] for each in (second, first)]

    assert (True, False) == (before[1] == after[0], before[0] == after[1])
