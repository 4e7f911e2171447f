"""Netlink sockets, and packing and parsing of messages and attributes (`linux/netlink.h`).

A message is a header, a structure of its protocol, and attributes, which may be nested. Several messages go to the kernel in
one send, which is one system call and one wake-up; the kernel acknowledges the last one and reports each one that it refuses.
docs/decisions/008-netlink-by-hand.md says why no library does this.
"""

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import NamedTuple, Self

from pyproxy.linux.uapi.netlink import (
    NLA_TYPE_MASK,
    NetlinkOption,
    NetlinkProtocol,
    NlaF,
    NlmF,
    NlmFGet,
    NlmFNew,
    Nlmsg,
    NlmsgerrAttr,
)

# Constants of the module, because reading a member from its class takes 0.2 µs in Python 3.11, a constant a tenth of that.
REQUEST, ACK, _DUMP = NlmF.REQUEST, NlmF.ACK, NlmFGet.DUMP
CREATE, EXCL, APPEND = NlmFNew.CREATE, NlmFNew.EXCL, NlmFNew.APPEND
NESTED, NETWORK_ORDER = NlaF.NESTED, NlaF.NET_BYTEORDER
ERROR, _DONE, _DUMP_INTERRUPTED = Nlmsg.ERROR, Nlmsg.DONE, NlmF.DUMP_INTR
NETLINK_NETFILTER = NetlinkProtocol.NETFILTER

# struct nlmsghdr: u32 length with this header, u16 type, u16 flags, u32 sequence number, u32 port of the sender. All numbers
# are in the byte order of the machine. Messages and attributes begin at multiples of 4 bytes.
HEADER = struct.Struct("=IHHII")
# struct nlattr: u16 length with this header, without the padding behind the value; u16 type, whose upper two bits are flags
ATTRIBUTE = struct.Struct("=HH")
# struct nfgenmsg (`linux/netfilter/nfnetlink.h`), the first part of the body in all of netfilter: u8 address family, u8
# version 0, u16 resource in network byte order
NFGENMSG_BYTES = 4
# The body of NLMSG_ERROR and NLMSG_DONE: i32 negative errno, or 0. In an error the header of the refused message follows,
# and with EXT_ACK attributes.
_CODE = struct.Struct("=i")
# Error codes from here on belong to ipset (`IPSET_ERR_PRIVATE` in `linux/netfilter/ipset/ip_set.h`).
_FIRST_PRIVATE_CODE = 4096

# `asm-generic/socket.h` and `linux/socket.h`; Python's socket module does not have them.
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_NETLINK = 270

_DUMP_TRIES = 10
_MESSAGES_PER_SEND = 300
# Less than the smallest send buffer that a kernel is configured with.
_BYTES_PER_SEND = 1 << 16
# Size of a receive call. The kernel sizes the parts of a dump by it, up to 32 KiB (`netlink_recvmsg`).
BUFFER_BYTES = 1 << 18
_SEND_BUFFER_BYTES = 1 << 22


class Message(NamedTuple):
    """One request. The socket adds the length, the sequence number and the flags REQUEST and ACK."""

    kind: int
    flags: int
    body: bytes


class Refusal(NamedTuple):
    """The error with which the kernel refused a message."""

    at: int
    """Index of the message in the sequence that was sent."""
    code: int
    """The errno."""
    text: str
    """The text of the errno, and the kernel's own explanation if it sent one."""


class Closeable:
    """Base of classes that own sockets, which are closed at the end of a ``with`` block."""

    def __enter__(self) -> Self:
        """Return the object."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the sockets."""
        self.close()

    def close(self) -> None:
        """Close the sockets."""
        raise NotImplementedError


class NetlinkSocket(Closeable):
    """A socket of one netlink protocol, for one thread at a time."""

    def __init__(self, protocol: int, *, buffer_bytes: int = _SEND_BUFFER_BYTES) -> None:
        self._sequences = count(1)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            # Short errors with an explanation, and dumps that honour the request (`NetlinkOption` has the kernel versions).
            for option in (NetlinkOption.CAP_ACK, NetlinkOption.EXT_ACK, NetlinkOption.GET_STRICT_CHK):
                self._socket.setsockopt(_SOL_NETLINK, option, 1)
            for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
                try:
                    self._socket.setsockopt(socket.SOL_SOCKET, forced, buffer_bytes)
                except PermissionError:
                    # Without CAP_NET_ADMIN the limits of net.core.wmem_max and rmem_max apply.
                    self._socket.setsockopt(socket.SOL_SOCKET, plain, buffer_bytes)
            # The kernel assigns the port.
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise

    @property
    def port(self) -> int:
        """The netlink port, which is the kernel's address of this socket."""
        port: int = self._socket.getsockname()[0]
        return port

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, messages: Sequence[Message]) -> list[Refusal]:
        """Send messages in order and return the refusals; the kernel performed all other messages.

        Raises:
            OSError: the socket failed; how many messages were performed is unknown.
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
        # In one system call; `start` is the index of the first message, from which refusals are counted.
        first = last = next(self._sequences)
        parts: list[bytes] = []
        for index, (kind, flags, body) in enumerate(messages):
            last = first if index == 0 else next(self._sequences)
            all_flags = flags | REQUEST | (ACK if index == len(messages) - 1 else 0)
            parts += (HEADER.pack(HEADER.size + len(body), kind, all_flags, last, 0), body)
        self._socket.send(b"".join(parts))
        refusals: list[Refusal] = []
        while True:
            data = memoryview(self._socket.recv(BUFFER_BYTES))
            for kind, _, sequence, at, end in read_messages(data):
                # Answers to an earlier send whose reading failed can still be in the queue.
                if kind != ERROR or not first <= sequence <= last:
                    continue
                code = error_code(data, at)
                if code:
                    refusals.append(Refusal(start + sequence - first, code, error_text(data, at, end, code)))
                if sequence == last:
                    return refusals

    def dump(self, kind: int, body: bytes, *, header: int) -> Iterator[tuple[memoryview, int, int]]:
        """Request a dump and yield each answer as it arrives: the bytes, and start and end of its attributes.

        `header` is the size of the structure before the attributes. A dump is not a snapshot: the kernel releases its locks
        between two parts, and flags a dump that a change interrupted (NLM_F_DUMP_INTR).

        Raises:
            OSError: the kernel refused; InterruptedError, after the last answer, if something changed during the dump.
        """
        sequence = next(self._sequences)
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, REQUEST | _DUMP, sequence, 0) + body)
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
                        raise OSError(code, _reason(code))
                    return
                yield data, _body(at, header, end), end

    def dump_whole(self, kind: int, body: bytes, *, header: int) -> list[tuple[memoryview, int, int]]:
        """Return the answers of a dump during which nothing changed, after up to 10 tries; arguments are those of `dump`.

        Raises:
            OSError: the kernel refused; InterruptedError if something changed during each try.
        """
        for _ in range(_DUMP_TRIES - 1):
            with suppress(InterruptedError):
                return list(self.dump(kind, body, header=header))
        return list(self.dump(kind, body, header=header))

    def ask(self, kind: int, body: bytes, *, header: int) -> tuple[memoryview, int, int]:
        """Send a request and return its only answer: the bytes, and start and end of its attributes.

        Raises:
            OSError: the kernel refused; EPROTO if it acknowledged the request without an answer.
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
                    raise OSError(code or errno.EPROTO, _reason(code) if code else "no answer")
                return data, _body(at, header, end), end


def _body(at: int, header: int, end: int) -> int:
    if at + header > end:
        raise malformed()
    return at + header


def malformed() -> OSError:
    """Return the error for an answer that cannot be parsed, for example from a kernel whose messages are different."""
    return OSError(errno.EBADMSG, "the answer of the kernel cannot be parsed")


@contextmanager
def parsing() -> Iterator[None]:
    """Turn errors of Python that parsing an answer can raise into an `OSError`, the error of all reads from the kernel."""
    try:
        yield
    except (struct.error, LookupError, ValueError) as error:
        raise malformed() from error


def attributes(data: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield type, and start and end of the value, of each attribute; the flags of the type are removed.

    Raises:
        OSError: EBADMSG, a length is not possible.
    """
    while start + ATTRIBUTE.size <= end:
        length, kind = ATTRIBUTE.unpack_from(data, start)
        # With a length of 0 the loop would not end.
        if length < ATTRIBUTE.size or start + length > end:
            raise malformed()
        yield kind & NLA_TYPE_MASK, start + ATTRIBUTE.size, start + length
        start += length + 3 & ~3


def attribute_values(data: memoryview, start: int, end: int) -> dict[int, memoryview]:
    """Return the value of each attribute by its type; of several with one type the last."""
    return {kind: data[left:right] for kind, left, right in attributes(data, start, end)}


def host_number(value: bytes | memoryview) -> int:
    """Return a number that is in the byte order of the machine, as in most of netlink outside netfilter."""
    return int.from_bytes(value, sys.byteorder)


def attribute(kind: int, value: bytes) -> bytes:
    """Return a packed attribute with its padding."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *values: bytes) -> bytes:
    """Return a packed attribute that holds packed attributes."""
    return attribute(kind | NESTED, b"".join(values))


def text_attribute(kind: int, text: str) -> bytes:
    """Return a packed attribute with a text and its terminating zero byte."""
    return attribute(kind, text.encode() + b"\0")


def nfgenmsg(family: int, resource: int = 0) -> bytes:
    """Return a struct nfgenmsg, with which the body of each netfilter message begins."""
    return bytes((family, 0)) + resource.to_bytes(2)


def read_messages(data: bytes | memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield type, flags, sequence number, and start and end of the body, of each message.

    Raises:
        OSError: EBADMSG, a length is not possible.
    """
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, at)
        if length < HEADER.size or at + length > len(data):
            raise malformed()
        yield kind, flags, sequence, at + HEADER.size, at + length
        at += length + 3 & ~3


def error_code(data: bytes | memoryview, at: int) -> int:
    """Return the errno in the body of NLMSG_ERROR or NLMSG_DONE; 0 means success."""
    if at + _CODE.size > len(data):
        raise malformed()
    code: int = _CODE.unpack_from(data, at)[0]
    return -code


def error_text(data: memoryview, at: int, end: int, code: int) -> str:
    """Return the text of an error, with the kernel's explanation if the body of NLMSG_ERROR has one."""
    for kind, left, right in attributes(data, at + _CODE.size + HEADER.size, end):
        if kind == NlmsgerrAttr.MSG:
            return f"{_reason(code)} ({bytes(data[left:right]).rstrip(bytes(1)).decode(errors='replace')})"
    return _reason(code)


def _reason(code: int) -> str:
    return os.strerror(code) if 0 < code < _FIRST_PRIVATE_CODE else f"error {code}"
