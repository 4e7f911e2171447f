"""The first two packets of an SCTP association, as bytes (RFC 9260, section 3).

They are for kernels without SCTP sockets, which nevertheless translate SCTP packets. An INIT corresponds to a SYN of
TCP.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import Final, Literal

IPPROTO_SCTP = 132


def _has_sctp() -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


HAS_SCTP: Final = _has_sctp()
"""Whether the kernel has SCTP sockets; such a kernel answers every INIT itself."""

INIT: Final = 1
INIT_ACK: Final = 2
ABORT: Final = 6

_HEADER = struct.Struct("!HHI4s")  # source port, destination port, verification tag, checksum
_CHUNK = struct.Struct("!BBH")  # type, flags, length with this header
_INIT = struct.Struct("!IIHHI")  # initiate tag, window, outbound streams, inbound streams, first sequence number
_PARAMETER = struct.Struct("!HH")  # type, length with this header
_STATE_COOKIE = 7
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, reflected


def _table_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_table_entry(byte) for byte in range(256))


@dataclass(frozen=True, slots=True)
class Packet:
    """An SCTP packet with a single chunk."""

    source_port: int
    port: int
    verification_tag: int
    """The receiver's tag; 0 in an INIT, because the sender does not know it yet."""
    chunk: int
    initiate_tag: int = 0
    """The tag that answers must carry; 0 in an ABORT."""
    cookie: bytes = b""
    """The state cookie of an INIT ACK; here the server's line."""


def crc32c(data: bytes) -> int:
    """Return the CRC32c checksum, which SCTP uses."""
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _TABLE[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


def encode(packet: Packet) -> bytes:
    """Return the bytes of the packet, with its checksum."""
    body = b""
    if packet.chunk != ABORT:
        body = _INIT.pack(packet.initiate_tag, 0xFFFF, 1, 1, packet.initiate_tag)
    if packet.cookie:
        body += _PARAMETER.pack(_STATE_COOKIE, _PARAMETER.size + len(packet.cookie)) + packet.cookie
    chunk = _CHUNK.pack(packet.chunk, 0, _CHUNK.size + len(body)) + body + bytes(-len(body) % 4)
    zeroed = _HEADER.pack(packet.source_port, packet.port, packet.verification_tag, bytes(4)) + chunk
    # Only the checksum is in little-endian order.
    return zeroed[:8] + struct.pack("<I", crc32c(zeroed)) + zeroed[12:]


def decode(data: bytes) -> Packet | None:
    """Parse an INIT, INIT ACK or ABORT; return None for another chunk or a wrong checksum."""
    if len(data) < _HEADER.size + _CHUNK.size:
        return None
    source_port, port, tag, checksum = _HEADER.unpack_from(data)
    if checksum != struct.pack("<I", crc32c(data[:8] + bytes(4) + data[12:])):
        return None
    kind, _, length = _CHUNK.unpack_from(data, _HEADER.size)
    body = data[_HEADER.size + _CHUNK.size : _HEADER.size + length]
    if kind == ABORT:
        return Packet(source_port, port, tag, ABORT)
    if kind in {INIT, INIT_ACK} and len(body) >= _INIT.size:
        return Packet(source_port, port, tag, kind, _INIT.unpack_from(body)[0], _cookie(body[_INIT.size :]))
    return None


def quoted_source_port(data: bytes) -> int | None:
    """Return the source port of a truncated packet, as quoted in ICMP errors."""
    return int.from_bytes(data[:2], "big") if len(data) >= 2 else None


def _cookie(parameters: bytes) -> bytes:
    """Return the state cookie if it is the first parameter, as in all INIT ACKs of this module."""
    if len(parameters) < _PARAMETER.size:
        return b""
    kind, length = _PARAMETER.unpack_from(parameters)
    return parameters[_PARAMETER.size : length] if kind == _STATE_COOKIE else b""


def initial(source_port: int, port: int, tag: int) -> Packet:
    """Return the INIT of a client."""
    return Packet(source_port, port, 0, INIT, tag)


def reply_to(packet: Packet, kind: Literal[2, 6], cookie: bytes = b"") -> Packet:
    """Return the INIT ACK or ABORT that answers an INIT; the server reuses the client's tag as its own."""
    own_tag = packet.initiate_tag if kind == INIT_ACK else 0
    return Packet(packet.port, packet.source_port, packet.initiate_tag, kind, own_tag, cookie)
