"""Route lookups in a network namespace."""

import resource

import pytest

from pyproxy.linux.routes import route_error
from tests.packets.own_namespace import own_namespace, run


@pytest.mark.usefixtures("needs_root")
def test_route_errors() -> None:
    """Routes that discard packets are named; broadcast and link-local addresses are not mistaken for these."""
    with own_namespace():
        run("ip", "link", "add", "own", "type", "veth", "peer", "name", "other")
        run("ip", "link", "set", "own", "up")
        run("ip", "address", "add", "192.0.2.1/24", "broadcast", "192.0.2.255", "dev", "own")
        run("ip", "address", "add", "2001:db8:1::1/64", "dev", "own", "nodad")
        run("ip", "link", "set", "other", "up")
        for kind, last in (("blackhole", 0), ("prohibit", 1)):
            run("ip", "route", "add", kind, f"198.51.100.{last}/32")
            run("ip", "route", "add", kind, f"2001:db8::{last}/128")
        found = {
            address: route_error(address)
            for address in (
                "192.0.2.2",
                "192.0.2.255",
                "fe80::1",
                "198.51.100.0",
                "2001:db8::",
                "198.51.100.1",
                "2001:db8::1",
            )
        }

    assert {
        "192.0.2.2": "",
        "192.0.2.255": "",
        "fe80::1": "a link-local address is ambiguous without an interface",
        "198.51.100.0": "a blackhole route",
        "2001:db8::": "a blackhole route",
        "198.51.100.1": "a route of type prohibit",
        "2001:db8::1": "a route of type prohibit",
    } == found


def test_no_socket() -> None:
    """A lookup that cannot create a socket, such as without IPv6 in the kernel, returns the error of the kernel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        assert "Too many open files" == route_error("192.0.2.1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
