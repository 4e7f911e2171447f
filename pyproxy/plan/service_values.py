"""Rows of the table of Services as values of JSON: what ``pyproxy services -o json`` prints, and what the agent answers.

docs/schemas/service-list.json is generated from the structs in this module.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Literal

from msgspec import Meta, Struct

from pyproxy.model.address import Family, ip_text
from pyproxy.model.names import Protocol
from pyproxy.plan.reasons import ReasonCode
from pyproxy.plan.service_table import FrontendType, ServiceRow, State

API_VERSION: Literal["pyproxy.io/v1alpha1"] = "pyproxy.io/v1alpha1"
KIND: Literal["ServiceList"] = "ServiceList"
PROTOCOLS: Mapping[Protocol, Literal["TCP", "UDP", "SCTP"]] = {
    Protocol.TCP: "TCP",
    Protocol.UDP: "UDP",
    Protocol.SCTP: "SCTP",
}
# By whether the policy is Local.
_POLICIES: Mapping[bool, Literal["Cluster", "Local"]] = {False: "Cluster", True: "Local"}
FAMILIES: Mapping[Family, Literal["IPv4", "IPv6"]] = {Family.IPV4: "IPv4", Family.IPV6: "IPv6"}


class SyncState(Enum):
    """Whether the kernel has the plan of a Service port; values are those of JSON output."""

    PROGRAMMED = "programmed"
    """It has."""
    PENDING = "pending"
    """A change waits for a sync, or a sync is writing it."""
    STALE = "stale"
    """It had, but a sync failed or another program changed rules since then; the next sync reads the kernel."""
    QUARANTINED = "quarantined"
    """The kernel refused it, and keeps the last good rules."""


class ReasonValues(Struct, rename="camel", forbid_unknown_fields=True):
    """Why a state is not ok, or what is probably a mistake although it is."""

    code: ReasonCode
    text: str
    fix: str


class FrontendValues(Struct, rename="camel", forbid_unknown_fields=True):
    """Address and port at which a Service accepts connections."""

    type: FrontendType
    family: Literal["IPv4", "IPv6"]
    address: Annotated[str, Meta(description="0.0.0.0 or :: means every address of the node.")]
    port: int
    protocol: Literal["TCP", "UDP", "SCTP"]


class EndpointsValues(Struct, rename="camel", forbid_unknown_fields=True):
    """Endpoints of a Service port."""

    usable: Annotated[int, Meta(description="How many of them traffic to the frontend may use on this node.")]
    local: Annotated[int, Meta(description="How many of the usable ones are on this node.")]
    total: Annotated[int, Meta(description="How many endpoints the Service port has on any node, usable or not.")]
    addresses: Annotated[list[str], Meta(description="The usable ones.")]


class ServiceValues(Struct, rename="camel", forbid_unknown_fields=True):
    """One frontend of a Service port, or a Service without one."""

    namespace: str
    name: str
    port_name: Annotated[str | None, Meta(description="Null for a Service without rules.")]
    frontend: Annotated[
        FrontendValues | None,
        Meta(description="Null for a Service without rules, and for a node port that no address of the node serves."),
    ]
    traffic_policy: Annotated[
        Literal["Cluster", "Local"] | None, Meta(description="Null if this node has no rules for the frontend.")
    ]
    endpoints: EndpointsValues
    affinity_seconds: int | None
    source_ranges: Annotated[list[str], Meta(description="The clients that may connect; empty means all.")]
    state: State
    sync: Annotated[
        SyncState | None, Meta(description="Whether the kernel has this state; null if no agent was asked.")
    ]
    sync_error: Annotated[str, Meta(description="Why the kernel refused the Service port; empty if it did not.")]
    health_check_node_port: Annotated[int | None, Meta(description="Null if the Service has none.")]
    reasons: Annotated[
        list[ReasonValues], Meta(description="Why the state is not ok; with ok, what is probably a mistake.")
    ]


class FamilyValues(Struct, rename="camel", forbid_unknown_fields=True):
    """The last sync of an address family."""

    family: Literal["IPv4", "IPv6"]
    last_sync_seconds: Annotated[
        float | None, Meta(description="Time since a sync last succeeded; null if none has succeeded yet.")
    ]
    error: Annotated[str, Meta(description="Why the last sync failed; empty if it succeeded.")]


class NodeValues(Struct, rename="camel", forbid_unknown_fields=True):
    """The Node object of the agent's node."""

    addresses: list[str]
    pod_cidrs: Annotated[list[str], Meta(description="The podCIDRs.")]
    zone: Annotated[str, Meta(description="Empty if the Node has no zone label.")]


class ServiceList(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``pyproxy services -o json`` prints."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["ServiceList"]
    node: Annotated[str, Meta(description="Name of the node that the states are for.")]
    mode: Annotated[str, Meta(description="The proxy mode: iptables, nftables, ipvs or auto.")]
    source: Annotated[Literal["files", "agent"], Meta(description="Where the states come from.")]
    families: Annotated[list[FamilyValues], Meta(description="What the agent has synced; empty if no agent was asked.")]
    items: list[ServiceValues]
    node_object: Annotated[
        NodeValues | None, Meta(description="Null if no agent was asked, and if the agent finds no Node of this name.")
    ] = None


def service_values(row: ServiceRow, sync: SyncState | None = None, sync_error: str = "") -> ServiceValues:
    """Return a row as values of JSON."""
    frontend = None
    if row.frontend is not None and row.port is not None:
        frontend = FrontendValues(
            type=row.frontend.type,
            family=FAMILIES[row.frontend.family],
            address=ip_text(row.frontend.ip),
            port=row.frontend.port,
            protocol=PROTOCOLS[row.port.protocol],
        )
    return ServiceValues(
        namespace=row.service.namespace,
        name=row.service.name,
        port_name=None if row.port is None else row.port.port,
        frontend=frontend,
        traffic_policy=_POLICIES[row.is_local] if row.port is not None and row.state is not State.NO_RULES else None,
        endpoints=EndpointsValues(
            usable=len(row.endpoints),
            local=row.local_count,
            total=row.total_count,
            addresses=[str(endpoint) for endpoint in row.endpoints],
        ),
        affinity_seconds=row.affinity_seconds,
        source_ranges=[str(block) for block in row.source_ranges],
        state=row.state,
        sync=sync,
        sync_error=sync_error,
        health_check_node_port=row.health_check_node_port or None,
        reasons=[ReasonValues(reason.code, reason.text, reason.fix) for reason in row.reasons],
    )


_INTENDED = frozenset(
    {ReasonCode.HEADLESS, ReasonCode.EXTERNAL_NAME, ReasonCode.OTHER_PROXY, ReasonCode.LOAD_BALANCER_PROXIES}
)


def is_problem(service: ServiceValues) -> bool:
    """Return whether a row needs attention; a Service that is meant to have no rules does not."""
    if service.sync not in {None, SyncState.PROGRAMMED}:
        return True
    is_fine = service.state is State.OK and not service.reasons
    return not is_fine and not any(reason.code in _INTENDED for reason in service.reasons)
