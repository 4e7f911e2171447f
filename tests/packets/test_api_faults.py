"""An API server that fails in every way over HTTP: the rules stay, the requests are few, and changes arrive afterwards.

`tests/cluster/test_agent.py` has the failures of a real API server and of the network to it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from aiohttp import web

from tests.cluster.namespace import call_inside, fresh_namespace
from tests.cluster.relay import bound_socket
from tests.fakes.apiserver import SERVICES, SLICES, event, refused
from tests.fakes.live_server import Fault, LiveServer
from tests.lab.namespace import Namespace
from tests.lab.process import Process
from tests.lab.waiting import wait_until

from .cluster import FLAGS
from .objects import endpoint_slice, node, port, service

WEB = service("web", 5, port(80))
TARGET = [{"name": "", "port": 8080, "protocol": "TCP"}]
TRIES = 2
MOST_TRIES = 12
"""Of one collection during a fault: the pauses between tries double."""
SECONDS = 40.0
"""More than the longest pause between two tries."""
DAY_SECONDS = 86_400
_numbers = count(1)


async def too_many_requests(_: LiveServer, request: web.Request) -> web.StreamResponse:
    """Refuse with the wish for a pause."""
    return await refused(429, "too many requests", Retry_After="1")(request)


async def internal_error(_: LiveServer, request: web.Request) -> web.StreamResponse:
    """Fail as an API server without etcd does."""
    return await refused(500, "etcdserver: request timed out")(request)


async def expired(_: LiveServer, request: web.Request) -> web.StreamResponse:
    """Refuse every resource version: a storm of 410 Gone."""
    return await _line(request, event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"}))


async def expired_at_once(_: LiveServer, request: web.Request) -> web.StreamResponse:
    """Refuse every request with 410 Gone."""
    return await refused(410, "too old resource version")(request)


async def page_of_a_proxy(_: LiveServer, request: web.Request) -> web.StreamResponse:
    """Answer as a captive portal does."""
    return await _body(request, b"<html><body>Please sign in</body></html>")


async def random_bytes(_: LiveServer, request: web.Request) -> web.StreamResponse:
    """Answer with bytes that are not text."""
    return await _body(request, bytes(range(256)) * 16)


async def other_json(_: LiveServer, request: web.Request) -> web.StreamResponse:
    """Answer with JSON of another shape."""
    return await _body(request, b'[null, {"type": 7, "object": "text"}]\n{"type": "ADDED"}\n')


async def cut_off(_: LiveServer, request: web.Request) -> web.StreamResponse:
    """Close the connection in the middle of an object."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b'{"type": "ADDED", "object": {"metadata": {"name": "w')
    assert request.transport
    request.transport.abort()
    return response


FAULTS: list[Fault] = [
    *(too_many_requests, internal_error, expired, expired_at_once),
    *(page_of_a_proxy, random_bytes, other_json, cut_off),
]


async def _line(request: web.Request, line: dict[str, object]) -> web.StreamResponse:
    return await _body(request, json.dumps(line).encode() + b"\n")


async def _body(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(body)
    return response


@dataclass
class Node:
    """An agent, and its API server."""

    namespace: Namespace
    server: LiveServer
    agent: Process
    clock: Path

    def move(self) -> str:
        """Move the endpoint of the Service to a new address, and return it."""
        address = f"10.244.0.{next(_numbers)}"
        self.server.put(endpoint_slice("web", "IPv4", [address], TARGET))
        return address

    def has(self, address: str) -> bool:
        """Return whether this is the endpoint in the kernel."""
        return f": {address} . 8080" in self.endpoints()

    def endpoints(self) -> str:
        """Return the endpoints in the kernel."""
        return self.namespace.run(["nft", "list", "map", "ip", "pyproxy", "endpoints"])

    def expect(self, address: str) -> None:
        """Wait until an endpoint is in the kernel."""
        wait_until(partial(self.has, address), f"the endpoint {address} in the kernel", SECONDS)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, needs_root: None) -> Iterator[Node]:  # noqa: ARG001 - skips without root
    """Run an agent in a namespace of its own, in nftables mode; the mode makes no difference."""
    directory = Path(tmp_path_factory.mktemp("api"))
    clock = directory / "clock"
    clock.write_text("0")
    with fresh_namespace() as name, call_inside(name, bound_socket) as sock, LiveServer(sock) as server:
        namespace = Namespace(name)
        server.put(node("node1"), WEB)
        program = (sys.executable, str(Path(__file__).with_name("clock_agent.py")), str(clock))
        flags = (
            f"--master=http://127.0.0.1:{sock.getsockname()[1]}",
            "--hostname-override=node1",
            "--proxy-mode=nftables",
        )
        agent = Process(namespace, [*program, "run", *flags, *FLAGS], files=directory / "agent")
        try:
            agent.wait_until_ready()
            yield Node(namespace, server, agent, clock)
        finally:
            agent.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_api_server_fails(running: Node, fault: Fault) -> None:
    """During the fault the rules stay and the pauses between requests grow; afterwards the change arrives."""
    server = running.server
    running.expect(running.move())
    before, requests, logged = running.endpoints(), server.requests.copy(), len(running.agent.stderr)

    server.fault = fault
    server.disconnect()
    address = running.move()
    wait_until(lambda: server.requests[SLICES] >= requests[SLICES] + TRIES, "some tries", SECONDS)
    meanwhile = running.endpoints()
    tries = max((server.requests - requests)[path] for path in (SERVICES, SLICES))
    server.fault = None
    running.expect(address)

    assert before == meanwhile
    assert tries <= MOST_TRIES
    assert "Traceback" not in running.agent.stderr[logged:]


def test_slow_api_server(running: Node) -> None:
    """An event that arrives byte by byte is used when it is complete."""
    running.expect(running.move())
    running.server.pause_seconds = 0.002
    running.server.disconnect()
    running.expect(running.move())
    running.server.pause_seconds = 0.0


@pytest.mark.parametrize("offset", [DAY_SECONDS, -DAY_SECONDS, 0])
def test_clock_jumps(running: Node, offset: int) -> None:
    """After a jump of the clock watches go on without a new request, changes arrive, and the agent is healthy."""
    requests = running.server.requests.copy()
    running.clock.write_text(str(offset))
    running.expect(running.move())
    status = running.namespace.run(
        [sys.executable, "-c", "import urllib.request as u; print(u.urlopen('http://127.0.0.1:10256/healthz').status)"]
    )

    assert "200" == status.strip()
    assert requests[SLICES] == running.server.requests[SLICES]
