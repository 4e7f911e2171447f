"""Parses the head of an HTTP request, with the rules and limits of Go's net/http (1.26), which kube-proxy uses.

Its only effect is reading lines from a stream. docs/decisions/024-http-requests.md explains why http.server is not used. A
body is never read, because no page depends on one.
"""

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple, Protocol
from urllib.parse import unquote_to_bytes

MOST_BYTES = (1 << 20) + 4096
"""Maximum size of the head: ``DefaultMaxHeaderBytes``, and what ``initialReadLimitSize`` adds to it."""
SMALL_BYTES = 64 << 10
"""A larger head needs permission: many of them at a time would need more memory than the agent."""
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_CONTROL_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_SCHEME = re.compile(rb"([A-Za-z][-+.0-9A-Za-z]*):(.*)")
# What net/url accepts as a host; only bytes that are not ASCII may be percent-encoded.
_AUTHORITY = re.compile(
    rb"(?:[-._~!$&'()*+,;=:%0-9A-Za-z]*@)?"
    rb"(?:\[[^\]@/]*\]|(?:[-._~!$&'()*+,;=<>\"0-9A-Za-z\x80-\xff]|%[89A-Fa-f][0-9A-Fa-f])*)(?::[0-9]*)?"
)
_BAD_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
# golang.org/x/net/http/httpguts, ValidHostHeader
_HOST = re.compile(r"[-!$%&'()*+,.:;=\[\]_~0-9A-Za-z]*")
_LENGTH = re.compile(r"[0-9]+")


class Lines(Protocol):
    """A stream of lines."""

    def readline(self, limit: int, /) -> bytes:
        """Return the next line with its line end, but at most `limit` bytes; fewer at the end of the stream."""


class Refused(Exception):  # noqa: N818  # an answer to the client, not an error of the agent
    """The request is answered with an error, and the connection is closed."""

    def __init__(self, status: HTTPStatus, detail: str = "", *, body: str = "") -> None:
        line = f"{status.value} {status.phrase}"
        self.status = status
        self.body = body or (f"{line}: {detail}" if detail else line)
        super().__init__(self.body)


class Request(NamedTuple):
    """The head of a request."""

    method: str
    target: str
    """Request target as sent by the client."""
    path: str
    """Decoded path, each byte as one character, as WSGI requires."""
    query: str
    is_1_0: bool
    headers: Mapping[str, str]
    """By name in lower case; the values of repeated headers are joined by commas."""


def read_request(lines: Lines, may_be_large: Callable[[], bool]) -> Request | None:
    """Read the head of a request; return None if the client closed the connection before the first byte.

    Args:
        lines: has the head.
        may_be_large: called once if the head is larger than `SMALL_BYTES`; returns whether to read on.

    Raises:
        Refused: it is not a valid request, or one that is not served.
        OSError: the connection broke, or the client took too long.
    """
    budget = _Budget(lines, may_be_large)
    first = budget.line()
    if first is None:
        return None
    method, gap, rest = first.partition(b" ")
    target, second_gap, text = rest.partition(b" ")
    version = _VERSION.fullmatch(text)
    if not gap or not second_gap or version is None or not _TOKEN.fullmatch(method):
        raise Refused(HTTPStatus.BAD_REQUEST)
    path, query = _parse_target(method, target)
    headers = _read_headers(budget)
    # The order of the checks is net/http's, which decides the answer to a request with several faults.
    major, minor = map(int, version.groups())
    # It lets the preface of HTTP/2 (RFC 9113, 3.4) through to its handlers, without a check of version and Host header.
    is_http2_preface = (method, target, major, minor, headers) == (b"PRI", b"*", 2, 0, {})
    _check_framing(headers, is_1_0=(major, minor) < (1, 1))
    if major != 1 and not is_http2_preface:
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "unsupported protocol version")
    if "host" not in headers and (major, minor) >= (1, 1) and method != b"CONNECT" and not is_http2_preface:
        raise Refused(HTTPStatus.BAD_REQUEST, "missing required Host header")
    if not _HOST.fullmatch(headers.get("host", [""])[0]):
        raise Refused(HTTPStatus.BAD_REQUEST, "malformed Host header")
    if any(" " in name for name in headers):
        raise Refused(HTTPStatus.BAD_REQUEST, "invalid header name")
    return Request(
        method.decode("latin-1"),
        target.decode("latin-1"),
        path.decode("latin-1"),
        query.decode("latin-1"),
        (major, minor) < (1, 1),
        {name: ", ".join(values) for name, values in headers.items()},
    )


class _Budget:
    """Reads the lines of a head, and limits their total size, as net/http limits that of its reader."""

    def __init__(self, lines: Lines, may_be_large: Callable[[], bool]) -> None:
        self._lines = lines
        self._may_be_large = may_be_large
        self._is_large = False
        self._left = MOST_BYTES

    def line(self) -> bytes | None:
        """Return a line without its line end; None at the end of the stream."""
        line = b""
        while not line.endswith(b"\n") and (part := self._lines.readline(min(self._left, SMALL_BYTES))):
            line += part
            self._left -= len(part)
            if not self._is_large and self._left < MOST_BYTES - SMALL_BYTES:
                self._is_large = True
                if not self._may_be_large():
                    raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        if not line:
            return None
        if not line.endswith(b"\n"):
            raise Refused(HTTPStatus.BAD_REQUEST if self._left else HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        # A bare LF ends a line as well (RFC 9112, 2.2).
        return line[:-1].removesuffix(b"\r")


def _parse_target(method: bytes, target: bytes) -> tuple[bytes, bytes]:
    # As `url.ParseRequestURI`: a path, an absolute URL as clients of a proxy send it, `*`, or with CONNECT only host and port.
    if not target or _CONTROL.search(target):
        raise Refused(HTTPStatus.BAD_REQUEST)
    if target == b"*":
        return target, b""
    if method == b"CONNECT" and not target.startswith(b"/"):
        target = b"http://" + target
    parts = _SCHEME.fullmatch(target)
    rest, _, query = (parts[2] if parts else target).partition(b"?")
    if parts and rest.startswith(b"//"):
        authority, slash, path = rest[2:].partition(b"/")
        if not _AUTHORITY.fullmatch(authority):
            raise Refused(HTTPStatus.BAD_REQUEST)
        rest = slash + path
    elif parts and not rest.startswith(b"/"):
        rest = b""  # an opaque URL, such as mailto:a, does not have a path
    elif not rest.startswith(b"/"):
        raise Refused(HTTPStatus.BAD_REQUEST)
    if _BAD_PERCENT.search(rest):
        raise Refused(HTTPStatus.BAD_REQUEST)
    return unquote_to_bytes(rest), query


def _read_headers(budget: _Budget) -> dict[str, list[str]]:
    # A name with a space is refused by the caller, after all lines were read: net/http then answers with another text.
    headers: dict[str, list[str]] = {}
    last: list[str] | None = None
    while line := budget.line():
        if line[:1] in {b" ", b"\t"}:
            if last is None:
                raise Refused(HTTPStatus.BAD_REQUEST)
            name, value = (
                b"a",
                line,
            )  # a continuation of the last value (obs-fold of RFC 9112, which net/http still accepts)
        else:
            name, colon, value = line.partition(b":")
            if not colon or not _TOKEN.fullmatch(name.replace(b" ", b"_")):
                raise Refused(HTTPStatus.BAD_REQUEST)
        value = value.strip(b" \t")
        if _CONTROL_IN_VALUE.search(value):
            raise Refused(HTTPStatus.BAD_REQUEST)
        text = value.decode("latin-1")
        if last is not None and line[:1] in {b" ", b"\t"}:
            last[-1] = f"{last[-1]} {text}"
        else:
            last = headers.setdefault(name.decode().lower(), [])
            last.append(text)
    if line is None:
        raise Refused(HTTPStatus.BAD_REQUEST)
    return headers


def _check_framing(headers: Mapping[str, list[str]], *, is_1_0: bool) -> None:
    # Contradictory framing is how requests are smuggled past a proxy (RFC 9112, 11.2); a body is not read, but net/http refuses
    # such requests as well.
    if len(headers.get("host", ())) > 1:
        raise Refused(HTTPStatus.BAD_REQUEST)
    encodings, lengths = headers.get("transfer-encoding", []), headers.get("content-length", [])
    if encodings and not is_1_0 and [text.lower() for text in encodings] != ["chunked"]:
        raise Refused(HTTPStatus.NOT_IMPLEMENTED, body="Unsupported transfer encoding")
    if len(set(lengths)) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
        raise Refused(HTTPStatus.BAD_REQUEST)
