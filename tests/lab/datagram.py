"""Datagrams with the address that they were sent to, and answers sent from that address.

A host has several addresses. A plain socket would answer from the one that the route prefers, and conntrack would not
recognise that answer. This is the only module that uses the kernel's packet-info and error-queue structures.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from .values import IPAddress, SocketAddress

LARGEST_DATAGRAM = 65536

# From <linux/in.h> and <linux/in6.h>; the socket module of Python 3.11 has only some of them.
_IP_PKTINFO = 8
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_IN_PKTINFO = struct.Struct("@i4s4s")  # interface, the address to answer from, the address it was sent to
_IN6_PKTINFO = struct.Struct("@16si")
_EXTENDED_ERROR = struct.Struct("@IBBBBII")
_ERROR_MESSAGES = ((socket.IPPROTO_IP, _IP_RECVERR), (socket.IPPROTO_IPV6, _IPV6_RECVERR))
_FROM_ICMP = (2, 3)  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6


@dataclass(frozen=True, slots=True)
class Datagram:
    """A received datagram; ports are 0 on a raw socket, where they are part of the payload."""

    payload: bytes
    local: SocketAddress
    peer: SocketAddress


def family_of(address: IPAddress) -> socket.AddressFamily:
    """Return the socket family of the address."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def source_address(to: IPAddress) -> IPAddress | None:
    """Return the source address that the kernel uses for a destination; None if there is no route."""
    with socket.socket(family_of(to), socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((str(to), 9))  # connecting a datagram socket sends nothing; the port does not matter
        except OSError:
            return None
        return ip_address(sock.getsockname()[0])


def open_server(family: socket.AddressFamily, kind: socket.SocketKind, protocol: int, port: int = 0) -> socket.socket:
    """Open a non-blocking socket on every address of the family."""
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    if family == socket.AF_INET6:
        if kind != socket.SOCK_RAW:  # a raw socket is always IPv6-only, and rejects the option
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    sock.bind(("", port))
    return sock


def receive(sock: socket.socket) -> Datagram:
    """Receive the next datagram, with the address it was sent to; raises BlockingIOError if there is none."""
    payload, ancillary, _, peer = sock.recvmsg(LARGEST_DATAGRAM, 256)
    is_raw = sock.type == socket.SOCK_RAW
    local: IPAddress | None = None
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            local = IPv4Address(_IN_PKTINFO.unpack(data)[2])
        elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            local = IPv6Address(_IN6_PKTINFO.unpack(data)[0])
    assert local is not None, "open_server enables packet info"
    port = 0 if is_raw else sock.getsockname()[1]
    return Datagram(without_ip_header(sock, payload), SocketAddress(local, port), address_of(peer, is_raw=is_raw))


def answer(sock: socket.socket, question: Datagram, payload: bytes) -> None:
    """Send an answer, from the address that the question was sent to."""
    if question.local.ip.version == 4:
        control = (socket.IPPROTO_IP, _IP_PKTINFO, _IN_PKTINFO.pack(0, question.local.ip.packed, bytes(4)))
    else:
        control = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _IN6_PKTINFO.pack(question.local.ip.packed, 0))
    sock.sendmsg([payload], [control], 0, (str(question.peer.ip), question.peer.port))


def without_ip_header(sock: socket.socket, payload: bytes) -> bytes:
    """Remove the IP header, which only raw IPv4 sockets deliver."""
    if sock.type == socket.SOCK_RAW and sock.family == socket.AF_INET:
        return payload[(payload[0] & 0x0F) * 4 :]
    return payload


def address_of(sockaddr: tuple[str, int], *, is_raw: bool = False) -> SocketAddress:
    """Convert a socket address of Python; raw sockets have a protocol number in place of the port."""
    host, port = sockaddr[:2]
    ip: IPAddress = IPv6Address(host) if ":" in host else IPv4Address(host)
    return SocketAddress(ip, 0 if is_raw else port)


def queue_icmp_errors(sock: socket.socket) -> None:
    """Make the kernel queue ICMP errors with their origin, which distinguishes them from a reset."""
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)


class IcmpError(OSError):
    """An ICMP error about a packet that this socket sent."""

    def __init__(self, number: int, quoted: bytes) -> None:
        """Keep the packet that the ICMP message quotes, from its transport header on."""
        super().__init__(number, "ICMP")
        self.quoted = quoted


def queued_icmp_errors(sock: socket.socket) -> list[IcmpError]:
    """Return and remove the ICMP errors that the kernel has queued since `queue_icmp_errors`."""
    errors: list[IcmpError] = []
    while True:
        try:
            quoted, ancillary, _, _ = sock.recvmsg(LARGEST_DATAGRAM, 512, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            return errors
        for level, kind, data in ancillary:
            if (level, kind) in _ERROR_MESSAGES:
                number, origin, *_ = _EXTENDED_ERROR.unpack_from(data)
                if origin in _FROM_ICMP:
                    errors.append(IcmpError(number, quoted))
