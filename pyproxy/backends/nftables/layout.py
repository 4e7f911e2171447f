"""The sets, chains and rules of the nftables mode, as ``nft`` reads them; they do not depend on Services.

A packet's way: what it is addressed to is looked up, which gives a number (of endpoints); the number leads to
a chain that draws a slot; address and slot lead to the endpoint. ``nft`` up to 1.0.6 cannot list a rule that
feeds one look-up into another, so numbers pass through a field of the packet: its priority, which, unlike the
mark, no routing rule looks at (`docs/decisions/010-nftables-scratch.md`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
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
from pyproxy.model.address import Family, Network, ip_text
from pyproxy.model.node import LocalTraffic
from pyproxy.node.context import FamilySettings

TABLE = "pyproxy"
MOST_PINS = 1 << 20
"""How many clients can be remembered; one more is served without being remembered."""
_LOOPBACK = {Family.IPV4: "127.0.0.0/8", Family.IPV6: "::1"}
SLOT_CHAINS = "slot-of-"
"""Begins the names of the chains of `PICK`."""
_PROTOCOLS = ("tcp", "udp", "sctp")
LOCALHOST_REJECTIONS = "localhost-nodeport-rejected-sctp"
"""The named counter of packets to SCTP node ports on loopback. A counter inside a rule would change the rule's listing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NftablesSettings(FamilySettings):
    """What one family's table depends on besides Services."""

    node_port_ips: tuple[bytes, ...] | None = None
    """Addresses of this node that serve node ports; None means all but loopback."""
    service_cidrs: tuple[Network, ...] | None = ()
    """Where cluster IPs come from: what is addressed to one that no Service has is dropped.

    None: nobody knows yet, so what is in the kernel stays as it is.
    """
    relays_localhost: bool = False
    """The relay serves TCP and UDP node ports on loopback; packets to those of SCTP are rejected and counted."""


def layout_of(settings: NftablesSettings) -> Layout:
    """Return the value of the entry `LAYOUT`."""
    return Layout(sha256(layout_text(settings).encode()).hexdigest()[:16])


def layout_text(settings: NftablesSettings) -> str:
    """Return the body of the table without elements: sets first, then chains."""
    counters = [f"\tcounter {LOCALHOST_REJECTIONS} {{\n\t}}\n"] if settings.relays_localhost else []
    return "".join((*_sets(settings.family), *counters, *_Chains(settings).write()))


def _choices(family: Family) -> tuple[tuple[str, EndpointChoice, PortSets], ...]:
    """Return the ways to choose an endpoint: the expression that is looked up, and the sets."""
    return tuple(
        (_looked_up(sets, family), choice, sets)
        for sets in (ADDRESSED, NODE_PORTS)
        for choice in (sets.main, sets.local)
    )


@dataclass(frozen=True, slots=True)
class NumberedChain:
    """A chain for one number, to which one element of a verdict map leads."""

    name: str
    verdict: str
    rules: tuple[str, ...]

    @property
    def text(self) -> str:
        """Return the chain as ``nft`` reads it."""
        return _chain(self.name, *self.rules)


def numbered_chain(kind: ElementSet, number: int, family: Family) -> NumberedChain:
    """Return the chain that an element of a map to chains leads to."""
    if kind is PICK:
        return NumberedChain(slot_chain(number), "jump", (f"meta priority set numgen random mod {number}",))
    for key, choice, _ in _choices(family):
        client = f"{_ip(family)} saddr . meta priority"
        if kind is choice.sticky:
            return _sticky_chain(key, client, number, choice)
        if kind is choice.find:
            return _find_chain(key, client, number, choice)
    raise KeyError(kind.name)


def slot_chain(count: int) -> str:
    """Return the name of the chain that draws one slot out of so many."""
    return f"{SLOT_CHAINS}{count}"


def _sticky_chain(key: str, client: str, seconds: int, choice: EndpointChoice) -> NumberedChain:
    return NumberedChain(
        f"{choice.prefix}sticky-{seconds}",
        "goto",
        (
            f"meta priority set {key} map @{choice.counts.name}",
            f"meta priority vmap @{choice.find.name}",
            # Begins the time of a pin anew, or makes one.
            f"update @{PINS.name} {{ {client} timeout {seconds}s }}",
            f"goto {choice.prefix}deliver",
        ),
    )


def _find_chain(key: str, client: str, count: int, choice: EndpointChoice) -> NumberedChain:
    """Return the chain that tries the endpoints one by one: whoever is pinned to one that is gone is not found."""
    to_id = f"meta priority set {key} . meta priority map @{choice.slots.name}"
    pinned = f"{client} @{PINS.name} return"
    return NumberedChain(
        f"{choice.prefix}find-{count}",
        "jump",
        (
            *(f"meta priority set 0:{slot:x} {to_id} {pinned}" for slot in range(count)),
            f"meta priority set numgen random mod {count}",
            to_id,
        ),
    )


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


def _sets(family: Family) -> Iterator[str]:
    for kind in SETS.values():
        lines = [f"type {type_text(kind, family)}", *(["flags interval"] if kind.is_interval else [])]
        yield _set(kind.name, *lines, is_map=bool(kind.data))
    # A map from client to endpoint could be filled by text with keys of 16 bytes at most (nft 1.0.6), too few for IPv6.
    lines = [f"type {type_text(PINS, family)}", f"size {MOST_PINS}", "flags dynamic,timeout"]
    yield _set(PINS.name, *lines, is_map=False)


def type_text(kind: ElementSet, family: Family) -> str:
    """Return the type of a set, as ``nft`` writes it."""
    key = " . ".join(field.type_name(family) for field in kind.key)
    data = " . ".join(field.type_name(family) for field in kind.data)
    return f"{key} : {data}" if data else key


class _Chains:
    """The chains, while they are being written down: none is named before it is there."""

    def __init__(self, settings: NftablesSettings) -> None:
        self._settings = settings
        self._ip = _ip(settings.family)
        self._key = _looked_up(ADDRESSED, settings.family)
        self._node_port = _looked_up(NODE_PORTS, settings.family)
        self._mark = f"meta mark set meta mark | {settings.masquerade_mark:#010x}"

    def write(self) -> Iterator[str]:
        for key, choice, sets in _choices(self._settings.family):
            yield from self._choice(key, choice, sets)
        yield from self._entry(self._node_port, NODE_PORTS)
        yield from self._entry(self._key, ADDRESSED)
        yield from self._nat()
        yield from self._filters()

    def _choice(self, key: str, choice: EndpointChoice, sets: PortSets) -> Iterator[str]:
        endpoint = f"map @{choice.endpoints.name}"
        yield _chain(
            f"{choice.prefix}deliver",
            *(
                f"meta l4proto {protocol} dnat {self._ip} to {key} . meta priority {endpoint}"
                for protocol in _PROTOCOLS
            ),
        )
        yield _chain(f"{choice.prefix}draw", "meta priority vmap @pick", f"goto {choice.prefix}deliver")
        yield _chain(
            f"{choice.prefix}choose",
            f"meta priority set {key} map @{sets.timeouts.name} meta priority vmap @{choice.prefix}sticky",
            f"meta priority set {key} map @{choice.counts.name} goto {choice.prefix}draw",
        )

    def _entry(self, key: str, sets: PortSets) -> Iterator[str]:
        """Yield the chains that tell by a packet's source which endpoints it may have, and mark what needs it."""
        main, local = f"{sets.main.prefix}choose", f"{sets.local.prefix}choose"
        test = local_test(self._settings.local_traffic, self._settings.family)
        yield _chain(
            f"{sets.prefix}from-outside",
            # Pods and the node itself are not "external": they may use every endpoint of the cluster.
            *([f"{test} goto {main}"] if test else []),
            f"fib saddr type local {self._mark} goto {main}",
            f"goto {local}",
        )
        yield _chain(
            f"{sets.prefix}ports",
            *(self._masquerade_cluster_ips() if sets is ADDRESSED else []),
            f"{key} @{sets.external_local.name} goto {sets.prefix}from-outside",
            f"{key} @{sets.external_cluster.name} {self._mark}",
            f"goto {main}",
        )

    def _masquerade_cluster_ips(self) -> Iterator[str]:
        settings = self._settings
        match = f"{self._ip} daddr @{CLUSTER_IPS.name}"
        if settings.masquerade_all:
            yield f"{match} {self._mark}"
        elif settings.local_traffic is not None:
            yield f"{match} {local_test(settings.local_traffic, settings.family, is_not=True)} {self._mark}"

    def _nat(self) -> Iterator[str]:
        node_ports = f"{self._to_node()} goto {NODE_PORTS.prefix}ports"
        yield _chain("services", f"jump {ADDRESSED.prefix}ports", node_ports)
        for hook in ("prerouting", "output"):
            # The name of the priority is refused in output by nft 1.0.6.
            yield _base_chain(f"nat-{hook}", "nat", hook, -100, "jump services")
        mark = f"{self._settings.masquerade_mark:#010x}"
        hairpin = f"{self._ip} saddr . {self._key}"
        yield _base_chain(
            "nat-postrouting",
            "nat",
            "postrouting",
            100,
            f"meta mark & {mark} != 0 meta mark set meta mark ^ {mark} masquerade fully-random",
            f"ct status dnat {hairpin} @hairpin-connections masquerade fully-random",
        )

    def _to_node(self) -> str:
        if self._settings.node_port_ips is not None:
            return f"{self._ip} daddr @{NODE_PORT_IPS.name}"
        return f"{self._ip} daddr != {_LOOPBACK[self._settings.family]} fib daddr type local"

    def _filters(self) -> Iterator[str]:
        yield _chain("sources", f"{self._key} @firewall {self._key} . {self._ip} saddr != @allowed-sources drop")
        for sets, key in ((ADDRESSED, self._key), (NODE_PORTS, self._node_port)):
            refusals = f"{key} @{sets.rejected.name} reject", f"{key} @{sets.dropped.name} drop"
            yield _chain(f"{sets.prefix}refusals", *refusals)
        yield _chain(
            "unknown-ports",
            f"{self._ip} daddr @{CLUSTER_IPS.name} reject",
            f"{self._ip} daddr . meta l4proto @{SERVICE_CIDRS.name} drop",
        )
        for hook in ("prerouting", "output"):
            yield _base_chain(f"filter-{hook}-pre-dnat", "filter", hook, -110, "ct state new jump sources")
        rules = [f"{self._to_node()} ct state new jump {NODE_PORTS.prefix}refusals", "ct state new jump refusals"]
        if self._settings.relays_localhost:
            # Every node port is in one of these sets.
            yield _chain(
                "localhost-refusals",
                *(
                    f'{self._node_port} @{ports.name} counter name "{LOCALHOST_REJECTIONS}" reject'
                    for ports in (NODE_PORTS.external_cluster, NODE_PORTS.external_local)
                ),
            )
            loopback = f"{self._ip} daddr {_LOOPBACK[self._settings.family]}"
            rules.append(f"{loopback} meta l4proto sctp ct state new jump localhost-refusals")
        yield _base_chain("filter-input", "filter", "input", 0, *rules)
        checks = ["ct state new jump refusals", "ct state new jump unknown-ports"]
        # The priority was a number of ours. IPv4 gives a forwarded packet a new one by itself.
        reset = "ct state new ct status dnat meta priority set none"
        forward = [reset] if self._settings.family is Family.IPV6 else []
        yield _base_chain("filter-forward", "filter", "forward", 0, *forward, *checks)
        yield _base_chain("filter-output", "filter", "output", 0, reset, *checks)


def _base_chain(name: str, kind: str, hook: str, priority: int, *rules: str) -> str:
    return _chain(name, f"type {kind} hook {hook} priority {priority}; policy accept;", *rules)


def local_test(local: LocalTraffic | None, family: Family, *, is_not: bool = False) -> str:
    """Return the match for a pod's packet, or for any other; empty if nothing is known to be a pod's."""
    if local is None:
        return ""
    no = "!= " if is_not else ""
    if local.cidr is not None:
        return f"{_ip(family)} saddr {no}{ip_text(local.cidr.ip)}/{local.cidr.prefix}"
    return f'iifname {no}"{local.interface or local.interface_prefix + "*"}"'
