"""Drift: entries in the kernel that differ from those that pyproxy wrote, as counts and by Service.

How the difference is found is the business of `agent.reconcile`. Here it gets names that people know.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from pyproxy.backends.interface import Dumper
from pyproxy.backends.listing import rule_difference
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.plan.service_values import FAMILIES, PROTOCOLS

_SHOWN_NAMES = 3  # Service ports that a line of text names


@dataclass(frozen=True, slots=True)
class Drift:
    """Entries of one family that another program changed."""

    changed: Mapping[Any, tuple[Any, Any]]
    """By key, the value in the kernel and the value that pyproxy wrote; None: there is no such entry."""
    written: Mapping[Any, Any]
    """All entries that pyproxy wrote."""

    def restricted_to(self, keys: Collection[Any]) -> "Drift | None":
        """Return the part with these keys; None if there is none."""
        changed = {key: pair for key, pair in self.changed.items() if key in keys}
        return Drift(changed, self.written) if changed else None

    def counts(self) -> Counter[str]:
        """Return how many entries differ, by kind, as `serve.metrics.DRIFT_KINDS` has them."""
        return Counter(
            "missing" if present is None else "unexpected" if wanted is None else "changed"
            for present, wanted in self.changed.values()
        )


class ServiceDrift(Struct, rename="camel", forbid_unknown_fields=True):
    """A Service port whose rules were changed."""

    namespace: str
    name: str
    port_name: str
    protocol: Literal["TCP", "UDP", "SCTP"]
    family: Literal["IPv4", "IPv6"]
    missing: Annotated[list[str], Meta(description="Rules, elements or entries that are not in the kernel.")]
    unexpected: Annotated[
        list[str],
        Meta(
            description="Those in the kernel that pyproxy did not write. If both lists are empty, rules are in another"
            " order."
        ),
    ]


class SharedDrift(Struct, rename="camel", forbid_unknown_fields=True):
    """Rules that belong to no single Service, and were changed."""

    family: Literal["IPv4", "IPv6"]
    used_by: Annotated[
        list[str],
        Meta(description="The Service ports that need what differs, as NAMESPACE/NAME:PORT; empty: all of them do."),
    ]
    missing: list[str]
    unexpected: list[str]


class DriftDocument(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``pyproxy drift -o json`` prints."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["Drift"]
    node: str
    mode: Annotated[str, Meta(description="The proxy mode: iptables, nftables or ipvs.")]
    source: Annotated[
        Literal["agent", "objects"],
        Meta(description="What the kernel is compared with: what the agent wrote, or the rules for objects."),
    ]
    rule_noun: Annotated[str, Meta(description="What an item of missing and unexpected is: rule, element or entry.")]
    services: list[ServiceDrift]
    shared: list[SharedDrift]

    @property
    def is_empty(self) -> bool:
        """Return whether nothing differs."""
        return not (self.services or self.shared)


def by_service(dumper: Dumper, family: Family, drift: Drift) -> Iterator[ServiceDrift | SharedDrift]:
    """Yield the drift of each Service port, sorted by name, then that of shared rules.

    Args:
        dumper: of the mode.
        family: of the entries.
        drift: the entries.
    """
    present = {key: value for key, (value, _) in drift.changed.items() if value is not None}
    wanted = {key: value for key, (_, value) in drift.changed.items() if value is not None}
    # An entry with a changed value is in both listings. What was written has the names of Service ports for entries
    # whose own name another program deleted.
    before = dumper.listing(family, present, drift.written)
    after = dumper.listing(family, wanted, drift.written)
    is_explained = False
    for name in sorted({*before.services, *after.services}):
        old, new = before.services.get(name, ()), after.services.get(name, ())
        if old != new:
            missing, unexpected = rule_difference(old, new)
            is_explained = True
            yield ServiceDrift(
                name.service.namespace,
                name.service.name,
                name.port,
                PROTOCOLS[name.protocol],
                FAMILIES[family],
                missing,
                unexpected,
            )
    missing, unexpected = rule_difference((*before.common, *before.last), (*after.common, *after.last))
    # A difference that no listing shows, such as the order of rules, must still be reported.
    if missing or unexpected or not is_explained:
        users = dumper.users(family, drift.changed, {**drift.written, **present})
        yield SharedDrift(FAMILIES[family], list(map(port_text, users)), missing, unexpected)


def port_text(name: ServicePortName) -> str:
    """Return a Service port as ``NAMESPACE/NAME:PORT TCP``."""
    return f"{name} {name.protocol.name}"


def few(names: Sequence[str]) -> str:
    """Return the first names, and how many there are besides."""
    rest = len(names) - _SHOWN_NAMES
    return ", ".join([*names[:_SHOWN_NAMES], *([f"{rest} more"] if rest > 0 else [])])
