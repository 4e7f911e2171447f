"""Clients that are slow, send garbage or want too much, over real TCP on loopback, and usual clients beside them."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest

from pyproxy.model.address import ListenAddress
from pyproxy.serve import http_exchange
from pyproxy.serve import listeners as listeners_module
from pyproxy.serve.listeners import HttpService, Listeners
from tests.lab.http_shapes import SHAPES
from tests.lab.waiting import wait_until

from .http_client import connected, free_address, get

LARGE = b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 300_000
"""A part of a head that is larger than usual ones, and below the limit of one."""
BIG_BODY = b"x" * (64 << 20)
"""More than the buffers of a connection on loopback take."""


def hello(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer everything with a word."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def serve(listeners: Listeners, app: Callable[..., Iterable[bytes]] = hello) -> ListenAddress:
    """Serve an application and return its address."""
    address = free_address()
    listeners.serve("site", HttpService(app, [address]))
    connected(address).close()
    return address


def reply(connection: socket.socket) -> bytes:
    """Return everything that a server sends until it closes the connection."""
    data = b""
    try:
        while more := connection.recv(65536):
            data += more
    except ConnectionResetError:
        pass
    return data


def garbage(source: random.Random) -> bytes:
    """Return a request that was damaged in some places, or bytes that never were one."""
    if source.random() < 0.2:
        return source.randbytes(source.randrange(1, 2000))
    data = bytearray(source.choice(list(SHAPES.values())).request[:5000])
    for _ in range(source.randrange(1, 10)):
        place = source.randrange(len(data) + 1)
        match source.randrange(4):
            case 0:
                data[place:place] = source.randbytes(source.randrange(1, 20))
            case 1:
                del data[place : place + source.randrange(1, 20)]
            case 2:
                data[place:place] = source.choice([b"\r\n", b"\r", b"\n", b"\0", b" ", b":", b"%", b"\xff", b"/../"])
            case _:
                data[place:place] = data[: source.randrange(len(data) + 1)]
    return bytes(data)


@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 200))])
def test_garbage(listeners: Listeners, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Every damaged request gets an answer of HTTP or none, and the next client gets its answer; nothing is worth a warning."""
    address, source, before = serve(listeners), random.Random(seed), threading.active_count()  # noqa: S311  # a seed that repeats
    for _ in range(60):
        request = garbage(source)
        with closing(connected(address)) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = reply(connection)
        assert answer == b"" or answer.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), request

    assert b"hello" == get(address).body
    wait_until(lambda: threading.active_count() <= before)
    assert [] == [record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


def test_large_heads_are_limited(listeners: Listeners, monkeypatch: pytest.MonkeyPatch) -> None:
    """While as many clients send large heads as may, one more is refused; usual requests, and later large ones, are answered."""
    room = threading.BoundedSemaphore(1)
    monkeypatch.setattr(http_exchange, "_large_heads", room)
    address = serve(listeners)

    def status() -> bytes:
        with closing(connected(address)) as client:
            client.sendall(LARGE + b"\r\n\r\n")
            return reply(client)[:12]

    with closing(connected(address)) as slow:
        slow.sendall(LARGE)
        wait_until(lambda: room._value == 0)

        assert b"HTTP/1.1 431" == status()
        assert b"hello" == get(address).body
    wait_until(lambda: room._value == 1)
    assert b"HTTP/1.1 200" == status()


def test_a_client_that_does_not_read(listeners: Listeners, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read its answer is disconnected after its time, and its thread ends."""
    monkeypatch.setattr(listeners_module, "_IDLE_SECONDS", 1.0)
    threads: list[threading.Thread] = []

    def big(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        hello(environ, start_response)
        threads.append(threading.current_thread())
        return [BIG_BODY]

    address = serve(listeners, big)
    with closing(connected(address)) as idle:
        idle.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until(lambda: bool(threads) and not threads[0].is_alive())

        assert len(reply(idle)) < len(BIG_BODY)


def test_many_slow_clients(listeners: Listeners) -> None:
    """Clients that send a byte at a time do not delay other clients."""
    address = serve(listeners)
    with ExitStack() as stack:
        slow = [stack.enter_context(closing(connected(address))) for _ in range(100)]
        started = time.monotonic()
        for byte in b"GET / HTTP":
            for each in slow:
                each.sendall(bytes([byte]))
            assert b"hello" == get(address).body
        for each in slow:
            each.sendall(b"/1.1\r\nHost: a\r\n\r\n")
        if time.monotonic() - started < listeners_module._REQUEST_SECONDS:
            assert all(b"hello" in reply(each) for each in slow)
