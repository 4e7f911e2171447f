"""Tells who changed our tables and how, from what nf_tables tells its listeners.

Only the generation counter says whether something was changed (`ruleset_counter`): messages can be lost. Nobody listens
before the first look: a listener makes a big load dearer, as the kernel writes a message for each element.
Messages: `linux/netfilter/nf_tables.h`; each transaction ends with one that names the process.
"""

import ctypes
import logging
import socket
import struct
from collections import Counter
from collections.abc import Iterable

from pyproxy.linux.netlink import BUFFER_BYTES, NETLINK_NETFILTER, NFGENMSG_BYTES, attributes, read_messages
from pyproxy.linux.nf_tables_messages import PROTOCOL_FAMILIES
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

_LISTENERS_OF_NF_TABLES = 7
_TABLE_NAME = 1
"""The same attribute in all messages about something in a table."""
_NEW_GENERATION = 15
_PROCESS_ID, _PROCESS_NAME = 2, 3
_DEEDS = {
    0: "table added",
    2: "table deleted",
    3: "chain added",
    5: "chain deleted",
    6: "rule added",
    8: "rule deleted",
    9: "set added",
    11: "set deleted",
    12: "elements added",
    14: "elements deleted",
}
_ATTACH_FILTER = 26
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_SENDER_AT = 12
_INSTRUCTION = struct.Struct("=HBBI")


class ChangeMonitor:
    """Listens to nf_tables from the first `listen` on. Not to be used by two threads at once."""

    def __init__(self, table: str) -> None:
        """Take the name of our tables, the same in all families."""
        self._table = f"{table}\0".encode()
        self._own: list[int] = []
        self._has_begun = False
        self._socket: socket.socket | None = None
        self._unfinished: dict[Family, Counter[str]] = {family: Counter() for family in Family}
        self._told: dict[Family, list[str]] = {family: [] for family in Family}

    def leave_out(self, port: int) -> None:
        """Take no note of changes by a socket of ours; to be called before `listen`."""
        self._own.append(port)

    def listen(self) -> None:
        """Begin to listen, if that has not begun; where it is refused, nothing will be told."""
        if self._has_begun:
            return
        self._has_begun = True
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        try:
            self._socket = socket.socket(socket.AF_NETLINK, kind, NETLINK_NETFILTER)
            _keep_from(self._socket, self._own)
            self._socket.bind((0, 1 << _LISTENERS_OF_NF_TABLES - 1))
        except OSError as error:
            logger.info("who changes our tables cannot be told: %s", error.strerror)
            self.close()

    def close(self) -> None:
        """Listen no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def take(self, family: Family) -> list[str]:
        """Return what was done to the family's table since the last time, by process, in the order of transactions."""
        self._read()
        told, self._told[family] = self._told[family], []
        return told

    def _read(self) -> None:
        while self._socket is not None:
            try:
                data = self._socket.recv(BUFFER_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                # Too many to keep: the rest of a transaction, and whose it was.
                for family in Family:
                    self._told[family].append(f"more than could be noted: {error.strerror}")
                    self._unfinished[family].clear()
                continue
            self._note(memoryview(data))

    def _note(self, data: memoryview) -> None:
        for kind, _, _, start, end in read_messages(data):
            found = {at: bytes(data[left:right]) for at, left, right in attributes(data, start + NFGENMSG_BYTES, end)}
            number = kind & 0xFF
            if number == _NEW_GENERATION:
                self._finish(found)
            elif number in _DEEDS and found.get(_TABLE_NAME) == self._table:
                for family, protocol_family in PROTOCOL_FAMILIES.items():
                    if data[start] == protocol_family:
                        self._unfinished[family][_DEEDS[number]] += 1

    def _finish(self, generation: dict[int, bytes]) -> None:
        name = generation.get(_PROCESS_NAME, b"?").rstrip(b"\0").decode(errors="replace")
        process = int.from_bytes(generation.get(_PROCESS_ID, b""))
        for family, operations in self._unfinished.items():
            if operations:
                what = ", ".join(
                    f"{operation} ({count} times)" if count > 1 else operation
                    for operation, count in operations.items()
                )
                self._told[family].append(f"{name} (process {process}): {what}")
                operations.clear()


def _keep_from(listener: socket.socket, senders: Iterable[int]) -> None:
    """Have the kernel drop messages about changes by these sockets, before they take room in the queue."""
    # A load is in network order, and the field in that of the machine.
    numbers = [int.from_bytes(struct.pack("=I", sender & 0xFFFFFFFF)) for sender in senders]
    steps = [_INSTRUCTION.pack(_LOAD_WORD, 0, 0, _SENDER_AT)]
    for at, number in enumerate(numbers):
        steps.append(_INSTRUCTION.pack(_JUMP_IF_EQUAL, len(numbers) - at, 0, number))
    steps += [_INSTRUCTION.pack(_RETURN, 0, 0, 0xFFFFFFFF), _INSTRUCTION.pack(_RETURN, 0, 0, 0)]
    program = ctypes.create_string_buffer(b"".join(steps))
    listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", len(steps), ctypes.addressof(program)))
