"""Relays TCP connections to one localhost node port.

The kernel moves the bytes (splice); at most one pipe's content (64 KiB) per direction is in flight.
"""

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial

from pyproxy.model.address import ip_text
from pyproxy.node.localhost_port import EndpointChoice, Site
from pyproxy.plan.localhost import RelayTarget

logger = logging.getLogger(__name__)

# As kube-proxy (`dialTimeout`). As there, a connection whose endpoint does not answer is closed, not moved.
_DIAL_SECONDS = 5.0
_DESCRIPTORS_ARE_SHORT_SECONDS = 0.1
_CHUNK = 1 << 16  # the size of a pipe (pipe(7)): more cannot be in it
# SO_LINGER, a struct linger (`l_onoff`, `l_linger`): with a time of 0 `close` sends RST and discards what was not sent.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CLOSE_IN_ORDER = struct.pack("ii", 0, 0)
# Seconds, seconds and probes, as Go's net package sets them on kube-proxy's connections: a connection to a vanished
# peer ends.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 9}


class TcpPort:
    """One node port in one family: its listener and its connections.

    Args:
        site: where it listens.
        target: where connections go.
        room: limits the number of connections of all ports.
    """

    def __init__(self, site: Site, target: RelayTarget, room: asyncio.BoundedSemaphore) -> None:
        self._site = site
        self._room = room
        self._choice = EndpointChoice(target)
        self._tasks: set[asyncio.Task[None]] = set()
        self._begin(self._serve())

    def retarget(self, target: RelayTarget) -> None:
        """Send new connections to other endpoints; open connections keep theirs."""
        self._choice.retarget(target)

    def end(self) -> tuple["asyncio.Task[None]", ...]:
        """Stop listening and end all connections; return the tasks that have to finish."""
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
        async with self._site.listening(self._choice.service) as listener:
            while True:
                # Not `sock_accept`: cancelled at the wrong moment, it loses a connection without closing it.
                await _until(listener, loop.add_reader, loop.remove_reader)
                try:
                    client, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    # The client has closed the connection already, or no descriptor is left.
                    logger.debug("%s: %s", self._site.name, error)
                    await asyncio.sleep(_DESCRIPTORS_ARE_SHORT_SECONDS)
                    continue
                client.settimeout(0)  # sockets from `accept` block, and `_splice` would then block the loop
                _set_options(client)
                if self._room.locked():
                    logger.debug("%s: too many connections", self._site.name)
                    client.close()
                    continue
                await self._room.acquire()
                # The callback releases, and not the task, which may be cancelled before it begins.
                self._begin(self._relay(client)).add_done_callback(partial(self._ended, client))

    async def _relay(self, client: socket.socket) -> None:
        endpoint = self._choice.choose()
        try:
            with socket.socket(self._site.family.socket_family, socket.SOCK_STREAM) as server:
                server.settimeout(0)
                _set_options(server)
                async with asyncio.timeout(_DIAL_SECONDS):
                    await asyncio.get_running_loop().sock_connect(server, (ip_text(endpoint.ip), endpoint.port))
                async with asyncio.TaskGroup() as both:
                    both.create_task(_copy(client, server))
                    both.create_task(_copy(server, client))
                # Both peers have sent everything: close with FIN, not with a reset.
                for each in (client, server):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CLOSE_IN_ORDER)
        except* (OSError, TimeoutError) as group:
            logger.debug("%s: %s: %s", self._site.name, endpoint, group.exceptions[0])


def _set_options(connection: socket.socket) -> None:
    # A connection that is cut off ends with a reset, so that no peer mistakes a part for all. Without Nagle's algorithm, because
    # the peers decide what is one write, and would wait for each other through the relay.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


async def _copy(source: socket.socket, target: socket.socket) -> None:
    # Until the source ends; then the target learns of it, and the other direction continues: TCP closes each on its own.
    loop = asyncio.get_running_loop()
    # splice moves pages between a pipe and a socket only: from socket to socket needs a pipe for each direction.
    outlet, inlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while count := await _splice(source.fileno(), inlet, _CHUNK, source, loop.add_reader, loop.remove_reader):
            while count > 0:
                count -= await _splice(outlet, target.fileno(), count, target, loop.add_writer, loop.remove_writer)
            await asyncio.sleep(0)  # a peer that sends without a pause must not delay other connections
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
    # asyncio has `sock_recv` and `sock_sendall`, but nothing that waits without moving bytes.
    future = asyncio.get_running_loop().create_future()

    def set_result() -> None:
        if not future.done():  # it is done if the task was cancelled, or if the loop calls twice before the task runs
            future.set_result(None)

    watch(ready.fileno(), set_result)
    try:
        await future
    finally:
        unwatch(ready.fileno())
