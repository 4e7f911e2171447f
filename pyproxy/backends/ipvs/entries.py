"""Keys and values of the IPVS mode: virtual and real servers, members of ipsets, addresses of Services, iptables rules.

All of them are entries of one mapping for each family. Protocols are numbers, as in the IP header and in the kernel's
messages, because hashing a member of an enum takes longer than hashing the rest of a key.
"""

from typing import NamedTuple

from pyproxy.backends.iptables.ruleset import RulesetKey
from pyproxy.linux.uapi.ip_vs import IpVsSvcF
from pyproxy.model.address import Network, socket_text
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.names import PROTOCOLS


class VirtualServer(NamedTuple):
    """A virtual server; its value is a `Scheduling`."""

    ip: bytes
    protocol: int
    port: int

    def __str__(self) -> str:
        name = PROTOCOLS[self.protocol].value if self.protocol in PROTOCOLS else self.protocol
        return f"{socket_text(self.ip, self.port)}/{name}"


# Scheduler, flags and time-out can be changed in place (IPVS_CMD_SET_SERVICE), which keeps the connections.
class Scheduling(NamedTuple):
    """How a virtual server distributes connections."""

    scheduler: str
    """Name of the scheduler, which is that of the kernel's module without ``ip_vs_``."""
    flags: int = 0
    """`PERSISTENT` and the scheduler's own flags."""
    timeout: int = 0
    """Seconds for which a client stays with its real server; 0 without persistence."""


PERSISTENT = int(IpVsSvcF.PERSISTENT)
HASH_PORT = int(IpVsSvcF.SCHED_SH_PORT)
"""The schedulers mh and sh use the port of the client as well as its address."""


class RealServer(NamedTuple):
    """A real server of a virtual server. Its value is its weight; with weight 0 it gets no new connections."""

    virtual: VirtualServer
    endpoint: Endpoint

    def __str__(self) -> str:
        return f"{self.virtual} -> {self.endpoint}"


class Vip(NamedTuple):
    """An address of Services that this node owns. Its value is the source address for the node's own packets to it.

    With an empty value the kernel uses the VIP itself as the source.
    """

    ip: bytes


class Set(NamedTuple):
    """One of our ipsets. Its value is its type."""

    name: str
    """Without the prefix, which has the owner and the family."""


class Member(NamedTuple):
    """A member of an ipset. Its value is a comment: the name of the Service port, or nothing.

    The type of the set decides which fields are used.
    """

    set: str
    """As in `Set`."""
    ip: bytes
    protocol: int = 0
    port: int = 0
    network: Network | None = None


IpvsKey = VirtualServer | RealServer | Vip | Set | Member | RulesetKey
IpvsValue = Scheduling | int | bytes | str


class RealServerState(NamedTuple):
    """The state of a real server in the kernel."""

    weight: int
    active: int
    """Established connections."""
    inactive: int
    """Connections that are being opened or closed, or that have no state, such as UDP."""
    since: int
    """When it got weight 0, in seconds since the epoch; 0: unknown. It is stored in the upper threshold of connections."""
