"""Finds tracked UDP flows that no longer lead where their destination leads now.

UDP has no handshake that would fail: for as long as a client sends from one source port, its packets follow the conntrack
entry, even to an endpoint that is gone or to no endpoint at all. The invariant: once a change is in the kernel, each flow
to a *frontend* that the change touched (an address and port of a Service, or a node port on an address of the node) leads
to a serving endpoint of the Service port that has the frontend. Any serving endpoint is right, whatever policies and hints
require for new flows, as in kube-proxy (`pkg/proxy/conntrack/cleanup.go`). If no Service has the frontend any more, its
flows to the former endpoints are deleted; all other flows to such an address are kept.
"""

from collections.abc import Iterable, Iterator, Mapping
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


# The Service port that has a frontend in the kernel, and where its flows may go.
class _Holder(NamedTuple):
    name: ServicePortName
    serving: Endpoints


class _Rule(NamedTuple):
    endpoints: Endpoints
    # True: only flows to these endpoints are right. False, if no Service has the frontend: flows to these are stale.
    are_right: bool

    def is_stale(self, flow: Flow) -> bool:
        return (Endpoint(flow.reply_source, flow.reply_source_port) in self.endpoints) is not self.are_right


class NodeAddresses:
    """Addresses of the node: single ones, and blocks in which every address is local, such as 127.0.0.0/8."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self.networks = frozenset(networks)
        # Nearly all are single addresses, which a set finds at once; the few blocks are searched.
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
    """Selects the conntrack entries to examine, and those of them that are stale."""

    by_address: Mapping[tuple[bytes, int], _Rule | None]
    """Frontends of Services. None means that a Service has the frontend and nothing changed: it is not a node port."""
    by_node_port: tuple[tuple[NodeAddresses, Mapping[int, _Rule]], ...]
    """Node ports, and the addresses on which each is examined."""
    destinations: tuple[Destination, ...]
    """Every flow that may be stale has one of these destinations."""

    def is_stale(self, flow: Flow) -> bool:
        """Return whether a UDP flow is stale."""
        # A Service's address comes before node ports, as in the rules: an external IP may be an address of the node, with
        # the same number as a node port.
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
    """Frontends that a change touched, each with all endpoints to which it led before."""

    def __init__(self, *, addresses: bool = False) -> None:
        self.former: dict[Claim, Endpoints] = {}
        self.addresses = addresses
        """Whether the node's addresses may have changed."""

    def __bool__(self) -> bool:
        return self.addresses or bool(self.former)

    def add(self, other: "Touched") -> None:
        """Add the frontends that another change touched."""
        self.addresses |= other.addresses
        # Between two deletions of entries a client may have got one to an endpoint of any state in between, so the
        # former endpoints add up.
        for claim, endpoints in other.former.items():
            self.former[claim] = self.former.get(claim, _NONE) | endpoints


class Frontends:
    """The UDP frontends of one family in the kernel: which Service port has each, and where its flows may go."""

    def __init__(self) -> None:
        self._plans: dict[ServicePortName, ServicePlan] = {}
        self._holders: dict[Claim, _Holder] = {}
        self._ips: dict[int, set[bytes]] = {}  # By port, the addresses of Services that have a frontend with it
        self._node_ports: set[int] = set()

    def update(self, changes: Iterable[tuple[ServicePlan | None, ServicePlan | None]]) -> Touched:
        """Record which plans the kernel had and has; return the frontends that may have stale flows now.

        A plan without a plan before it is new, or was missing from the kernel for some time: all its frontends count.
        """
        touched = Touched()
        surely: set[Claim] = set()
        for before, plan in changes:
            known = before or plan
            if known is None or known.protocol is not Protocol.UDP:
                continue
            self._release(known.name, touched)
            if plan is None:
                continue
            self._plans[plan.name] = plan
            for claim in _claims(plan):
                holder = self._holders.get(claim)
                touched.former.setdefault(claim, holder.serving if holder is not None else _NONE)
                self._holders[claim] = _Holder(plan.name, plan.serving_endpoints)
                if claim.ip:
                    self._ips.setdefault(claim.port, set()).add(claim.ip)
                else:
                    self._node_ports.add(claim.port)
            # While the kernel had no rule for them, clients may have got entries without DNAT, which lead to no endpoint.
            if before is None:
                surely.update(_claims(plan))
        # A change that leaves the serving endpoints as they were, such as one of a policy, makes no flow stale.
        for claim, former in list(touched.former.items()):
            holder = self._holders.get(claim)
            if claim not in surely and holder is not None and holder.serving == former:
                del touched.former[claim]
        return touched

    def _release(self, name: ServicePortName, touched: Touched) -> None:
        plan = self._plans.pop(name, None)
        for claim in _claims(plan) if plan is not None else ():
            holder = self._holders.get(claim)
            # Another Service may have it already: if two Services exchange addresses, one is updated after the other.
            if holder is None or holder.name != name:
                continue
            touched.former.setdefault(claim, holder.serving)
            del self._holders[claim]
            # The addresses by port are only for frontends with an address of their own; a node port has none.
            if not claim.ip:
                self._node_ports.discard(claim.port)
                continue
            ips = self._ips[claim.port]
            ips.discard(claim.ip)
            if not ips:
                del self._ips[claim.port]

    def needs_addresses(self, touched: Touched) -> bool:
        """Return whether `stale` depends on the addresses of the node.

        It does for node ports, and for a Service's address on the port of a node port, which may get its flows.
        """
        if touched.addresses and self._node_ports:
            return True
        return any(not claim.ip or claim.port in self._node_ports for claim in touched.former)

    def stale(self, touched: Touched, node: NodeAddresses, known: NodeAddresses | None) -> StaleFlows:
        """Return which conntrack entries to examine after changes.

        Args:
            touched: the frontends.
            node: addresses on which node ports answer now; used only if `needs_addresses`.
            known: addresses on which they answered at the last call; None before the first.
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
                # No Service has it any more, but it is an address of the node: its flows go to the node port.
                by_address[claim.ip, claim.port] = self._rule(_node_port(claim.port), _NONE)
        areas = [(node, changed)] if changed else []
        if known is not None:
            # The interface of each new pod has a link-local address, to which no client can have sent packets before.
            areas += self._moved(touched, (node - known).without(_LINK_LOCAL), (known - node).without(_LINK_LOCAL))
        destinations = [Destination(ip, port) for ip, port in by_address]
        for addresses, rules in areas:
            # By address if all node ports are examined, because those are fewer than the ports. For IPv6 the kernel can
            # filter by port only (`linux.conntrack`), and a block is not an address to filter by.
            if rules is not changed and all(
                block.family is Family.IPV4 and _is_single(block) for block in addresses.networks
            ):
                destinations += (Destination(block.ip, None) for block in addresses.networks)
            else:
                destinations += (Destination(None, port) for port in rules)
            for port in rules:
                others = ((ip, port) for ip in self._ips.get(port, ()) if ip in addresses)
                by_address |= dict.fromkeys((key for key in others if key not in by_address), None)
        return StaleFlows(by_address, tuple(areas), tuple(destinations))

    def _moved(
        self, touched: Touched, gained: NodeAddresses, lost: NodeAddresses
    ) -> Iterator[tuple[NodeAddresses, dict[int, _Rule]]]:
        claims = {port: _node_port(port) for port in self._node_ports}
        if gained and claims:
            yield gained, {port: self._rule(claim, _NONE) for port, claim in claims.items()}
        claims |= {claim.port: claim for claim in touched.former if not claim.ip}
        # On a lost address no Service answers: flows to the present and to the former endpoints are stale there.
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
    # Without the health check node port, which is a TCP port.
    return (claim for claim in plan.claims() if claim.protocol is Protocol.UDP)


def _node_port(port: int) -> Claim:
    return Claim(b"", Protocol.UDP, port)


def _is_single(block: Network) -> bool:
    return block.prefix == block.family.bits
