"""One HTTP request, sent from inside a network namespace."""

from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPConnection
from typing import NamedTuple

from .namespace import call_inside

_PATIENCE_SECONDS = 10.0


class Answer(NamedTuple):
    """The answer of a server."""

    status: int
    headers: Mapping[str, str]
    body: str


def get_inside(namespace: str, address: str, port: int, path: str = "/") -> Answer | None:
    """Request a path; None if nothing listens, or if the connection is reset before an answer."""

    def ask() -> Answer | None:
        with closing(HTTPConnection(address, port, timeout=_PATIENCE_SECONDS)) as connection:
            try:
                connection.request("GET", path)
                response = connection.getresponse()
            except (ConnectionRefusedError, ConnectionResetError):
                return None
            return Answer(response.status, dict(response.getheaders()), response.read().decode())

    return call_inside(namespace, ask)
