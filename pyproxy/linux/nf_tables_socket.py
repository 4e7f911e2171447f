"""One long-lived netlink socket to nf_tables: transactions and dumps.

Long-lived, because closing one that has changed something waits for the kernel to free what was replaced.
"""

import errno
import os
import socket
from collections.abc import Iterable, Iterator

from pyproxy.errors import ApplyError
from pyproxy.linux.netlink import (
    BUFFER_BYTES,
    ERROR,
    NETLINK_NETFILTER,
    NFGENMSG_BYTES,
    NetlinkSocket,
    error_code,
    error_text,
    read_messages,
)
from pyproxy.linux.nf_tables_messages import batch

_LARGEST_BATCH_BYTES = 8 << 20


class TransactionRefusedError(ApplyError):
    """The kernel refused a transaction, or its answer was lost."""


class NfTablesSocket(NetlinkSocket):
    """Not to be used by two threads at once."""

    def __init__(self) -> None:
        # A whole transaction is one message to the socket.
        super().__init__(NETLINK_NETFILTER, buffer_bytes=2 * _LARGEST_BATCH_BYTES)

    def read(self, request: tuple[int, bytes]) -> list[tuple[memoryview, int, int]]:
        """Return the messages that answer a request for a dump: bytes, start and end of the attributes.

        Raises:
            OSError: the kernel refused; ENOENT where the table or the set does not exist.
        """
        return self.dump_whole(*request, header=NFGENMSG_BYTES)

    def commit(self, messages: list[bytes]) -> int:
        """Perform changes, in as few transactions as the socket takes, and return how many these were.

        Raises:
            TransactionRefusedError: the kernel refused one; those before it were performed.
        """
        commits = 0
        for part in parts(messages):
            self._commit(part)
            commits += 1
        return commits

    def _commit(self, messages: list[bytes]) -> None:
        sequence = next(self._sequences)
        try:
            self._socket.send(batch(messages, sequence))
            self._await(sequence)
        except OSError as error:
            message = f"nf_tables: {error.strerror}"
            # Lost answers and lack of memory say nothing about the content.
            lost = error.errno in (errno.ENOBUFS, errno.EINTR, errno.EAGAIN, errno.ENOMEM, errno.EMSGSIZE)
            raise TransactionRefusedError(message, retryable=lost or error.errno == errno.EPERM) from error

    def _await(self, sequence: int) -> None:
        """Read the answers of a transaction, which the kernel has all sent by now; the first refusal is raised."""
        refusal: OSError | None = None
        acknowledged = False
        while True:
            try:
                data = memoryview(self._socket.recv(BUFFER_BYTES, socket.MSG_DONTWAIT))
            except BlockingIOError:
                break
            for kind, _, answered, start, end in read_messages(data):
                if kind == ERROR:
                    code = error_code(data, start)
                    if code and refusal is None:
                        refusal = OSError(code, error_text(data, start, end, code))
                    acknowledged |= answered == sequence and not code
        if refusal:
            raise refusal
        if not acknowledged:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def parts(messages: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield messages in as few lists as there can be when each is one transaction."""
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
