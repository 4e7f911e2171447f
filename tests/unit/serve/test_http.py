"""Requests of every shape over real TCP on loopback: the answers are those of kube-proxy's servers.

`tests/cluster/test_peer_http.py` sends the same to the real kube-proxy.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import closing
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest

from pyproxy.model.address import Family, ListenAddress, ip_text
from pyproxy.model.names import NamespacedName
from pyproxy.serve.health import Health, health_application, service_application
from pyproxy.serve.listeners import HttpService, Listeners
from pyproxy.serve.pages import application, fixed
from tests.lab.http_shapes import SHAPES, Reply, Shape, send
from tests.lab.waiting import wait_until

from .http_client import PATIENCE_SECONDS, connected, free_address

SERVERS = ("health", "check", "metrics")


def server(name: str) -> WSGIApplication:
    """Return one of the servers of an agent that is healthy."""
    health = Health(60.0)
    health.begin([Family.IPV4])
    health.set_node_eligible(True)
    if name == "health":
        return health_application(health)
    if name == "check":
        return service_application(NamespacedName("default", "web"), lambda: 1, health)
    return application({"/healthz": fixed("ok")}, {})


@pytest.fixture
def addresses(listeners: Listeners) -> list[ListenAddress]:
    """Give the addresses of the three servers."""
    found = []
    for name in SERVERS:
        address = free_address()
        listeners.serve(name, HttpService(server(name), [address]))
        connected(address).close()
        found.append(address)
    return found


def answer(address: ListenAddress, shape: Shape) -> Reply:
    """Send a request to a server."""
    return send((ip_text(address.ip), address.port), shape, PATIENCE_SECONDS)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(addresses: list[ListenAddress], name: str) -> None:
    """Each request gets the status that it gets from kube-proxy, and no body that is not announced."""
    replies = [answer(address, SHAPES[name]) for address in addresses]

    assert SHAPES[name].statuses == tuple(reply.status for reply in replies)
    assert all(reply.headers["connection"] == "close" for reply in replies if reply.status)
    assert all(len(reply.body) == int(reply.headers["content-length"]) for reply in replies if is_whole(name, reply))


def is_whole(name: str, reply: Reply) -> bool:
    """Return whether an answer declares the length of its body; as in net/http, protocol errors do not."""
    return "content-length" in reply.headers and not name.startswith("HEAD")


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("HEAD")])
def test_head_has_no_body(addresses: list[ListenAddress], name: str) -> None:
    """HEAD gets the headers of GET, with its length, and nothing behind them."""
    heads = [answer(address, SHAPES[name]) for address in addresses]
    whole = [
        answer(address, SHAPES[name]._replace(request=SHAPES[name].request.replace(b"HEAD", b"GET")))
        for address in addresses
    ]

    assert [b""] * len(SERVERS) == [head.body for head in heads]
    assert [reply.headers.keys() for reply in whole] == [head.headers.keys() for head in heads]
    assert all(int(head.headers["content-length"]) > 0 for head in heads)


@pytest.mark.parametrize("name", ["plain", "other path", "bad percent-encoding", "HEAD of another path"])
def test_no_header_names_the_software(addresses: list[ListenAddress], name: str) -> None:
    """No server says what it is made of: there is no Server header, and no header has the word Python."""
    for address in addresses:
        headers = answer(address, SHAPES[name]).headers

        assert not {"server", "x-powered-by", "via"} & headers.keys()
        assert "python" not in str(headers).lower()


def test_early_end_of_a_request_line_is_refused_at_once(addresses: list[ListenAddress]) -> None:
    """A line that can be no request is answered while the connection is still open for more."""
    started = time.monotonic()
    statuses = [answer(address, Shape(b"GET /healthz\r\n", (400, 400, 400))).status for address in addresses]

    assert [400, 400, 400] == statuses
    assert time.monotonic() - started < PATIENCE_SECONDS / 2


def test_the_answer_arrives_before_the_end(addresses: list[ListenAddress]) -> None:
    """What the server does not read, of a body or further requests, does not cost the client its answer."""
    with closing(connected(addresses[0])) as connection:
        connection.sendall(b"POST /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"a" * 100_000)
        time.sleep(0.05)  # the answer has been sent: a reset now would drop it
        data = b""
        while more := connection.recv(65536):
            data += more

    assert b"HTTP/1.1 200 OK" == data[:15]
    assert json.loads(data.partition(b"\r\n\r\n")[2])["healthy"] is True


def test_a_page_that_fails(listeners: Listeners, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of a page is a 500 and a line of the log, and the server goes on."""

    def failing(environ: WSGIEnvironment, _: StartResponse) -> Iterable[bytes]:
        raise KeyError(environ["PATH_INFO"])

    address = free_address()
    listeners.serve("site", HttpService(failing, [address]))
    connected(address).close()
    replies = [answer(address, SHAPES["plain"]).status for _ in range(2)]

    assert [500, 500] == replies
    assert "/healthz cannot be answered" in caplog.text


def test_a_client_that_resets_its_connection(addresses: list[ListenAddress], caplog: pytest.LogCaptureFixture) -> None:
    """A client that disconnects before its answer is not logged."""
    connection = connected(addresses[0])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(SHAPES["plain"].request)
    connection.close()
    wait_until(lambda: answer(addresses[0], SHAPES["plain"]).status == 200)

    assert [] == [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
