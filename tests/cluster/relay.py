"""A TCP relay that fails on command: the network between a client and its API server.

It listens on the loopback of any network namespace and connects on from the target's own, so that no namespace needs
a link to another. It runs on a thread of its own; its public methods are for all other threads.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from .namespace import call_inside

LOOPBACK = "127.0.0.1"
_BUFFER_BYTES = 1 << 20
_BACKLOG = 128


@dataclass(slots=True)
class _Door:
    """A port on which clients come in, and the connections that came through it."""

    namespace: str | None
    reserved: socket.socket
    """Bound and never listening: the port stays ours, and refuses, while no server listens on it."""
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def port(self) -> int:
        return int(self.reserved.getsockname()[1])

    def shut(self) -> None:
        """Let nobody in any more."""
        if self.server is not None:
            self.server.close()
            self.server = None

    def reset(self) -> None:
        """Reset the connections of both sides."""
        for writer in self.writers:
            _reset(writer)


class Relay:
    """Carries connections to one port, until it is told to drop, hold or refuse them."""

    def __init__(self, port: int, *, namespace: str | None = None) -> None:
        """Relay to a port on the loopback of a namespace."""
        self._target_port = port
        self._target_namespace = namespace
        self._doors: list[_Door] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()

    def listen(self, namespace: str | None = None) -> int:
        """Let clients of a namespace come in on its loopback, and return the port; the namespace lives until `leave`."""
        door = _Door(namespace, call_inside(namespace, bound_socket))
        self._doors.append(door)
        self._run(self._let_in(door))
        return door.port

    def leave(self, port: int) -> None:
        """Stop listening on a port for good, and reset the connections that came in there."""
        for door in [door for door in self._doors if door.port == port]:
            self._run(_now(door.shut))
            self._run(_now(door.reset))
            door.reserved.close()
            self._doors.remove(door)

    def drop(self) -> None:
        """Reset all connections that are open; new ones are welcome."""
        self._run(_now(self._reset_all))

    def hold(self) -> None:
        """Let no more byte through: connections stay open, new ones too are accepted, and nothing is ever answered."""
        self._run(_now(self._flowing.clear))

    def refuse(self) -> None:
        """Reset all connections that are open, and refuse new ones."""
        self._run(_now(self._shut_out))

    def resume(self) -> None:
        """Behave again; what was held goes on."""
        self._run(_now(self._flowing.set))
        for door in self._doors:
            if door.server is None:
                self._run(self._let_in(door))

    def close(self) -> None:
        """End all connections, and the relay."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for door in self._doors:
            door.reserved.close()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _let_in(self, door: _Door) -> None:
        listener = call_inside(door.namespace, partial(bound_socket, door.port))
        serve = partial(self._serve, door.writers)
        door.server = await asyncio.start_server(serve, sock=listener, limit=_BUFFER_BYTES, backlog=_BACKLOG)

    def _shut_out(self) -> None:
        for door in self._doors:
            door.shut()
            door.reset()

    def _reset_all(self) -> None:
        for door in self._doors:
            door.reset()

    async def _end(self) -> None:
        self._shut_out()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(
        self,
        shared: set[asyncio.StreamWriter],
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
    ) -> None:
        writers = {client_writer}
        shared |= writers
        try:
            await self._flowing.wait()
            server_reader, server_writer = await self._connect()
            writers.add(server_writer)
            shared |= writers
            if client_writer.is_closing():
                raise ConnectionResetError  # told to reset it before there was a server to tell
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(client_reader, server_writer))
                pumps.create_task(self._pump(server_reader, client_writer))
        except* OSError:
            for writer in writers:  # one side was cut off, so the other one is too
                _reset(writer)
        except* asyncio.CancelledError:
            pass  # at the end of the relay; the streams of Python 3.11 would report it as an error
        finally:
            shared -= writers
            for writer in writers:
                writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        with ExitStack() as on_failure:
            upstream = on_failure.enter_context(call_inside(self._target_namespace, socket.socket))
            upstream.settimeout(0)
            await self._loop.sock_connect(upstream, (LOOPBACK, self._target_port))
            streams = await asyncio.open_connection(sock=upstream, limit=_BUFFER_BYTES)
            on_failure.pop_all()
        return streams

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_BUFFER_BYTES):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
        writer.write_eof()


def bound_socket(port: int = 0) -> socket.socket:
    """Bind a port of the loopback (0: a free one) in a way that lets others who reuse addresses bind it as well."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((LOOPBACK, port))
    return made


async def _now(action: Callable[[], None]) -> None:
    """Call a function in the loop's thread, once the loop gets to it."""
    action()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once with a reset, as a peer that is gone does, not with the orderly end of a stream."""
    if not writer.transport.is_closing():
        lingering = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
        writer.transport.abort()
