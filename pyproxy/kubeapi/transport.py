"""HTTP to the API server: a request becomes a body, a stream of lines, or an error.

It neither retries nor logs, and its only state is which of several servers is in use. The files of the access are read
for each request, so that no request uses a token or certificate that has been replaced. All errors of aiohttp are
converted here.
"""

import asyncio
import os
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
from pyproxy.decode.nesting import decode_json
from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi.access import Access, Certificates, Server
from pyproxy.model.request_record import NO_ANSWER, RequestRecord
from pyproxy.model.urls import without_credentials

FindAccess = Callable[[], Awaitable[Access]]
"""Finds server and credentials: `load_access` with its settings."""

Tell = Callable[[RequestRecord], None]
"""Called with the record of each request."""

LONGEST_LINE_BYTES = 64 << 20
"""Limit for a line of a watch; the largest object in etcd (1.5 MB by default) is far below it."""
OVERLOADED = frozenset({429, 502, 503, 504})
"""Statuses that do not depend on the request: it may succeed later, or at another server. The API server sends
429 under API Priority and Fairness and while it shuts down; the rest may come from a load balancer in front of it."""
_DONE = frozenset({HTTPStatus.OK, HTTPStatus.CREATED})
# Part of an error response that is read.
_EXCERPT_BYTES = 4096
_EXPIRY_MARGIN_SECONDS = 60.0
_SOCKET_OPTIONS = (
    # An unreachable peer is detected within 60 s, even on a connection on which only the peer sends.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
# Iterations of the event loop from the end of a stream to the close of its socket: read, end of TLS, close.
_TURNS_TO_CLOSE = 3
_STATUS = msgspec.json.Decoder(wire.Status)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Time limits for the network, in seconds."""

    connect: float = 10.0
    """For a TCP connection with its TLS handshake."""
    answer: float = 60.0
    """For the beginning of a response, and between parts of a list: the API server cancels a request other than a watch
    after 60 s (``--request-timeout``)."""
    silence: float = 85.0
    """Between parts of a watch: the server sends a bookmark every minute (apiserver 0.37, ``storage/cacher/cacher.go``,
    ``defaultBookmarkFrequency``), so that a longer silence means a dead connection."""


class UnreachableError(SourceError):
    """No API server responded."""


class HttpStatusError(SourceError):
    """The API server answered with an error.

    Args:
        status: HTTP status.
        message: message of the server.
        retry_after_seconds: value of Retry-After; 0 if absent.
    """

    def __init__(self, status: int, message: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class _Request(NamedTuple):
    """A request."""

    path: str
    query: Mapping[str, str] = {}
    is_watch: bool = False
    content: bytes | None = None
    """JSON to post; None for a GET."""

    @property
    def method(self) -> HTTPMethod:
        return HTTPMethod.GET if self.content is None else HTTPMethod.POST


class Lines:
    """The lines of a streamed response."""

    def __init__(self, content: aiohttp.StreamReader) -> None:
        self._content = content
        self._rest = bytearray()

    async def read(self) -> list[bytes]:
        """Return the next lines, at least one; an empty list at the end of the stream, also if it broke or timed out.

        Raises:
            SourceError: a line is longer than `LONGEST_LINE_BYTES`.
        """
        lines: list[bytes] = []
        while not lines:
            try:
                chunk = await self._content.readany()
            except (aiohttp.ClientError, OSError):  # a TimeoutError is an OSError
                break
            if not chunk:
                break
            # The server sends one JSON object per line, in chunked encoding. A chunk may end within a line: proxies
            # between server and agent re-chunk the stream.
            # Without a newline, `head` is empty and `tail` is the whole chunk.
            head, newline, tail = chunk.rpartition(b"\n")
            if newline:
                lines = head.split(b"\n")
                if self._rest:
                    lines[0] = bytes(self._rest) + lines[0]
                self._rest = bytearray()
            self._rest += tail
            if len(self._rest) > LONGEST_LINE_BYTES:
                message = f"a line of a watch is longer than {LONGEST_LINE_BYTES} bytes"
                raise SourceError(message)
        return lines


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
        # Without cookies: one of a load balancer would pin the agent to a server that may be the one that fails.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(socket_factory=self._socket),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"pyproxy/{__version__}", "Accept": "application/json"},
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        """Close all connections."""
        await self._session.close()
        # A cancelled request closes its TLS connection, which waits for a peer that may be unreachable.
        for left in self._sockets:
            with suppress(OSError):
                left.shutdown(socket.SHUT_RDWR)
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)

    @property
    def server(self) -> str:
        """Return the URL of the server in use, without credentials; empty before one is known."""
        return self._access.servers[self._turn % len(self._access.servers)].name if self._access else ""

    async def access(self) -> Access:
        """Return server and credentials; find them the first time, and again when they are about to expire.

        Raises:
            ConfigError: the configuration cannot work; only before the first success.
            SourceError: an exec plugin failed; only before the first success.
        """
        if self._access is None:
            await self._replace(None)
        elif self._access.expires_at is not None and self._access.expires_at < time.time() + _EXPIRY_MARGIN_SECONDS:
            # Without new credentials the old ones may still be valid; otherwise the server responds with 401.
            with suppress(ConfigError, SourceError):
                await self._replace(self._access)
        assert self._access is not None  # noqa: S101 - the type checker cannot know
        return self._access

    async def body(self, path: str, query: Mapping[str, str]) -> bytes:
        """Return the whole response to a request.

        Raises:
            SourceError: the request failed; see `UnreachableError` and `HttpStatusError`.
        """
        async with self._ask(_Request(path, query)) as response:
            return await response.read()  # read already, returns at once

    async def post(self, path: str, content: bytes) -> None:
        """Create an object.

        Args:
            path: path of the collection.
            content: the object in JSON.

        Raises:
            SourceError: the request failed; see `UnreachableError` and `HttpStatusError`.
        """
        async with self._ask(_Request(path, content=content)):
            pass

    @asynccontextmanager
    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[Lines]:
        """Give the response to a request line by line.

        Raises:
            SourceError: the request failed; see `UnreachableError` and `HttpStatusError`.
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
            # Abort instead of closing TLS: that would keep the socket until the peer responds, which may be unreachable.
            connection = response.connection
            if connection is not None and connection.transport is not None:
                connection.transport.abort()
            response.close()

    async def _send(self, access: Access, server: Server, request: _Request) -> aiohttp.ClientResponse:
        read_seconds = self._timing.silence if request.is_watch else self._timing.answer
        patience = aiohttp.ClientTimeout(sock_connect=self._timing.connect, sock_read=read_seconds, total=None)
        with _unreachable(server):
            # The API server compresses lists of more than 128 KiB (apiserver, `defaultGzipThresholdBytes`) and, from 1.37
            # on, streaming lists and the watch after them, each flush as one gzip member (`perFlushGzipWriter`).
            headers = {
                "Authorization": access.read_authorization(),
                "Accept-Encoding": "gzip" if access.compress else "identity",
            }
            if request.content is not None:
                headers["Content-Type"] = "application/json"
            tls: ssl.SSLContext | bool = True
            if server.url.startswith("https:"):
                # Make a new context only if a file changed: aiohttp reuses connections by their context.
                certificates = access.read_certificates()
                if self._tls is None or self._tls[0] is not access or self._tls[1] != certificates:
                    self._tls = access, certificates, access.tls_context(certificates)
                tls = self._tls[2]
            # The total limit ends with the headers of the response: a watch stays open for minutes after them.
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
                    allow_redirects=False,  # a redirect would take the token to another host
                    timeout=patience,
                )

    async def _refused(self, response: aiohttp.ClientResponse, access: Access, turn: int) -> HttpStatusError:
        """Return the error for a refusal, and prepare the next attempt: with new credentials, or at the next server."""
        message = response.reason or ""
        with suppress(aiohttp.ClientError, OSError):
            excerpt = await response.content.read(_EXCERPT_BYTES)
            message = " ".join(excerpt.decode(errors="replace").split())[:200]
            # The API server answers with a Status, a proxy in front of it with any text.
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                status = decode_json(_STATUS, excerpt)
                message = status.message or status.reason or ""
        # 401: the token has expired or was revoked. 403 would not change with new credentials of the same user.
        if response.status == HTTPStatus.UNAUTHORIZED:
            try:
                await self._replace(access)
            except (ConfigError, SourceError) as error:
                message = f"{message}; new credentials: {error}"
        elif response.status in OVERLOADED:
            self._pass_turn(turn)
        # Retry-After may also be a date, which the API server does not send.
        seconds = response.headers.get("Retry-After", "")
        retry_after_seconds = float(seconds) if seconds.isascii() and seconds.isdigit() else 0.0
        return HttpStatusError(response.status, message, retry_after_seconds)

    async def _replace(self, known: Access | None) -> None:
        # Several watches may be refused with the same expired token; the lock makes one plugin run serve them all.
        async with self._loading:
            if self._access is known:  # else another refused request has already replaced it
                self._access = await self._find_access()

    def _pass_turn(self, turn: int) -> None:
        if self._turn == turn:  # of several failed requests to a server only the first one switches servers
            self._turn += 1

    def _socket(self, address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol = address[:3]
        made = socket.socket(family, kind, protocol)
        for level, option, value in _SOCKET_OPTIONS:
            made.setsockopt(level, option, value)
        self._sockets.add(made)
        return made


class _Account:
    """Collects the record of a request until its end, or of a watch until it is open."""

    def __init__(self, server: Server, request: _Request, tell: Tell) -> None:
        self.received_bytes: int | None = None
        self._host = urlsplit(server.url).netloc.rpartition("@")[2]
        self._request = request
        self._started = None if request.is_watch else time.monotonic()
        self._tell = tell

    def close(self, code: str) -> None:
        # A watch has no duration and size: it is open for minutes by design, and would hide slow requests in a histogram.
        seconds = None if self._started is None else time.monotonic() - self._started
        sent_bytes = None if self._started is None else len(self._request.content or b"")
        self._tell(RequestRecord(self._request.method, self._host, code, seconds, sent_bytes, self.received_bytes))


@contextmanager
def _unreachable(server: Server) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, SourceError, OSError, ValueError) as error:  # a TimeoutError is an OSError
        # The text of aiohttp's own errors has addresses of Python objects, which differ each time.
        cause = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
        text = without_credentials(cause)
        # asyncio's text of a connection error has a Python tuple, unlike the kernel's. OpenSSL and the resolver have error
        # numbers of their own.
        if isinstance(cause, OSError) and cause.errno and not isinstance(cause, ssl.SSLError | socket.gaierror):
            text = os.strerror(cause.errno)
        message = f"{server.name}: {text or 'no response in time'}"
        raise UnreachableError(message) from error
