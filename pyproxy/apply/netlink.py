"""Netlink to kernel parts that take one message at a time: many in one send, answers only where there is need.

A send with 300 messages costs one system call and one wake-up; and the kernel answers the last, and those that it refuses; an
acknowledgement for each would double the cost.
Messages are (type, flags, body); bodies are packed by their users.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

REQUEST, ACK, DUMP, CREATE, EXCL, APPEND = 0x1, 0x4, 0x300, 0x400, 0x200, 0x800
NESTED, NETWORK_ORDER = 0x8000, 0x4000
TYPE_MASK = 0x3FFF

_SOL_NETLINK = 270
_CAP_ACK, _EXT_ACK, _GET_STRICT_CHECK = 10, 11, 12
_ERROR, _DONE = 2, 3
_MESSAGES_PER_SEND = 300
_BYTES_PER_SEND = 1 << 16
"""Well below the least send buffer that a kernel is set up with."""
_BUFFER_BYTES = 1 << 18
_SEND_BUFFER_BYTES = 1 << 22
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
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

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHECK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            self._socket.setsockopt(socket.SOL_SOCKET, option, _SEND_BUFFER_BYTES)
        self._socket.bind((0, 0))
        self._sequences = count(1)

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
            parts += (_HEADER.pack(_HEADER.size + len(body), kind, asked, sequence, 0), body)
        self._socket.send(b"".join(parts))
        return self._answers(first_sequence, sequence, start)

    def _answers(self, first: int, last: int, start: int) -> list[Refusal]:
        refusals: list[Refusal] = []
        while True:
            data = memoryview(self._socket.recv(_BUFFER_BYTES))
            for kind, sequence, at, end in _messages(data):
                if kind != _ERROR or not first <= sequence <= last:
                    continue
                code = -_CODE.unpack_from(data, at)[0]
                if code:
                    refusals.append(Refusal(start + sequence - first, code, _error_text(data, at, end, code)))
                if sequence == last:
                    return refusals

    def dump(self, kind: int, body: bytes, *, header: int) -> Iterator[tuple[memoryview, int, int]]:
        """Ask for a dump and yield each answer: bytes, start and end of its attributes, behind `header` bytes.

        Raises:
            OSError: the kernel refused.
        """
        sequence = next(self._sequences)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, REQUEST | DUMP, sequence, 0) + body)
        while True:
            data = memoryview(self._socket.recv(_BUFFER_BYTES))
            for answer, answered, at, end in _messages(data):
                if answered != sequence:
                    continue
                if answer in (_ERROR, _DONE):
                    code = -_CODE.unpack_from(data, at)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    return
                yield data, at + header, end

    def ask(self, kind: int, body: bytes, *, header: int) -> tuple[memoryview, int, int]:
        """Ask for one answer; see `dump`.

        Raises:
            OSError: the kernel refused.
        """
        sequence = next(self._sequences)
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, REQUEST, sequence, 0) + body)
        while True:
            data = memoryview(self._socket.recv(_BUFFER_BYTES))
            for answer, answered, at, end in _messages(data):
                if answered != sequence:
                    continue
                if answer == _ERROR:
                    code = -_CODE.unpack_from(data, at)[0]
                    raise OSError(code or errno.EPROTO, os.strerror(code) if code else "no answer")
                return data, at + header, end


def attributes(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of the value of each attribute."""
    while start + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        yield kind & TYPE_MASK, start + _ATTRIBUTE.size, start + length
        start += length + 3 & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Pack an attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *values: bytes) -> bytes:
    """Pack an attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(values))


def text_attribute(kind: int, text: str) -> bytes:
    """Pack a text, ended by a zero byte."""
    return attribute(kind, text.encode() + b"\0")


def _messages(data: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield type, sequence number, start and end of the body of each message."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, at)
        yield kind, sequence, at + _HEADER.size, at + length
        at += length + 3 & ~3


def _error_text(data: memoryview, at: int, end: int, code: int) -> str:
    # Behind the code and the header of the refused message, if the kernel has words for it.
    for kind, left, right in attributes(data, at + _CODE.size + _HEADER.size, end):
        if kind == _EXT_ACK_MESSAGE:
            return f"{os.strerror(code)} ({bytes(data[left:right]).rstrip(bytes(1)).decode(errors='replace')})"
    return os.strerror(code) if code < _FIRST_PRIVATE_CODE else f"error {code}"


_FIRST_PRIVATE_CODE = 4096
"""ipset has codes of its own (`linux/netfilter/ipset/ip_set.h`)."""
