"""An established connection through a Service, which no rule of a proxy sees any more: conntrack translates its packets.

``python -m tests.bench.established IP PORT`` is the endpoint: the first byte of a connection says whether it returns each
byte, or sends until the client closes the connection.
"""

import socket
import subprocess
import sys
import time
from contextlib import suppress

from tests.cluster.namespace import call_inside, command_inside
from tests.lab.waiting import wait_until

_ECHO, _SEND = b"e", b"s"
_ROUND_TRIPS = 5000
_SECONDS = 2.0
_CHUNK = 1 << 18


def measure_connection(
    namespace: str, service: tuple[str, int], endpoint: tuple[str, int]
) -> tuple[float, list[float]]:
    """Return bytes per second, and seconds of round trips, of connections inside a namespace."""
    command = [sys.executable, "-m", "tests.bench.established", endpoint[0], str(endpoint[1])]
    with subprocess.Popen(command_inside(namespace, command)) as server:
        try:
            return _throughput(_connect(namespace, service, _SEND)), _echoed(_connect(namespace, service, _ECHO))
        finally:
            server.kill()


def _connect(namespace: str, service: tuple[str, int], kind: bytes) -> socket.socket:
    made: list[socket.socket] = []

    def connects() -> bool:
        client = call_inside(namespace, socket.socket)
        client.settimeout(1)
        try:
            client.connect(service)
        except OSError:
            client.close()
            return False
        made.append(client)
        return True

    wait_until(connects, "a connection to the Service")
    [client] = made
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(kind)
    return client


def _throughput(client: socket.socket) -> float:
    buffer, total = bytearray(_CHUNK), 0
    began = time.monotonic()
    with client:
        while time.monotonic() - began < _SECONDS:
            total += client.recv_into(buffer)
        return total / (time.monotonic() - began)


def _echoed(client: socket.socket) -> list[float]:
    with client:
        client.settimeout(None)  # a time-out would add a system call to each operation
        return round_trips(client, _ROUND_TRIPS)


def round_trips(client: socket.socket, count: int) -> list[float]:
    """Return the times of round trips of one byte, in s; the server returns each byte."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        client.sendall(b"x")
        client.recv(1)
        times.append(time.perf_counter() - began)
    return times


def main() -> None:
    """Serve one connection after another."""
    listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
    data = bytes(_CHUNK)
    while True:
        connection = listener.accept()[0]
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, suppress(OSError):
            kind = connection.recv(1)
            while kind == _SEND:
                connection.sendall(data)
            while received := connection.recv(1):
                connection.sendall(received)


if __name__ == "__main__":
    main()
