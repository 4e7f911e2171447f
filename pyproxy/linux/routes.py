"""The main routing table, from /proc/net/route and /proc/net/ipv6_route (proc(5)), and route lookups; needs no rights."""

import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

from pyproxy.model.address import Family, Network, parse_ip, parse_network

_IPV4 = Path("/proc/thread-self/net/route")
_IPV6 = Path("/proc/thread-self/net/ipv6_route")
_SIOCGIFMTU = 0x8921  # linux/sockios.h
_LINK_LOCAL = parse_network("fe80::/10")


class Route(NamedTuple):
    """A route."""

    network: Network
    device: str
    is_direct: bool
    """Whether the destination is on the link, not behind a gateway."""


def routes(family: Family) -> list[Route]:
    """Return all routes of a family; none if the kernel does not support it."""
    try:
        lines = (_IPV4 if family is Family.IPV4 else _IPV6).read_text().splitlines()
    except OSError:
        return []
    found = []
    if family is Family.IPV4:
        # Below a heading: device, destination, gateway, flags, ..., mask. An address is a u32 in the byte order of the machine.
        for fields in map(str.split, lines[1:]):
            destination, gateway, mask = (bytes.fromhex(fields[at])[::-1] for at in (1, 2, 7))
            network = Network(destination, int.from_bytes(mask).bit_count())
            found.append(Route(network, fields[0], not any(gateway)))
    else:
        # Destination, its prefix length, source, its prefix length, gateway, ..., device. All numbers are hexadecimal.
        for fields in map(str.split, lines):
            network = Network(bytes.fromhex(fields[0]), int(fields[1], 16))
            found.append(Route(network, fields[-1], not any(bytes.fromhex(fields[4]))))
    return found


def interface_mtu(name: str) -> int:
    """Return the MTU of an interface.

    Raises:
        OSError: there is no such interface.
    """
    # `struct ifreq` (linux/if.h): the name, and a union of 24 bytes, here an int.
    request = struct.pack("16si20x", name.encode(), 0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        (mtu,) = struct.unpack_from("16xi", fcntl.ioctl(sock, _SIOCGIFMTU, request))
    return int(mtu)


def route_error(address: str) -> str:
    """Return why the kernel has no route from this machine to an address, or nothing if it has one. Sends no packet."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            # Without it the kernel refuses broadcast addresses with the error of a route of type prohibit.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            # Connecting a datagram socket looks up the route; the port does not matter.
            sock.connect((address, 9))
    except OSError as error:
        # fib_props in net/ipv4/fib_semantics.c: the errors of routes that discard packets. `__ip6_datagram_connect` refuses
        # a link-local address with the first one.
        if error.errno == errno.EINVAL and parse_ip(address) in _LINK_LOCAL:
            return "a link-local address is ambiguous without an interface"
        kinds = {errno.EINVAL: "a blackhole route", errno.EACCES: "a route of type prohibit"}
        number = error.errno or 0
        return kinds.get(number, os.strerror(number))
    return ""
