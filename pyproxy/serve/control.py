"""The control socket: a Unix stream socket on which the agent answers commands of root on its node.

One connection has one request and one reply, each a line of JSON; the reply has either a result or an error. Only
processes of uid 0 are answered: the file mode keeps other users out, and each connection is checked again, because a
capability can override file modes. A client cannot delay the agent: connections, the size of a request and the time for
request and reply are limited.
"""

import asyncio
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

MOST_REQUEST_BYTES = 4096  # `readline` raises ValueError for a longer line
_MOST_CONNECTIONS = 8
_REQUEST_SECONDS = 5.0
_REPLY_SECONDS = 30.0
# `struct ucred` of include/linux/socket.h: pid, uid, gid.
_UCRED = struct.Struct("3i")
_DIRECTORY_MODE = 0o755
_SOCKET_MODE = 0o600

Answer = Callable[[dict[str, object]], Awaitable[bytes]]
"""Returns the result of a request, JSON without a newline. Raises ValueError if the request is not known."""


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a Unix socket, as it was when that process connected."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(credentials)[1]
    return uid


def peer_pid(connection: socket.socket) -> int:
    """Return the process ID of the process at the other end of a Unix socket; 0 if it is not in this PID namespace."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid: int = _UCRED.unpack(credentials)[0]
    return pid


class ControlServer:
    """Answers requests on a socket.

    Args:
        path: of the socket; its directory is created if that is missing.
        answer: called in the loop, for one request at a time.
        request_seconds: time that a client has for its request.
    """

    def __init__(self, path: str, answer: Answer, request_seconds: float = _REQUEST_SECONDS) -> None:
        self._path = Path(path)
        self._answer = answer
        self._request_seconds = request_seconds
        self._connections = 0
        self._answering = asyncio.Lock()

    async def run(self) -> None:
        """Serve until cancelled; return at once, with a warning in the log, if the socket cannot be opened."""
        try:
            listener = _listen(self._path)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            logger.warning("control socket %s cannot be opened: %s", self._path, reason)
            return
        # The path may later lead to the socket of another agent; the inode number tells whether it does.
        inode = self._path.stat().st_ino
        try:
            async with await asyncio.start_unix_server(
                self._connected, sock=listener, limit=MOST_REQUEST_BYTES
            ) as server:
                await server.serve_forever()
        finally:
            # Another agent may have replaced the file.
            with suppress(OSError):
                if self._path.stat().st_ino == inode:
                    self._path.unlink()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            async with asyncio.timeout(self._request_seconds + _REPLY_SECONDS):
                writer.write(await self._reply(reader, writer) + b"\n")
                await writer.drain()
        except (OSError, TimeoutError) as error:
            logger.debug("control socket: %s", str(error) or "no request, or no complete answer, in time")
            writer.transport.abort()
        finally:
            self._connections -= 1
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        # The credentials are those at the time of `connect`: a process that gives up its rights later keeps its answer.
        uid = peer_uid(writer.get_extra_info("socket"))
        if uid != 0:
            return _error(f"uid {uid} may not use the control socket, only root may")
        if self._connections > _MOST_CONNECTIONS:
            return _error("too many connections, try again")
        try:
            async with asyncio.timeout(self._request_seconds):
                line = await reader.readline()
            request = json.loads(line.decode())
            if not isinstance(request, dict):
                return _error("the request is not a JSON object")
            # One at a time: an answer with all Services takes memory and turns of the loop.
            async with self._answering:
                return b'{"result":%b}' % await self._answer(request)
        except (ValueError, RecursionError) as error:  # also for a line that is too long
            return _error(str(error))


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()


def _listen(path: Path) -> socket.socket:
    path.parent.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
    # A socket file outlives its process, and `bind` fails while it exists. Only `connect` tells whether a process still listens.
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            message = "the file exists and is not a socket"
            raise OSError(message)
        # `connect` waits while the backlog of the other agent is full, and this runs in the loop.
        client.settimeout(1)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            message = "another agent uses it"
            raise OSError(message)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)  # noqa: FBT003  # its name says it
        # The file gets the mode of the socket's inode, without the bits of the umask (net/unix/af_unix.c, unix_bind_bsd), so
        # it is never accessible to other users, not even for a moment.
        os.fchmod(listener.fileno(), _SOCKET_MODE)
        listener.bind(str(path))
        listener.listen(_MOST_CONNECTIONS)
    except OSError:
        listener.close()
        raise
    return listener
