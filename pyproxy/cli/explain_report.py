"""The output of ``explain``: text for people, and the document ``Explanation`` for programs.

docs/schemas/explanation.json is generated from the structs in this module.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta, Struct, to_builtins
from rich.text import Text

from pyproxy.backends.explanation import Fate, Packet, Path
from pyproxy.cli.explain_ends import Source
from pyproxy.cli.explain_fields import shown_rule, step_field
from pyproxy.cli.output import OutputFormat, console, document
from pyproxy.model.address import ip_text, socket_text
from pyproxy.plan.service_plan import ServicePlan

_MOST_ENDPOINTS = 20
"""Endpoints that the text lists; the document has all."""
_WORDS: Mapping[Fate, Literal["FORWARDED", "REJECTED", "DROPPED", "NO SERVICE"]] = {
    Fate.FORWARDED: "FORWARDED",
    Fate.REJECTED: "REJECTED",
    Fate.DROPPED: "DROPPED",
    Fate.UNCHANGED: "NO SERVICE",
}
_STYLES = {"FORWARDED": "bold green", "REJECTED": "bold red", "DROPPED": "bold red", "NO SERVICE": "bold yellow"}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What happens to a packet, and why."""

    packet: Packet
    source: Source
    node_name: str
    """Empty: not known."""
    mode: str
    paths: tuple[Path, ...]
    service: str = ""
    """The Service port as ``namespace/name`` or ``namespace/name:port``; empty if no Service is involved."""
    plan: ServicePlan | None = None
    places: Mapping[bytes, str] | None = None
    """Pod and node of endpoints, by address."""
    reason: str = ""
    """Why the packet is not forwarded, or why it may fail although it is."""
    fix: str = ""
    read_at: str = ""
    """When the rules were read from the kernel; empty if they come from files."""
    is_intended: bool | None = None
    """Whether the rules in the kernel do with the packet what the agent intends; None: that is not known."""
    difference: str = ""
    """The first difference between intended rules and those in the kernel, for this packet."""

    @property
    def fate(self) -> Fate:
        """Return the most probable end."""
        return self.paths[0].fate if self.paths else Fate.UNCHANGED


@dataclass(frozen=True, slots=True)
class MissingService:
    """A Service was named that has no rules."""

    service: str
    reason: str
    fix: str
    fate = Fate.UNCHANGED


class StepValues(Struct, rename="camel", forbid_unknown_fields=True):
    """A rule or element that decided something."""

    hook: str
    priority: int | None
    place: Annotated[str, Meta(description="Chain, set, map or virtual server.")]
    rule: str
    field: Annotated[str, Meta(description="The field or policy behind it; empty if it is the same for all Services.")]


class PathValues(Struct, rename="camel", forbid_unknown_fields=True):
    """One way that the packet can take."""

    probability: float
    fate: Fate
    endpoint: Annotated[str | None, Meta(description="Null unless forwarded.")]
    place: Annotated[str, Meta(description="Pod and node of the endpoint, as far as known.")]
    masqueraded: Annotated[bool, Meta(description="The endpoint sees an address of the node as source.")]
    affinity_seconds: int | None
    affinity_entry: Annotated[str, Meta(description="The entry that already connects the client with the endpoint.")]
    certain: Annotated[bool, Meta(description="False: a rule could not be evaluated and was skipped.")]
    steps: list[StepValues]


class ExplanationDocument(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``pyproxy explain -o json`` prints."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["Explanation"]
    verdict: Literal["FORWARDED", "REJECTED", "DROPPED", "NO SERVICE"]
    node: str
    mode: str
    source: str
    source_name: str
    destination: str
    port: int
    protocol: Literal["TCP", "UDP", "SCTP"]
    service: str
    paths: list[PathValues]
    reason: str
    fix: str
    read_at: Annotated[str, Meta(description="When the rules were read from the kernel; empty: from files.")]
    intended: Annotated[
        bool | None,
        Meta(description="Whether the kernel does with the packet what the agent intends; null: not known."),
    ]
    difference: Annotated[str, Meta(description="The first difference between intended rules and the kernel's.")]


def explanation_document(found: Explanation | MissingService, output: OutputFormat) -> str:
    """Return an explanation as JSON or YAML."""
    if isinstance(found, MissingService):
        return document("Explanation", _missing_fields(found), output)
    packet = found.packet
    paths = [
        PathValues(
            # Rounded, because 1/3 has no finite decimal form.
            probability=round(float(path.share), 6),
            fate=path.fate,
            endpoint=str(path.endpoint) if path.endpoint else None,
            place=_place(found, path),
            masqueraded=path.is_masqueraded,
            affinity_seconds=path.affinity_seconds,
            affinity_entry=path.affinity_entry,
            certain=path.is_certain,
            steps=[StepValues(*step, step_field(step, found.plan, packet)) for step in path.steps],
        )
        for path in found.paths
    ]
    fields = {
        "verdict": _WORDS[found.fate],
        "node": found.node_name,
        "mode": found.mode,
        "source": ip_text(packet.source),
        "sourceName": found.source.label,
        "destination": ip_text(packet.destination),
        "port": packet.port,
        "protocol": packet.protocol.name,
        "service": found.service,
        "paths": to_builtins(paths),
        "reason": found.reason,
        "fix": found.fix,
        "readAt": found.read_at,
        "intended": found.is_intended,
        "difference": found.difference,
    }
    return document("Explanation", fields, output)


def _missing_fields(found: MissingService) -> dict[str, object]:
    empty = dict.fromkeys(("node", "mode", "source", "sourceName", "destination"), "")
    return {
        "verdict": _WORDS[found.fate],
        **empty,
        "port": 0,
        "protocol": "TCP",
        "service": found.service,
        "paths": [],
        "reason": found.reason,
        "fix": found.fix,
        "readAt": "",
        "intended": None,
        "difference": "",
    }


def print_explanation(found: Explanation | MissingService) -> None:
    """Print an explanation for people: the verdict first, then the path, then what to do."""
    target = console()
    word = _WORDS[found.fate]
    if isinstance(found, MissingService):
        target.print(Text.assemble((word, _STYLES[word]), f"  {found.service}"), soft_wrap=True)
        target.print(Text(f"Why: {found.reason}\nTry: {found.fix}"), soft_wrap=True)
        return
    packet = found.packet
    source = " ".join(filter(None, (found.source.label, ip_text(packet.source))))
    to = f"{socket_text(packet.destination, packet.port)}/{packet.protocol.name}"
    node = f" on {found.node_name}" if found.node_name else ""
    service = f", {found.service}" if found.service else ""
    headline = f"  {source} -> {to}{node}{service} ({found.mode})"
    target.print(Text.assemble((word, _STYLES[word]), headline), soft_wrap=True)
    for line in (*_path_lines(found), *_closing_lines(found)):
        target.print(Text(line), soft_wrap=True)


def _path_lines(found: Explanation) -> Iterator[str]:
    # The steps of the most probable path only: further paths differ in the endpoint, and a line for each endpoint follows.
    if not found.paths:
        return
    first = found.paths[0]
    same = [path for path in found.paths if path.fate is first.fate]
    common = set(first.steps).intersection(*(path.steps for path in same))
    rows: list[tuple[str, str, str, str, str]] = []
    is_chosen = False
    for step in first.steps:
        field = step_field(step, found.plan, found.packet)
        if step not in common:
            words = "for this endpoint" if is_chosen else f"one of {len(same)}"
            field, is_chosen = f"{field}, {words}" if field else words, True
        priority = "" if step.priority is None else str(step.priority)
        rows.append((step.hook, priority, step.place, shown_rule(step), f"<- {field}" if field else ""))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    for number, row in enumerate(rows, 1):
        hook, priority, place, rule, field = row
        line = (
            f"{number:3} {hook:{widths[0]}} {priority:>{widths[1]}}  {place:{widths[2]}}  {rule:{widths[3]}}  {field}"
        )
        yield line.rstrip()
    forwarded = [path for path in found.paths if path.endpoint is not None]
    for path in forwarded[:_MOST_ENDPOINTS]:
        place = _place(found, path)
        seen = f"an address of {found.node_name or 'the node'}" if path.is_masqueraded else ip_text(found.packet.source)
        yield f"  {float(path.share) * 100:5.1f} %  {path.endpoint}{f'  {place}' if place else ''}  sees {seen}"
    if len(forwarded) > _MOST_ENDPOINTS:
        yield f"  and {len(forwarded) - _MOST_ENDPOINTS} more endpoints (-o json lists them)"
    others = [path for path in found.paths if path.fate is not found.fate]
    for fate in dict.fromkeys(path.fate for path in others):
        share = sum(path.share for path in others if path.fate is fate)
        yield f"  {float(share) * 100:5.1f} %  {_WORDS[fate]}"


def _closing_lines(found: Explanation) -> Iterator[str]:
    if entry := next((path.affinity_entry for path in found.paths if path.affinity_entry), ""):
        yield f"affinity: an entry connects this client with its endpoint ({entry})"
    elif seconds := next((path.affinity_seconds for path in found.paths if path.affinity_seconds), None):
        yield f"affinity: the client stays with its endpoint until it has been idle for {seconds} s"
    if not all(path.is_certain for path in found.paths):
        yield "not certain: a rule on the way could not be evaluated and was skipped"
    if found.is_intended is not None:
        yield f"intended = live: {'yes' if found.is_intended else 'NO'} (read {found.read_at})"
    elif found.read_at:
        yield f"rules read {found.read_at}; no agent answers, so it is not known what they should be"
    if found.difference:
        yield f"Difference: {found.difference}"
    if found.reason:
        yield f"{'Note' if found.fate is Fate.FORWARDED else 'Why'}: {found.reason}"
    if found.fix:
        yield f"Try: {found.fix}"


def _place(found: Explanation, path: Path) -> str:
    return (found.places or {}).get(path.endpoint.ip, "") if path.endpoint else ""
