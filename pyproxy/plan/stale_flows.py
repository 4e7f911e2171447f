"""Which tracked UDP flows lead elsewhere than their destination does now.

UDP has no handshake that would fail: a client that keeps its source port stays with what connection tracking remembers
for as long as it sends, an endpoint that is gone or nothing at all. The invariant: once a change is in the kernel, a
flow to a *frontend* (an address and port of a Service, or a node port at an address of the node) that the change
touched leads to a serving endpoint of the Service port that has the frontend. Which endpoint is left alone, whatever
policies and hints say about new flows, as in kube-proxy (`pkg/proxy/conntrack/cleanup.go`). A frontend that no Service
has any more keeps no flow to the endpoints that it led to; all other flows to such an address are not ours.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pyproxy.model.address import Family, Network, parse_network
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.flow import Destination, Flow
from pyproxy.model.names import Protocol, ServicePortName
from pyproxy.plan.service_plan import Claim, ServicePlan

Endpoints = frozenset[Endpoint]
_NONE: Endpoints = frozenset()
_LINK_LOCAL = parse_network("fe80::/10")


class _Holder(NamedTuple):
    name: ServicePortName
    serving: Endpoints


class _Rule(NamedTuple):
    """What the flows to a frontend may have."""

    endpoints: Endpoints
    are_right: bool
    """Whether flows to these endpoints are the right ones, or, where nobody has the frontend, the wrong ones."""

    def is_stale(self, flow: Flow) -> bool:
        return (Endpoint(flow.reply_source, flow.reply_source_port) in self.endpoints) is not self.are_right


class NodeAddresses:
    """Addresses of the node: single ones, and blocks that are local as a whole, as 127.0.0.0/8 is."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self.networks = frozenset(networks)
        self._ips = frozenset(block.ip for block in self.networks if _is_single(block))
        self._blocks = tuple(block for block in self.networks if not _is_single(block))

    def __contains__(self, ip: bytes) -> bool:
        return ip in self._ips or any(ip in block for block in self._blocks)

    def __bool__(self) -> bool:
        return bool(self.networks)

    def __sub__(self, other: "NodeAddresses") -> "NodeAddresses":
        return NodeAddresses(self.networks - other.networks)

    def without(self, block: Network) -> "NodeAddresses":
        """Return the addresses outside a block."""
        return NodeAddresses(network for network in self.networks if network.ip not in block)


NO_ADDRESSES = NodeAddresses(())


@dataclass(frozen=True, slots=True)
class StaleFlows:
    """What to look for in connection tracking, and which of it has to go."""

    by_address: Mapping[tuple[bytes, int], _Rule | None]
    """Frontends of Services at one address. None: a Service has it and nothing changed, so it is no node port's."""
    by_node_port: tuple[tuple[NodeAddresses, Mapping[int, _Rule]], ...]
    """Node ports, and the addresses at which each of them is looked at."""
    destinations: tuple[Destination, ...]
    """Every flow that may be stale has one of these."""

    def is_stale(self, flow: Flow) -> bool:
        """Say whether a UDP flow has to go."""
        key = (flow.destination, flow.destination_port)
        if key in self.by_address:
            rule = self.by_address[key]
            return rule is not None and rule.is_stale(flow)
        for addresses, rules in self.by_node_port:
            rule = rules.get(flow.destination_port)
            if rule is not None and flow.destination in addresses:
                return rule.is_stale(flow)
        return False


class Touched:
    """Frontends that a change touched, each with all endpoints that it led to before."""

    def __init__(self, *, addresses: bool = False) -> None:
        self.former: dict[Claim, Endpoints] = {}
        self.addresses = addresses
        """Whether the node's addresses may have changed."""

    def __bool__(self) -> bool:
        return self.addresses or bool(self.former)

    def add(self, other: "Touched") -> None:
        """Add what another change touched."""
        self.addresses |= other.addresses
        for claim, endpoints in other.former.items():
            self.former[claim] = self.former.get(claim, _NONE) | endpoints


class Frontends:
    """Who has each UDP frontend of one family in the kernel, and where its flows may go."""

    def __init__(self) -> None:
        self._plans: dict[ServicePortName, ServicePlan] = {}
        self._holders: dict[Claim, _Holder] = {}
        self._ips: dict[int, set[bytes]] = {}
        """By port, the addresses of Services at which it is a frontend."""
        self._node_ports: set[int] = set()

    def update(self, changes: Iterable[tuple[ServicePlan | None, ServicePlan | None]]) -> Touched:
        """Take in the plans that the kernel had and has; return the frontends whose flows may be wrong by that.

        A plan that follows none is new, or was missing from the kernel for a while: all its frontends count.
        """
        touched = Touched()
        surely: set[Claim] = set()
        for before, plan in changes:
            known = before or plan
            if known is None or known.protocol is not Protocol.UDP:
                continue
            self._release(known.name, touched)
            if plan is not None:
                self._take(plan, touched)
                if before is None:
                    surely.update(_claims(plan))
        for claim, former in list(touched.former.items()):
            holder = self._holders.get(claim)
            if claim not in surely and holder is not None and holder.serving == former:
                del touched.former[claim]
        return touched

    def _release(self, name: ServicePortName, touched: Touched) -> None:
        plan = self._plans.pop(name, None)
        for claim in _claims(plan) if plan is not None else ():
            holder = self._holders.get(claim)
            # Another Service may have taken it a moment ago: two of them exchange addresses one after the other.
            if holder is None or holder.name != name:
                continue
            touched.former.setdefault(claim, holder.serving)
            del self._holders[claim]
            if not claim.ip:
                self._node_ports.discard(claim.port)
                continue
            ips = self._ips[claim.port]
            ips.discard(claim.ip)
            if not ips:
                del self._ips[claim.port]

    def _take(self, plan: ServicePlan, touched: Touched) -> None:
        self._plans[plan.name] = plan
        for claim in _claims(plan):
            holder = self._holders.get(claim)
            touched.former.setdefault(claim, holder.serving if holder is not None else _NONE)
            self._holders[claim] = _Holder(plan.name, plan.serving_endpoints)
            if claim.ip:
                self._ips.setdefault(claim.port, set()).add(claim.ip)
            else:
                self._node_ports.add(claim.port)

    def needs_addresses(self, touched: Touched) -> bool:
        """Say whether `stale` depends on the addresses of the node: for node ports, and for what one may inherit."""
        if touched.addresses and self._node_ports:
            return True
        return any(not claim.ip or claim.port in self._node_ports for claim in touched.former)

    def stale(self, touched: Touched, node: NodeAddresses, known: NodeAddresses | None) -> StaleFlows:
        """Return what to look for after changes.

        Args:
            touched: the frontends.
            node: where node ports answer now; matters only if `needs_addresses`.
            known: where they answered when it was last asked; None: it never was.
        """
        by_address: dict[tuple[bytes, int], _Rule | None] = {}
        changed: dict[int, _Rule] = {}
        for claim, former in touched.former.items():
            rule = self._rule(claim, former)
            if not claim.ip:
                changed[claim.port] = rule
            elif rule.are_right or claim.port not in self._node_ports or claim.ip not in node:
                by_address[claim.ip, claim.port] = rule
            else:
                by_address[claim.ip, claim.port] = self._rule(_node_port(claim.port), _NONE)
        areas = [(node, changed)] if changed else []
        if known is not None:
            # Every pod's interface comes with a link-local address, to which nobody can have sent anything before.
            areas += self._moved(touched, (node - known).without(_LINK_LOCAL), (known - node).without(_LINK_LOCAL))
        destinations = [Destination(ip, port) for ip, port in by_address]
        for addresses, rules in areas:
            destinations += _destinations(addresses, rules, every=rules is not changed)
            for port in rules:
                others = ((ip, port) for ip in self._ips.get(port, ()) if ip in addresses)
                by_address |= dict.fromkeys((key for key in others if key not in by_address), None)
        return StaleFlows(by_address, tuple(areas), tuple(destinations))

    def _moved(
        self, touched: Touched, gained: NodeAddresses, lost: NodeAddresses
    ) -> Iterator[tuple[NodeAddresses, dict[int, _Rule]]]:
        """Yield what addresses that the node got or lost mean for all its node ports."""
        claims = {port: _node_port(port) for port in self._node_ports}
        if gained and claims:
            yield gained, {port: self._rule(claim, _NONE) for port, claim in claims.items()}
        claims |= {claim.port: claim for claim in touched.former if not claim.ip}
        if lost and claims:
            yield (
                lost,
                {
                    port: _Rule(self._rule(claim, _NONE).endpoints | touched.former.get(claim, _NONE), are_right=False)
                    for port, claim in claims.items()
                },
            )

    def _rule(self, claim: Claim, former: Endpoints) -> _Rule:
        holder = self._holders.get(claim)
        return _Rule(former, are_right=False) if holder is None else _Rule(holder.serving, are_right=True)


def _claims(plan: ServicePlan) -> Iterator[Claim]:
    """Yield the frontends of a UDP port; what else its plan claims is a health check node port, of TCP."""
    return (claim for claim in plan.claims() if claim.protocol is Protocol.UDP)


def _node_port(port: int) -> Claim:
    return Claim(b"", Protocol.UDP, port)


def _destinations(addresses: NodeAddresses, ports: Collection[int], *, every: bool) -> Iterator[Destination]:
    """Yield what covers some ports at some addresses; where `every` node port is meant, there are fewer addresses."""
    # Of IPv6, the kernel can pick out ports only (`linux.conntrack`).
    if every and all(block.family is Family.IPV4 and _is_single(block) for block in addresses.networks):
        yield from (Destination(block.ip, None) for block in addresses.networks)
    else:
        yield from (Destination(None, port) for port in ports)


def _is_single(block: Network) -> bool:
    return block.prefix == block.family.bits
