"""Tests of devices, in a network namespace of their own."""

import asyncio
from collections.abc import Iterator

import pytest

from pyproxy.linux.addresses import device_index
from pyproxy.linux.devices import BridgePort, bridges, delete_device
from tests.packets.own_namespace import own_namespace, run


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    """Enter a new network namespace."""
    with own_namespace():
        yield


def test_bridges_and_the_hairpin_mode_of_their_ports() -> None:
    """Each bridge is listed with its ports, and each port with its hairpin mode; other devices are not."""
    run("ip", "link", "add", "br0", "type", "bridge")
    run("ip", "link", "add", "empty", "type", "bridge")
    for port, hairpin in (("veth0", "on"), ("veth2", "off")):
        run("ip", "link", "add", port, "type", "veth", "peer", "name", f"{port}peer")
        run("ip", "link", "set", port, "master", "br0")
        run("ip", "link", "set", port, "type", "bridge_slave", "hairpin", hairpin)

    found = asyncio.run(bridges())

    assert {"br0", "empty"} == found.keys()
    assert [] == found["empty"]
    assert {BridgePort("veth0", is_hairpin=True), BridgePort("veth2", is_hairpin=False)} == set(found["br0"])


def test_a_device_is_deleted_once() -> None:
    """A deleted device is gone, and deleting it again succeeds."""
    run("ip", "link", "add", "veth0", "type", "veth", "peer", "name", "veth1")
    index = device_index("veth0")

    delete_device(index)

    assert 0 == device_index("veth0")
    delete_device(index)
