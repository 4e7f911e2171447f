"""Listings of rules as text and as JSON values. The output depends on the rules only: sorted, without time or host."""

from collections.abc import Iterable, Iterator

from pyproxy.backends.listing import ListedRule, RuleListing


def listing_text(listing: RuleListing) -> str:
    """Return a listing as text: a heading for each Service port, with its rules below."""
    parts = [f"{listing.family}\n"]
    parts += _group("all Services", (*listing.common, *listing.last))
    for name, rules in listing.services.items():
        parts += _group(f"{name} {name.protocol.value}", rules)
    return "".join(parts)


def listing_values(listing: RuleListing) -> dict[str, object]:
    """Return a listing as values for JSON."""
    return {
        "family": str(listing.family),
        "common": [_values(rule) for rule in (*listing.common, *listing.last)],
        "services": [
            {
                "namespace": name.service.namespace,
                "name": name.service.name,
                "port": name.port,
                "protocol": name.protocol.value,
                "rules": [_values(rule) for rule in rules],
            }
            for name, rules in listing.services.items()
        ],
    }


# Packets come before the rule, as in `iptables -v`: rules have any length.
def _group(title: str, rules: Iterable[ListedRule]) -> Iterator[str]:
    yield f"\n{title}\n"
    for rule in rules:
        counters = f"{rule.counters.packets:>10} " if rule.counters else ""
        yield f"  {counters}{rule.table:6} {rule.rule}\n"


def _values(rule: ListedRule) -> dict[str, object]:
    values: dict[str, object] = {"table": rule.table, "chain": rule.chain, "rule": rule.rule}
    if rule.counters:
        values |= {"packets": rule.counters.packets, "bytes": rule.counters.bytes}
    return values
