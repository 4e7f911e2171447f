"""Reads one request from a connection, answers it and closes the connection.

Answers are those of Go's net/http, except that each has ``Connection: close``: a client that keeps a connection open would
occupy one of the few threads.
"""

import logging
import socket
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus
from threading import BoundedSemaphore
from time import monotonic
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication

from pyproxy.serve.http_request import Refused, Request, read_request

logger = logging.getLogger(__name__)

# As `rstAvoidanceDelay` of net/http.
_LINGER_SECONDS = 0.5
_LINGER_BYTES = 256 << 10  # as net/http's limit for a body that it discards (`maxPostHandlerReadBytes`)
_READ_BYTES = 65536
# Limits how many large heads are in memory: 128 heads of a megabyte made a process of 18 MB grow to 190 MB, now to 38 MB.
_large_heads = BoundedSemaphore(8)


def exchange(connection: socket.socket, app: WSGIApplication) -> None:
    """Read a request and answer it.

    Raises:
        OSError: the connection broke, or the client took too long.
    """
    has_large_head = False

    def may_be_large() -> bool:
        # It does not wait: slow clients with large heads would occupy all threads. A head without a place is refused.
        nonlocal has_large_head
        has_large_head = _large_heads.acquire(blocking=False)
        return has_large_head

    with connection.makefile("rb") as lines:
        try:
            request = read_request(lines, may_be_large)
        except Refused as refused:
            logger.debug("refused: %s", refused)
            line = f"HTTP/1.1 {refused.status.value} {refused.status.phrase}"
            head = f"{line}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
            connection.sendall((head + refused.body).encode())
        else:
            if request is None:
                return
            connection.sendall(_answer(request, app))
        finally:
            if has_large_head:
                _large_heads.release()
        # Give the client time to read the answer. Closing a socket with unread bytes, of a body or of another request, sends a
        # reset, and the client's kernel then drops the data that the client has not read yet.
        connection.shutdown(socket.SHUT_WR)
        deadline, left = monotonic() + _LINGER_SECONDS, _LINGER_BYTES
        while left > 0 and (seconds := deadline - monotonic()) > 0:
            connection.settimeout(seconds)
            data = connection.recv(_READ_BYTES)
            if not data:
                return
            left -= len(data)


def redirect(location: str, method: str, start_response: StartResponse) -> Iterable[bytes]:
    """Answer as ``http.RedirectHandler`` does with status 307; the location must be percent-encoded."""
    has_body = method in {"GET", "HEAD"}
    headers = [("Content-Type", "text/html; charset=utf-8")] if has_body else []
    start_response("307 Temporary Redirect", [*headers, ("Location", location)])
    escaped = location.replace("&", "&amp;").replace('"', "&#34;").replace("'", "&#39;")
    return [f'<a href="{escaped}">Temporary Redirect</a>.\n\n'.encode()] if has_body else []


def _answer(request: Request, app: WSGIApplication) -> bytes:
    # net/http answers `OPTIONS *` itself, and only knows one expectation (`server.go`, `serverHandler` and `conn.serve`).
    expected = request.headers.get("expect", "").lower()
    if request.method == "OPTIONS" and request.target == "*":
        status, headers, body = "200 OK", list[tuple[str, str]](), b""
    elif expected and not request.is_1_0 and expected != "100-continue":
        status, headers, body = "417 Expectation Failed", [], b""
    else:
        status, headers, body = _called(request, app)
    # With a length the client can tell a whole answer from one that broke off, although the connection is closed after it.
    headers = [
        *headers,
        ("Date", formatdate(usegmt=True)),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
    ]
    version = "HTTP/1.0" if request.is_1_0 else "HTTP/1.1"
    # An answer to HEAD has the length of the body that GET would get (RFC 9110, 8.6), and no body.
    lines = "".join(f"{line}\r\n" for line in (f"{version} {status}", *(f"{name}: {text}" for name, text in headers)))
    return f"{lines}\r\n".encode("latin-1") + (b"" if request.method == "HEAD" else body)


def _called(request: Request, app: WSGIApplication) -> tuple[str, list[tuple[str, str]], bytes]:
    answer: list[tuple[str, list[tuple[str, str]]]] = []

    def start_response(status: str, headers: list[tuple[str, str]], _: Any = None, /) -> Any:  # noqa: ANN401  # WSGI's
        answer.append((status, headers))

    environ = {
        "REQUEST_METHOD": request.method,
        "REQUEST_URI": request.target,
        "PATH_INFO": request.path,
        "QUERY_STRING": request.query,
        "SERVER_PROTOCOL": "HTTP/1.0" if request.is_1_0 else "HTTP/1.1",
    }
    # WSGI (PEP 3333): a header becomes a variable in upper case. What a page does not read is left out of the environment.
    environ |= {f"HTTP_{name.upper().replace('-', '_')}": text for name, text in request.headers.items()}
    try:
        body = b"".join(app(environ, start_response))
    except Exception:
        # A bug in a page must not look like an agent that does not answer.
        logger.exception("%s cannot be answered", request.path)
        return f"{HTTPStatus.INTERNAL_SERVER_ERROR.value} Internal Server Error", [], b""
    status, headers = answer[-1]
    return status, headers, body
