"""Many listening sockets in one thread, over real TCP on loopback: who is served where, and who can do no harm."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import closing
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import pytest

from pyproxy.model.address import ListenAddress, ip_text, parse_ip
from pyproxy.serve import listeners as listeners_module
from pyproxy.serve.listeners import HttpService, Listeners
from tests.lab.waiting import wait_until

from .http_client import LOOPBACK, connected, free_address, get, is_refused

MANY = 200


def saying(text: str) -> WSGIApplication:
    """Return a server that answers everything with a text."""

    def answer(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text.encode()]

    return answer


def test_each_address_has_its_site(listeners: Listeners) -> None:
    """Hundreds of sites are served by one thread, each on its own addresses."""
    before = threading.active_count()
    addresses = {number: free_address(parse_ip(f"127.0.1.{number}")) for number in range(1, MANY + 1)}
    for number, address in addresses.items():
        listeners.serve(f"site {number}", HttpService(saying(str(number)), [address]))

    assert {str(number).encode() for number in addresses} == {get(address).body for address in addresses.values()}
    wait_until(lambda: threading.active_count() <= before)


def test_a_site_that_moves(listeners: Listeners) -> None:
    """A site is served where it was last said to be, and nowhere else; what stays is not closed for a moment."""
    stays, goes, comes = (free_address(parse_ip(f"127.0.2.{number}")) for number in (1, 2, 3))
    listeners.serve("site", HttpService(saying("old"), [stays, goes]))
    assert (b"old", b"old") == (get(stays).body, get(goes).body)
    with closing(connected(stays)) as waiting:
        listeners.serve("site", HttpService(saying("new"), [stays, comes]))
        assert (b"new", b"new") == (get(comes).body, get(stays).body)
        waiting.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert waiting.recv(15) == b"HTTP/1.0 200 OK"
    assert is_refused(goes)

    listeners.serve("site", None)
    wait_until(lambda: is_refused(stays) and is_refused(comes))


@pytest.mark.parametrize(("both", "ipv4_is_refused"), [(True, False), (False, True)])
@pytest.mark.parametrize("ip", ["0.0.0.0", "::"])  # noqa: S104  # that is what is tested
def test_every_address(listeners: Listeners, ip: str, both: bool, ipv4_is_refused: bool) -> None:  # noqa: FBT001  # pytest
    """All zeros are every address of both families, or of their own if so said."""
    port = free_address(parse_ip("::")).port
    own, other = ("127.0.0.1", "::1") if ip == "0.0.0.0" else ("::1", "127.0.0.1")  # noqa: S104  # see above
    listeners.serve("site", HttpService(saying("hello"), [ListenAddress(parse_ip(ip), port)], both_families=both))

    assert b"hello" == get(ListenAddress(parse_ip(own), port)).body
    assert ipv4_is_refused == is_refused(ListenAddress(parse_ip(other), port))


@pytest.mark.parametrize("is_asked", [False, True])
def test_an_address_that_is_taken(listeners: Listeners, is_asked: bool, caplog: pytest.LogCaptureFixture) -> None:  # noqa: FBT001  # pytest
    """A port of another program is reported once, to the callback or in the log; other addresses work, and this one once it is free."""
    taken, other = free_address(), free_address(parse_ip("127.0.0.2"))
    reported: list[str] = []

    def errors() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    with socket.create_server((ip_text(taken.ip), taken.port)):
        listeners.serve(
            "site", HttpService(saying("hello"), [taken, other], failed=reported.append if is_asked else None)
        )
        wait_until(lambda: bool(reported or errors()))
        assert b"hello" == get(other).body
    assert b"hello" == get(taken).body

    message = f"site cannot be served on {taken}: Address already in use"
    assert (([message], []) if is_asked else ([], [f"{message}; trying on"])) == (reported, errors())


def test_who_gives_a_port_up_lets_another_have_it(listeners: Listeners) -> None:
    """Two sites that want one address: the second one has it once the first has gone."""
    address = free_address()
    listeners.serve("first", HttpService(saying("first"), [address]))
    assert b"first" == get(address).body
    listeners.serve("second", HttpService(saying("second"), [address]))
    listeners.serve("first", None)

    def answers() -> bytes:
        try:
            return get(address).body
        except OSError:
            return b"none"  # between the two

    wait_until(lambda: answers() == b"second")


def test_silent_clients_do_not_delay_other_clients(listeners: Listeners) -> None:
    """While one client sends nothing, and another one resets its connection, further clients are answered."""
    address = free_address()
    listeners.serve("site", HttpService(saying("hello"), [address]))
    with closing(connected(address)), closing(connected(address)) as reset:
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.sendall(b"GET / HTTP/1.1\r\n")
        reset.close()

        assert b"hello" == get(address).body


def test_many_clients_that_say_nothing(listeners: Listeners, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with more connections than the limit loses the oldest ones, and does not block other clients."""
    monkeypatch.setattr(listeners_module, "_MOST_CONNECTIONS", 3)
    address = free_address()
    listeners.serve("site", HttpService(saying("hello"), [address]))
    idle = [connected(address) for _ in range(10)]
    answers = [get(address).body for _ in range(10)]
    oldest = [connection.recv(1) for connection in idle[:7]]
    for connection in idle:
        connection.close()

    assert ([b"hello"] * 10, [b""] * 7) == (answers, oldest)


def test_a_client_has_so_much_time_and_no_more(listeners: Listeners, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many words a client has, each in time, its connection ends."""
    monkeypatch.setattr(listeners_module, "_REQUEST_SECONDS", 0.2)
    address = free_address()
    listeners.serve("site", HttpService(saying("hello"), [address]))
    with closing(connected(address)) as slow:
        slow.settimeout(0.01)

        def is_over() -> bool:
            try:
                slow.sendall(b"x")
                return slow.recv(1) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        wait_until(is_over)


def test_after_a_close_the_addresses_are_free() -> None:
    """What is closed has given its addresses back when `close` returns."""
    address = free_address(LOOPBACK)
    made = Listeners()
    made.start()
    made.serve("site", HttpService(saying("hello"), [address]))
    get(address)
    made.close()

    with socket.create_server((ip_text(address.ip), address.port)):
        pass
