"""An API server on loopback that says what a test tells it to say: real HTTP, no cluster behind it."""

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
"""For what must happen; a test that waits so long has failed."""

Json = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Request:
    """What a test wants to know about a request."""

    query: Mapping[str, str]
    authorization: str
    host: str
    content: bytes = b""
    """What was posted."""


class ApiServer:
    """Gives each path its answers one after the other, and what an empty cluster would say after that."""

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
        """End all streams, and the server."""
        await self._runner.cleanup()

    @property
    def url(self) -> str:
        """The server's own URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def say(self, path: str, *answers: Answer) -> None:
        """Give a path these answers, after those that it has."""
        self._answers[path] += answers

    async def asked(self, path: str) -> Request:
        """Return the next request for a path."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._requests[path].get()

    def stream(self, *lines: Json, then_end: bool = False) -> Answer:
        """Say some lines, and then nothing more until the server ends."""

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            await response.prepare(request)
            for line in lines:
                await response.write(json.dumps(line).encode() + b"\n")
            if not then_end:
                await self._closing.wait()
            return response

        return answer

    async def keep_silent(self, _: web.Request) -> web.StreamResponse:
        """Say nothing until the server ends."""
        await self._closing.wait()
        return web.Response()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization", "")
        noted = Request(dict(request.query), authorization, request.host, await request.read())
        self._requests[request.path].put_nowait(noted)
        answers = self._answers[request.path]
        answer = answers.popleft() if answers else self._say_nothing_new(request)
        return await answer(request)

    def _say_nothing_new(self, request: web.Request) -> Answer:
        if "sendInitialEvents" in request.query:
            return self.stream(end_of_list("1"))
        return self.stream() if "watch" in request.query else listed("1")

    async def _end_streams(self, _: web.Application) -> None:
        self._closing.set()


def listed(resource_version: str, *items: Json, more: str = "") -> Answer:
    """Say a page of a list, compressed as the API server does with large ones."""
    body = {"metadata": {"resourceVersion": resource_version, "continue": more}, "items": items}

    async def answer(_: web.Request) -> web.StreamResponse:
        response = web.json_response(body)
        response.enable_compression(web.ContentCoding.gzip)
        return response

    return answer


def refused(status: int, message: str = "no", **headers: str) -> Answer:
    """Say no."""

    async def answer(_: web.Request) -> web.StreamResponse:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"kind": "Status", "message": message}, status=status, headers=fields)

    return answer


def event(kind: str, item: Json) -> Json:
    """Return a line of a watch."""
    return {"type": kind, "object": item}


def bookmark(resource_version: str) -> Json:
    """Return the line that brings a watch to a version."""
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
    """Return the ServiceCIDR that the API server makes by itself."""
    return {"metadata": {"name": "kubernetes", "resourceVersion": "3"}, "spec": {"cidrs": cidrs}}
