"""A fake API server on the loopback: real HTTP, with answers that the test defines."""

import asyncio
import json
import ssl
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web

SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
NODES = "/api/v1/nodes"
SERVICE_CIDRS = "/apis/networking.k8s.io/v1/servicecidrs"
PATIENCE_SECONDS = 10.0
"""Time-out of events that must happen; a test that waits longer fails."""

Json = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Request:
    """The properties of a request that tests check."""

    query: Mapping[str, str]
    authorization: str
    host: str
    content: bytes = b""
    """The body of the request."""


class ApiServer:
    """Sends the given answers of each path in order, and after that the answers of an empty cluster."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._answers: dict[str, deque[Answer]] = defaultdict(deque)
        self._requests: dict[str, asyncio.Queue[Request]] = defaultdict(asyncio.Queue)
        self._closing = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        application.on_shutdown.append(self._end_streams)
        self._runner = web.AppRunner(application)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        self.port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all streams, and stop the server."""
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def say(self, path: str, *answers: Answer) -> None:
        """Append answers of a path."""
        self._answers[path] += answers

    async def asked(self, path: str) -> Request:
        """Return the next request for a path."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._requests[path].get()

    def stream(self, *lines: Json | bytes, then_end: bool = False) -> Answer:
        """Send some lines, and then nothing more until the server stops."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for line in lines:
                await response.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
            if not then_end:
                await self._closing.wait()
            return response

        return answer

    async def send_nothing(self, _: web.Request) -> web.StreamResponse:
        """Send nothing until the server stops."""
        await self._closing.wait()
        return web.Response()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization", "")
        noted = Request(dict(request.query), authorization, request.host, await request.read())
        self._requests[request.path].put_nowait(noted)
        answers = self._answers[request.path]
        answer = answers.popleft() if answers else self._send_no_changes(request)
        return await answer(request)

    def _send_no_changes(self, request: web.Request) -> Answer:
        if "sendInitialEvents" in request.query:
            return self.stream(end_of_list("1"))
        return self.stream() if "watch" in request.query else listed("1")

    async def _end_streams(self, _: web.Application) -> None:
        self._closing.set()


def listed(resource_version: str, *items: Json, more: str = "") -> Answer:
    """Send a page of a list, compressed as the API server does with large lists."""
    body = {"metadata": {"resourceVersion": resource_version, "continue": more}, "items": items}

    async def answer(_: web.Request) -> web.StreamResponse:
        response = web.json_response(body)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    return answer


def refused(status: int, message: str = "no", **headers: str) -> Answer:
    """Send an error."""

    async def answer(_: web.Request) -> web.StreamResponse:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"kind": "Status", "message": message}, status=status, headers=fields)

    return answer


def event(kind: str, item: Json) -> Json:
    """Return a line of a watch."""
    return {"type": kind, "object": item}


def bookmark(resource_version: str) -> Json:
    """Return the line of a bookmark with a resource version."""
    return event("BOOKMARK", {"metadata": {"resourceVersion": resource_version}})


def end_of_list(resource_version: str) -> Json:
    """Return the line that ends the initial events of a stream."""
    annotations = {"k8s.io/initial-events-end": "true"}
    return event("BOOKMARK", {"metadata": {"resourceVersion": resource_version, "annotations": annotations}})


def service(name: str, resource_version: str = "1", **spec: object) -> Json:
    """Return a Service with one port."""
    metadata = {"name": name, "namespace": "default", "resourceVersion": resource_version}
    ports = [{"port": 80, "protocol": "TCP"}]
    return {
        "metadata": metadata,
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": ports} | spec,
    }


def service_cidr(*cidrs: str) -> Json:
    """Return the default ServiceCIDR of the API server."""
    return {"metadata": {"name": "kubernetes", "resourceVersion": "3"}, "spec": {"cidrs": cidrs}}
