"""Serves TCP node ports on 127.0.0.1 and ::1: a relay in user space, as kube-proxy 1.37's `localnodeportproxy`.

One thread with an event loop of its own, so that a sync never waits for bytes. The kernel moves the bytes (splice);
at most one pipe's content (64 KiB) per direction is in flight, and the number of connections is bounded.
"""

import asyncio
import logging
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from time import monotonic

from pyproxy.model.address import Family, ip_text
from pyproxy.model.endpoint import Endpoint
from pyproxy.plan.localhost import RelayTarget

logger = logging.getLogger(__name__)

_DIAL_SECONDS = 5.0
"""As kube-proxy (``dialTimeout``). As there, a connection whose endpoint does not answer is closed, not moved."""
_RETRY_SECONDS = 5.0
_MOST_CONNECTIONS = 2048
"""Over all ports. Each has six descriptors; one more is reset at once."""
_DESCRIPTORS_ARE_SHORT_SECONDS = 0.1
_CHUNK = 1 << 16
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_IN_ORDER = struct.pack("ii", 0, 0)
_KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 9}
"""Seconds, seconds and probes, as Go's net package sets them on kube-proxy's connections: a peer that vanished ends."""
_LISTEN_ON = {Family.IPV4: "127.0.0.1", Family.IPV6: "::1"}
_DOMAINS = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


class Relay:
    """The relay of one agent: both families in one thread, which begins with the first change.

    Args:
        retry_seconds: time between two tries to listen on a port that another program has.
        most_connections: connections at a time.
    """

    def __init__(self, retry_seconds: float = _RETRY_SECONDS, most_connections: int = _MOST_CONNECTIONS) -> None:
        self._retry_seconds = retry_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ports: dict[tuple[Family, int], _Port] = {}
        self._room = asyncio.BoundedSemaphore(most_connections)

    def change(self, family: Family, targets: Mapping[int, RelayTarget | None]) -> None:
        """Serve node ports with these targets from now on, beside those of earlier calls; None: not any more.

        Connections that are open stay with their endpoint until they end, or until their port is not served any more.
        """
        if not targets:
            return
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
            self._thread.start()
        self._loop.call_soon_threadsafe(self._change, family, dict(targets))

    def close(self) -> None:
        """End all connections and stop; for the thread that called `change`."""
        if self._loop is None or self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._loop = None

    def _change(self, family: Family, targets: Mapping[int, RelayTarget | None]) -> None:
        for number, target in targets.items():
            key = (family, number)
            if target is None:
                known = self._ports.pop(key, None)
                if known is not None:
                    known.end()
            elif key in self._ports:
                self._ports[key].retarget(target)
            else:
                self._ports[key] = _Port(family, number, target, self._room, self._retry_seconds)

    async def _close(self) -> None:
        tasks = [task for port in self._ports.values() for task in port.end()]
        self._ports.clear()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Port:
    """One node port in one family: its listener, its connections, and the choice of an endpoint."""

    def __init__(
        self, family: Family, number: int, target: RelayTarget, room: asyncio.BoundedSemaphore, retry_seconds: float
    ) -> None:
        self._family = family
        self._name = f"localhost node port {number} ({family})"
        self._address = (_LISTEN_ON[family], number)
        self._target = target
        self._room = room
        self._retry_seconds = retry_seconds
        self._pinned: Endpoint | None = None
        self._pinned_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._begin(self._serve())

    def retarget(self, target: RelayTarget) -> None:
        """Send new connections to other endpoints."""
        if target.affinity_seconds != self._target.affinity_seconds:
            self._pinned = None
        self._target = target

    def end(self) -> tuple["asyncio.Task[None]", ...]:
        """Stop listening and end all connections; return what is still to finish."""
        for task in self._tasks:
            task.cancel()
        return tuple(self._tasks)

    def _ended(self, client: socket.socket, _: "asyncio.Task[None]") -> None:
        client.close()
        self._room.release()

    def _begin(self, work: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        with await self._listen() as listener:
            while True:
                # Not `sock_accept`: cancelled at the wrong moment, it loses a connection without closing it.
                await _until(listener, loop.add_reader, loop.remove_reader)
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    # A client that is gone again, or no descriptor is left.
                    logger.debug("%s: %s", self._name, error)
                    await asyncio.sleep(_DESCRIPTORS_ARE_SHORT_SECONDS)
                    continue
                client.settimeout(0)  # else `_splice` would hold up everything: `accept` gives sockets that block
                _set_options(client)
                if self._room.locked():
                    logger.debug("%s: too many connections", self._name)
                    client.close()
                    continue
                await self._room.acquire()
                # Here and not in the task, which may be cancelled before it begins.
                self._begin(self._relay(client)).add_done_callback(partial(self._ended, client))

    async def _listen(self) -> socket.socket:
        said = False
        while True:
            try:
                listener = socket.create_server(self._address, family=_DOMAINS[self._family], backlog=128)
            except OSError as error:
                if not said:
                    reason = os.strerror(error.errno) if error.errno else str(error)
                    # All that there is to say is in the message.
                    logger.error("%s is not served: %s; will retry", self._name, reason)  # noqa: TRY400
                said = True
                await asyncio.sleep(self._retry_seconds)
                continue
            listener.settimeout(0)
            return listener

    def _choose(self) -> Endpoint:
        """Return the endpoint of a new connection; all clients have one address, so a pin is everyone's."""
        target, now = self._target, monotonic()
        if target.affinity_seconds is None:
            return random.choice(target.endpoints)  # noqa: S311  # no secret
        if self._pinned not in target.endpoints or now - self._pinned_at > target.affinity_seconds:
            self._pinned = random.choice(target.endpoints)  # noqa: S311  # no secret
        self._pinned_at = now
        assert self._pinned is not None  # noqa: S101  # for mypy
        return self._pinned

    async def _relay(self, client: socket.socket) -> None:
        endpoint = self._choose()
        try:
            with socket.socket(_DOMAINS[self._family], socket.SOCK_STREAM) as server:
                server.settimeout(0)
                _set_options(server)
                async with asyncio.timeout(_DIAL_SECONDS):
                    await asyncio.get_running_loop().sock_connect(server, (ip_text(endpoint.ip), endpoint.port))
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(client, server))
                    both.create_task(_copy(server, client))
                # Both ends said all that they had to: an orderly end, and not a reset.
                for each in (client, server):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_IN_ORDER)
        except* (OSError, TimeoutError) as group:
            logger.debug("%s: %s: %s", self._name, endpoint, group.exceptions[0])


def _set_options(connection: socket.socket) -> None:
    """Reset what is cut short, so that no peer takes a part for the whole; pass small writes on at once."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


async def _copy(source: socket.socket, target: socket.socket) -> None:
    """Move bytes until the source ends, then end the target's input; the other direction goes on."""
    loop = asyncio.get_running_loop()
    outlet, inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while count := await _splice(source.fileno(), inlet, _CHUNK, source, loop.add_reader, loop.remove_reader):
            while count > 0:
                count -= await _splice(outlet, target.fileno(), count, target, loop.add_writer, loop.remove_writer)
            await asyncio.sleep(0)  # who sends without a pause shall not keep others waiting
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
    finally:
        os.close(outlet)
        os.close(inlet)


async def _splice(  # noqa: PLR0913, PLR0917  # one system call and what it may wait for
    source: int,
    target: int,
    count: int,
    waits_for: socket.socket,
    watch: Callable[..., None],
    unwatch: Callable[[int], object],
) -> int:
    while True:
        try:
            return os.splice(source, target, count)
        except BlockingIOError:
            await _until(waits_for, watch, unwatch)


async def _until(ready: socket.socket, watch: Callable[..., None], unwatch: Callable[[int], object]) -> None:
    """Wait until a socket can be read from, or written to."""
    future = asyncio.get_running_loop().create_future()
    watch(ready.fileno(), _set, future)
    try:
        await future
    finally:
        unwatch(ready.fileno())


def _set(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)
