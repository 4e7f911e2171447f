"""What IPVS, its ipsets and helper rules do to the first packet of a connection, from the entries of this mode.

IPVS is a base chain of the hooks ``input`` and ``output``: it sends a packet for a virtual server to one of its real servers.
The rules are those of iptables, which look up the packet in ipsets.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pyproxy.backends import hooks
from pyproxy.backends.explanation import Host, Packet, Path, Step
from pyproxy.backends.hooks import UNKNOWN_INTERFACE, BaseChain, State, Verdict, Way
from pyproxy.backends.iptables.explain import Ruleset, base_chains
from pyproxy.backends.iptables.rule_matches import SetLookup
from pyproxy.backends.ipvs.entries import (
    IpvsKey,
    IpvsValue,
    Member,
    RealServer,
    Scheduling,
    Set,
    Vip,
    VirtualServer,
)
from pyproxy.backends.ipvs.static_rules import set_prefix
from pyproxy.linux.uapi.netfilter_ipv4 import NfIpPri
from pyproxy.model.address import Family, Network
from pyproxy.model.endpoint import Endpoint

_INPUT_PRIORITY = NfIpPri.NAT_SRC - 1
_OUTPUT_PRIORITY = NfIpPri.NAT_DST + 2
"""`ip_vs_core.c`, ip_vs_ops4: after the nat table in ``output``. IPVS translates replies in hooks of its own, just before these."""
Persistence = Mapping[tuple[VirtualServer, bytes], Endpoint]
"""The real server with which a client stays, by virtual server and address of the client."""


@dataclass(frozen=True, slots=True)
class IpvsState:
    """The virtual servers, ipsets and addresses of one family."""

    virtuals: Mapping[VirtualServer, Scheduling] = field(default_factory=dict)
    reals: Mapping[VirtualServer, Mapping[Endpoint, int]] = field(default_factory=dict)
    """Weights."""
    members: Mapping[str, Mapping[tuple[object, ...], tuple[str, list[Network]]]] = field(default_factory=dict)
    """By the full name of the set, and by the address or the address with protocol and port: comment and networks."""
    vips: frozenset[bytes] = frozenset()
    persistence: Persistence = field(default_factory=dict)

    def has(self, name: str, directions: tuple[str, ...], state: State) -> bool | None:
        """Return whether a packet is in an ipset, see `SetLookup`."""
        members = self.members.get(name)
        if members is None:
            return None
        ip = state.destination if directions[0] == "dst" else state.packet.source
        key: tuple[object, ...] = (ip,) if len(directions) == 1 else (ip, state.packet.protocol.number, state.port)
        found = members.get(key)
        # Only members with source ranges have networks, which are compared with the source.
        if found is None or not found[1]:
            return found is not None
        return any(state.packet.source in network for network in found[1])

    @property
    def all_reals(self) -> set[Endpoint]:
        """Return the real servers of all virtual servers."""
        return {endpoint for weights in self.reals.values() for endpoint in weights}

    def host(self, host: Host) -> Host:
        """Return the node with the addresses of Services, which are local to it."""
        # The local routes of VIPs make the kernel deliver packets for them to ``input``. Without these they would be
        # forwarded, and IPVS schedules in ``input`` and ``output`` only.
        return Host(host.ips | self.vips)


def ipvs_state(family: Family, entries: Mapping[IpvsKey, IpvsValue], persistence: Persistence) -> IpvsState:
    """Return the state that entries describe."""
    prefix = set_prefix(family)
    virtuals: dict[VirtualServer, Scheduling] = {}
    reals: dict[VirtualServer, dict[Endpoint, int]] = {}
    members: dict[str, dict[tuple[object, ...], tuple[str, list[Network]]]] = {}
    for key, value in entries.items():
        match key, value:
            case VirtualServer(), Scheduling():
                virtuals[key] = value
            case RealServer(virtual, endpoint), int(weight):
                reals.setdefault(virtual, {})[endpoint] = weight
            case Set(name), _:
                members.setdefault(prefix + name, {})
            case Member(name, ip, protocol, port, network), comment:
                place: tuple[object, ...] = (ip, protocol, port) if port else (ip,)
                found = members.setdefault(prefix + name, {}).setdefault(place, (str(comment), []))
                found[1].extend([network] if network else [])
    vips = frozenset(key.ip for key in entries if isinstance(key, Vip))
    return IpvsState(virtuals, reals, members, vips, persistence)


def ipvs_chains(state: IpvsState) -> list[BaseChain]:
    """Return IPVS as base chains."""

    def follow(packet: State) -> Iterator[Way]:
        return _scheduled(state, packet)

    return [
        BaseChain("input", _INPUT_PRIORITY, is_nat=False, follow=follow),
        BaseChain("output", _OUTPUT_PRIORITY, is_nat=False, follow=follow),
    ]


def paths(state: IpvsState, ruleset: Ruleset, packet: Packet, host: Host) -> tuple[Path, ...]:
    """Return every way that a packet can take, the most probable first."""
    sets: SetLookup = state.has
    return hooks.paths([*ipvs_chains(state), *base_chains(ruleset, sets)], packet, state.host(host), {})


def _scheduled(ipvs: IpvsState, state: State) -> Iterator[Way]:
    virtual = VirtualServer(state.destination, state.packet.protocol.number, state.port)
    scheduling = ipvs.virtuals.get(virtual)
    # IPVS marks what it has sent (`skb->ipvs_property`), and does not schedule it again in ``output``.
    if scheduling is None or state.is_ipvs:
        yield Verdict.ACCEPT, state
        return
    words = [f"scheduler {scheduling.scheduler}", *([f"persistent {scheduling.timeout}"] if scheduling.timeout else [])]
    state = state.after(Step("ipvs", None, f"virtual server {virtual}", ", ".join(words)))
    weights = ipvs.reals.get(virtual, {})
    pinned = ipvs.persistence.get((virtual, state.packet.source))
    if scheduling.timeout:
        state = replace(state, affinity_seconds=scheduling.timeout)
    # `ip_vs_check_template`: with expire_quiescent_template, which this mode sets, a client leaves a server of weight 0.
    if scheduling.timeout and pinned is not None and weights.get(pinned):
        state = replace(state, affinity_entry=f"persistence template of {virtual} in /proc/net/ip_vs_conn")
        weights = {pinned: 1}
    usable = {endpoint: weight for endpoint, weight in weights.items() if weight}
    # With no server of a weight above 0 the kernel answers with ICMP port unreachable (`ip_vs_leave`).
    if not usable:
        yield Verdict.REJECT, state.after(Step("ipvs", None, f"virtual server {virtual}", "no real server"))
        return
    for endpoint, weight in usable.items():
        # Each scheduler counts as if it drew by weight: how far round robin has got, and which server has the fewest
        # connections, changes with every connection.
        sent = replace(
            state.after(Step("ipvs", None, f"real server {endpoint}", f"weight {weight}")),
            share=state.share * weight / sum(usable.values()),
            destination=endpoint.ip,
            port=endpoint.port,
            is_translated=True,
            is_ipvs=True,
        )
        # For a server on the node itself IPVS returns NF_ACCEPT: the packet goes on in the hook where it was scheduled.
        is_local = state.host.is_local(endpoint.ip)
        yield (Verdict.ACCEPT, sent) if is_local else (Verdict.SENT, replace(sent, out_interface=UNKNOWN_INTERFACE))
