"""A page of a server on this node, of any program."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from pyproxy.model.address import ListenAddress, parse_ip
from pyproxy.serve.local_page import get_page, reachable
from tests.unit.serve.http_client import LOOPBACK, free_address


def page(answer: bytes, most_bytes: int = 1 << 20, *, closes: bool = True) -> str:
    """Return the page of a server with this answer."""

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as connection, suppress(OSError):  # the client may close it early
            connection.recv(1 << 16)
            connection.sendall(answer)
            if not closes:
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        threads.submit(serve, listener)
        address = ListenAddress(LOOPBACK, listener.getsockname()[1])
        return asyncio.run(get_page(address, "/healthz", most_bytes, 10.0 if closes else 0.05))


def test_bodies() -> None:
    """The body of an answer with any status is returned, cut if it is long; other protocols have none."""
    head = b"HTTP/1.0 503 Service Unavailable\r\nServer: x\r\n\r\n"

    assert [" bad\r\n", "", "\ufffd"] == [page(text) for text in (head + b" bad\r\n", b"SSH-2.0-x\r\n", head + b"\xff")]
    assert 1 << 20 > len(page(head + bytes(4 << 20), 1 << 10))


def test_no_answer() -> None:
    """A server that is not there, or whose answer is not complete in time, is an error."""
    with pytest.raises(ConnectionRefusedError):
        asyncio.run(get_page(free_address(), "/", 1, None))
    with pytest.raises(TimeoutError):
        page(b"HTTP/1.0 200 OK\r\n\r\nhalf", closes=False)


def test_reachable() -> None:
    """A server on all addresses is reachable on loopback, in its family."""
    texts = [str(reachable(ListenAddress(parse_ip(ip), 1))) for ip in ("0.0.0.0", "::", "192.0.2.1")]  # noqa: S104

    assert ["127.0.0.1:1", "[::1]:1", "192.0.2.1:1"] == texts
