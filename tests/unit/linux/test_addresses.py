"""The node's own addresses, read from the kernel of this machine; how they change: `tests.packets.test_metrics_address`."""

import resource

import pytest

from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import device_addresses, interface_addresses, local_addresses
from pyproxy.model.address import parse_ip
from tests.packets.own_namespace import own_namespace, run


def test_addresses_of_loopback() -> None:
    """Loopback has its address, alone and among all addresses; an interface that does not exist has none."""
    found = [interface_addresses("lo"), local_addresses(), interface_addresses("nosuch0")]

    assert [True, True, False] == [parse_ip("127.0.0.1") in addresses for addresses in found]


@pytest.mark.usefixtures("needs_root")
def test_addresses_of_point_to_point_devices() -> None:
    """On a point-to-point device the node has its own address and not that of the peer, in both families."""
    with own_namespace():
        run("ip", "link", "add", "own", "type", "veth", "peer", "name", "other")
        run("ip", "address", "add", "192.0.2.1", "peer", "192.0.2.2", "dev", "own")
        run("ip", "address", "add", "2001:db8::1", "peer", "2001:db8::2", "dev", "own")
        run("ip", "address", "add", "2001:db8::3/64", "dev", "other")
        found = [interface_addresses("own"), local_addresses()]

    own = {parse_ip("192.0.2.1"), parse_ip("2001:db8::1")}
    assert [own, own | {parse_ip("2001:db8::3")}] == found


def test_addresses_of_a_deleted_device() -> None:
    """A device that was deleted after its index had been looked up has no addresses."""
    assert [] == device_addresses(index=(1 << 31) - 1)


def test_failed_read() -> None:
    """A read without a free file descriptor raises an error that says that a retry may succeed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(
            ApplyError, match="the addresses of this node cannot be read: Too many open files"
        ) as caught:
            local_addresses()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert caught.value.retryable
