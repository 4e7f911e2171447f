"""A client for servers on loopback that may have yet to bind: another thread does that."""

from __future__ import annotations

import socket
from contextlib import closing
from http.client import HTTPConnection
from typing import NamedTuple

from pyproxy.model.address import ListenAddress, ip_text, parse_ip
from tests.lab.waiting import wait_until

LOOPBACK = parse_ip("127.0.0.1")
PATIENCE_SECONDS = 10.0


class Answer(NamedTuple):
    """What a server said."""

    status: int
    headers: dict[str, str]
    body: bytes


def free_address(ip: bytes = LOOPBACK) -> ListenAddress:
    """Return an address on which no server listens."""
    domain = socket.AF_INET if len(ip) == len(LOOPBACK) else socket.AF_INET6
    with socket.socket(domain) as probe:
        probe.bind((ip_text(ip), 0))
        return ListenAddress(ip, probe.getsockname()[1])


def connected(address: ListenAddress) -> socket.socket:
    """Connect to a server."""
    found: list[socket.socket] = []

    def connects() -> bool:
        try:
            found.append(socket.create_connection((ip_text(address.ip), address.port), timeout=PATIENCE_SECONDS))
        except ConnectionRefusedError:
            return False
        return True

    wait_until(connects)
    return found[0]


def get(address: ListenAddress, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    """Ask a server for a path; a header's name may have _ for -."""
    with closing(HTTPConnection(ip_text(address.ip), address.port)) as connection:
        connection.sock = connected(address)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())


def is_refused(address: ListenAddress) -> bool:
    """Return whether connections are refused."""
    try:
        socket.create_connection((ip_text(address.ip), address.port), timeout=PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        return False  # it listened, and was closed while the connection was waiting to be accepted
    return False
