"""Services as a table: for each frontend its policy, its endpoints, and whether traffic to it is forwarded, or why not.

A row says what the planner decided, not what the kernel has. Pure.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from pyproxy.model.address import Family, Network, family_of, is_loopback
from pyproxy.model.endpoint import Endpoint, EndpointSlice
from pyproxy.model.names import NamespacedName, ServicePortName
from pyproxy.model.node import Node
from pyproxy.model.service import Service
from pyproxy.model.unserved import UnservedService
from pyproxy.plan.planner import Planner
from pyproxy.plan.reasons import (
    Reason,
    ReasonCode,
    no_client_reason,
    no_packet_path,
    open_reason,
    pending_reason,
    proxied_reason,
    reasons,
    wrong_endpoint,
)
from pyproxy.plan.service_plan import Claim, ServicePlan, Verdict
from pyproxy.plan.topology import merge_slices

_EVERY_ADDRESS = {Family.IPV4: bytes(4), Family.IPV6: bytes(16)}

NodePortIps = Mapping[Family, tuple[bytes, ...] | None]
"""By family, the addresses of this node that serve node ports; None means all addresses of the node."""


class FrontendType(Enum):
    """The kind of address that a frontend has; the values are those of the output."""

    CLUSTER_IP = "ClusterIP"
    EXTERNAL_IP = "ExternalIP"
    LOAD_BALANCER_IP = "LoadBalancer"
    NODE_PORT = "NodePort"


class State(Enum):
    """What happens to new connections; values are those of JSON output."""

    OK = "ok"
    """They are forwarded to an endpoint."""
    REJECT = "reject"
    """They are refused, because no endpoint on any node can answer."""
    DROP = "drop"
    """They are dropped, because a policy excludes all endpoints that could answer."""
    NO_RULES = "no-rules"
    """This node has no rules for the frontend, or for the Service."""
    INVALID = "invalid"
    """The Service cannot be decoded. If it had been valid before, its last good version has rules, and rows of its own."""


_STATES = {Verdict.FORWARD: State.OK, Verdict.REJECT: State.REJECT, Verdict.DROP: State.DROP}


@dataclass(frozen=True, slots=True)
class Frontend:
    """Address, port and protocol at which a Service accepts connections."""

    type: FrontendType
    family: Family
    ip: bytes
    """All zeros: every address of the node."""
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRow:
    """One frontend of one Service port, or a Service without any."""

    service: NamespacedName
    port: ServicePortName | None = None
    """None for a Service without rules."""
    frontend: Frontend | None = None
    """None for a Service, or a Service port, that has no address."""
    is_local: bool = False
    """Whether the traffic policy is Local."""
    endpoints: tuple[Endpoint, ...] = ()
    """Those that traffic to the frontend may use on this node."""
    local_count: int = 0
    """How many of these are on this node."""
    total_count: int = 0
    """How many endpoints the Service port has on any node, usable or not."""
    affinity_seconds: int | None = None
    health_check_node_port: int = 0
    """0 means none."""
    source_ranges: tuple[Network, ...] = ()
    """The clients that may connect; empty means all."""
    state: State = State.OK
    reasons: tuple[Reason, ...] = ()
    """Why the state is not OK, or what is probably a mistake although it is."""


def unserved_row(unserved: UnservedService, *, has_rules: bool = False) -> ServiceRow:
    """Return the row of a Service without rules; of an invalid one the last good version may have rules."""
    if unserved.kind is not None:
        return ServiceRow(service=unserved.name, state=State.NO_RULES, reasons=(no_packet_path(unserved.kind),))
    text = f"{unserved.problem}; the last good version is used" if has_rules else unserved.problem
    reason = _no_rules(ReasonCode.INVALID, text, "correct the object")
    return ServiceRow(service=unserved.name, state=State.INVALID, reasons=(reason,))


def _no_rules(code: ReasonCode, text: str, fix: str) -> Reason:
    return Reason(code, Verdict.FORWARD, text, fix)


def service_rows(  # noqa: PLR0913  # all that a row depends on
    service: Service,
    slices: Iterable[EndpointSlice],
    node: Node,
    planner: Planner,
    node_port_ips: NodePortIps,
    *,
    orphans: Collection[EndpointSlice] = (),
) -> Iterator[ServiceRow]:
    """Yield the rows of a Service: its ports in order, for each port and family the cluster IP first.

    Args:
        service: a Service that the planner has planned, in the same version.
        slices: all slices of the Service.
        node: this node.
        planner: has planned every Service.
        node_port_ips: where node ports are served, for each family to show.
        orphans: slices of Services that do not exist.
    """
    slices = tuple(slices)
    families = [family for family in node_port_ips if family in service.families]
    why = {family: reasons(service, slices, node, family, orphans) for family in families}
    found = False
    for port in service.ports:
        name = ServicePortName(service.name, port.name, port.protocol)
        for family in families:
            requested, effective = planner.requested(family, name), planner.effective(family, name)
            if requested is None or effective is None:
                continue
            maker = _RowMaker(service, requested, effective, why[family].get(name, ()), slices)
            for row in maker.rows(planner, node_port_ips[family]):
                found = True
                yield row
    if service.is_load_balancer_pending:
        yield ServiceRow(service=service.name, state=State.NO_RULES, reasons=(pending_reason(),))
    if not found:
        text = "the Service has no address and port that can be used on this node"
        reason = _no_rules(ReasonCode.NO_FRONTEND, text, "correct spec.clusterIPs and spec.ports")
        yield ServiceRow(service=service.name, state=State.NO_RULES, reasons=(reason,))


class _RowMaker:
    def __init__(
        self,
        service: Service,
        requested: ServicePlan,
        effective: ServicePlan,
        why: tuple[Reason, ...],
        slices: tuple[EndpointSlice, ...],
    ) -> None:
        self._service = service
        self._name = requested.name
        self._requested = requested
        self._effective = effective
        self._why = why
        self._on_node = frozenset(effective.node_endpoints)
        candidates = merge_slices(slices, requested.family, requested.name.port, requested.name.protocol)
        matched = {endpoint.ip for endpoint in candidates}
        # Endpoints count even if their slice has no port for the Service port.
        ips = {item.ip for each in slices if each.family is requested.family for item in each.endpoints}
        self._total = len(candidates) + len(ips - matched)

    def rows(self, planner: Planner, node_port_ips: tuple[bytes, ...] | None) -> Iterator[ServiceRow]:
        # A row for each frontend that the Service requests, also for those that another Service has.
        requested, family = self._requested, self._requested.family
        for type_, ips in (
            (FrontendType.CLUSTER_IP, [requested.cluster_ip] if requested.cluster_ip else []),
            (FrontendType.EXTERNAL_IP, requested.external_ips),
            (FrontendType.LOAD_BALANCER_IP, requested.load_balancer_ips),
        ):
            for ip in ips:
                winner = planner.winner(family, Claim(ip, self._name.protocol, requested.port))
                yield self._row(Frontend(type_, family, ip, requested.port), winner, planner)
        for ip in self._service.proxied_ips:
            if family_of(ip) is family:
                frontend = Frontend(FrontendType.LOAD_BALANCER_IP, family, ip, requested.port)
                yield self._without_rules(frontend, proxied_reason(ip))
        if requested.node_port:
            winner = planner.winner(family, Claim(b"", self._name.protocol, requested.node_port))
            ips = (_EVERY_ADDRESS[family],) if node_port_ips is None else node_port_ips
            for ip in ips:
                yield self._row(Frontend(FrontendType.NODE_PORT, family, ip, requested.node_port), winner, planner)
            if not ips:
                text = f"node port {requested.node_port} is not served: no {family} address of this node qualifies"
                reason = _no_rules(ReasonCode.NO_NODE_PORT_ADDRESS, text, "correct --nodeport-addresses")
                yield self._without_rules(None, reason)

    def _row(self, frontend: Frontend, winner: ServicePortName | None, planner: Planner) -> ServiceRow:
        if winner != self._name:
            text = f"Service {winner} has the same address and port"
            fix = "give one of them another address or port"
            return self._without_rules(frontend, _no_rules(ReasonCode.CLAIMED, text, fix))
        plan = self._effective
        # External addresses are shown as clients outside the cluster find them. Pods and the node itself use all endpoints
        # there, even with policy Local.
        is_internal = frontend.type is FrontendType.CLUSTER_IP
        verdict = plan.internal_verdict if is_internal else plan.external_verdict
        endpoints = plan.internal_endpoints if is_internal else plan.external_endpoints
        # Reasons are those of the whole Service port; the one about the other kind of traffic is left out.
        other = ReasonCode.NO_LOCAL_ENDPOINTS_EXTERNAL if is_internal else ReasonCode.NO_LOCAL_ENDPOINTS
        # loadBalancerSourceRanges restrict load balancer IPs only, as in kube-proxy: node ports, external IPs and the
        # cluster IP of the same Service stay open.
        is_restricted = frontend.type is FrontendType.LOAD_BALANCER_IP
        why = [each for each in self._why if each.verdict is verdict and each.code is not other]
        state = _STATES[verdict]
        if state is State.OK:
            why += _wrong_endpoints(endpoints, self._requested, planner)
            if is_restricted and (is_open := open_reason(self._service.load_balancer_source_ranges, plan.family)):
                why.append(is_open)
            if is_restricted and (is_closed := no_client_reason(plan.source_ranges)):
                state, why = State.DROP, [is_closed]
        return ServiceRow(
            service=self._name.service,
            port=self._name,
            frontend=frontend,
            is_local=plan.internal_local if is_internal else plan.external_local,
            endpoints=endpoints,
            local_count=len(self._on_node.intersection(endpoints)),
            total_count=self._total,
            affinity_seconds=plan.affinity_seconds,
            health_check_node_port=self._service.health_check_node_port,
            source_ranges=plan.source_ranges if is_restricted else (),
            state=state,
            reasons=tuple(why),
        )

    def _without_rules(self, frontend: Frontend | None, reason: Reason) -> ServiceRow:
        return ServiceRow(
            service=self._name.service,
            port=self._name,
            frontend=frontend,
            total_count=self._total,
            state=State.NO_RULES,
            reasons=(reason,),
        )


def _wrong_endpoints(endpoints: Iterable[Endpoint], plan: ServicePlan, planner: Planner) -> Iterator[Reason]:
    # A loopback address is that of every node, so no pod has it. The kernel translates a connection only once, so one that is
    # sent to a cluster IP does not continue to an endpoint of that Service.
    for endpoint in endpoints:
        if is_loopback(endpoint.ip):
            yield wrong_endpoint(f"endpoint {endpoint} is a loopback address")
        other = planner.winner(plan.family, Claim(endpoint.ip, plan.name.protocol, endpoint.port))
        winner = planner.requested(plan.family, other) if other else None
        if winner is not None and winner.cluster_ip == endpoint.ip:
            yield wrong_endpoint(f"endpoint {endpoint} is the cluster IP of {winner.name.service}")
