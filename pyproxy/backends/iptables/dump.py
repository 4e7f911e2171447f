"""Lists the rules of the iptables mode for ``dump-rules``, from plans or from the kernel, by Service."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pyproxy.backends.explanation import Interpreter
from pyproxy.backends.interface import Dumper, Program, desired_entries
from pyproxy.backends.iptables.accounting import has_counter
from pyproxy.backends.iptables.attribution import list_rules
from pyproxy.backends.iptables.chain_names import from_side_by_side, is_side_by_side, to_side_by_side
from pyproxy.backends.iptables.explain import paths, read_save
from pyproxy.backends.iptables.kernel import read_entries
from pyproxy.backends.iptables.mode import (
    choose_variant,
    iptables_settings,
    ownership,
    side_by_side_ownership,
    supported_families,
)
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.reader import saved
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

_HAIRPIN_BY_ENDPOINT = re.compile(r"^-A \w+-SEP-\w+ -s \S+ -j \w+-MARK-MASQ$", re.MULTILINE)


class IptablesDumper:
    """Lists planned rules, and the rules that are in the kernel; a `backends.interface.Dumper`."""

    script_formats = frozenset({"restore"})
    scripts_hold_one_family = True  # iptables-restore and ip6tables-restore
    rule_noun = "rule"

    def __init__(self, config: Config) -> None:
        self._config = config

    def planned(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> RuleListing:
        """Return the rules that the agent would write for these plans on this node."""
        return self.listing(family, desired_entries(self.program(family, context, {}), plans), {})

    def program(
        self, family: Family, context: NodeContext, present: Mapping[RulesetKey, str]
    ) -> Program[RulesetKey, str]:
        """Return an empty program with the settings that the agent would have on this node; see `Dumper`."""
        runs_side_by_side = bool(self._config.service_proxy_name)
        settings = iptables_settings(self._config, family, context)
        settings = replace(
            settings,
            drop_invalid=not read_sysctl("net/netfilter/nf_conntrack_tcp_be_liberal"),
            # The agent creates the counters if the kernel supports them. Listing rules must not change anything, so here
            # a counter that exists means that the agent would use it.
            count_invalid=not runs_side_by_side and has_counter(INVALID_COUNTER),
            count_localhost_node_ports=(
                settings.localhost_node_ports and not runs_side_by_side and has_counter(LOCALHOST_COUNTER)
            ),
            # The agent tests whether the kernel has xt_bpf, by a rule in a chain of its own. Without it each chain of an
            # endpoint masquerades the endpoint's address, so such a rule shows what the agent found. kube-proxy's
            # rule of the same kind has a comment.
            hairpin_by_packet=not any(
                _HAIRPIN_BY_ENDPOINT.search(value) for key, value in present.items() if isinstance(key, ChainKey)
            ),
        )
        return (SideBySideProgram if runs_side_by_side else IptablesProgram)(settings)

    async def read(self) -> dict[Family, dict[RulesetKey, str]]:
        """Return the chains and hooks in the kernel; see `Dumper`."""
        variant, _ = await choose_variant(self._config)
        owned = side_by_side_ownership if self._config.service_proxy_name else ownership
        return {
            family: await read_entries(family, variant, owned(family), TABLES) for family in supported_families(variant)
        }

    def listing(self, family: Family, entries: Mapping[RulesetKey, str], also: Mapping[RulesetKey, str]) -> RuleListing:
        """Return chains and hooks as a listing; see `Dumper`."""
        chains = sorted(key for key in entries if isinstance(key, ChainKey))
        return _listing(family, chains, entry_rules(entries), entry_rules(also))

    def leftovers(self, *_: object) -> Collection[RulesetKey]:
        """Return nothing; see `Dumper`."""
        return ()

    def users(self, *_: object) -> list[ServicePortName]:
        """Return nothing: each rule is listed with its Service port, or all of them need it; see `Dumper`."""
        return []

    def endpoint(self, rule: ListedRule) -> str | None:
        """Return the destination of a DNAT rule."""
        _, _, destination = rule.rule.partition(" --to-destination ")
        return destination.partition(" ")[0] or None

    async def live(self) -> list[RuleListing]:
        """Return the rules that are in the kernel, with their packet counters, for each family."""
        # The same choice as the agent's, so that the listing has the rules that are in use.
        variant, _ = await choose_variant(self._config)
        owned = side_by_side_ownership if self._config.service_proxy_name else ownership
        listings = []
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
            listings.append(_listing(family, chains, rules))
        return listings

    def script(self, listing: RuleListing) -> str:
        """Return a listing as input for ``iptables-restore --noflush``."""
        return listing_restore(listing)

    def interpreter(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> Interpreter:
        """Return an interpreter of the rules for these plans; see `Dumper`."""
        return partial(paths, read_save(listing_restore(self.planned(family, context, plans))))


DUMPER: Callable[[Config], Dumper] = IptablesDumper


def entry_rules(entries: Mapping[Any, Any]) -> list[ListedRule]:
    """Return the rules of chains and hooks; other entries are skipped."""
    # Each hook is inserted at the top, so in the kernel the hook written last is the first rule of its chain.
    rules = [ListedRule(*key) for key in entries if isinstance(key, HookKey)][::-1]
    for key in sorted(key for key in entries if isinstance(key, ChainKey)):
        rules += [ListedRule(*key, rule) for rule in entries[key].splitlines()]
    return rules


def _listing(
    family: Family,
    chains: Collection[tuple[str, str]],
    rules: Iterable[ListedRule],
    also: Iterable[ListedRule] = (),
) -> RuleListing:
    # Attribution knows the usual names only, so rules with side-by-side names are renamed for it, and back.
    if not any(is_side_by_side(*key) for key in chains):
        return list_rules(family, chains, rules, also)

    def usual(listed: Iterable[ListedRule]) -> list[ListedRule]:
        return [
            rule._replace(chain=from_side_by_side(rule.chain), rule=from_side_by_side(rule.rule)) for rule in listed
        ]

    listing = list_rules(
        family,
        [(table, from_side_by_side(chain)) for table, chain in chains],
        usual(rules),
        usual(also),
    )

    def renamed(listed: Iterable[ListedRule]) -> tuple[ListedRule, ...]:
        return tuple(
            rule._replace(chain=to_side_by_side(rule.chain), rule=to_side_by_side(rule.rule)) for rule in listed
        )

    return RuleListing(
        family,
        tuple((table, to_side_by_side(chain)) for table, chain in listing.chains),
        renamed(listing.common),
        {name: renamed(listed) for name, listed in listing.services.items()},
        renamed(listing.last),
    )
