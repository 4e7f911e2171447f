"""Attribution of external changes: which process changed our tables, and how, from the notifications of nf_tables.

Whether something changed is decided by the generation counter alone (`pyproxy.linux.ruleset_counter`), because notifications
can be lost. The subscription begins with the first look for changes, after the first load: the kernel writes a notification
for each element as soon as there is a subscriber, which makes a large load slower.
"""

import ctypes
import logging
import socket
import struct
from collections import Counter

from pyproxy.linux.netlink import (
    BUFFER_BYTES,
    NETLINK_NETFILTER,
    NFGENMSG_BYTES,
    attribute_values,
    parsing,
    read_messages,
)
from pyproxy.linux.uapi.nf_tables import NftaGen, NftaTable, NftMsg
from pyproxy.linux.uapi.nfnetlink import Nfnlgrp
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

_TYPE_IN_SUBSYSTEM = 0xFF
_OPERATIONS: dict[int, str] = {
    NftMsg.NEWTABLE: "table added",
    NftMsg.DELTABLE: "table deleted",
    NftMsg.NEWCHAIN: "chain added",
    NftMsg.DELCHAIN: "chain deleted",
    NftMsg.NEWRULE: "rule added",
    NftMsg.DELRULE: "rule deleted",
    NftMsg.NEWSET: "set added",
    NftMsg.DELSET: "set deleted",
    NftMsg.NEWSETELEM: "elements added",
    NftMsg.DELSETELEM: "elements deleted",
}

# A classic BPF program: `linux/filter.h`, `linux/bpf_common.h`; the option is from `asm-generic/socket.h`.
_SO_ATTACH_FILTER = 26
_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_ALL_BYTES = 0xFFFFFFFF
_SENDER_AT = 12  # offset of nlmsg_pid in struct nlmsghdr
# struct sock_filter: u16 code, u8 jump if true, u8 jump if false, u32 operand.
_INSTRUCTION = struct.Struct("=HBBI")


class ChangeMonitor:
    """Records the operations of other processes on our tables, from the first call of `listen` on. For one thread at a time."""

    def __init__(self, table: str) -> None:
        """Set the name of our tables, which is the same in all families."""
        self._table = f"{table}\0".encode()
        self._own: list[int] = []
        self._has_begun = False
        self._socket: socket.socket | None = None
        # Operations of the transaction whose NEWGEN has not arrived yet.
        self._unfinished: dict[Family, Counter[str]] = {family: Counter() for family in Family}
        self._reports: dict[Family, list[str]] = {family: [] for family in Family}

    def ignore(self, port: int) -> None:
        """Ignore the transactions of the socket with this netlink port. Call it before `listen`."""
        self._own.append(port)

    def listen(self) -> None:
        """Subscribe on the first call; if that fails, `take` never returns anything."""
        if self._has_begun:
            return
        self._has_begun = True
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
            # Before the bind, so that no notification comes unfiltered.
            _drop_from(self._socket, self._own)
            self._socket.bind((0, 1 << Nfnlgrp.NFTABLES - 1))
        except OSError as error:
            logger.info(
                "cannot subscribe to nf_tables events; external changes will not be attributed: %s", error.strerror
            )
            self.close()

    def close(self) -> None:
        """Unsubscribe."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def take(self, family: Family) -> list[str]:
        """Return the operations on the family's table since the last call: for each transaction the process and its work."""
        while self._socket is not None:
            try:
                data = memoryview(self._socket.recv(BUFFER_BYTES))
                with parsing():
                    self._record(data)
            except BlockingIOError:
                break
            except OSError as error:
                # ENOBUFS: the queue was full, so notifications are missing, perhaps the one with the process.
                for each in Family:
                    self._reports[each].append(f"unknown processes, because notifications were lost: {error.strerror}")
                    self._unfinished[each].clear()
        reports, self._reports[family] = self._reports[family], []
        return reports

    def _record(self, data: memoryview) -> None:
        # A notification is the message that made the change, so its type is NEW... or DEL... and its first attribute, 1 in all
        # of them, is the name of the table. Each transaction ends with NEWGEN, which names the process.
        for kind, _, _, start, end in read_messages(data):
            found = attribute_values(data, start + NFGENMSG_BYTES, end)
            number = kind & _TYPE_IN_SUBSYSTEM
            if number in _OPERATIONS and found.get(NftaTable.NAME, b"") == self._table:
                for family in Family:
                    if data[start] == family.socket_family:
                        self._unfinished[family][_OPERATIONS[number]] += 1
            elif number == NftMsg.NEWGEN:
                name = bytes(found.get(NftaGen.PROC_NAME, b"?")).rstrip(b"\0").decode(errors="replace")
                process = int.from_bytes(found.get(NftaGen.PROC_PID, b""))
                for family, operations in self._unfinished.items():
                    if operations:
                        work = ", ".join(
                            f"{operation} ({count} times)" if count > 1 else operation
                            for operation, count in operations.items()
                        )
                        self._reports[family].append(f"{name} (process {process}): {work}")
                        operations.clear()


def _drop_from(listener: socket.socket, senders: list[int]) -> None:
    # The kernel drops notifications about our own transactions before they fill the queue. The program loads the sender
    # of the message, compares it with each socket, and returns how many bytes to keep: 0 if one is equal, else all. A
    # jump counts the instructions that it skips.
    steps = [_INSTRUCTION.pack(_LOAD_WORD, 0, 0, _SENDER_AT)]
    for at, sender in enumerate(senders):
        # BPF loads words in network byte order, while netlink headers are in the machine's order.
        operand = int.from_bytes(struct.pack("=I", sender & 0xFFFFFFFF))
        steps.append(_INSTRUCTION.pack(_JUMP_IF_EQUAL, len(senders) - at, 0, operand))
    steps += [_INSTRUCTION.pack(_RETURN, 0, 0, _ALL_BYTES), _INSTRUCTION.pack(_RETURN, 0, 0, 0)]
    program = ctypes.create_string_buffer(b"".join(steps))
    # struct sock_fprog: u16 number of instructions, pointer to them.
    listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(steps), ctypes.addressof(program)))
