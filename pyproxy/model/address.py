"""Addresses as packed bytes: 4 bytes are IPv4, 16 are IPv6, in network order.

The kernel's interfaces take packed bytes. They are half the size of an `ipaddress` object and ten times faster to create;
`ipaddress` only parses and formats text.
"""

from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import NamedTuple

IPv4_BYTES = 4


class Family(IntEnum):
    """An address family, by its IP version."""

    IPV4 = 4
    IPV6 = 6

    @property
    def bits(self) -> int:
        """Return the length of an address in bits."""
        return 32 if self is Family.IPV4 else 128

    @property
    def socket_family(self) -> int:
        """Return AF_INET or AF_INET6, as netlink messages have it."""
        # `include/linux/socket.h`. Pure modules may not import `socket`. NFPROTO_IPV4 and NFPROTO_IPV6 are the same numbers.
        return 2 if self is Family.IPV4 else 10

    # Enum's own hash is Python code, and families are keys of dictionaries that are read for each address.
    __hash__ = int.__hash__

    def __str__(self) -> str:
        return f"IPv{self.value}"


def family_of(ip: bytes) -> Family:
    """Return the family of a packed address."""
    return Family.IPV4 if len(ip) == IPv4_BYTES else Family.IPV6


def parse_ip(text: str) -> bytes:
    """Parse an address of the API into packed bytes.

    Leading zeros in IPv4 octets are ignored, and an IPv4-mapped IPv6 address becomes its IPv4 address:
    ``netutils.ParseIPSloppy``, with which kube-proxy parses every address, does both.

    Raises:
        ValueError: the text is not a valid address.
    """
    # Not by `socket.inet_aton`: it reads leading zeros as octal, and accepts 10.1.
    try:
        ip = ip_address(text)
    except ValueError:
        octets = text.split(".")
        if len(octets) != IPv4_BYTES or not all(octet.isascii() and octet.isdigit() for octet in octets):
            raise
        ip = IPv4Address(".".join(str(int(octet)) for octet in octets))
    if isinstance(ip, IPv6Address):
        if ip.scope_id is not None:
            message = f"{text!r} has a zone, which no Service address can have"
            raise ValueError(message)
        return ip.ipv4_mapped.packed if ip.ipv4_mapped else ip.packed
    return ip.packed


def ip_text(ip: bytes) -> str:
    """Format a packed address as iptables-save prints it."""
    if len(ip) == IPv4_BYTES:
        return f"{ip[0]}.{ip[1]}.{ip[2]}.{ip[3]}"
    return str(IPv6Address(ip))


def socket_text(ip: bytes, port: int) -> str:
    """Format address and port as ``10.0.0.1:80`` or ``[fd00::1]:80``."""
    return f"{ip_text(ip)}:{port}" if len(ip) == IPv4_BYTES else f"[{ip_text(ip)}]:{port}"


@dataclass(frozen=True, slots=True, order=True)
class Network:
    """A CIDR block."""

    ip: bytes
    """The packed network address; bits beyond the prefix are zero."""
    prefix: int
    """Length of the prefix in bits."""

    @property
    def family(self) -> Family:
        """Return the family of the block."""
        return family_of(self.ip)

    def __contains__(self, ip: bytes) -> bool:
        # The shift removes the host bits, which may begin within a byte.
        shift = len(self.ip) * 8 - self.prefix
        return len(ip) == len(self.ip) and int.from_bytes(ip) >> shift == int.from_bytes(self.ip) >> shift

    def __str__(self) -> str:
        return f"{ip_text(self.ip)}/{self.prefix}"


def parse_network(text: str) -> Network:
    """Parse a CIDR block; host bits are cleared.

    Raises:
        ValueError: the text is not an address with a prefix length.
    """
    if "/" not in text:
        message = f"{text!r} has no prefix length"
        raise ValueError(message)
    address, _, prefix = text.partition("/")
    # Go's `net.ParseCIDR`, on which kube-proxy relies, returns the network without host bits too.
    network = ip_network((parse_ip(address), int(prefix)), strict=False)
    return Network(network.network_address.packed, network.prefixlen)


# The kernel treats all of 127.0.0.0/8 as loopback addresses (RFC 1122), and of IPv6 a single one (RFC 4291).
LOOPBACK_NETWORKS = {Family.IPV4: parse_network("127.0.0.0/8"), Family.IPV6: parse_network("::1/128")}
LOOPBACK_IPS = {Family.IPV4: parse_ip("127.0.0.1"), Family.IPV6: parse_ip("::1")}


def is_loopback(ip: bytes) -> bool:
    """Return whether a packed address is a loopback address."""
    return ip in LOOPBACK_NETWORKS[family_of(ip)]


class ListenAddress(NamedTuple):
    """An address on which a server listens."""

    ip: bytes
    """Packed; all zeros means every address."""
    port: int

    def __str__(self) -> str:
        return socket_text(self.ip, self.port)
