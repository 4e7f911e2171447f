"""Linux bridges and their ports, by rtnetlink. Reads need no rights."""

from dataclasses import dataclass

from pyproxy.linux.netlink import NetlinkSocket, attribute_values, host_number
from pyproxy.linux.uapi.if_link import Ifla, IflaBrport, IflaInfo
from pyproxy.linux.uapi.netlink import NetlinkProtocol
from pyproxy.linux.uapi.rtnetlink import IFINFOMSG, Rtm


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
    with NetlinkSocket(NetlinkProtocol.ROUTE) as netlink:
        for data, start, end in netlink.dump_whole(Rtm.GETLINK, IFINFOMSG.pack(0, 0, 0, 0, 0), header=IFINFOMSG.size):
            _, _, index, _, _ = IFINFOMSG.unpack_from(data, start - IFINFOMSG.size)
            link = attribute_values(data, start, end)
            name = names[index] = _text(link[Ifla.IFNAME]).decode(errors="replace")
            info = _nested(link, Ifla.LINKINFO)
            if _text(info.get(IflaInfo.KIND, b"")) == b"bridge":
                found[name] = []
            if _text(info.get(IflaInfo.SLAVE_KIND, b"")) == b"bridge" and IflaInfo.SLAVE_DATA in info:
                mode = _nested(info, IflaInfo.SLAVE_DATA).get(IflaBrport.MODE, b"\0")
                ports.append((host_number(link[Ifla.MASTER]), BridgePort(name, is_hairpin=mode[0] == 1)))
    # A port may come before its bridge.
    for master, port in ports:
        found.setdefault(names.get(master, ""), []).append(port)
    return found


def _nested(values: dict[int, memoryview], kind: int) -> dict[int, memoryview]:
    return attribute_values(values[kind], 0, len(values[kind])) if kind in values else {}


def _text(value: bytes | memoryview) -> bytes:
    return bytes(value).rstrip(b"\0")
