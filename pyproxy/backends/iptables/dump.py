"""``dump-rules`` in the iptables mode."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from pyproxy.backends.interface import desired_entries
from pyproxy.backends.iptables.accounting import has_counter
from pyproxy.backends.iptables.attribution import list_rules
from pyproxy.backends.iptables.chain_names import from_side_by_side, is_side_by_side, to_side_by_side
from pyproxy.backends.iptables.kernel import saved
from pyproxy.backends.iptables.mode import choose_variant, iptables_settings, ownership, side_by_side_ownership
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.restore_text import listing_restore, saved_rules
from pyproxy.backends.iptables.ruleset import TABLES, ChainKey, HookKey, RulesetKey
from pyproxy.backends.iptables.side_by_side import SideBySideProgram
from pyproxy.backends.iptables.static_rules import INVALID_COUNTER, LOCALHOST_COUNTER
from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.config.config import Config
from pyproxy.linux.iptables_programs import is_available
from pyproxy.linux.sysctl import read_sysctl
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.node.context import NodeContext
from pyproxy.plan.service_plan import ServicePlan


class IptablesDumper:
    """See `backends.interface.Dumper`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def planned(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> RuleListing:
        """See `Dumper`."""
        is_side_by_side = bool(self._config.service_proxy_name)
        settings = iptables_settings(self._config, family, context)
        settings = replace(
            settings,
            drop_invalid=not read_sysctl("net/netfilter/nf_conntrack_tcp_be_liberal"),
            # The agent has the rule where the kernel takes it, and makes the counter before; nothing is tried here.
            count_invalid=not is_side_by_side and has_counter(INVALID_COUNTER),
            count_localhost_node_ports=(
                settings.localhost_node_ports and not is_side_by_side and has_counter(LOCALHOST_COUNTER)
            ),
        )
        program = (SideBySideProgram if is_side_by_side else IptablesProgram)(settings)
        return _listed(family, *_entry_rules(desired_entries(program, plans)))

    async def live(self) -> list[RuleListing]:
        """See `Dumper`; with packet counters."""
        return await _live_listings(self._config)

    def script(self, listing: RuleListing) -> str:
        """See `Dumper`: for ``iptables-restore``."""
        return listing_restore(listing)


def _listed(family: Family, chains: Collection[tuple[str, str]], rules: Iterable[ListedRule]) -> RuleListing:
    """Sort rules by Service; those of a trial by the names that they would have without it."""
    if not any(is_side_by_side(*key) for key in chains):
        return list_rules(family, chains, rules)
    listing = list_rules(
        family,
        [(table, from_side_by_side(chain)) for table, chain in chains],
        [rule._replace(chain=from_side_by_side(rule.chain), rule=from_side_by_side(rule.rule)) for rule in rules],
    )
    return RuleListing(
        family,
        tuple((table, to_side_by_side(chain)) for table, chain in listing.chains),
        _rules_to_side_by_side(listing.common),
        {name: _rules_to_side_by_side(rules) for name, rules in listing.services.items()},
        _rules_to_side_by_side(listing.last),
    )


def _rules_to_side_by_side(rules: Iterable[ListedRule]) -> tuple[ListedRule, ...]:
    return tuple(rule._replace(chain=to_side_by_side(rule.chain), rule=to_side_by_side(rule.rule)) for rule in rules)


def _entry_rules(entries: Mapping[RulesetKey, str]) -> tuple[list[ChainKey], list[ListedRule]]:
    # Each hook is inserted at the top: in the kernel the last one of a chain stands first.
    hooks = [key for key in entries if isinstance(key, HookKey)][::-1]
    rules = [ListedRule(*hook) for hook in hooks]
    chains = sorted(key for key in entries if isinstance(key, ChainKey))
    for key in chains:
        rules += [ListedRule(*key, rule) for rule in entries[key].splitlines()]
    return chains, rules


async def _live_listings(config: Config) -> list[RuleListing]:
    """Return the rules that are in the kernel, with their counters."""
    variant, _ = await choose_variant(config)
    listings = []
    owned = side_by_side_ownership if config.service_proxy_name else ownership
    for family in Family:
        if not is_available(family, variant):
            continue
        chains: list[ChainKey] = []
        rules: list[ListedRule] = []
        for table in TABLES:
            text = await saved(family, variant, table, owned(family), counters=True)
            found, listed = saved_rules(table, text.splitlines(), owned(family))
            chains += found
            rules += listed
        listings.append(_listed(family, chains, rules))
    return listings
