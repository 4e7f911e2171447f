"""What ``plan`` prints: a line for each Service port whose rules change, or a document for programs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta, Struct

from pyproxy.backends.drift import ServiceDrift, few, port_text
from pyproxy.backends.interface import Dumper, Program, changed_entries, desired_entries
from pyproxy.backends.listing import ListedRule, RuleListing, rule_difference
from pyproxy.model.address import Family, socket_text
from pyproxy.model.names import ServicePortName
from pyproxy.plan.service_plan import ServicePlan
from pyproxy.plan.service_values import API_VERSION, FAMILIES, PROTOCOLS

# Endpoints that a line of text shows of those added, and of those removed; the document has all of them.
_SHOWN_ENDPOINTS = 4
_SYMBOLS = {"change": "~", "add": "+", "remove": "-"}
_PLURALS = {"entry": "entries"}


class RuleDifference(Struct, rename="camel", forbid_unknown_fields=True):
    """The rules, elements or entries that a sync adds and removes."""

    added: list[str]
    removed: list[str]


class ServiceChange(Struct, rename="camel", forbid_unknown_fields=True):
    """A Service port whose rules change."""

    action: Annotated[
        Literal["change", "add", "remove"],
        Meta(description="add: the Service port has no rules before. remove: it has none afterwards."),
    ]
    namespace: str
    name: str
    port_name: str
    protocol: Literal["TCP", "UDP", "SCTP"]
    family: Literal["IPv4", "IPv6"]
    frontends: Annotated[list[str], Meta(description="IP:PORT, or *:PORT for a node port; afterwards.")]
    endpoints: Annotated[int, Meta(description="How many endpoints it has; with remove, how many it had.")]
    endpoints_added: list[str]
    endpoints_removed: list[str]
    rules: RuleDifference


class SharedChange(Struct, rename="camel", forbid_unknown_fields=True):
    """Rules that belong to no single Service."""

    family: Literal["IPv4", "IPv6"]
    used_by: Annotated[
        list[str],
        Meta(description="The Service ports that need what changes, if several share it; empty: all of them."),
    ]
    rules: RuleDifference
    rewritten: Annotated[
        int, Meta(description="How many entries change, such as chains, if none of their rules is added or removed.")
    ]


class Leftover(Struct, rename="camel", forbid_unknown_fields=True):
    """Rules of kube-proxy, or of another mode of pyproxy, that the agent removes once its own rules are complete."""

    family: Literal["IPv4", "IPv6"]
    where: Annotated[str, Meta(description="iptables-legacy, iptables-nft, nftables or IPVS.")]
    what: Annotated[str, Meta(description="In words, with numbers.")]


class PlanDocument(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``pyproxy plan -o json`` prints."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["Plan"]
    node: str
    mode: Annotated[str, Meta(description="The proxy mode: iptables, nftables or ipvs.")]
    source: Annotated[Literal["kernel", "files"], Meta(description="What the wanted rules are compared with.")]
    rule_noun: Annotated[str, Meta(description="What an item of added and removed is: rule, element or entry.")]
    services: list[ServiceChange]
    shared: list[SharedChange]
    leftovers: list[Leftover]
    running_proxy: Annotated[
        str, Meta(description="How another proxy was found that runs on this node; empty if there is none.")
    ]

    stale_flows: Annotated[
        int | None,
        Meta(
            description="How many UDP flows are deleted because they lead to no endpoint of their Service; null if files"
            " are compared. No other connection is cut."
        ),
    ] = None

    @property
    def is_empty(self) -> bool:
        """Return whether nothing changes."""
        return not (self.services or self.shared or self.leftovers)


class Comparison(NamedTuple):
    """The rules of one family before and after a change."""

    before: RuleListing
    after: RuleListing
    plans: Mapping[ServicePortName, ServicePlan]
    """The plans of the Service ports afterwards."""
    entries: int
    """How many entries change, as the agent compares them."""
    users: list[str]
    """The Service ports that share an entry that changes."""


def compared(
    dumper: Dumper,
    family: Family,
    present: Mapping[Any, Any],
    program: Program[Any, Any],
    plans: Mapping[ServicePortName, ServicePlan],
) -> Comparison:
    """Return the difference between entries and those that plans need.

    Args:
        dumper: of the mode.
        family: of the entries.
        present: the entries to compare with.
        program: an empty program.
        plans: all plans of the family.
    """
    wanted = desired_entries(program, plans)
    unwanted = {key for key in dumper.leftovers(family, present) if key not in wanted}
    present = {key: value for key, value in present.items() if key not in unwanted}
    # As a full sync compares: the keys of the program, then those that are present. Some keys that are present have a
    # wanted value although the program does not list them.
    keys = dict.fromkeys((*wanted, *present))
    change = changed_entries(keys, present, program.value)
    wanted |= {key: value for key in present if key not in wanted and (value := program.value(key)) is not None}
    users = [*map(port_text, dumper.users(family, change, {**wanted, **present}))]
    before, after = dumper.listing(family, present, wanted), dumper.listing(family, wanted, present)
    return Comparison(before, after, plans, len(change), users)


def plan_document(
    node: str, mode: str, source: Literal["kernel", "files"], dumper: Dumper, comparisons: Iterable[Comparison]
) -> PlanDocument:
    """Return the document for the comparisons of all families."""
    document = PlanDocument(API_VERSION, "Plan", node, mode, source, dumper.rule_noun, [], [], [], "")
    for found in comparisons:
        if found.entries:
            services = list(_service_changes(found, dumper))
            document.services += services
            before, after = (*found.before.common, *found.before.last), (*found.after.common, *found.after.last)
            rules = RuleDifference(*rule_difference(before, after))
            family = FAMILIES[found.after.family]
            if rules.added or rules.removed:
                document.shared.append(SharedChange(family, found.users, rules, 0))
            elif not services:
                # Entries change but no rule does, such as a chain in another order: the sync still writes.
                document.shared.append(SharedChange(family, found.users, rules, found.entries))
    document.services.sort(key=lambda item: (item.namespace, item.name, item.port_name, item.protocol, item.family))
    return document


def _service_changes(found: Comparison, dumper: Dumper) -> Iterator[ServiceChange]:
    # A Service port is in the listing of both sides, of one if it is new or gone, or of none if it never had rules.
    for name in sorted({*found.before.services, *found.after.services}):
        before, after = found.before.services.get(name, ()), found.after.services.get(name, ())
        if before == after:
            continue
        endpoints_before, endpoints_after = _endpoints(before, dumper), _endpoints(after, dumper)
        plan, frontends = found.plans.get(name), list[str]()
        if plan:
            ips = (
                *([plan.cluster_ip] if plan.cluster_ip is not None else []),
                *plan.external_ips,
                *plan.load_balancer_ips,
            )
            frontends += [socket_text(ip, plan.port) for ip in dict.fromkeys(ips)]
            # A node port is at any address of the node: which ones is a setting, not a part of the Service.
            frontends += [f"*:{plan.node_port}"] if plan.node_port else []
        yield ServiceChange(
            action="change" if before and after else "add" if after else "remove",
            namespace=name.service.namespace,
            name=name.service.name,
            port_name=name.port,
            protocol=PROTOCOLS[name.protocol],
            family=FAMILIES[found.after.family],
            frontends=frontends,
            endpoints=len(endpoints_after if after else endpoints_before),
            endpoints_added=[item for item in endpoints_after if item not in endpoints_before],
            endpoints_removed=[item for item in endpoints_before if item not in endpoints_after],
            rules=RuleDifference(*rule_difference(before, after)),
        )


def _endpoints(rules: Iterable[ListedRule], dumper: Dumper) -> dict[str, None]:
    return dict.fromkeys(endpoint for rule in rules if (endpoint := dumper.endpoint(rule)))


def plan_lines(document: PlanDocument, *, wide: bool) -> Iterator[str]:
    """Yield the lines of the text output; if `wide`, with the rules that are added and removed."""
    noun = document.rule_noun
    rows = [
        (
            f"{_SYMBOLS[item.action]} {service_port_title(item)}",
            _detail(item),
            _amount(item.rules, noun) or f"{plural(noun)} in another order",
        )
        for item in document.services
    ]
    rows += [
        (
            f"~ shared {plural(noun)}{family_suffix(shared.family)}",
            f"used by {few(shared.used_by)}" if shared.used_by else "",
            _amount(shared.rules, noun) or f"{shared.rewritten} rewritten",
        )
        for shared in document.shared
    ]
    # Columns are as wide as their longest text, so that the amounts of all lines can be compared.
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    differences = [item.rules for item in document.services] + [shared.rules for shared in document.shared]
    for (title, detail, amount), rules in zip(rows, differences, strict=True):
        yield f"{title:{widths[0]}}  {detail:{widths[1]}}  {amount}"
        if wide:
            yield from (f"    + {text}" for text in rules.added)
            yield from (f"    - {text}" for text in rules.removed)
    for stale in document.leftovers:
        yield f"- {stale.what} in {stale.where}{family_suffix(stale.family)}, removed once the agent's rules are complete"
    if document.running_proxy:
        yield f"kube-proxy is running on this node, and `run` would wait until it has stopped: {document.running_proxy}"
    counts = Counter(item.action for item in document.services)
    shared = f", shared {plural(noun)} to change" if document.shared else ""
    left = ", rules of another proxy or mode to remove" if document.leftovers else ""
    flows = document.stale_flows
    cut = "" if flows is None else f"; {flows} stale UDP flows to delete" if flows else "; 0 connections cut"
    yield (
        f"Plan: {counts['change']} to change, {counts['add']} to add, {counts['remove']} to remove{shared}{left}{cut}."
        " Nothing was written."
    )


def plural(noun: str) -> str:
    """Return the plural of a rule noun."""
    return _PLURALS.get(noun, f"{noun}s")


def service_port_title(item: ServiceChange | ServiceDrift) -> str:
    """Return how lines name a Service port."""
    port = f":{item.port_name}" if item.port_name else ""
    return f"{item.namespace}/{item.name}{port} {item.protocol.lower()}{family_suffix(item.family)}"


def family_suffix(family: str) -> str:
    """Return what follows a name if it is not of IPv4: in most clusters every line would have the word."""
    return " IPv6" if family == "IPv6" else ""


def _detail(item: ServiceChange) -> str:
    endpoints = f"{item.endpoints} endpoint{'' if item.endpoints == 1 else 's'}"
    if item.action == "add":
        return f"{', '.join(item.frontends)} -> {endpoints}"
    if item.action == "remove":
        return f"had {endpoints}"
    changes = [*_shown("+", item.endpoints_added), *_shown("-", item.endpoints_removed)]
    return f"endpoints {' '.join(changes)}" if changes else "same endpoints"


def _shown(sign: str, endpoints: Sequence[str]) -> Iterator[str]:
    yield from (f"{sign}{endpoint}" for endpoint in endpoints[:_SHOWN_ENDPOINTS])
    if len(endpoints) > _SHOWN_ENDPOINTS:
        yield f"{sign}({len(endpoints) - _SHOWN_ENDPOINTS} more)"


def _amount(rules: RuleDifference, noun: str) -> str:
    def count(texts: Sequence[str]) -> str:
        return f"{len(texts)} {noun if len(texts) == 1 else plural(noun)}"

    if len(rules.added) == len(rules.removed) > 0:
        return f"{count(rules.added)} replaced"
    parts = [f"{count(texts)} {verb}" for texts, verb in ((rules.added, "added"), (rules.removed, "removed")) if texts]
    return ", ".join(parts)
