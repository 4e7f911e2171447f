"""Measures the relay for localhost node ports: ``python -m tests.bench.relay``.

A server, the relay and a client are processes of their own on loopback. Each round measures a direct connection and one
through the relay, one right after the other, so that both see the same machine:

latency      round trip of one byte, on an established connection
connection   from `connect` to the first byte of the answer, a new connection each time
throughput   one connection, and eight at a time
sync delay   how late a timer of 1 ms in the event loop that owns the agent's state is, idle and beside eight connections
             at full speed: the relay's thread shares the interpreter with it
"""

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from pyproxy.agent.observer import Observer
from pyproxy.model.address import Family, parse_ip
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import NamespacedName, Protocol
from pyproxy.node.localhost_relay import Relay
from pyproxy.plan.localhost import RelayTarget
from tests.bench.established import round_trips

LOCALHOST = "127.0.0.1"
_CHUNK = 1 << 18
_ECHO, _SEND = b"e", b"s"
"""The first byte of a connection: return each byte, or send until the client is gone."""


def serve(port_writer: Connection) -> None:
    """Serve connections for ever; the port is sent first."""
    listener = socket.create_server((LOCALHOST, 0), backlog=512)
    port_writer.send(listener.getsockname()[1])
    data = bytes(_CHUNK)

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kind = connection.recv(1)
            try:
                if kind == _SEND:
                    while True:
                        connection.sendall(data)
                connection.sendall(kind)
                while received := connection.recv(4096):
                    connection.sendall(received)
            except OSError:
                return

    while True:
        threading.Thread(target=answer, args=listener.accept()[:1], daemon=True).start()


def relay(port_writer: Connection, server_port: int, commands: Connection) -> None:
    """Relay one node port; answer each command, a number of seconds, with the delays of a timer in another loop, in s."""
    with socket.create_server((LOCALHOST, 0)) as free:
        port = int(free.getsockname()[1])
    endpoint = Endpoint(parse_ip(LOCALHOST), server_port)
    target = RelayTarget((endpoint,), None, NamespacedName("default", "web"))
    Relay(Observer()).change(Family.IPV4, {(Protocol.TCP, port): target}).result()
    port_writer.send(port)

    async def timer_delays(seconds: float) -> list[float]:
        delays: list[float] = []
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            await asyncio.sleep(0.001)
            delays.append(time.monotonic() - began - 0.001)
        return delays

    while True:
        commands.send(asyncio.run(timer_delays(commands.recv())))


def connect(port: int, kind: bytes) -> socket.socket:
    """Return a connection that has said what it is for."""
    connection = socket.create_connection((LOCALHOST, port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(kind)
    return connection


def latencies(port: int, count: int) -> list[float]:
    """Return round-trip times of one byte in s."""
    with connect(port, _ECHO) as connection:
        connection.recv(1)
        return round_trips(connection, count)


def connection_times(port: int, count: int) -> list[float]:
    """Return the times of new connections, up to the first byte of the answer, in s."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        with connect(port, _ECHO) as connection:
            connection.recv(1)
            times.append(time.perf_counter() - began)
    return times


def receive(port: int, seconds: float, result: Connection | None = None) -> int:
    """Return, or send, how many bytes a connection receives."""
    total = 0
    buffer = bytearray(_CHUNK)
    end = time.monotonic() + seconds
    with connect(port, _SEND) as connection:
        while time.monotonic() < end:
            total += connection.recv_into(buffer)
    if result is not None:
        result.send(total)
    return total


@contextmanager
def receivers(port: int, count: int, seconds: float) -> Iterator[Callable[[], float]]:
    """Receive over some connections, each in a process of its own; the value returns bytes/s of all once they have ended."""
    pipes = [multiprocessing.Pipe(duplex=False) for _ in range(count)]
    processes = [multiprocessing.Process(target=receive, args=(port, seconds, writer)) for _, writer in pipes]
    for process in processes:
        process.start()
    try:
        yield lambda: sum(reader.recv() for reader, _ in pipes) / seconds
    finally:
        for process in processes:
            process.join()


def summary(values: list[float], unit: float, digits: int = 0) -> str:
    """Return the median and the range of some values."""
    median, low, high = (
        f"{value / unit:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({low}-{high})"


def percentile(values: list[float], share: float) -> float:
    """Return the value below which a share of all is."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def main() -> None:
    """Measure in rounds and print a table: the median of all rounds and the range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each throughput measurement")
    arguments = parser.parse_args()
    reader, writer = multiprocessing.Pipe(duplex=False)
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(writer,), daemon=True)
    server.start()
    server_port = reader.recv()
    relaying = multiprocessing.Process(target=relay, args=(writer, server_port, there), daemon=True)
    relaying.start()
    ports = {"direct": server_port, "relay": reader.recv()}
    found: dict[tuple[str, str], list[float]] = {}

    def add(name: str, way: str, value: float) -> None:
        found.setdefault((name, way), []).append(value)

    for number in range(1, arguments.rounds + 1):
        print(f"round {number} of {arguments.rounds}", flush=True)
        for way, port in ports.items():
            times = latencies(port, 2000)
            add("latency p50, us", way, percentile(times, 0.5))
            add("latency p99, us", way, percentile(times, 0.99))
            times = connection_times(port, 300)
            add("connection p50, us", way, percentile(times, 0.5))
            add("connection p99, us", way, percentile(times, 0.99))
            add("throughput of 1, MB/s", way, receive(port, arguments.seconds) / arguments.seconds)
            with receivers(port, 8, arguments.seconds) as bytes_per_second:
                if way == "relay":
                    here.send(arguments.seconds * 0.7)
                    add("sync delay p99, us", "busy", percentile(here.recv(), 0.99))
                add("throughput of 8, MB/s", way, bytes_per_second())
        here.send(arguments.seconds)
        add("sync delay p99, us", "idle", percentile(here.recv(), 0.99))
    for (name, way), values in sorted(found.items()):
        unit = 1e6 if name.endswith("MB/s") else 1e-6
        print(f"{name:24} {way:8} {summary(values, unit)}")


if __name__ == "__main__":
    main()
