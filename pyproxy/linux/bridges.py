"""Linux bridges and their ports, by rtnetlink (`linux/if_link.h`). Reads need no rights.

RTM_GETLINK  nlmsghdr, struct ifinfomsg (family u8, pad u8, type u16, index i32, flags u32, change u32), attributes
LINKINFO     { KIND text, SLAVE_KIND text, SLAVE_DATA { MODE u8: hairpin mode of a bridge port, ... } }
"""

import socket
import struct
import sys
from dataclasses import dataclass

from pyproxy.linux.netlink import NetlinkSocket, attributes
from pyproxy.linux.uapi.rtnetlink import Ifla, IflaBrport, IflaInfo, Rtm

_IFINFOMSG = struct.Struct("=BxHiII")


@dataclass(frozen=True, slots=True)
class BridgePort:
    """An interface that is a port of a bridge."""

    name: str
    is_hairpin: bool
    """Whether the bridge may send a frame back through the port that it came from."""


def bridges() -> dict[str, list[BridgePort]]:
    """Return the ports of each bridge of this network namespace.

    Raises:
        OSError: the kernel refused.
    """
    names: dict[int, str] = {}
    ports: list[tuple[int, BridgePort]] = []
    found: dict[str, list[BridgePort]] = {}
    with NetlinkSocket(socket.NETLINK_ROUTE) as netlink:
        for data, start, end in netlink.dump_whole(Rtm.GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0), header=_IFINFOMSG.size):
            _, _, index, _, _ = _IFINFOMSG.unpack_from(data, start - _IFINFOMSG.size)
            link = _nested(data, start, end)
            name = names[index] = _text(bytes(data[slice(*link[Ifla.IFNAME])]))
            about = _nested(data, *link[Ifla.LINKINFO]) if Ifla.LINKINFO in link else {}
            if _value(data, about, IflaInfo.KIND) == b"bridge":
                found[name] = []
            if _value(data, about, IflaInfo.SLAVE_KIND) == b"bridge" and IflaInfo.SLAVE_DATA in about:
                mode = _value(data, _nested(data, *about[IflaInfo.SLAVE_DATA]), IflaBrport.MODE)
                master = int.from_bytes(bytes(data[slice(*link[Ifla.MASTER])]), sys.byteorder)
                ports.append((master, BridgePort(name, mode == b"\1")))
    for master, port in ports:
        found.setdefault(names.get(master, ""), []).append(port)
    return found


def _nested(data: memoryview, start: int, end: int) -> dict[int, tuple[int, int]]:
    return {kind: (left, right) for kind, left, right in attributes(data, start, end)}


def _value(data: memoryview, found: dict[int, tuple[int, int]], kind: int) -> bytes:
    value = bytes(data[slice(*found[kind])]) if kind in found else b""
    return value.removesuffix(b"\0") if len(value) > 1 else value


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
