"""A fake API server for whole programs: it keeps objects, and serves lists, streams and watches of them over plain HTTP.

It runs on its own thread. Faults are functions that answer instead of it. It checks nothing, and knows no selectors: every
object of a collection is sent to every client.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any, Self

from aiohttp import web

from .apiserver import NODES, SERVICE_CIDRS, SERVICES, SLICES, Json, end_of_list, event, listed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Fault = Callable[["LiveServer", web.Request], Awaitable[web.StreamResponse | None]]
"""Answers a request, or returns None for the usual answer."""
_KINDS = {SERVICES: "Service", SLICES: "EndpointSlice", NODES: "Node", SERVICE_CIDRS: "ServiceCIDR"}
_GROUPS = {SLICES: "discovery.k8s.io/v1", SERVICE_CIDRS: "networking.k8s.io/v1"}


class LiveServer:
    """Collections of objects with their history."""

    def __init__(self, *sockets: socket.socket) -> None:
        """Serve on bound sockets, which may be in other network namespaces."""
        self.requests: Counter[str] = Counter()
        """The number of requests by path."""
        self.fault: Fault | None = None
        self.pause_seconds = 0.0
        """The time between two bytes of an event."""
        self._sockets = sockets
        self._objects: dict[str, dict[str, Json]] = defaultdict(dict)
        self._history: dict[str, list[tuple[int, Json]]] = defaultdict(list)
        self._version = 1
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_forever, name="live-server", daemon=True)

    def __enter__(self) -> Self:
        """Start to serve."""
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def put(self, *items: Json) -> None:
        """Create or replace objects."""
        self._call(self._change([(path, self._stored(path, item)) for path, item in map(_located, items)], []))

    def delete(self, *items: Json) -> None:
        """Delete objects."""
        self._call(self._change([], list(map(_located, items))))

    def objects(self, path: str) -> list[Json]:
        """Return the objects of a collection."""
        return list(self._objects[path].values())

    def disconnect(self) -> None:
        """End all connections."""
        self._call(self._disconnect())

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer as an API server does."""
        if "watch" not in request.query:
            return await listed(str(self._version), *self._objects[request.path].values())(request)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        version = int(request.query.get("resourceVersion") or 0)
        if "sendInitialEvents" in request.query:
            version = self._version
            for item in list(self._objects[request.path].values()):
                await self._send(response, event("ADDED", item))
            await self._send(response, end_of_list(str(version)))
        while True:
            changed = self._changed
            history = self._history[request.path]
            first = next((at for at in range(len(history), 0, -1) if history[at - 1][0] <= version), 0)
            for version, line in history[first:]:  # noqa: B007 - the next round continues there
                await self._send(response, line)
            await changed.wait()

    async def _send(self, response: web.StreamResponse, line: Json) -> None:
        data = json.dumps(line).encode() + b"\n"
        if not self.pause_seconds:
            await response.write(data)
            return
        for byte in data:
            await response.write(bytes((byte,)))
            await asyncio.sleep(self.pause_seconds)

    def _call(self, work: Awaitable[Any]) -> None:
        async def run() -> None:
            await work

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _start(self) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        for sock in self._sockets:
            await web.SockSite(self._runner, sock).start()

    async def _end(self) -> None:
        await self._runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests[request.path] += 1
        if self.fault is not None and (response := await self.fault(self, request)) is not None:
            return response
        return await self.answer(request)

    async def _disconnect(self) -> None:
        for connection in list(self._runner.server.connections if self._runner.server else ()):
            if connection.transport is not None:
                connection.transport.abort()

    async def _change(self, put: list[tuple[str, Json]], deleted: list[tuple[str, Json]]) -> None:
        for path, item in put:
            key = _key(item)
            kind = "MODIFIED" if key in self._objects[path] else "ADDED"
            self._objects[path][key] = item
            self._record(path, kind, item)
        for path, item in deleted:
            self._record(path, "DELETED", self._objects[path].pop(_key(item)))
        self._changed.set()
        self._changed = asyncio.Event()

    def _record(self, path: str, kind: str, item: Json) -> None:
        self._version += 1
        item["metadata"]["resourceVersion"] = str(self._version)
        self._history[path].append((self._version, event(kind, {**item, "metadata": {**item["metadata"]}})))
        del self._history[path][:-_HISTORY]

    @staticmethod
    def _stored(path: str, item: Json) -> Json:
        types = {"apiVersion": _GROUPS.get(path, "v1"), "kind": _KINDS[path]}
        return {**types, **item, "metadata": {"namespace": "default", **item["metadata"]}}


_HISTORY = 20_000
"""Events that are kept for watches."""


def _located(item: Json) -> tuple[str, Json]:
    return next(path for path, kind in _KINDS.items() if kind == item["kind"]), item


def _key(item: Json) -> str:
    return f"{item['metadata'].get('namespace', 'default')}/{item['metadata']['name']}"
