"""A netlink socket of nf_tables: transactions and dumps.

The socket stays open as long as its user. Closing a netfilter socket waits until the kernel has freed what earlier
transactions replaced (`nft_rcv_nl_event` flushes that work), which takes milliseconds; a change on an open socket takes
microseconds.
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

# A longer change becomes several transactions: the kernel copies a whole transaction into one socket buffer.
_LARGEST_BATCH_BYTES = 8 << 20
# Lost answers, too little memory, and missing privileges: reasons that do not depend on the content of a transaction.
_RETRYABLE = frozenset({errno.ENOBUFS, errno.EINTR, errno.EAGAIN, errno.ENOMEM, errno.EMSGSIZE, errno.EPERM})


class TransactionRefusedError(ApplyError):
    """The kernel refused a transaction, or its answer was lost."""


class NfTablesSocket(NetlinkSocket):
    """A socket of nf_tables, for one thread at a time."""

    def __init__(self) -> None:
        # Twice the size, because the kernel counts its own overhead against the send buffer.
        super().__init__(NETLINK_NETFILTER, buffer_bytes=2 * _LARGEST_BATCH_BYTES)

    def read(self, request: tuple[int, bytes]) -> list[tuple[memoryview, int, int]]:
        """Return the answers to the request for a dump: bytes, and start and end of the attributes.

        Raises:
            OSError: the kernel refused; ENOENT if the table or the set does not exist.
        """
        return self.dump_whole(*request, header=NFGENMSG_BYTES)

    def commit(self, messages: list[bytes]) -> int:
        """Perform messages in as few transactions as possible, and return the number of transactions.

        Raises:
            TransactionRefusedError: the kernel refused a transaction; the ones before it were performed.
        """
        commits = 0
        for part in parts(messages):
            sequence = next(self._sequences)
            try:
                self._socket.send(batch(part, sequence))
                self._read_answers(sequence)
            except OSError as error:
                message = f"nf_tables: {error.strerror}"
                raise TransactionRefusedError(message, retryable=error.errno in _RETRYABLE) from error
            commits += 1
        return commits

    def _read_answers(self, sequence: int) -> None:
        # The send returns when the transaction has ended, so all answers are in the queue and reading need not wait. The first
        # refusal is raised: the kernel goes on after it only to find further errors, and then aborts the transaction.
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
    """Yield messages in as few lists as possible, each small enough for one transaction."""
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
