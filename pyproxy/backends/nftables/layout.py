"""The layout of the nftables mode: sets, chains and rules, as text for ``nft``. It does not depend on Services.

The rules look up the destination of a packet in a map, which returns the number of endpoints; the number leads to a chain
that draws a slot; destination and slot lead to the endpoint. ``nft`` up to 1.0.6 cannot list a rule in which one look-up
feeds another, so numbers pass from rule to rule in a field of the packet: its priority, which no routing rule matches, unlike
the mark (`docs/decisions/010-nftables-scratch.md`).

Base chains, in the order in which a packet passes them; `_Chains` says why each hook and priority:

    prerouting, output  -110  source ranges
    prerouting, output  -100  DNAT
    input, forward, output 0  rejects and drops
    postrouting          100  masquerade
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import sha256

from pyproxy.backends.nftables.elements import (
    ADDRESSED,
    CLUSTER_IPS,
    NODE_PORT_IPS,
    NODE_PORTS,
    PICK,
    PINS,
    SERVICE_CIDRS,
    SETS,
    ElementSet,
    EndpointChoice,
    Layout,
    PortSets,
)
from pyproxy.linux.uapi.netfilter_ipv4 import NfIpPri
from pyproxy.model.address import Family, Network, ip_text
from pyproxy.model.node import LocalTraffic
from pyproxy.node.context import FamilySettings

TABLE = "pyproxy"
MOST_PINS = 1 << 20
"""How many clients can be pinned. ``update`` on a full set fails, and the next rule serves the client without a pin."""
_LOOPBACK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1"}
SLOT_CHAINS = "slot-of-"
"""Prefix of the names of the chains of `PICK`."""
NUMBERED_CHAINS = re.compile(rf"(?:\S*sticky-|\S*find-|{SLOT_CHAINS})\d+")
"""The names that `numbered_chain` gives."""
_PRE_DNAT = NfIpPri.NAT_DST - 10  # directly before DNAT, as kube-proxy's chains for source ranges
_PROTOCOLS = ("tcp", "udp", "sctp")
LOCALHOST_REJECTIONS = "localhost-nodeport-rejected-sctp"
"""The named counter of packets to SCTP node ports on loopback. A counter inside a rule would change the rule's listing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NftablesSettings(FamilySettings):
    """The settings on which one family's table depends besides Services."""

    node_port_ips: tuple[bytes, ...] | None = None
    """Addresses of this node that serve node ports; None means all except loopback."""
    service_cidrs: tuple[Network, ...] | None = ()
    """The ServiceCIDRs; packets to an address of theirs that no Service has are dropped.

    None means that they are not known yet, so the ranges in the kernel stay unchanged.
    """
    relays_localhost: bool = False
    """Whether the relay serves TCP and UDP node ports on loopback; packets to SCTP node ports are then rejected and counted."""


def layout_of(settings: NftablesSettings) -> Layout:
    """Return the value of the entry `LAYOUT`: a digest of the text, so that any change of it is a new layout."""
    return Layout(sha256(layout_text(settings).encode()).hexdigest()[:16])


def layout_text(settings: NftablesSettings) -> str:
    """Return the body of the table without elements: sets first, then chains."""
    family = settings.family
    parts = []
    for kind in SETS.values():
        lines = [f"type {type_text(kind, family)}", *(["flags interval"] if kind.is_interval else [])]
        parts.append(_set(kind.name, *lines, is_map=bool(kind.data)))
    # A set of client and endpoint ID, and not a map from client to endpoint: nft 1.0.6 limits the key of ``update`` on a map
    # to 16 bytes, which an IPv6 address takes alone.
    lines = [f"type {type_text(PINS, family)}", f"size {MOST_PINS}", "flags dynamic,timeout"]
    parts.append(_set(PINS.name, *lines, is_map=False))
    if settings.relays_localhost:
        parts.append(f"\tcounter {LOCALHOST_REJECTIONS} {{\n\t}}\n")
    return "".join((*parts, *_Chains(settings).write()))


def _choices(family: Family) -> tuple[tuple[str, EndpointChoice, PortSets], ...]:
    # The four ways to choose an endpoint: by address or by node port, and from all or from local endpoints.
    return tuple(
        (_looked_up(sets, family), choice, sets)
        for sets in (ADDRESSED, NODE_PORTS)
        for choice in (sets.main, sets.local)
    )


@dataclass(frozen=True, slots=True)
class NumberedChain:
    """The chain for one number, to which one element of a verdict map leads."""

    name: str
    verdict: str
    _rules: Callable[[], tuple[str, ...]]

    # On demand: another program may add an element with any number, and there is a rule for each endpoint of a Service.
    @property
    def rules(self) -> tuple[str, ...]:
        """Return the rules of the chain."""
        return self._rules()

    @property
    def text(self) -> str:
        """Return the chain as ``nft`` reads it."""
        return _chain(self.name, *self.rules)


def numbered_chain(kind: ElementSet, number: int, family: Family) -> NumberedChain:
    """Return the chain to which the element for a number leads, in a map from numbers to chains."""
    if kind is PICK:
        rules = (f"meta priority set numgen random mod {number}",)
        return NumberedChain(slot_chain(number), "jump", partial(tuple, rules))
    for key, choice, _ in _choices(family):
        client = f"{_ip(family)} saddr . meta priority"
        if kind is choice.sticky:
            sticky = (
                f"meta priority set {key} map @{choice.counts.name}",
                # Now the priority is a count; the chain for it replaces the count by the ID of an endpoint.
                f"meta priority vmap @{choice.find.name}",
                # Adds a pin, or restarts the time of an existing one.
                f"update @{PINS.name} {{ {client} timeout {number}s }}",
                f"goto {choice.prefix}deliver",
            )
            return NumberedChain(f"{choice.prefix}sticky-{number}", "goto", partial(tuple, sticky))
        if kind is choice.find:
            # Tries the endpoints one after the other. A pin to an endpoint that is gone matches none of them, so its client
            # gets a new endpoint.
            to_id = f"meta priority set {key} . meta priority map @{choice.slots.name}"
            pinned = f"{client} @{PINS.name} return"
            return NumberedChain(f"{choice.prefix}find-{number}", "jump", partial(_find_rules, to_id, pinned, number))
    raise KeyError(kind.name)


def _find_rules(to_id: str, pinned: str, count: int) -> tuple[str, ...]:
    return (
        *(f"meta priority set 0:{slot:x} {to_id} {pinned}" for slot in range(count)),
        f"meta priority set numgen random mod {count}",
        to_id,
    )


def slot_chain(count: int) -> str:
    """Return the name of the chain that draws one of `count` slots."""
    return f"{SLOT_CHAINS}{count}"


def _ip(family: Family) -> str:
    return "ip" if family is Family.IPV4 else "ip6"


def _looked_up(sets: PortSets, family: Family) -> str:
    port = "meta l4proto . th dport"
    return f"{_ip(family)} daddr . {port}" if sets is ADDRESSED else port


def _chain(name: str, *rules: str) -> str:
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    return f"\tchain {name} {{\n{body}\t}}\n"


def _set(name: str, *lines: str, is_map: bool) -> str:
    body = "".join(f"\t\t{line}\n" for line in lines)
    return f"\t{'map' if is_map else 'set'} {name} {{\n{body}\t}}\n"


def type_text(kind: ElementSet, family: Family) -> str:
    """Return the type of a set, as ``nft`` writes it."""
    key = " . ".join(field.type_name(family) for field in kind.key)
    data = " . ".join(field.type_name(family) for field in kind.data)
    return f"{key} : {data}" if data else key


class _Chains:
    # In an order in which each chain exists before a rule leads to it.
    def __init__(self, settings: NftablesSettings) -> None:
        self._settings = settings
        self._ip = _ip(settings.family)
        self._key = _looked_up(ADDRESSED, settings.family)
        self._node_port = _looked_up(NODE_PORTS, settings.family)
        self._mark = f"meta mark set meta mark | {settings.masquerade_mark:#010x}"

    def write(self) -> Iterator[str]:
        for key, choice, sets in _choices(self._settings.family):
            endpoint = f"map @{choice.endpoints.name}"
            yield _chain(
                f"{choice.prefix}deliver",
                # One rule for each protocol, because nft accepts a port after ``dnat`` only where the protocol is known.
                *(
                    f"meta l4proto {protocol} dnat {self._ip} to {key} . meta priority {endpoint}"
                    for protocol in _PROTOCOLS
                ),
            )
            yield _chain(f"{choice.prefix}draw", "meta priority vmap @pick", f"goto {choice.prefix}deliver")
            yield _chain(
                f"{choice.prefix}choose",
                # A look-up that fails ends the rule, so the priority of packets to other destinations is never changed.
                f"meta priority set {key} map @{sets.timeouts.name} meta priority vmap @{choice.prefix}sticky",
                f"meta priority set {key} map @{choice.counts.name} goto {choice.prefix}draw",
            )
        yield from self._entry(self._node_port, NODE_PORTS)
        yield from self._entry(self._key, ADDRESSED)
        yield from self._nat()
        yield from self._filters()

    def _entry(self, key: str, sets: PortSets) -> Iterator[str]:
        # These chains choose between local and all endpoints by the source of a packet, and mark it for masquerade.
        settings = self._settings
        main, local = f"{sets.main.prefix}choose", f"{sets.local.prefix}choose"
        test = local_test(settings.local_traffic, settings.family)
        yield _chain(
            f"{sets.prefix}from-outside",
            # Pods and the node itself are not external: they may use every endpoint of the cluster.
            *([f"{test} goto {main}"] if test else []),
            # The node's packet may have the load balancer IP as its source, which the endpoint cannot answer.
            f"fib saddr type local {self._mark} goto {main}",
            f"goto {local}",
        )
        to_cluster_ip = f"{self._ip} daddr @{CLUSTER_IPS.name}"
        masquerade: list[str] = []
        if sets is ADDRESSED and settings.masquerade_all:
            masquerade = [f"{to_cluster_ip} {self._mark}"]
        elif sets is ADDRESSED and settings.local_traffic is not None:
            # Clients outside the cluster may route cluster IPs to any node. Replies must then return through this node, also
            # from a pod on another node.
            not_local = local_test(settings.local_traffic, settings.family, is_not=True)
            masquerade = [f"{to_cluster_ip} {not_local} {self._mark}"]
        yield _chain(
            f"{sets.prefix}ports",
            *masquerade,
            f"{key} @{sets.external_local.name} goto {sets.prefix}from-outside",
            f"{key} @{sets.external_cluster.name} {self._mark}",
            f"goto {main}",
        )

    def _nat(self) -> Iterator[str]:
        node_ports = f"{self._to_node()} goto {NODE_PORTS.prefix}ports"
        # Addresses of Services first: a port at such an address is never a node port.
        yield _chain("services", f"jump {ADDRESSED.prefix}ports", node_ports)
        # Output is for connections that begin on the node. Chains of type nat see only the first packet of a connection, and
        # connection tracking translates the rest in the same way. DNAT itself runs at one place in the kernel for all nat chains
        # of a hook: the first chain that translates a connection decides (`nf_nat_inet_fn`), which is why rules of kube-proxy
        # and pyproxy can exist side by side.
        for hook in ("prerouting", "output"):
            # As a number: nft 1.0.6 refuses the name "dstnat" in output.
            yield _base_chain(f"nat-{hook}", "nat", hook, NfIpPri.NAT_DST, "jump services")
        mark = f"{self._settings.masquerade_mark:#010x}"
        hairpin = f"{self._ip} saddr . {self._key}"
        # Last, when the kernel has chosen the route and so the source address.
        yield _base_chain(
            "nat-postrouting",
            "nat",
            "postrouting",
            NfIpPri.NAT_SRC,
            # The mark is removed, so that it does not masquerade the packet again if that passes the hooks once more, for
            # example encapsulated. With fully-random, connections that begin at the same time seldom get the same source
            # port; if they do, the kernel drops the first packet of one of them.
            f"meta mark & {mark} != 0 meta mark set meta mark ^ {mark} masquerade fully-random",
            # A pod that gets its own address as the source answers to itself, past the translation.
            f"ct status dnat {hairpin} @hairpin-connections masquerade fully-random",
        )

    def _to_node(self) -> str:
        if self._settings.node_port_ips is not None:
            return f"{self._ip} daddr @{NODE_PORT_IPS.name}"
        return f"{self._ip} daddr != {_LOOPBACK[self._settings.family]} fib daddr type local"

    def _filters(self) -> Iterator[str]:
        # Only destinations in the set firewall are restricted; for other destinations the second look-up finds nothing.
        yield _chain("sources", f"{self._key} @firewall {self._key} . {self._ip} saddr != @allowed-sources drop")
        for sets, key in ((ADDRESSED, self._key), (NODE_PORTS, self._node_port)):
            refusals = f"{key} @{sets.rejected.name} reject", f"{key} @{sets.dropped.name} drop"
            yield _chain(f"{sets.prefix}refusals", *refusals)
        yield _chain(
            "unknown-ports",
            f"{self._ip} daddr @{CLUSTER_IPS.name} reject",
            f"{self._ip} daddr . meta l4proto @{SERVICE_CIDRS.name} drop",
        )
        # Source ranges are about the address that the client used, so they are checked before DNAT. Connection tracking is at
        # -200, so ``ct`` works in all chains. Chains of type filter see every packet, so their rules begin with ``ct state new``.
        for hook in ("prerouting", "output"):
            yield _base_chain(f"filter-{hook}-pre-dnat", "filter", hook, _PRE_DNAT, "ct state new jump sources")
        # After DNAT a destination that is still a Service's found no endpoint. All kernels allow ``reject`` in these three hooks.
        rules = [f"{self._to_node()} ct state new jump {NODE_PORTS.prefix}refusals", "ct state new jump refusals"]
        if self._settings.relays_localhost:
            # Each node port is in one of these two sets. Loopback packets pass output and then input.
            yield _chain(
                "localhost-refusals",
                *(
                    f'{self._node_port} @{ports.name} counter name "{LOCALHOST_REJECTIONS}" reject'
                    for ports in (NODE_PORTS.external_cluster, NODE_PORTS.external_local)
                ),
            )
            loopback = f"{self._ip} daddr {_LOOPBACK[self._settings.family]}"
            rules.append(f"{loopback} meta l4proto sctp ct state new jump localhost-refusals")
        yield _base_chain("filter-input", "filter", "input", NfIpPri.FILTER, *rules)
        checks = ["ct state new jump refusals", "ct state new jump unknown-ports"]
        # Rules before DNAT left a count, slot or ID as the priority, by which a queueing discipline could sort the packet. IPv4
        # sets the priority of each forwarded packet again (`ip_forward`, unless net.ipv4.ip_forward_update_priority is 0).
        reset = "ct state new ct status dnat meta priority set none"
        forward = [reset] if self._settings.family is Family.IPV6 else []
        yield _base_chain("filter-forward", "filter", "forward", NfIpPri.FILTER, *forward, *checks)
        yield _base_chain("filter-output", "filter", "output", NfIpPri.FILTER, reset, *checks)


def _base_chain(name: str, kind: str, hook: str, priority: int, *rules: str) -> str:
    return _chain(name, f"type {kind} hook {hook} priority {priority}; policy accept;", *rules)


def local_test(local: LocalTraffic | None, family: Family, *, is_not: bool = False) -> str:
    """Return the match for packets from pods of this node, or from elsewhere; empty if pods cannot be distinguished."""
    if local is None:
        return ""
    no = "!= " if is_not else ""
    if local.cidr is not None:
        return f"{_ip(family)} saddr {no}{ip_text(local.cidr.ip)}/{local.cidr.prefix}"
    return f'iifname {no}"{local.interface or local.interface_prefix + "*"}"'
