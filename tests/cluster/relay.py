"""A TCP relay that fails on command, to simulate the network between a client and its API server.

It listens on the loopback of any network namespace, and connects to the target from the target's namespace, so that the
namespaces need no link. It runs on its own thread; its public methods are for other threads.
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
class _Listener:
    """A port for clients, and the connections accepted on it."""

    namespace: str | None
    reserved: socket.socket
    """Bound but not listening: it keeps the port reserved, and refusing, while no server listens on it."""
    server: asyncio.Server | None = None
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def port(self) -> int:
        return int(self.reserved.getsockname()[1])

    def shut(self) -> None:
        """Stop accepting connections."""
        if self.server is not None:
            self.server.close()
            self.server = None

    def reset(self) -> None:
        """Reset the connections of both sides."""
        for writer in self.writers:
            _reset(writer)


class Relay:
    """Relays connections to one port; on command it drops, holds or refuses them."""

    def __init__(self, port: int, *, namespace: str | None = None) -> None:
        """Relay to a port on the loopback of a namespace."""
        self._target_port = port
        self._target_namespace = namespace
        self._listeners: list[_Listener] = []
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)
        self._thread.start()

    def listen(self, namespace: str | None = None) -> int:
        """Accept clients on the loopback of a namespace, and return the port; the namespace must exist until `leave`."""
        listener = _Listener(namespace, call_inside(namespace, bound_socket))
        self._listeners.append(listener)
        self._run(self._accept(listener))
        return listener.port

    def leave(self, port: int) -> None:
        """Stop listening on a port permanently, and reset its connections."""
        for listener in [listener for listener in self._listeners if listener.port == port]:
            self._run(_now(listener.shut))
            self._run(_now(listener.reset))
            listener.reserved.close()
            self._listeners.remove(listener)

    def drop(self) -> None:
        """Reset all open connections; new ones are accepted."""
        self._run(_now(self._reset_all))

    def hold(self) -> None:
        """Stop relaying data: connections stay open, new ones are accepted, and nothing is answered."""
        self._run(_now(self._flowing.clear))

    def refuse(self) -> None:
        """Reset all open connections, and refuse new ones."""
        self._run(_now(self._refuse_all))

    def resume(self) -> None:
        """Relay normally again, including held data."""
        self._run(_now(self._flowing.set))
        for listener in self._listeners:
            if listener.server is None:
                self._run(self._accept(listener))

    def close(self) -> None:
        """Close all connections and stop the relay."""
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for listener in self._listeners:
            listener.reserved.close()

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _accept(self, listener: _Listener) -> None:
        sock = call_inside(listener.namespace, partial(bound_socket, listener.port))
        serve = partial(self._serve, listener.writers)
        listener.server = await asyncio.start_server(serve, sock=sock, limit=_BUFFER_BYTES, backlog=_BACKLOG)

    def _refuse_all(self) -> None:
        for listener in self._listeners:
            listener.shut()
            listener.reset()

    def _reset_all(self) -> None:
        for listener in self._listeners:
            listener.reset()

    async def _end(self) -> None:
        self._refuse_all()
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
                raise ConnectionResetError  # reset on command before the server was connected
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(client_reader, server_writer))
                pumps.create_task(self._pump(server_reader, client_writer))
        except* OSError:
            for writer in writers:  # one side was closed, so close the other one as well
                _reset(writer)
        except* asyncio.CancelledError:
            pass  # the relay ends; the streams of Python 3.11 would report an error
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
    """Bind a loopback port (0 for a free one) so that other sockets with SO_REUSEADDR can bind it as well."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((LOOPBACK, port))
    return made


async def _now(action: Callable[[], None]) -> None:
    """Call a function in the thread of the event loop."""
    action()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection immediately with a reset, as after a crash of the peer."""
    if not writer.transport.is_closing():
        lingering = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, lingering)
        writer.transport.abort()
