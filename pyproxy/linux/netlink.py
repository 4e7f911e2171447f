"""Netlink by hand: packing and reading of messages, and a socket for kernel parts that take one message at a time.

Many messages go in one send, which is one system call and one wake-up; the kernel answers the last, and those that it
refuses. Messages are (type, flags, body); bodies are packed by their users.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import NamedTuple, Self

REQUEST, ACK, DUMP, CREATE, EXCL, APPEND = 0x1, 0x4, 0x300, 0x400, 0x200, 0x800
NESTED, NETWORK_ORDER = 0x8000, 0x4000
TYPE_MASK = 0x3FFF

NETLINK_NETFILTER = 12
NF_TABLES = 10
"""Subsystem of netfilter, in the upper byte of a message type (NFNL_SUBSYS_NFTABLES)."""
ERROR = 2
NFGENMSG_BYTES = 4
"""The header behind the header, in all of netfilter."""
HEADER = struct.Struct("=IHHII")

_SOL_NETLINK = 270
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_CAP_ACK, _EXT_ACK, _GET_STRICT_CHECK = 10, 11, 12
_DONE = 3
_DUMP_INTERRUPTED = 0x10
_DUMP_TRIES = 10
_MESSAGES_PER_SEND = 300
_BYTES_PER_SEND = 1 << 16
"""Well below the least send buffer that a kernel is set up with."""
BUFFER_BYTES = 1 << 18
_SEND_BUFFER_BYTES = 1 << 22
ATTRIBUTE = struct.Struct("=HH")
_CODE = struct.Struct("=i")
_EXT_ACK_MESSAGE = 1


class Message(NamedTuple):
    """One request; the header's length, sequence number and acknowledgement are the socket's business."""

    kind: int
    flags: int
    body: bytes


class Refusal(NamedTuple):
    """What the kernel said of a message that it did not take."""

    at: int
    """Which of the messages."""
    code: int
    """Its errno."""
    text: str
    """In the kernel's words where it has any."""


class NetlinkSocket:
    """One socket to one protocol. Not to be used by two threads at once."""

    def __init__(self, protocol: int, *, buffer_bytes: int = _SEND_BUFFER_BYTES) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHECK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        # Without the privilege the usual limit holds.
        for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, forced, buffer_bytes)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, plain, buffer_bytes)
        self._socket.bind((0, 0))
        self._sequences = count(1)

    def __enter__(self) -> Self:
        """Have it open for a while."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    @property
    def port(self) -> int:
        """The number by which the kernel knows the socket."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, messages: Sequence[Message]) -> list[Refusal]:
        """Send messages in order; return those that were refused. All others were taken.

        Raises:
            OSError: the socket failed; how many were taken is not known.
        """
        refusals: list[Refusal] = []
        start, size = 0, 0
        for index, message in enumerate(messages):
            if index == start + _MESSAGES_PER_SEND or (index > start and size + len(message.body) > _BYTES_PER_SEND):
                refusals += self._send_some(messages[start:index], start)
                start, size = index, 0
            size += len(message.body)
        if messages:
            refusals += self._send_some(messages[start:], start)
        return refusals

    def _send_some(self, messages: Sequence[Message], start: int) -> list[Refusal]:
        last = len(messages) - 1
        first_sequence = next(self._sequences)
        sequence = first_sequence
        parts: list[bytes] = []
        for index, (kind, flags, body) in enumerate(messages):
            sequence = first_sequence if index == 0 else next(self._sequences)
            asked = flags | REQUEST | (ACK if index == last else 0)
            parts += (HEADER.pack(HEADER.size + len(body), kind, asked, sequence, 0), body)
        self._socket.send(b"".join(parts))
        return self._answers(first_sequence, sequence, start)

    def _answers(self, first: int, last: int, start: int) -> list[Refusal]:
        refusals: list[Refusal] = []
        while True:
            data = memoryview(self._socket.recv(BUFFER_BYTES))
            for kind, _, sequence, at, end in read_messages(data):
                if kind != ERROR or not first <= sequence <= last:
                    continue
                code = error_code(data, at)
                if code:
                    refusals.append(Refusal(start + sequence - first, code, error_text(data, at, end, code)))
                if sequence == last:
                    return refusals

    def dump(self, kind: int, body: bytes, *, header: int) -> Iterator[tuple[memoryview, int, int]]:
        """Ask for a dump and yield each answer as it comes: bytes, start and end of its attributes, behind `header` bytes.

        Raises:
            OSError: the kernel refused; InterruptedError at the end if what was dumped had changed meanwhile.
        """
        sequence = next(self._sequences)
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, REQUEST | DUMP, sequence, 0) + body)
        interrupted = 0
        while True:
            data = memoryview(self._socket.recv(BUFFER_BYTES))
            for answer, flags, answered, at, end in read_messages(data):
                if answered != sequence:
                    continue
                interrupted |= flags & _DUMP_INTERRUPTED
                if answer in (ERROR, _DONE):
                    code = error_code(data, at) or (errno.EINTR if interrupted else 0)
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield data, at + header, end

    def dump_whole(self, kind: int, body: bytes, *, header: int) -> list[tuple[memoryview, int, int]]:
        """Return the answers to a dump during which nothing has changed; see `dump`.

        Raises:
            OSError: the kernel refused, or something changes all the time.
        """
        for _ in range(_DUMP_TRIES - 1):
            with suppress(InterruptedError):
                return list(self.dump(kind, body, header=header))
        return list(self.dump(kind, body, header=header))

    def ask(self, kind: int, body: bytes, *, header: int) -> tuple[memoryview, int, int]:
        """Ask for one answer; see `dump`.

        Raises:
            OSError: the kernel refused.
        """
        sequence = next(self._sequences)
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, REQUEST, sequence, 0) + body)
        while True:
            data = memoryview(self._socket.recv(BUFFER_BYTES))
            for answer, _, answered, at, end in read_messages(data):
                if answered != sequence:
                    continue
                if answer == ERROR:
                    code = error_code(data, at)
                    raise OSError(code or errno.EPROTO, os.strerror(code) if code else "no answer")
                return data, at + header, end


def attributes(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of the value of each attribute."""
    while start + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(data, start)
        yield kind & TYPE_MASK, start + ATTRIBUTE.size, start + length
        start += length + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Pack an attribute, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *values: bytes) -> bytes:
    """Pack an attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(values))


def text_attribute(kind: int, text: str) -> bytes:
    """Pack a text, ended by a zero byte."""
    return attribute(kind, text.encode() + b"\0")


def nfgenmsg(family: int, resource: int = 0) -> bytes:
    """Pack the header behind the header of netfilter's messages."""
    return bytes((family, 0)) + resource.to_bytes(2)


def read_messages(data: bytes | memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield type, flags, sequence number, start and end of the body of each message."""
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
        yield kind, flags, sequence, at + HEADER.size, at + length
        at += length + 3 & ~3


def error_code(data: bytes | memoryview, at: int) -> int:
    """Return the errno at the beginning of the body of an error, or of the end of a dump; 0 is success."""
    code: int = _CODE.unpack_from(data, at)[0]
    return -code


def error_text(data: memoryview, at: int, end: int, code: int) -> str:
    """Return what the kernel said of a refused message."""
    # Behind the code and the header of the refused message, if the kernel has words for it.
    for kind, left, right in attributes(data, at + _CODE.size + HEADER.size, end):
        if kind == _EXT_ACK_MESSAGE:
            return f"{os.strerror(code)} ({bytes(data[left:right]).rstrip(bytes(1)).decode(errors='replace')})"
    return os.strerror(code) if code < _FIRST_PRIVATE_CODE else f"error {code}"


_FIRST_PRIVATE_CODE = 4096
"""ipset has codes of its own (`linux/netfilter/ipset/ip_set.h`)."""
