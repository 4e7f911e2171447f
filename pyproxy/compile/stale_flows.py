"""Which tracked UDP flows go to an endpoint that no longer serves.

UDP has no handshake that would fail: a client that keeps its source port stays glued to a dead endpoint for
as long as it sends. The rules follow kube-proxy's (`pkg/proxy/conntrack/cleanup.go`): a flow is right if
its endpoint serves, whatever policies and hints say. Unlike kube-proxy, a port that lost its last serving
endpoint counts too (`docs/differences.md`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from pyproxy.compile.plan import ServicePlan
from pyproxy.model.endpoint import Endpoint
from pyproxy.model.flow import Flow
from pyproxy.model.names import Protocol

_ServingEndpoints = Collection[Endpoint]


@dataclass(frozen=True, slots=True)
class RightFlows:
    """For each address that changed, the endpoints that its flows may have."""

    by_address: Mapping[tuple[bytes, int], _ServingEndpoints] = field(default_factory=dict)
    by_node_port: Mapping[int, _ServingEndpoints] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.by_address or self.by_node_port)

    def __or__(self, newer: "RightFlows") -> "RightFlows":
        """Add what is known since then: of the same address, the newer knowledge counts."""
        return RightFlows(
            {**self.by_address, **newer.by_address},
            {**self.by_node_port, **newer.by_node_port},
        )

    def is_stale(self, flow: Flow, node_ips: Collection[bytes]) -> bool:
        """Say whether a UDP flow has to go.

        Args:
            flow: a UDP flow.
            node_ips: addresses of this node. A flow to a port number of a node port that was not translated
                is a node port's only if it went to the node; otherwise it is somebody's flow to elsewhere.
        """
        answered_by = Endpoint(flow.reply_source, flow.reply_source_port)
        serving = self.by_address.get((flow.destination, flow.destination_port))
        if serving is None:
            addressed_to = Endpoint(flow.destination, flow.destination_port)
            if answered_by == addressed_to and flow.destination not in node_ips:
                return False
            serving = self.by_node_port.get(flow.destination_port)
        return serving is not None and answered_by not in serving


def right_flows(changes: Iterable[tuple[ServicePlan | None, ServicePlan | None]]) -> RightFlows:
    """Return what flows may have, for the UDP ports whose serving endpoints changed from the first to the second plan."""
    by_address: dict[tuple[bytes, int], _ServingEndpoints] = {}
    by_node_port: dict[int, _ServingEndpoints] = {}
    for before, plan in changes:
        if plan is None or plan.protocol is not Protocol.UDP:
            continue
        if before is not None and before.serving_endpoints == plan.serving_endpoints:
            continue
        for claim in plan.claims():
            if claim.ip:
                by_address[claim.ip, claim.port] = plan.serving_endpoints
            elif claim.protocol is Protocol.UDP:
                by_node_port[claim.port] = plan.serving_endpoints
    return RightFlows(by_address, by_node_port)
