"""What is local to a node, read from the kernel."""

import resource
from collections.abc import Iterator

import pytest

from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import IPVS_DEVICE
from pyproxy.linux.local_networks import local_networks
from pyproxy.model.address import Family
from tests.packets.own_namespace import own_namespace, run

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Be in a namespace with a loopback, which has one more address in each family, and one made local by a route."""
    with own_namespace():
        run("ip", "link", "set", "lo", "up")
        for family, address, route in (
            ("-4", "192.0.2.1/32", "198.51.100.0/24"),
            ("-6", "2001:db8::1/128", "fd00::/8"),
        ):
            run("ip", family, "address", "add", address, "dev", "lo")
            run("ip", family, "route", "add", "local", route, "dev", "lo")
        yield


def texts(family: Family) -> set[str]:
    """Return what is local, as text."""
    return {str(network) for network in local_networks(family)}


def test_ipv4() -> None:
    """Loopback counts as a whole, then come single addresses, and what a route says; broadcast addresses do not count."""
    assert {"127.0.0.0/8", "127.0.0.1/32", "192.0.2.1/32", "198.51.100.0/24"} == texts(Family.IPV4)


def test_ipv6() -> None:
    """The same in IPv6, where anycast and multicast do not count."""
    assert {"::1/128", "2001:db8::1/128", "fd00::/8"} == texts(Family.IPV6)


def test_addresses_of_services() -> None:
    """What the IPVS mode gives to its device is not the node's."""
    run("ip", "link", "add", IPVS_DEVICE, "type", "veth", "peer", "name", "other")
    run("ip", "link", "set", IPVS_DEVICE, "up")
    run("ip", "address", "add", "10.96.0.1/32", "dev", IPVS_DEVICE)
    assert "10.96.0.1/32" in run("ip", "route", "show", "table", "local").replace("10.96.0.1 ", "10.96.0.1/32 ")

    assert "10.96.0.1/32" not in texts(Family.IPV4)


def test_no_socket() -> None:
    """Where the kernel cannot be asked, it is tried again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ApplyError, match="Too many open files") as caught:
            local_networks(Family.IPV4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert caught.value.retryable
