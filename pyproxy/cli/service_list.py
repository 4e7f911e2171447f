"""The output of ``services``: rows as a table for people, and as the document ``ServiceList`` for programs.

docs/schemas/service-list.json is generated from the structs in this module.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct, to_builtins
from rich.text import Text

from pyproxy.cli.output import OutputFormat, document
from pyproxy.decode.fields import shown
from pyproxy.model.address import Family, ip_text, socket_text
from pyproxy.model.names import Protocol
from pyproxy.plan.reasons import ReasonCode
from pyproxy.plan.service_table import FrontendType, ServiceRow, State

_COLUMNS = ("SERVICE", "FRONTEND", "TYPE", "POLICY", "ENDPOINTS (local)", "AFFINITY")
_MOST_ENDPOINTS = 5
"""Endpoints that a row of the wide table lists."""
_STYLES = {State.OK: "green", State.REJECT: "red", State.DROP: "red", State.NO_RULES: "yellow"}
_WORDS = {State.OK: "ok", State.REJECT: "REJECT", State.DROP: "DROP", State.NO_RULES: "no rules"}
_PROTOCOLS: Mapping[Protocol, Literal["TCP", "UDP", "SCTP"]] = {
    Protocol.TCP: "TCP",
    Protocol.UDP: "UDP",
    Protocol.SCTP: "SCTP",
}
_POLICIES: Mapping[bool, Literal["Cluster", "Local"]] = {False: "Cluster", True: "Local"}
"""By whether the policy is Local."""


class ReasonValues(Struct, rename="camel", forbid_unknown_fields=True):
    """Why a state is not ok."""

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
    reasons: Annotated[list[ReasonValues], Meta(description="Empty if the state is ok.")]


class ServiceList(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``pyproxy services -o json`` prints."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["ServiceList"]
    node: Annotated[str, Meta(description="Name of the node that the states are for.")]
    items: list[ServiceValues]


def service_document(rows: Iterable[ServiceRow], node_name: str, output: OutputFormat) -> str:
    """Return rows as JSON or YAML."""
    items = [to_builtins(_values(row)) for row in rows]
    return document("ServiceList", {"node": node_name, "items": items}, output)


def service_table(rows: Iterable[ServiceRow], *, wide: bool) -> tuple[tuple[str, ...], list[list[str | Text]]]:
    """Return the headings of a table, and its rows."""
    columns = (*_COLUMNS, *(("PORT", "USABLE ENDPOINTS") if wide else ()), "STATE", *(("FIX",) if wide else ()))
    lines: list[list[str | Text]] = []
    for row in rows:
        line: list[str | Text] = [*_cells(row)]
        if wide:
            line += [_port_name(row), _endpoints_text(row)]
        line.append(Text(_state_text(row), style=_STYLES[row.state]))
        if wide:
            line.append("; ".join(reason.fix for reason in row.reasons) or "-")
        lines.append(line)
    return columns, lines


def _cells(row: ServiceRow) -> tuple[str, ...]:
    name = f"{shown(row.service.namespace)}/{shown(row.service.name)}"
    if row.port is None:
        return (name, *["-"] * (len(_COLUMNS) - 1))
    frontend, type_ = "-", "-"
    if row.frontend is not None:
        type_ = row.frontend.type.value
        frontend = f"{socket_text(row.frontend.ip, row.frontend.port)}/{row.port.protocol.name}"
    return (
        name,
        frontend,
        type_,
        "-" if row.state is State.NO_RULES else _POLICIES[row.is_local].lower(),
        f"{len(row.endpoints)}/{row.total_count} ({row.local_count})",
        "-" if row.affinity_seconds is None else f"{row.affinity_seconds}s",
    )


def _port_name(row: ServiceRow) -> str:
    return (row.port.port if row.port else "") or "-"


def _endpoints_text(row: ServiceRow) -> str:
    listed = [str(endpoint) for endpoint in row.endpoints[:_MOST_ENDPOINTS]]
    more = len(row.endpoints) - len(listed)
    return ",".join([*listed, *([f"and {more} more"] if more else [])]) or "-"


def _state_text(row: ServiceRow) -> str:
    word = _WORDS[row.state]
    if row.reasons:
        return f"{word}: {'; '.join(reason.text for reason in row.reasons)}"
    if row.source_ranges:
        return f"{word}, only from {', '.join(map(str, row.source_ranges))}"
    return word


def _values(row: ServiceRow) -> ServiceValues:
    frontend = None
    if row.frontend is not None and row.port is not None:
        frontend = FrontendValues(
            type=row.frontend.type,
            family="IPv4" if row.frontend.family is Family.IPV4 else "IPv6",
            address=ip_text(row.frontend.ip),
            port=row.frontend.port,
            protocol=_PROTOCOLS[row.port.protocol],
        )
    return ServiceValues(
        namespace=row.service.namespace,
        name=row.service.name,
        port_name=None if row.port is None else row.port.port,
        frontend=frontend,
        traffic_policy=_POLICIES[row.is_local] if row.state is not State.NO_RULES else None,
        endpoints=EndpointsValues(
            usable=len(row.endpoints),
            local=row.local_count,
            total=row.total_count,
            addresses=[str(endpoint) for endpoint in row.endpoints],
        ),
        affinity_seconds=row.affinity_seconds,
        source_ranges=[str(block) for block in row.source_ranges],
        state=row.state,
        reasons=[ReasonValues(reason.code, reason.text, reason.fix) for reason in row.reasons],
    )
