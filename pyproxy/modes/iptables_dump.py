"""``dump-rules`` in the iptables mode."""

from collections.abc import Collection, Iterable
from dataclasses import replace

from pyproxy.apply.accounting import has_counter
from pyproxy.apply.iptables import is_available, saved
from pyproxy.apply.sysctl import read_sysctl
from pyproxy.compile.attribution import list_rules
from pyproxy.compile.chain_names import is_of_trial, off_trial, on_trial
from pyproxy.compile.iptables import IptablesProgram
from pyproxy.compile.iptables_static import INVALID_COUNTER
from pyproxy.compile.iptables_trial import TrialProgram
from pyproxy.compile.plan import ServicePlan
from pyproxy.config import Config
from pyproxy.model.address import Family
from pyproxy.model.listing import ListedRule, Listing
from pyproxy.model.ruleset import TABLES, ChainKey, HookKey
from pyproxy.modes.iptables_mode import choose_variant, iptables_settings, ownership, trial_ownership
from pyproxy.modes.surroundings import Surroundings
from pyproxy.render.iptables_restore import listing_restore, saved_rules


class IptablesDumper:
    """See `modes.dumper.Dumper`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def planned(self, family: Family, surroundings: Surroundings, plans: Iterable[ServicePlan]) -> Listing:
        """See `Dumper`."""
        is_trial = bool(self._config.service_proxy_name)
        settings = replace(
            iptables_settings(self._config, family, surroundings),
            drop_invalid=not read_sysctl("net/netfilter/nf_conntrack_tcp_be_liberal"),
            # The agent has the rule where the kernel takes it, and makes the counter before; nothing is tried here.
            count_invalid=not is_trial and has_counter(INVALID_COUNTER),
        )
        program = (TrialProgram if is_trial else IptablesProgram)(settings)
        for plan in plans:
            program.put(plan.name, plan)
        return _listed(family, *_program_rules(program))

    async def live(self) -> list[Listing]:
        """See `Dumper`; with packet counters."""
        return await _live_listings(self._config)

    def script(self, listing: Listing) -> str:
        """See `Dumper`: for ``iptables-restore``."""
        return listing_restore(listing)


def _listed(family: Family, chains: Collection[tuple[str, str]], rules: Iterable[ListedRule]) -> Listing:
    """Sort rules by Service; those of a trial by the names that they would have without it."""
    if not any(is_of_trial(*key) for key in chains):
        return list_rules(family, chains, rules)
    listing = list_rules(
        family,
        [(table, off_trial(chain)) for table, chain in chains],
        [rule._replace(chain=off_trial(rule.chain), rule=off_trial(rule.rule)) for rule in rules],
    )
    return Listing(
        family,
        tuple((table, on_trial(chain)) for table, chain in listing.chains),
        _rules_on_trial(listing.common),
        {name: _rules_on_trial(rules) for name, rules in listing.services.items()},
        _rules_on_trial(listing.last),
    )


def _rules_on_trial(rules: Iterable[ListedRule]) -> tuple[ListedRule, ...]:
    return tuple(rule._replace(chain=on_trial(rule.chain), rule=on_trial(rule.rule)) for rule in rules)


def _program_rules(program: IptablesProgram | TrialProgram) -> tuple[list[ChainKey], list[ListedRule]]:
    keys = tuple(program.keys())
    # Each hook is inserted at the top: in the kernel the last one of a chain stands first.
    hooks = [key for key in keys if isinstance(key, HookKey)][::-1]
    rules = [ListedRule(*hook) for hook in hooks]
    chains = sorted(key for key in keys if isinstance(key, ChainKey))
    for key in chains:
        rules += [ListedRule(*key, rule) for rule in (program.value(key) or "").splitlines()]
    return chains, rules


async def _live_listings(config: Config) -> list[Listing]:
    """Return the rules that are in the kernel, with their counters."""
    variant, _ = await choose_variant(config)
    listings = []
    owned = trial_ownership if config.service_proxy_name else ownership
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
