"""``dump-rules`` in the iptables mode."""

from collections.abc import Iterable

from pyproxy.apply.iptables import Variant, is_available, save
from pyproxy.apply.iptables_variant import detect_variant
from pyproxy.compile.attribution import list_rules
from pyproxy.compile.iptables import IptablesProgram
from pyproxy.compile.plan import ServicePlan
from pyproxy.config import Config, IptablesVariant
from pyproxy.loop.iptables_mode import iptables_settings, ownership
from pyproxy.loop.surroundings import Surroundings
from pyproxy.model.address import Family
from pyproxy.model.listing import ListedRule, Listing
from pyproxy.model.ruleset import TABLES, ChainKey, HookKey
from pyproxy.render.iptables_restore import saved_rules
from pyproxy.render.listing import listing_restore


class IptablesDumper:
    """See `loop.dumper.Dumper`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def planned(self, family: Family, surroundings: Surroundings, plans: Iterable[ServicePlan]) -> Listing:
        """See `Dumper`."""
        program = IptablesProgram(iptables_settings(self._config, family, surroundings))
        for plan in plans:
            program.put(plan.name, plan)
        return _program_listing(family, program)

    async def live(self) -> list[Listing]:
        """See `Dumper`; with packet counters."""
        return await _live_listings(self._config)

    def script(self, listing: Listing) -> str:
        """See `Dumper`: for ``iptables-restore``."""
        return listing_restore(listing)


def _program_listing(family: Family, program: IptablesProgram) -> Listing:
    keys = tuple(program.keys())
    # Each hook is inserted at the top: in the kernel the last one of a chain stands first.
    hooks = [key for key in keys if isinstance(key, HookKey)][::-1]
    rules = [ListedRule(*hook) for hook in hooks]
    chains = sorted(key for key in keys if isinstance(key, ChainKey))
    for key in chains:
        rules += [ListedRule(*key, rule) for rule in (program.value(key) or "").splitlines()]
    return list_rules(family, chains, rules)


async def _live_listings(config: Config) -> list[Listing]:
    """Return the rules that are in the kernel, with their counters."""
    variant = Variant.LEGACY
    if config.iptables_variant is IptablesVariant.AUTO:
        variant, _ = await detect_variant()
    else:
        variant = Variant(config.iptables_variant.value)
    listings = []
    for family in Family:
        if not is_available(family, variant):
            continue
        chains: list[ChainKey] = []
        rules: list[ListedRule] = []
        for table in TABLES:
            text = await save(family, variant, table, counters=True)
            found, listed = saved_rules(table, text.splitlines(), ownership(family))
            chains += found
            rules += listed
        listings.append(list_rules(family, chains, rules))
    return listings
