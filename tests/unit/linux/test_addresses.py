"""The node's own addresses, read from the kernel of this machine; how they change: `tests.packets.test_metrics_address`."""

import asyncio
import resource

import pytest

from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import interface_addresses, local_addresses
from pyproxy.model.address import parse_ip


def test_addresses_of_loopback() -> None:
    """Loopback has its address, alone and among all addresses; an interface that does not exist has none."""

    async def read() -> list[bool]:
        found = [await interface_addresses("lo"), await local_addresses(), await interface_addresses("nosuch0")]
        return [parse_ip("127.0.0.1") in addresses for addresses in found]

    assert [True, True, False] == asyncio.run(read())


def test_failed_read() -> None:
    """A read without a free file descriptor raises an error that says that a retry may succeed."""

    async def read_without_descriptors() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            await local_addresses()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with pytest.raises(ApplyError, match=r"the addresses of this node cannot be read: .*Too many open files") as caught:
        asyncio.run(read_without_descriptors())

    assert caught.value.retryable
