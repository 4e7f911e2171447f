"""The main routing table, from /proc/net/route and /proc/net/ipv6_route (proc(5)); needs no rights."""

from pathlib import Path
from typing import NamedTuple

from pyproxy.model.address import Family, Network

_IPV4 = Path("/proc/thread-self/net/route")
_IPV6 = Path("/proc/thread-self/net/ipv6_route")


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
    return [_ipv4_route(line) for line in lines[1:]] if family is Family.IPV4 else [_ipv6_route(line) for line in lines]


def _ipv4_route(line: str) -> Route:
    """Parse device, destination, gateway, flags, ..., mask (field 7); addresses are u32 in the machine's byte order."""
    fields = line.split()
    destination, gateway, mask = (bytes.fromhex(fields[at])[::-1] for at in (1, 2, 7))
    return Route(Network(destination, int.from_bytes(mask).bit_count()), fields[0], not any(gateway))


def _ipv6_route(line: str) -> Route:
    """Parse destination, prefix length in hex, source, its length, gateway (field 4), ..., device (last field)."""
    fields = line.split()
    gateway = bytes.fromhex(fields[4])
    return Route(Network(bytes.fromhex(fields[0]), int(fields[1], 16)), fields[-1], not any(gateway))
