"""The status of an agent as values of JSON: what ``/statusz`` shows, as a page, as text and as JSON.

docs/schemas/agent-status.json is generated from the structs in this module. Each list has a limit, so that the document
stays small on a node with many Services; counts are of everything.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

MOST_ITEMS = 200
"""Maximum length of lists of problems: a page of megabytes would be useless."""
Severity = Literal["ok", "info", "warn", "fail"]


class NodeStatus(Struct, rename="camel", forbid_unknown_fields=True):
    """What the agent knows of its own node."""

    name: str
    addresses: Annotated[list[str], Meta(description="Those that rules use: of the Node object, or --bind-address.")]
    pod_cidrs: list[str]
    cluster_cidrs: Annotated[list[str], Meta(description="The value of --cluster-cidr.")]
    zone: str


class QuarantinedPort(Struct, rename="camel", forbid_unknown_fields=True):
    """A Service port that the kernel refused. It keeps its last good rules."""

    service_port: str
    error: str


class FamilyStatus(Struct, rename="camel", forbid_unknown_fields=True):
    """The rules of one address family."""

    family: str
    programmed: Annotated[dict[str, int], Meta(description="By kind, the number of objects in the kernel.")]
    last_sync: Annotated[str | None, Meta(description="Time of the last successful sync; null if there was none.")]
    last_sync_seconds: Annotated[float | None, Meta(description="Time since then.")]
    error: Annotated[str, Meta(description="Why the last sync failed; empty if it succeeded.")]
    quarantined_count: int
    quarantined: Annotated[list[QuarantinedPort], Meta(max_length=MOST_ITEMS)]


class EarlierRules(Struct, rename="camel", forbid_unknown_fields=True):
    """The rules of an earlier run. They stay in the kernel until the agent has synced."""

    services: Annotated[int, Meta(description="How many Services have rules.")]
    service_ports: int
    current: Annotated[
        str | None, Meta(description="When they were last known to be up to date; null if that is not known.")
    ]
    current_seconds: Annotated[float | None, Meta(description="Time since then.")]
    error: Annotated[str, Meta(description="Why the kernel could not be read; empty if it was read.")]


class WatchStatus(Struct, rename="camel", forbid_unknown_fields=True):
    """Whether objects of one kind arrive from the API server."""

    kind: str
    state: Annotated[
        Literal["watched", "lost", "stale"],
        Meta(description="stale: the watch is open, but for too long neither a change nor a new watch has arrived."),
    ]
    seconds: Annotated[float, Meta(description="Time since the watch was lost, or since it works.")]
    heard_seconds: Annotated[
        float | None,
        Meta(description="Time since the last change, or since the watch was last opened; null if it never was."),
    ]
    reason: Annotated[str, Meta(description="Why the watch is lost; empty if it is not.")]


class Change(Struct, rename="camel", forbid_unknown_fields=True):
    """A change of rules."""

    time: str
    seconds: Annotated[float, Meta(description="Time since then.")]
    family: str
    subject: Annotated[str, Meta(description="The Service port, or what else has changed.")]
    text: str


class Finding(Struct, rename="camel", forbid_unknown_fields=True):
    """A finding of ``pyproxy doctor``."""

    check: str
    severity: Severity
    text: str
    evidence: str
    fix: str


class DoctorStatus(Struct, rename="camel", forbid_unknown_fields=True):
    """The last run of ``pyproxy doctor``."""

    time: Annotated[str | None, Meta(description="When it ended; null: the first run has not ended.")]
    seconds: Annotated[float | None, Meta(description="Time since then.")]
    error: Annotated[str, Meta(description="Why the checks could not run; empty if they did.")]
    ok_count: Annotated[int, Meta(description="Number of checks that found nothing.")]
    findings: Annotated[list[Finding], Meta(max_length=MOST_ITEMS)]


class ServiceStatus(Struct, rename="camel", forbid_unknown_fields=True):
    """One frontend of a Service, as ``pyproxy services`` prints it."""

    service: str
    frontend: str
    type: str
    policy: str
    endpoints: str
    affinity: str
    state: str
    is_problem: bool


class ServicePage(Struct, rename="camel", forbid_unknown_fields=True):
    """A page of the list of Services, which ``?service=TEXT&page=NUMBER`` selects."""

    query: str
    total: Annotated[int, Meta(description="Number of Services that the agent knows.")]
    matches: Annotated[int, Meta(description="How many of them match the query.")]
    page: int
    pages: int
    items: list[ServiceStatus]
    error: Annotated[str, Meta(description="Why they cannot be listed; empty if they can.")]


class AgentStatus(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``/statusz`` returns to clients that accept ``application/json``."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["AgentStatus"]
    time: str
    verdict: Literal["ok", "warn", "fail"]
    problems: Annotated[list[str], Meta(description="Why the verdict is not ok, the most serious first.")]
    node: NodeStatus
    version: str
    mode: str
    variant: Annotated[str, Meta(description="Variant of iptables; empty if the mode uses no iptables.")]
    started: str
    uptime_seconds: float
    families: list[FamilyStatus]
    earlier_rules: Annotated[EarlierRules | None, Meta(description="Null once every family has synced.")]
    watches: Annotated[list[WatchStatus], Meta(description="Empty if objects come from files.")]
    invalid_count: int
    invalid: Annotated[list[str], Meta(max_length=MOST_ITEMS, description="What is wrong with objects.")]
    doctor: DoctorStatus
    changes: Annotated[list[Change], Meta(description="The last changes, the newest first.")]
    services: ServicePage
