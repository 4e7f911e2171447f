"""The relay of localhost node ports, over real TCP on loopback."""

from __future__ import annotations

import logging
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from time import sleep
from typing import Any, ClassVar

import pytest

from pyproxy.agent.observer import Observer
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.node.localhost_relay import Relay
from pyproxy.plan.localhost import RelayTarget
from tests.lab.waiting import wait_until

RESET = struct.pack("ii", 1, 0)
SECONDS = 20.0
OWNER = NamespacedName("default", "web")
LOCALHOST = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
Serve = Callable[[socket.socket], None]


@pytest.fixture
def relay() -> Iterator[Relay]:
    """Give a relay that tries often, and has room for few."""
    made = Relay(Observer(), retry_seconds=0.05, most_connections=4, most_flows=2, idle_seconds=0.5)
    yield made
    made.close()
    Backend.close_all()


class Backend:
    """An endpoint: each connection is served in a thread, until `close_all`."""

    _open: ClassVar[list[socket.socket]] = []

    def __init__(self, serve: Serve, family: Family = Family.IPV4) -> None:
        kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
        self._listener = socket.create_server((LOCALHOST[family], 0), family=kind)
        self._open.append(self._listener)
        self._serve = serve
        self.endpoint = Endpoint(parse_ip(LOCALHOST[family]), self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(connection)
            connection.settimeout(SECONDS)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @classmethod
    def close_all(cls) -> None:
        """End all endpoints and their connections."""
        for each in cls._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        cls._open.clear()


def saying(text: bytes) -> Serve:
    """Return what greets and goes."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client may be gone before
            connection.sendall(text)

    return serve


def echo_at_the_end(connection: socket.socket) -> None:
    """Answer with all that came, once the client has said everything."""
    with connection, suppress(OSError):  # the client may be gone before
        connection.sendall(read_all(connection))


def stay_silent(connection: socket.socket) -> None:
    """Neither read nor answer until the client is gone."""
    with connection:
        threading.Event().wait(SECONDS)


def send_all(connection: socket.socket, data: bytes) -> None:
    """Say something and no more."""
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def read_all(connection: socket.socket) -> bytes:
    """Return what comes until the end."""
    parts: list[bytes] = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def free_port(family: Family = Family.IPV4) -> int:
    """Return a port that is free at the moment."""
    kind = socket.AF_INET if family is Family.IPV4 else socket.AF_INET6
    with socket.create_server((LOCALHOST[family], 0), family=kind) as listener:
        return int(listener.getsockname()[1])


def connect(port: int, family: Family = Family.IPV4) -> socket.socket:
    """Return a connection to a port, which may come a little later."""
    found: list[socket.socket] = []

    def is_there() -> bool:
        try:
            found.append(socket.create_connection((LOCALHOST[family], port), timeout=SECONDS))
        except ConnectionRefusedError:
            return False
        return True

    wait_until(is_there)
    return found[0]


def refuses(port: int) -> bool:
    """Return whether connections to a port are refused."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # the relay has no room for one more
    return False


def target(*backends: Backend, affinity: int | None = None) -> RelayTarget:
    """Return a target with these endpoints."""
    return RelayTarget(tuple(backend.endpoint for backend in backends), affinity, OWNER)


@pytest.mark.parametrize("family", list(Family))
def test_half_closed_connections_carry_everything(relay: Relay, family: Family) -> None:
    """More bytes than any buffer holds pass both ways, and the end of one direction leaves the other open."""
    port, sent = free_port(family), bytes(range(256)) * 40_000
    relay.change(family, {(Protocol.TCP, port): target(Backend(echo_at_the_end, family))})
    with closing(connect(port, family)) as client:
        writer = threading.Thread(target=send_all, args=(client, sent))
        writer.start()
        received = read_all(client)
        writer.join()

    assert sent == received


def test_new_connections_use_the_new_endpoints(relay: Relay) -> None:
    """A change of endpoints counts for new connections; open ones stay where they are until their port ends."""
    port, reached = free_port(), threading.Event()

    def serve(connection: socket.socket) -> None:
        reached.set()
        echo_at_the_end(connection)

    relay.change(Family.IPV4, {(Protocol.TCP, port): target(Backend(serve))})
    with closing(connect(port)) as old:
        assert reached.wait(SECONDS)
        relay.change(Family.IPV4, {(Protocol.TCP, port): target(Backend(saying(b"new")))})
        with closing(connect(port)) as new:
            assert b"new" == read_all(new)
        send_all(old, b"old")

        assert b"old" == read_all(old)


def test_end_of_a_port_ends_its_connections(relay: Relay) -> None:
    """A node port that is gone refuses new connections and resets the open ones."""
    port = free_port()
    relay.change(Family.IPV4, {(Protocol.TCP, port): target(Backend(echo_at_the_end))})
    with closing(connect(port)) as client:
        relay.change(Family.IPV4, {(Protocol.TCP, port): None})
        with pytest.raises(ConnectionResetError):
            read_all(client)
    wait_until(lambda: refuses(port))


def test_affinity_holds_while_its_endpoint_is_there(relay: Relay) -> None:
    """With session affinity all connections use one endpoint, and another one only when that is gone."""
    port, backends = free_port(), {name: Backend(saying(name)) for name in (b"a", b"b", b"c")}
    relay.change(Family.IPV4, {(Protocol.TCP, port): target(*backends.values(), affinity=10)})

    def ask() -> bytes:
        with closing(connect(port)) as client:
            return read_all(client)

    pinned = {ask() for _ in range(20)}
    assert 1 == len(pinned)
    (gone,) = pinned
    relay.change(
        Family.IPV4,
        {(Protocol.TCP, port): target(*(each for name, each in backends.items() if name != gone), affinity=10)},
    )
    then = {ask() for _ in range(20)}

    assert (1, False) == (len(then), gone in then)


def test_every_endpoint_is_used(relay: Relay) -> None:
    """Without affinity connections are spread over all endpoints."""
    port, names = free_port(), {b"a", b"b"}
    relay.change(Family.IPV4, {(Protocol.TCP, port): target(*(Backend(saying(name)) for name in names))})
    met: set[bytes] = set()

    def meets_all() -> bool:
        with closing(connect(port)) as client:
            met.add(read_all(client))
        return met == names

    wait_until(meets_all)


def test_reset_is_passed_on(relay: Relay) -> None:
    """A backend that resets a connection has the client reset too: a part is never taken for the whole."""

    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.close()

    port = free_port()
    relay.change(Family.IPV4, {(Protocol.TCP, port): target(Backend(reset))})
    with closing(connect(port)) as client:
        client.sendall(b"x")
        with pytest.raises(ConnectionResetError):
            read_all(client)


def test_peer_that_never_reads_holds_nobody_up(relay: Relay) -> None:
    """A backend that takes no bytes stops its own client alone, after what the buffers hold."""
    slow, quick = free_port(), free_port()
    relay.change(
        Family.IPV4,
        {(Protocol.TCP, slow): target(Backend(stay_silent)), (Protocol.TCP, quick): target(Backend(saying(b"quick")))},
    )
    with closing(connect(slow)) as flooder:
        flooder.settimeout(1.0)
        with pytest.raises(TimeoutError):
            flooder.sendall(bytes(1 << 26))
        with closing(connect(quick)) as client:
            assert b"quick" == read_all(client)


def test_connections_are_bounded(relay: Relay) -> None:
    """One connection more than there is room for is reset; when another has ended there is room again."""
    port = free_port()
    relay.change(Family.IPV4, {(Protocol.TCP, port): target(Backend(echo_at_the_end))})
    held = [connect(port) for _ in range(4)]
    # The reset may come before `connect` has returned.
    with pytest.raises(ConnectionResetError), closing(connect(port)) as fifth:
        read_all(fifth)
    for client in held:
        client.close()

    def has_room() -> bool:
        try:
            with closing(connect(port)) as client:
                send_all(client, b"x")
                return read_all(client) == b"x"
        except OSError:
            return False

    wait_until(has_room)


def test_connections_and_flows_leave_files_for_the_agent() -> None:
    """With few files a process has fewer connections and flows, so that the agent's own work goes on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        few = Relay(Observer())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert 1024 / 2 >= 6 * few.most_connections + few.most_flows
    assert few.most_connections >= 64
    assert few.most_flows >= 128


def test_port_of_another_program_is_retried(relay: Relay, caplog: pytest.LogCaptureFixture) -> None:
    """A port that is taken is one error in the log, and served as soon as it is free."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = int(other.getsockname()[1])
        relay.change(Family.IPV4, {(Protocol.TCP, port): target(Backend(saying(b"at last")))})
        wait_until(lambda: bool(caplog.messages))
    with closing(connect(port)) as client:
        assert b"at last" == read_all(client)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    assert [f"localhost node port {port}/TCP (IPv4) is not served: Address already in use; will retry"] == errors


def test_new_ports_listen_when_a_change_is_done(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sync waits until a change is done, so an agent that is ready refuses no connection."""
    backend = Backend(saying(b"here"))
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(200)]
        ports = [int(each.getsockname()[1]) for each in held]
    create_server = socket.create_server

    def create_slowly(*args: Any, **kwargs: Any) -> socket.socket:  # noqa: ANN401  # whatever it is called with
        sleep(0.001)  # the thread that waits for the change has time to run
        return create_server(*args, **kwargs)

    monkeypatch.setattr(socket, "create_server", create_slowly)
    relay.change(Family.IPV4, {(Protocol.TCP, port): target(backend) for port in ports}).result(SECONDS)

    assert [] == [port for port in reversed(ports) if refuses(port)]
