"""The relay passes data unchanged, and fails exactly as commanded."""

import socket
from collections.abc import Iterator

import pytest

from .namespace import call_inside, fresh_namespace
from .relay import LOOPBACK, Relay

MESSAGE = b"0123456789abcdef" * 65_536
SILENCE_SECONDS = 0.2


@pytest.fixture
def listener(namespace: str) -> Iterator[socket.socket]:
    """Provide a listening socket in a separate namespace."""
    with call_inside(namespace, lambda: socket.create_server((LOOPBACK, 0))) as listening:
        yield listening


@pytest.fixture
def relay(listener: socket.socket, namespace: str) -> Iterator[Relay]:
    """Provide a relay to the listening socket."""
    made = Relay(int(listener.getsockname()[1]), namespace=namespace)
    yield made
    made.close()


def connect(port: int) -> socket.socket:
    """Connect from the namespace of the tests."""
    return socket.create_connection((LOOPBACK, port), timeout=5)


def read_all(stream: socket.socket) -> bytes:
    """Read until the end of the stream."""
    return b"".join(iter(lambda: stream.recv(1 << 20), b""))


def test_bytes_arrive_both_ways(relay: Relay, listener: socket.socket) -> None:
    """All bytes arrive, and one side may close its half of the stream while the other continues."""
    with connect(relay.listen()) as client, listener.accept()[0] as server:
        client.sendall(MESSAGE[:4])
        client.shutdown(socket.SHUT_WR)

        assert MESSAGE[:4] == read_all(server)
        server.sendall(MESSAGE)
        server.close()
        assert MESSAGE == read_all(client)


def test_clients_of_another_namespace(relay: Relay, listener: socket.socket) -> None:
    """A client reaches the server from a namespace that has no link to the server's."""
    with fresh_namespace() as elsewhere:
        port = relay.listen(elsewhere)
        with call_inside(elsewhere, lambda: connect(port)) as client, listener.accept()[0] as server:
            server.sendall(b"hello")

            assert b"hello" == client.recv(5)
        relay.leave(port)


def test_drop(relay: Relay, listener: socket.socket) -> None:
    """A dropped connection is reset on both sides; the next one works."""
    port = relay.listen()
    with connect(port) as client, listener.accept()[0] as server:
        relay.drop()
        for side in (client, server):
            with pytest.raises(ConnectionResetError):
                side.recv(1)
    with connect(port), listener.accept()[0]:
        pass


def test_hold(relay: Relay, listener: socket.socket) -> None:
    """Data sent while the relay holds arrives only after it resumes."""
    with connect(relay.listen()) as client, listener.accept()[0] as server:
        relay.hold()
        server.sendall(b"late")
        client.settimeout(SILENCE_SECONDS)
        with pytest.raises(TimeoutError):
            client.recv(4)
        relay.resume()
        client.settimeout(5)

        assert b"late" == client.recv(4)


def test_refuse(relay: Relay, listener: socket.socket) -> None:
    """A relay that refuses resets and refuses connections, and accepts them on the same port after it resumes."""
    port = relay.listen()
    with connect(port) as client, listener.accept()[0]:
        relay.refuse()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(port)
    relay.resume()
    with connect(port), listener.accept()[0]:
        pass


def test_leave(relay: Relay, listener: socket.socket) -> None:
    """A closed port refuses connections, its open ones are reset, and those of other ports continue."""
    left, kept = relay.listen(), relay.listen()
    with connect(left) as client, listener.accept()[0], connect(kept) as other, listener.accept()[0] as server:
        relay.leave(left)
        server.sendall(b"on")

        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            connect(left)
        assert b"on" == other.recv(2)


def test_server_away(relay: Relay, listener: socket.socket) -> None:
    """Without a server behind the relay, a client is accepted and then reset."""
    port = relay.listen()
    listener.close()
    with connect(port) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
