"""Lists virtual and real servers, VIPs, members of sets and rules for ``dump-rules``, by Service."""

from collections.abc import Callable, Collection, Mapping
from functools import partial

from pyproxy.backends.explanation import Interpreter
from pyproxy.backends.interface import Dumper, desired_entries
from pyproxy.backends.iptables.dump import entry_rules
from pyproxy.backends.iptables.explain import read_save
from pyproxy.backends.iptables.kernel import read_entries as read_rules
from pyproxy.backends.iptables.mode import choose_variant, supported_families
from pyproxy.backends.iptables.reader import saved
from pyproxy.backends.iptables.restore_text import listing_restore, saved_rules
from pyproxy.backends.iptables.ruleset import IPVS_TABLES
from pyproxy.backends.ipvs.attribution import IPSET, IPVS, REMARK, ROUTE, list_entries
from pyproxy.backends.ipvs.entries import IpvsKey, IpvsValue
from pyproxy.backends.ipvs.explain import ipvs_state, paths
from pyproxy.backends.ipvs.mode import ipvs_settings, ownership
from pyproxy.backends.ipvs.program import IpvsProgram
from pyproxy.backends.ipvs.reader import left_in_place, read_entries
from pyproxy.backends.ipvs.requirements import require_ipvs
from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.config.config import Config
from pyproxy.linux.iptables_programs import is_available
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.node.context import NodeContext
from pyproxy.plan.service_plan import ServicePlan

_HERE = "EOF"


class IpvsDumper:
    """Lists planned entries, and the entries that are in the kernel; a `backends.interface.Dumper`."""

    script_formats = frozenset({"restore", "nft"})
    scripts_hold_one_family = False
    rule_noun = "entry"

    def __init__(self, config: Config) -> None:
        self._config = config

    def planned(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> RuleListing:
        """Return the entries that the agent would write for these plans on this node."""
        return self.listing(family, desired_entries(self.program(family, context, {}), plans), {})

    def program(self, family: Family, context: NodeContext, _: object) -> IpvsProgram:
        """Return an empty program with the settings that the agent would have on this node."""
        return IpvsProgram(ipvs_settings(self._config, family, context))

    async def read(self) -> dict[Family, dict[IpvsKey, IpvsValue]]:
        """Return the entries in the kernel; see `Dumper`.

        Foreign virtual servers are among them, because one may have the address and port of one of ours.
        """
        await require_ipvs()
        variant, _ = await choose_variant(self._config)
        found: dict[Family, dict[IpvsKey, IpvsValue]] = {}
        for family in supported_families(variant):
            found[family], _ = read_entries(family)
            found[family].update((await read_rules(family, variant, ownership(family), IPVS_TABLES)).items())
        return found

    def leftovers(self, family: Family, entries: Mapping[IpvsKey, IpvsValue]) -> Collection[IpvsKey]:
        """Return foreign servers and draining real servers; see `Dumper`."""
        return left_in_place(entries, [block for block in self._config.ipvs.exclude_cidrs if block.family is family])

    def listing(
        self, family: Family, entries: Mapping[IpvsKey, IpvsValue], also: Mapping[IpvsKey, IpvsValue]
    ) -> RuleListing:
        """Return entries as a listing; see `Dumper`."""
        return list_entries(family, entries, entry_rules(entries), {}, also)

    def users(self, *_: object) -> list[ServicePortName]:
        """Return nothing: each entry is listed with a Service port, or all of them need it; see `Dumper`."""
        return []

    def endpoint(self, rule: ListedRule) -> str | None:
        """Return the address of a real server that gets new connections."""
        if rule.table != IPVS or not rule.rule.startswith("-a ") or rule.rule.endswith(" -w 0"):
            return None
        return rule.rule.partition(" -r ")[2].partition(" ")[0]

    async def live(self) -> list[RuleListing]:
        """Return the entries that are in the kernel, with weights and connections of real servers, for each family."""
        await require_ipvs()
        variant, _ = await choose_variant(self._config)
        listings = []
        for family in Family:
            entries, states = read_entries(family)
            # A node may have no iptables program for IPv6; its helper rules cannot be listed then.
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

    def interpreter(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> Interpreter:
        """Return an interpreter of the entries for these plans; see `Dumper`."""
        entries: dict[IpvsKey, IpvsValue] = desired_entries(self.program(family, context, {}), plans)
        ruleset = read_save(listing_restore(self.listing(family, entries, {})))
        return partial(paths, ipvs_state(family, entries, {}), ruleset)

    def script(self, listing: RuleListing) -> str:
        """Return a listing as a shell script, in which each part is the input of the program that loads it."""
        family = listing.family.value
        parts = [
            f"# {listing.family}\nip link show kube-ipvs0 >/dev/null 2>&1 || ip link add kube-ipvs0 type dummy\nip link set kube-ipvs0 up\n"
        ]
        # In an order that works: rules refer to sets, and routes to the device.
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


DUMPER: Callable[[Config], Dumper] = IpvsDumper
