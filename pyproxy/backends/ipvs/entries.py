"""Keys and values of the IPVS mode: virtual and real servers, members of ipsets, addresses of Services, iptables rules.

All of them are entries of one mapping for each family. Protocols are numbers here, as in the IP header and in the
kernel's messages: an enum member takes longer to hash than the rest of a key.
"""

from typing import NamedTuple

from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.model.address import Network, socket_text
from pyproxy.model.endpoint import Endpoint

PROTOCOL_NAMES = {6: "tcp", 17: "udp", 132: "sctp"}


class VirtualServer(NamedTuple):
    """A virtual server; its value is a `Scheduling`."""

    ip: bytes
    protocol: int
    port: int

    def __str__(self) -> str:
        return f"{socket_text(self.ip, self.port)}/{PROTOCOL_NAMES.get(self.protocol, self.protocol)}"


class Scheduling(NamedTuple):
    """How a virtual server spreads connections."""

    scheduler: str
    """Name of the kernel's module without ``ip_vs_``."""
    flags: int = 0
    """`PERSISTENT` and the scheduler's own flags."""
    timeout: int = 0
    """Seconds for which a client stays with its real server; 0 where it does not."""


PERSISTENT = 0x1
"""IP_VS_SVC_F_PERSISTENT of `linux/ip_vs.h`."""
HASH_PORT = 0x10
"""IP_VS_SVC_F_SCHED2: the schedulers mh and sh take the client's port into account."""


class RealServer(NamedTuple):
    """A real server of a virtual server; its value is its weight. Weight 0 gets no new connections."""

    virtual: VirtualServer
    endpoint: Endpoint

    def __str__(self) -> str:
        return f"{self.virtual} -> {self.endpoint}"


class Vip(NamedTuple):
    """An address of Services that this node answers for; its value is the source address of the node's own packets to it.

    An empty value leaves that to the kernel, which then takes the address itself.
    """

    ip: bytes


class Set(NamedTuple):
    """An ipset of ours; its value is its type."""

    name: str
    """Without the prefix that says whose it is and of which family."""


class Member(NamedTuple):
    """A member of an ipset; its value is a remark: whose it is, or nothing. Which fields count depends on the type."""

    set: str
    """As in `Set`."""
    ip: bytes
    protocol: int = 0
    port: int = 0
    network: Network | None = None


IpvsKey = VirtualServer | RealServer | Vip | Set | Member | RulesetKey
IpvsValue = Scheduling | int | bytes | str


class RealServerState(NamedTuple):
    """What the kernel says of a real server."""

    weight: int
    active: int
    """Connections that are established."""
    inactive: int
    """Connections that are being opened or closed, or have no state."""
    since: int
    """When it got weight 0, in seconds of wall time; 0 means not known. Kept by the kernel in the upper threshold."""
