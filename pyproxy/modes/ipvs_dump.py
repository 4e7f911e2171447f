"""``dump-rules`` in the IPVS mode: virtual and real servers, addresses, members of sets and rules, by Service."""

from collections.abc import Iterable

from pyproxy.apply.iptables import is_available, saved
from pyproxy.apply.vips import Vips
from pyproxy.apply.virtual_servers import VirtualServers
from pyproxy.compile.ipvs import IpvsProgram
from pyproxy.compile.ipvs_attribution import IPSET, IPVS, REMARK, ROUTE, list_entries
from pyproxy.compile.plan import ServicePlan
from pyproxy.config import Config
from pyproxy.model.address import Family
from pyproxy.model.ipvs import IpvsKey, IpvsValue, Real, RealState, Set, Vip
from pyproxy.model.listing import ListedRule, Listing
from pyproxy.model.ruleset import IPVS_TABLES, ChainKey, HookKey
from pyproxy.modes.iptables_mode import choose_variant
from pyproxy.modes.ipvs_mode import ipvs_settings, ownership
from pyproxy.modes.ipvs_needs import require_ipvs
from pyproxy.modes.ipvs_sets import ipvs_sets
from pyproxy.modes.surroundings import Surroundings
from pyproxy.render.iptables_restore import listing_restore, saved_rules

_HERE = "EOF"


class IpvsDumper:
    """See `modes.dumper.Dumper`."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def planned(self, family: Family, surroundings: Surroundings, plans: Iterable[ServicePlan]) -> Listing:
        """See `Dumper`."""
        program = IpvsProgram(ipvs_settings(self._config, family, surroundings))
        for plan in plans:
            program.put(plan.name, plan)
        entries = {key: value for key in program.keys() if (value := program.value(key)) is not None}  # noqa: SIM118  # no dict
        # Each hook is inserted at the top: in the kernel the last one of a chain stands first.
        rules = [ListedRule(*key) for key in entries if isinstance(key, HookKey)][::-1]
        for key in sorted(key for key in entries if isinstance(key, ChainKey)):
            rules += [ListedRule(*key, rule) for rule in str(entries[key]).splitlines()]
        return list_entries(family, entries, rules, {})

    async def live(self) -> list[Listing]:
        """See `Dumper`; with weights, and connections of real servers."""
        await require_ipvs()
        variant, _ = await choose_variant(self._config)
        listings = []
        for family in Family:
            entries, states = _read(family)
            if not entries or not is_available(family, variant):
                continue
            rules: list[ListedRule] = []
            for table in IPVS_TABLES:
                text = await saved(family, variant, table, ownership(family), counters=True)
                chains, found = saved_rules(table, text.splitlines(), ownership(family))
                entries.update((key, "") for key in chains)
                rules += found
            listings.append(list_entries(family, entries, rules, states))
        return listings

    def script(self, listing: Listing) -> str:
        """See `Dumper`: for a shell, which hands each part to the program that loads it."""
        family = listing.family.value
        parts = [
            f"# {listing.family}\nip link show kube-ipvs0 >/dev/null 2>&1 || ip link add kube-ipvs0 type dummy\nip link set kube-ipvs0 up\n"
        ]
        for table, program, verb in (
            (IPSET, "ipset -exist restore", ""),
            (IPVS, "ipvsadm --restore", ""),
            (ROUTE, f"ip -{family} -batch -", "route add table local "),
        ):
            rules = [rule for group in (listing.common, *listing.services.values()) for rule in group]
            lines = [f"{verb}{rule.rule.partition(REMARK)[0]}\n" for rule in rules if rule.table == table]
            parts += [f"{program} <<'{_HERE}'\n", *lines, f"{_HERE}\n"]
        restore = "iptables-restore" if listing.family is Family.IPV4 else "ip6tables-restore"
        return "".join((*parts, f"{restore} --noflush <<'{_HERE}'\n", listing_restore(listing), f"{_HERE}\n"))


def _read(family: Family) -> tuple[dict[IpvsKey, IpvsValue], dict[Real, RealState]]:
    """Return what is in the kernel, without rules; reads only."""
    sets, types = ipvs_sets(family)
    names, members = sets.read(types)
    entries: dict[IpvsKey, IpvsValue] = {}
    entries.update((Set(name), types[name].value[0]) for name in names)
    entries.update(members.items())
    if not entries:
        return {}, {}
    entries.update((Vip(ip), source) for ip, source in Vips(family).read().items())
    servers = VirtualServers()
    virtuals = dict(servers.services(family))
    entries.update(virtuals.items())
    states = dict(servers.all_reals(virtuals, family))
    entries.update((real, state.weight) for real, state in states.items())
    return entries, states
