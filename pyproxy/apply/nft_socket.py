"""One long-lived netlink socket to nf_tables: transactions and dumps.

Long-lived, because closing one that has changed something waits for the kernel to free what was replaced:
16 ms for each change instead of 0.04 ms.
"""

import errno
import os
import socket
import sys
from collections.abc import Iterator
from itertools import count

from pyproxy.apply.nft_messages import BODY_AT, HEADER, batch
from pyproxy.errors import ApplyError

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_CAP_ACK = 10
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_DUMP_INTERRUPTED = 0x10
_BUFFER_BYTES = 1 << 18
_LARGEST_BATCH_BYTES = 8 << 20
_DUMP_TRIES = 10


class RefusedError(ApplyError):
    """The kernel refused a transaction, or its answer was lost."""


class NftSocket:
    """Not to be used by two threads at once."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        # A whole transaction is one message to the socket; without the privilege the usual limit holds.
        for forced, plain in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, forced, 2 * _LARGEST_BATCH_BYTES)
            except PermissionError:
                self._socket.setsockopt(socket.SOL_SOCKET, plain, 2 * _LARGEST_BATCH_BYTES)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        self._socket.bind((0, 0))
        self._sequences = count(1)

    def commit(self, messages: list[bytes]) -> int:
        """Perform changes, in as few transactions as the socket takes, and return how many these were.

        Raises:
            RefusedError: the kernel refused one; those before it were performed.
        """
        commits = 0
        for part in _parts(messages):
            self._commit(part)
            commits += 1
        return commits

    def _commit(self, messages: list[bytes]) -> None:
        sequence = next(self._sequences) & 0xFFFFFFFF
        try:
            self._socket.send(batch(messages, sequence))
            self._await(sequence)
        except OSError as error:
            message = f"nf_tables: {error.strerror}"
            # Lost answers and lack of memory say nothing about the content.
            lost = error.errno in (errno.ENOBUFS, errno.EINTR, errno.EAGAIN, errno.ENOMEM, errno.EMSGSIZE)
            raise RefusedError(message, retryable=lost or error.errno == errno.EPERM) from error

    def _await(self, sequence: int) -> None:
        """Read the answers of a transaction, which the kernel has all sent by now; the first refusal is raised."""
        refusal = 0
        acknowledged = False
        while True:
            try:
                data = self._socket.recv(_BUFFER_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            for kind, _, answered, start, _ in _messages(data):
                if kind == _NLMSG_ERROR:
                    code = -int.from_bytes(data[start : start + 4], sys.byteorder, signed=True)
                    refusal = refusal or code
                    acknowledged |= answered == sequence and not code
        if refusal:
            raise OSError(refusal, os.strerror(refusal))
        if not acknowledged:
            raise OSError(errno.EAGAIN, "no acknowledgement")

    def dump(self, request: bytes) -> Iterator[tuple[memoryview, int, int]]:
        """Yield the messages that answer a request for a dump: bytes, start and end of the attributes.

        Raises:
            OSError: the kernel refused; ENOENT where the table or the set does not exist.
        """
        for _ in range(_DUMP_TRIES):
            found = self._dump(request)
            if found is not None:
                yield from found
                return
        raise OSError(errno.EINTR, "changed by others all the time")

    def _dump(self, request: bytes) -> list[tuple[memoryview, int, int]] | None:
        self._socket.send(request)
        found: list[tuple[memoryview, int, int]] = []
        interrupted = False
        while True:
            data = self._socket.recv(_BUFFER_BYTES)
            view = memoryview(data)
            for kind, flags, _, start, end in _messages(data):
                interrupted |= bool(flags & _DUMP_INTERRUPTED)
                if kind == _NLMSG_DONE:
                    return None if interrupted else found
                if kind == _NLMSG_ERROR:
                    code = -int.from_bytes(data[start : start + 4], sys.byteorder, signed=True)
                    raise OSError(code, os.strerror(code))
                found.append((view, start + BODY_AT - HEADER.size, end))


def _messages(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield type, flags, sequence number, start and end of the body of each message."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, offset + HEADER.size, offset + length
        offset += length + 3 & ~3


def _parts(messages: list[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for message in messages:
        if part and size + len(message) > _LARGEST_BATCH_BYTES:
            yield part
            part, size = [], 0
        part.append(message)
        size += len(message)
    if part:
        yield part
