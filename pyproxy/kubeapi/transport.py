"""HTTP to the API server: one request at a time becomes a body, a stream of lines, or an error that says what to do.

Law of this file: nothing is retried, remembered or logged here, except which of several servers has its turn. Files of
the access are read at every request, so that a request never goes out with a token or certificate that is no longer
there. All errors of aiohttp end here.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPMethod, HTTPStatus
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit
from weakref import WeakSet

import aiohttp
import msgspec

from pyproxy import __version__
from pyproxy.decode import wire
from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi.access import Access, Certificates, Server
from pyproxy.model.request_record import NO_ANSWER, RequestRecord
from pyproxy.model.urls import without_credentials

FindAccess = Callable[[], Awaitable[Access]]
"""Finds server and credentials anew; `load_access` with its settings."""

Tell = Callable[[RequestRecord], None]
"""Is told of each request."""

LONGEST_LINE_BYTES = 64 << 20
"""An object of etcd's greatest size (1.5 MB by default) is far below; beyond this a stream is not a watch."""
OVERLOADED = frozenset({429, 502, 503, 504})
"""Answers that say nothing about the request: the same one may be right a moment later, or at another server."""
_DONE = frozenset({HTTPStatus.OK, HTTPStatus.CREATED})
_EXCERPT_BYTES = 4096
"""How much of a refusal is read."""
_EXPIRY_MARGIN_SECONDS = 60.0
_SOCKET_OPTIONS = (
    # A peer that vanished without a word is noticed within 60 s, even on a connection where only it has to speak.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
_TURNS_TO_CLOSE = 3
"""Of the event loop, from the end of a socket's stream to its close: it is read, told to TLS, and closed."""
_STATUS = msgspec.json.Decoder(wire.Status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long to wait for the network, in seconds."""

    connect: float = 10.0
    """For a TCP connection with its TLS handshake."""
    answer: float = 60.0
    """For the beginning of an answer, and between parts of a list: the API server gives up a request after 60 s."""
    silence: float = 85.0
    """Between parts of a watch: bookmarks come every minute, so that it is not silent for longer."""


class UnreachableError(SourceError):
    """No API server gave an answer."""


class HttpStatusError(SourceError):
    """The API server answered with an error.

    Args:
        status: of HTTP.
        message: what it said.
        retry_after_seconds: how long it wants us to stay away; 0 means that it did not say.
    """

    def __init__(self, status: int, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class _Request(NamedTuple):
    """What is asked for."""

    path: str
    query: Mapping[str, str] = {}
    is_watch: bool = False
    content: bytes | None = None
    """JSON to post; None: a GET."""

    @property
    def method(self) -> HTTPMethod:
        return HTTPMethod.GET if self.content is None else HTTPMethod.POST


class Lines:
    """The lines of an answer that goes on."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self._rest = bytearray()

    async def read(self) -> list[bytes]:
        """Return the next lines, at least one; none at the end, whether the server ended it, cut it off or fell silent.

        Raises:
            SourceError: a line is longer than `LONGEST_LINE_BYTES`.
        """
        while chunk := await self._chunk():
            if lines := self._split(chunk):
                return lines
        return []

    async def _chunk(self) -> bytes:
        try:
            return await self._content.readany()
        except (aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
            return b""

    def _split(self, chunk: bytes) -> list[bytes]:
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            self._keep(chunk)
            return []
        lines = head.split(b"\n")
        if self._rest:
            lines[0] = bytes(self._rest) + lines[0]
        self._rest = bytearray()
        self._keep(tail)
        return lines

    def _keep(self, part: bytes) -> None:
        self._rest += part
        if len(self._rest) > LONGEST_LINE_BYTES:
            message = f"a line of a watch is longer than {LONGEST_LINE_BYTES} bytes"
            raise SourceError(message)


class Transport:
    """Requests to the API server, or to one of several; an async context manager."""

    def __init__(self, find_access: FindAccess, timing: Timing, tell: Tell = lambda _: None) -> None:
        self._find_access = find_access
        self._timing = timing
        self._tell = tell
        self._access: Access | None = None
        self._loading = asyncio.Lock()
        self._turn = 0
        self._tls: tuple[Access, Certificates, ssl.SSLContext] | None = None
        self._sockets: WeakSet[socket.socket] = WeakSet()

    async def __aenter__(self) -> Self:
        """Start with no connection."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"pyproxy/{__version__}", "Accept": "application/json", "Accept-Encoding": "gzip"},
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close all connections."""
        await self._session.close()
        # A request that was given up ends its TLS in an orderly way, which waits for a peer that may be dead.
        for left in self._sockets:
            with suppress(OSError):
                left.shutdown(socket.SHUT_RDWR)
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)

    @property
    def server(self) -> str:
        """Return the server that has its turn, as a URL for people; empty before one is known."""
        return self._access.servers[self._turn % len(self._access.servers)].name if self._access else ""

    async def access(self) -> Access:
        """Return server and credentials; find them if that was not done before, or if they are about to expire.

        Raises:
            ConfigError: the configuration cannot work; only before it has worked once.
            SourceError: an exec plugin failed; only before it has worked once.
        """
        if self._access is None:
            await self._replace(None)
        elif self._access.expires_at is not None and self._access.expires_at < time.time() + _EXPIRY_MARGIN_SECONDS:
            # If there are no new ones the old ones may still do; if they do not, the server will say so.
            with suppress(ConfigError, SourceError):
                await self._replace(self._access)
        assert self._access is not None  # noqa: S101 - the type checker cannot know
        return self._access

    async def body(self, path: str, query: Mapping[str, str]) -> bytes:
        """Return the whole answer to a request.

        Raises:
            SourceError: there is none; see `UnreachableError` and `HttpStatusError`.
        """
        async with self._ask(_Request(path, query)) as response:
            return await response.read()  # again, and at once

    async def post(self, path: str, content: bytes) -> None:
        """Have an object made.

        Args:
            path: of the collection.
            content: the object in JSON.

        Raises:
            SourceError: it was not, for all we know; see `UnreachableError` and `HttpStatusError`.
        """
        async with self._ask(_Request(path, content=content)):
            pass

    @asynccontextmanager
    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Lines]:
        """Give the answer to a request line by line.

        Raises:
            SourceError: there is none; see `UnreachableError` and `HttpStatusError`.
        """
        async with self._ask(_Request(path, query, is_watch=True)) as response:
            yield Lines(response.content)

    @asynccontextmanager
    async def _ask(self, request: _Request) -> AsyncIterator[aiohttp.ClientResponse]:
        access, turn = await self.access(), self._turn
        server = access.servers[turn % len(access.servers)]
        account = _Account(server, request, self._tell)
        try:
            response = await self._send(access, server, request)
        except UnreachableError:
            account.close(NO_ANSWER)
            self._pass_turn(turn)
            raise
        try:
            try:
                if not request.is_watch and response.status in _DONE:
                    with _unreachable(server):
                        account.received_bytes = len(await response.read())
            finally:
                account.close(str(response.status))
            if response.status not in _DONE:
                raise await self._refused(response, access, turn)
            yield response
        finally:
            _cut(response)

    async def _send(self, access: Access, server: Server, request: _Request) -> aiohttp.ClientResponse:
        read_seconds = self._timing.silence if request.is_watch else self._timing.answer
        patience = aiohttp.ClientTimeout(sock_connect=self._timing.connect, sock_read=read_seconds, total=None)
        with _unreachable(server):
            headers = {"Authorization": access.read_authorization()}
            if request.content is not None:
                headers["Content-Type"] = "application/json"
            tls = self._tls_context(access) if server.url.startswith("https:") else True
            async with asyncio.timeout(self._timing.connect + self._timing.answer):
                return await self._session.request(
                    request.method,
                    server.url + request.path,
                    params=request.query,
                    data=request.content,
                    headers={name: value for name, value in headers.items() if value},
                    ssl=tls,
                    server_hostname=access.tls_server_name or None,
                    proxy=server.proxy or None,
                    allow_redirects=False,
                    timeout=patience,
                )

    def _tls_context(self, access: Access) -> ssl.SSLContext:
        # A new context only when a file changed: connections are kept and reused by their context.
        certificates = access.read_certificates()
        if self._tls is None or self._tls[0] is not access or self._tls[1] != certificates:
            self._tls = access, certificates, access.tls_context(certificates)
        return self._tls[2]

    async def _refused(self, response: aiohttp.ClientResponse, access: Access, turn: int) -> HttpStatusError:
        """Say what a refusal means, and prepare for another try: with new credentials, or at the next server."""
        message = await _message(response)
        if response.status == HTTPStatus.UNAUTHORIZED:
            try:
                await self._replace(access)
            except (ConfigError, SourceError) as error:
                message = f"{message}; new credentials: {error}"
        elif response.status in OVERLOADED:
            self._pass_turn(turn)
        return HttpStatusError(response.status, message, _retry_after_seconds(response))

    async def _replace(self, known: Access | None) -> None:
        async with self._loading:
            if self._access is known:  # or else another request that was refused has replaced it already
                self._access = await self._find_access()

    def _pass_turn(self, turn: int) -> None:
        if self._turn == turn:  # of several requests that failed at one server only the first one leaves it
            self._turn += 1

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)
        for level, option, value in _SOCKET_OPTIONS:
            made.setsockopt(level, option, value)
        self._sockets.add(made)
        return made


class _Account:
    """Keeps what there is to tell of a request until it is over; of a watch, until it is open."""

    def __init__(self, server: Server, request: _Request, tell: Tell) -> None:
        self.received_bytes: int | None = None
        self._host = urlsplit(server.url).netloc.rpartition("@")[2]
        self._request = request
        self._started = None if request.is_watch else time.monotonic()
        self._tell = tell

    def close(self, code: str) -> None:
        seconds = None if self._started is None else time.monotonic() - self._started
        sent_bytes = None if self._started is None else len(self._request.content or b"")
        self._tell(RequestRecord(self._request.method, self._host, code, seconds, sent_bytes, self.received_bytes))


def _cut(response: aiohttp.ClientResponse) -> None:
    # Not an orderly end of TLS: that would keep the socket until the peer answers, and it may be dead.
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()
    response.close()


@contextmanager
def _unreachable(server: Server) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, SourceError, OSError, ValueError) as error:  # a TimeoutError is an OSError
        # The text of aiohttp's own errors holds addresses of Python objects, which differ each time.
        cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
        message = f"{server.name}: {without_credentials(cause) or 'no answer in time'}"
        raise UnreachableError(message) from error


async def _message(response: aiohttp.ClientResponse) -> str:
    with suppress(aiohttp.ClientError, OSError):
        excerpt = await response.content.read(_EXCERPT_BYTES)
        with suppress(msgspec.DecodeError):
            status = _STATUS.decode(excerpt)
            return status.message or status.reason or ""
        return " ".join(excerpt.decode(errors="replace").split())[:200]
    return response.reason or ""


def _retry_after_seconds(response: aiohttp.ClientResponse) -> float:
    seconds = response.headers.get("Retry-After", "")
    return float(seconds) if seconds.isascii() and seconds.isdigit() else 0.0
