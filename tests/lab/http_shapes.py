"""Valid and malformed HTTP requests, sent byte for byte, and the status with which kube-proxy 1.37 (Go) answers each.

`tests/cluster/test_peer_http.py` sends all of them to both proxies, which verifies the table.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

_HOST = b"Host: node\r\n"
_END = b"\r\n"


class Shape(NamedTuple):
    """A request to one of the servers."""

    request: bytes
    statuses: tuple[int, int, int]
    """Status of the health server, of a health check node port and of the metrics server; 0: closed without an answer."""
    ends: bool = False
    """Whether the client closes its side of the connection after the request."""


def _all(status: int) -> tuple[int, int, int]:
    return (status, status, status)


def _get(target: bytes, more: bytes = _HOST, *, method: bytes = b"GET", version: bytes = b"HTTP/1.1") -> bytes:
    return b"%s %s %s\r\n%s\r\n" % (method, target, version, more)


_HEALTHZ = b"/healthz"
SHAPES: dict[str, Shape] = {
    "plain": Shape(_get(_HEALTHZ), _all(200)),
    "query": Shape(_get(b"/healthz?a=b&c"), _all(200)),
    "empty query": Shape(_get(b"/healthz?"), _all(200)),
    "fragment": Shape(_get(b"/healthz#a"), (404, 200, 404)),
    "other path": Shape(_get(b"/nothing"), (404, 200, 404)),
    "root": Shape(_get(b"/"), (404, 200, 404)),
    "trailing slash": Shape(_get(b"/healthz/"), (404, 200, 404)),
    "two slashes": Shape(_get(b"//healthz"), (307, 200, 404)),
    "dot segment": Shape(_get(b"/./healthz"), (307, 200, 404)),
    "parent segment": Shape(_get(b"/a/../healthz"), (307, 200, 404)),
    "upper-case path": Shape(_get(b"/HEALTHZ"), (404, 200, 404)),
    "percent-encoded": Shape(_get(b"/%68ealthz"), _all(200)),
    "percent-encoded slash": Shape(_get(b"/a%2Fhealthz"), (404, 200, 404)),
    "encoded slash in front": Shape(_get(b"%2Fhealthz"), _all(400)),
    "bad percent-encoding": Shape(_get(b"/%zz"), _all(400)),
    "cut percent-encoding": Shape(_get(b"/healthz%6"), _all(400)),
    "absolute form": Shape(_get(b"http://node/healthz"), _all(200)),
    "absolute form with a port": Shape(_get(b"http://node:10256/healthz"), _all(200)),
    "absolute form with a user": Shape(_get(b"http://a:b@node/healthz"), _all(200)),
    "absolute form, https": Shape(_get(b"https://node/healthz"), _all(200)),
    "absolute form, IPv6": Shape(_get(b"http://[::1]:10256/healthz"), _all(200)),
    "absolute form, bad IPv6": Shape(_get(b"http://[::1/healthz"), _all(400)),
    "absolute form, bad port": Shape(_get(b"http://node:x/healthz"), _all(400)),
    "absolute form without a path": Shape(_get(b"http://node"), (307, 200, 404)),
    "absolute form without Host": Shape(_get(b"http://node/healthz", b""), _all(400)),
    "no slash in front": Shape(_get(b"healthz"), _all(400)),
    "asterisk": Shape(_get(b"*"), (400, 200, 404)),
    "OPTIONS *": Shape(_get(b"*", method=b"OPTIONS"), _all(200)),
    "OPTIONS": Shape(_get(_HEALTHZ, method=b"OPTIONS"), _all(200)),
    "HEAD": Shape(_get(_HEALTHZ, method=b"HEAD"), _all(200)),
    "HEAD of another path": Shape(_get(b"/nothing", method=b"HEAD"), (404, 200, 404)),
    "POST": Shape(_get(_HEALTHZ, _HOST + b"Content-Length: 2\r\n", method=b"POST") + b"ab", _all(200)),
    "POST in chunks": Shape(
        _get(_HEALTHZ, _HOST + b"Transfer-Encoding: chunked\r\n", method=b"POST") + b"2\r\nab\r\n0\r\n\r\n", _all(200)
    ),
    "POST whose body does not come": Shape(
        _get(_HEALTHZ, _HOST + b"Content-Length: 9\r\n", method=b"POST"), _all(200), ends=True
    ),
    "PUT": Shape(_get(_HEALTHZ, method=b"PUT"), _all(200)),
    "DELETE": Shape(_get(_HEALTHZ, method=b"DELETE"), _all(200)),
    "TRACE": Shape(_get(_HEALTHZ, method=b"TRACE"), _all(200)),
    "CONNECT": Shape(_get(b"node:80", method=b"CONNECT"), (404, 200, 404)),
    "CONNECT to a path": Shape(_get(_HEALTHZ, method=b"CONNECT"), _all(200)),
    "lower-case method": Shape(_get(_HEALTHZ, method=b"get"), _all(200)),
    "unknown method": Shape(_get(_HEALTHZ, method=b"BREW"), _all(200)),
    "bad method": Shape(_get(_HEALTHZ, method=b"G@T"), _all(400)),
    "no method": Shape(b" /healthz HTTP/1.1\r\n" + _HOST + _END, _all(400)),
    "HTTP/1.0": Shape(_get(_HEALTHZ, b"", version=b"HTTP/1.0"), _all(200)),
    "HTTP/1.0 keep-alive": Shape(_get(_HEALTHZ, b"Connection: keep-alive\r\n", version=b"HTTP/1.0"), _all(200)),
    "HTTP/1.2": Shape(_get(_HEALTHZ, version=b"HTTP/1.2"), _all(200)),
    "HTTP/0.9": Shape(_get(_HEALTHZ, version=b"HTTP/0.9"), _all(505)),
    "HTTP/2.0": Shape(_get(_HEALTHZ, version=b"HTTP/2.0"), _all(505)),
    "HTTP/1.10": Shape(_get(_HEALTHZ, version=b"HTTP/1.10"), _all(400)),
    "HTTP/1": Shape(_get(_HEALTHZ, version=b"HTTP/1"), _all(400)),
    "lower-case version": Shape(_get(_HEALTHZ, version=b"http/1.1"), _all(400)),
    "no version": Shape(b"GET /healthz\r\n", _all(400)),
    "no version, and an end": Shape(b"GET /healthz\r\n\r\n", _all(400)),
    "no target": Shape(b"GET\r\n", _all(400)),
    "two spaces": Shape(b"GET  /healthz HTTP/1.1\r\n" + _HOST + _END, _all(400)),
    "space in the target": Shape(_get(b"/healthz a"), _all(400)),
    "tab for a space": Shape(b"GET\t/healthz\tHTTP/1.1\r\n" + _HOST + _END, _all(400)),
    "space behind the version": Shape(b"GET /healthz HTTP/1.1 \r\n" + _HOST + _END, _all(400)),
    "empty line first": Shape(_END + _get(_HEALTHZ), _all(400)),
    "cut request line": Shape(b"GET /hea", _all(400), ends=True),
    "cut headers": Shape(b"GET /healthz HTTP/1.1\r\nHost: no", _all(400), ends=True),
    "nothing": Shape(b"", _all(0), ends=True),
    "line feeds only": Shape(b"GET /healthz HTTP/1.1\nHost: node\n\n", _all(200)),
    "TLS": Shape(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", _all(400), ends=True),
    "HTTP/2 preface": Shape(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", (400, 200, 404)),
    "NUL in the target": Shape(_get(b"/health\x00z"), _all(400)),
    "DEL in the target": Shape(_get(b"/health\x7fz"), _all(400)),
    "encoded NUL": Shape(_get(b"/health%00z"), (404, 200, 404)),
    "UTF-8 in the target": Shape(_get("/gesundheit-ü".encode()), (404, 200, 404)),
    "no Host": Shape(_get(_HEALTHZ, b""), _all(400)),
    "empty Host": Shape(_get(_HEALTHZ, b"Host:\r\n"), _all(200)),
    "two Hosts": Shape(_get(_HEALTHZ, _HOST + _HOST), _all(400)),
    "bad Host": Shape(_get(_HEALTHZ, b"Host: no de\r\n"), _all(400)),
    "folded header": Shape(_get(_HEALTHZ, _HOST + b"A: b\r\n c\r\n"), _all(200)),
    "fold first": Shape(_get(_HEALTHZ, b" A: b\r\n" + _HOST), _all(400)),
    "header without a colon": Shape(_get(_HEALTHZ, _HOST + b"A\r\n"), _all(400)),
    "header without a name": Shape(_get(_HEALTHZ, _HOST + b": a\r\n"), _all(400)),
    "space before the colon": Shape(_get(_HEALTHZ, _HOST + b"A : b\r\n"), _all(400)),
    "NUL in a header": Shape(_get(_HEALTHZ, _HOST + b"A: b\x00\r\n"), _all(400)),
    "odd header name": Shape(_get(_HEALTHZ, _HOST + b"A(: b\r\n"), _all(400)),
    "Latin-1 in a header": Shape(_get(_HEALTHZ, _HOST + b"A: \xfc\r\n"), _all(200)),
    "long header": Shape(_get(_HEALTHZ, _HOST + b"A: " + b"b" * 100_000 + b"\r\n"), _all(200)),
    "many headers": Shape(_get(_HEALTHZ, _HOST + b"A: b\r\n" * 500), _all(200)),
    "headers of two megabytes": Shape(_get(_HEALTHZ, _HOST + (b"A: " + b"b" * 9_000 + b"\r\n") * 230), _all(431)),
    "long target": Shape(_get(b"/" + b"a" * 100_000), (404, 200, 404)),
    "Expect": Shape(
        _get(_HEALTHZ, _HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n", method=b"POST"), _all(200)
    ),
    "unknown Expect": Shape(_get(_HEALTHZ, _HOST + b"Expect: tea\r\n"), _all(417)),
    "bad Content-Length": Shape(_get(_HEALTHZ, _HOST + b"Content-Length: a\r\n"), _all(400)),
    "negative Content-Length": Shape(_get(_HEALTHZ, _HOST + b"Content-Length: -1\r\n"), _all(400)),
    "signed Content-Length": Shape(_get(_HEALTHZ, _HOST + b"Content-Length: +1\r\n"), _all(400)),
    "two lengths": Shape(_get(_HEALTHZ, _HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n"), _all(400)),
    "the same length twice": Shape(_get(_HEALTHZ, _HOST + b"Content-Length: 0\r\nContent-Length: 0\r\n"), _all(200)),
    "length and chunks": Shape(
        _get(_HEALTHZ, _HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", method=b"POST") + b"0\r\n\r\n",
        _all(200),
    ),
    "unknown transfer encoding": Shape(_get(_HEALTHZ, _HOST + b"Transfer-Encoding: gzip\r\n"), _all(501)),
    "two transfer encodings": Shape(_get(_HEALTHZ, _HOST + b"Transfer-Encoding: gzip, chunked\r\n"), _all(501)),
    "chunks of HTTP/1.0": Shape(
        _get(_HEALTHZ, _HOST + b"Transfer-Encoding: chunked\r\n", version=b"HTTP/1.0"), _all(200), ends=True
    ),
    "Connection: close": Shape(_get(_HEALTHZ, _HOST + b"Connection: close\r\n"), _all(200)),
    "Upgrade": Shape(_get(_HEALTHZ, _HOST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n"), _all(200)),
    "pipelined": Shape(_get(_HEALTHZ) + _get(_HEALTHZ, _HOST + b"Connection: close\r\n"), _all(200)),
}


class Reply(NamedTuple):
    """The first answer on a connection."""

    status: int
    """0 if there was no answer."""
    headers: dict[str, str]
    """Values by lower-case name."""
    body: bytes
    """Limited by Content-Length, if given; after HEAD, whatever follows the headers."""


def send(where: tuple[str, int], shape: Shape, patience_seconds: float) -> Reply:
    """Send the bytes of a request and return the first answer; raises TimeoutError if there is none in time."""
    data = b""
    with socket.create_connection(where, timeout=patience_seconds) as connection:
        try:
            connection.sendall(shape.request)
            if shape.ends:
                connection.shutdown(socket.SHUT_WR)
            while b"\r\n\r\n" not in data:
                if not (more := connection.recv(65536)):
                    break
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): text.strip() for name, _, text in (line.partition(":") for line in lines[1:])}
            is_head = shape.request.startswith(b"HEAD")
            length = 0 if is_head else int(headers.get("content-length", "0"))
            while len(body) < length and (more := connection.recv(65536)):
                body += more
            if not is_head and "content-length" not in headers:
                while more := connection.recv(65536):
                    body += more
                    if body.endswith(b"0\r\n\r\n") and headers.get("transfer-encoding") == "chunked":
                        break
        except ConnectionError:
            if b"\r\n\r\n" not in data:
                return Reply(0, {}, b"")
    words = data.split(b" ", 2)
    return Reply(int(words[1]) if len(words) > 1 else 0, headers, body if is_head else body[: length or None])
