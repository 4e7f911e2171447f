"""The local destinations of a node, read from the kernel."""

import resource
from collections.abc import Iterator

import pytest

from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import IPVS_DEVICE
from pyproxy.linux.local_networks import local_networks
from pyproxy.model.address import Family
from tests.lab.waiting import wait_until
from tests.packets.own_namespace import own_namespace, run

pytestmark = pytest.mark.usefixtures("needs_root")


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Enter a namespace whose loopback has, in each family, one more address and one range that a route makes local."""
    with own_namespace():
        run("ip", "link", "set", "lo", "up")
        for family, address, route in (
            ("-4", "192.0.2.1/32", "198.51.100.0/24"),
            ("-6", "2001:db8::1/128", "fd00::/8"),
        ):
            run("ip", family, "address", "add", address, "dev", "lo")
            run("ip", family, "route", "add", "local", route, "dev", "lo")
        # The kernel adds the route of an IPv6 address later, when a work queue has finished duplicate address detection.
        wait_until(lambda: "local 2001:db8::1 " in run("ip", "-6", "route", "show", "table", "local"), "a local route")
        yield


def texts(family: Family) -> set[str]:
    """Return the local networks as text."""
    return {str(network) for network in local_networks(family)}


def test_ipv4() -> None:
    """The loopback range, single addresses and ranges of local routes count; broadcast addresses do not."""
    assert {"127.0.0.0/8", "127.0.0.1/32", "192.0.2.1/32", "198.51.100.0/24"} == texts(Family.IPV4)


def test_ipv6() -> None:
    """IPv6 is the same; anycast and multicast addresses do not count."""
    assert {"::1/128", "2001:db8::1/128", "fd00::/8"} == texts(Family.IPV6)


def test_addresses_of_services() -> None:
    """Addresses on the device of the IPVS mode are not local to the node."""
    run("ip", "link", "add", IPVS_DEVICE, "type", "veth", "peer", "name", "other")
    run("ip", "link", "set", IPVS_DEVICE, "up")
    run("ip", "address", "add", "10.96.0.1/32", "dev", IPVS_DEVICE)
    assert "10.96.0.1/32" in run("ip", "route", "show", "table", "local").replace("10.96.0.1 ", "10.96.0.1/32 ")

    assert "10.96.0.1/32" not in texts(Family.IPV4)


def test_no_socket() -> None:
    """A read without a free file descriptor raises an error that says that a retry may succeed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(ApplyError, match="Too many open files") as caught:
            local_networks(Family.IPV4)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert caught.value.retryable
