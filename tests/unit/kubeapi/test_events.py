"""Events: log lines to objects of the API, and how they are sent. The server is real HTTP on loopback.

That the real API server takes them is tests/cluster/test_events.py.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import web

from pyproxy.kubeapi.access import Access, Server
from pyproxy.kubeapi.events import BURST, MOST_WAITING, EventHandler, EventSender, PendingEvent, event_object
from pyproxy.kubeapi.transport import Timing, Transport
from pyproxy.model.event import Event, event_extra
from pyproxy.model.names import NamespacedName
from tests.fakes.apiserver import ApiServer, Json, listed, refused
from tests.unit.kubeapi.running import in_loop

WEB = NamespacedName("shop", "web")
NODE = NamespacedName("", "node-1")
AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
POSTED = "/apis/events.k8s.io/v1/namespaces/shop/events"
SERVICES = "/api/v1/namespaces/shop/services"
TIMING = Timing(connect=1.0, answer=1.0, silence=1.0)


async def created(_: web.Request) -> web.StreamResponse:
    """Respond that an object was created."""
    return web.json_response({"kind": "Event"}, status=201)


def note(name: NamespacedName = WEB, text: str = "refused", *, is_warning: bool = True) -> PendingEvent:
    """Return an Event in the queue."""
    kind = "Service" if name.namespace else "Node"
    return PendingEvent(Event(kind, name, "RulesRefused", "ProgramRules"), text, is_warning, AT)


def test_event_of_a_service() -> None:
    """An Event is in the namespace of its Service, and its note is the log line."""
    found = event_object(note(), "node-1", "uid-1")

    assert found["metadata"]["name"].startswith("web.")
    assert {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": found["metadata"]["name"], "namespace": "shop"},
        "eventTime": "2026-01-02T03:04:05.678901Z",
        "type": "Warning",
        "reason": "RulesRefused",
        "action": "ProgramRules",
        "note": "refused",
        "regarding": {"apiVersion": "v1", "kind": "Service", "name": "web", "namespace": "shop", "uid": "uid-1"},
        "reportingController": "pyproxy",
        "reportingInstance": "pyproxy-node-1",
    } == found


def test_event_of_the_node() -> None:
    """An Event without a namespace is in that of Nodes' Events, and is normal if the line is not a warning."""
    found = event_object(note(NODE, is_warning=False), "node-1", "node-1")

    assert ("default", "Normal") == (found["metadata"]["namespace"], found["type"])
    assert {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1"} == found["regarding"]


def test_limits_of_the_api_server() -> None:
    """A note is cut to the limit of the API server at a character, and a long name leaves room for its unique suffix."""
    long = note(NamespacedName("shop", "a" * 253), "ü" * 1000)
    found = event_object(long, "n" * 253, "")

    assert "ü" * 512 == found["note"]
    assert len(found["metadata"]["name"]) <= 253
    assert len(found["reportingInstance"]) <= 128
    assert "uid" not in found["regarding"]


class Sending:
    """A running sender, and the log lines that it receives."""

    def __init__(self, server: ApiServer, *, retries: int = 2, seconds_per_event: float = 0.001) -> None:
        self.server = server
        self.logger = logging.getLogger("pyproxy.test_events")
        self.logger.propagate = False
        self.handler = EventHandler(asyncio.get_running_loop())
        self.sender = EventSender(self.handler, "node-1", (0.001,) * retries, seconds_per_event)

    def log(self, text: str, name: NamespacedName = WEB) -> None:
        """Log a line with an Event."""
        kind = "Service" if name.namespace else "Node"
        self.logger.error("%s", text, extra=event_extra(kind, name, "RulesRefused", "ProgramRules"))

    async def posted(self, path: str = POSTED) -> Json:
        """Return the next object that was posted."""
        found: Json = json.loads((await self.server.asked(path)).content)
        return found


@asynccontextmanager
async def sending(server: ApiServer, *, retries: int = 2, seconds_per_event: float = 0.001) -> AsyncIterator[Sending]:
    """Run a sender."""
    made = Sending(server, retries=retries, seconds_per_event=seconds_per_event)
    made.logger.addHandler(made.handler)

    async def find_access() -> Access:
        return Access(servers=(Server(server.url),))

    async with Transport(find_access, TIMING) as transport:
        task = asyncio.create_task(made.sender.run(transport))
        try:
            yield made
        finally:
            made.logger.removeHandler(made.handler)
            assert not task.done()
            task.cancel()


@in_loop
async def test_a_log_line_becomes_an_event() -> None:
    """An Event has the current uid of the Service; a line without an Event is ignored."""
    async with ApiServer() as server, sending(server) as agent:
        server.say(SERVICES, listed("1", {"metadata": {"name": "web", "uid": "uid-1"}}))
        server.say(POSTED, created)
        agent.logger.error("about no object")
        agent.log("refused: line 1")
        found = await agent.posted()
        asked = await server.asked(SERVICES)

    assert ("refused: line 1", "uid-1") == (found["note"], found["regarding"]["uid"])
    assert {"fieldSelector": "metadata.name=web"} == asked.query


@in_loop
async def test_an_overloaded_or_absent_server_is_tried_again() -> None:
    """An Event that cannot be sent is retried, then dropped; later Events are sent."""
    nodes = "/apis/events.k8s.io/v1/namespaces/default/events"

    async def cut_off(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with ApiServer() as server, sending(server, retries=2) as agent:
        server.say(nodes, cut_off, created, refused(503), cut_off, refused(429), created)
        for text in ("one", "two", "three"):
            agent.log(text, NODE)
        notes = [(await agent.posted(nodes))["note"] for _ in range(6)]

    assert ["one", "one", "two", "two", "two", "three"] == notes


@in_loop
async def test_a_refusal_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """An account that may not create Events causes one warning, which names the rule that a role needs."""
    nodes = "/apis/events.k8s.io/v1/namespaces/default/events"
    async with ApiServer() as server, sending(server) as agent:
        server.say(nodes, refused(403, "may not"), refused(403, "may not"), created)
        for text in ("one", "two", "three"):
            agent.log(text, NODE)
            await agent.posted(nodes)

    [warning] = [line for line in caplog.messages if "an Event was refused" in line]
    role = 'it needs a role with apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["create"]'
    assert f"an Event was refused, and is not sent again: 403 may not; {role}" == warning


@in_loop
async def test_a_flood_is_limited() -> None:
    """A burst is sent at once and the rest slowly; if the queue is full, later Events are dropped."""
    nodes = "/apis/events.k8s.io/v1/namespaces/default/events"
    async with ApiServer() as server, sending(server, seconds_per_event=3600.0) as agent:
        server.say(nodes, *[created] * BURST)
        for number in range(10 * MOST_WAITING):
            agent.log(str(number), NODE)
        notes = [(await agent.posted(nodes))["note"] for _ in range(BURST)]
        left = agent.handler._waiting

        assert list(map(str, range(BURST))) == notes
        assert len(left) <= MOST_WAITING


def test_lines_after_the_end_are_dropped() -> None:
    """A log line of a thread after the end of the loop is ignored."""
    loop = asyncio.new_event_loop()
    handler = EventHandler(loop)
    loop.close()
    record = logging.makeLogRecord({"event": note().event, "levelno": logging.ERROR})

    handler.emit(record)
