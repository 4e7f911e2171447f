"""``dump-rules`` in the nftables mode: elements by Service, or a whole script for ``nft -f``."""

from collections.abc import Callable, Collection, Mapping
from functools import partial

from pyproxy.backends.explanation import Interpreter
from pyproxy.backends.interface import Dumper, desired_entries
from pyproxy.backends.listing import ListedRule, RuleListing
from pyproxy.backends.nftables.attribution import list_elements, users
from pyproxy.backends.nftables.change_monitor import ChangeMonitor
from pyproxy.backends.nftables.elements import ADDRESSED, LAYOUT, NODE_PORTS, SETS, ElementKey, Value
from pyproxy.backends.nftables.explain import paths
from pyproxy.backends.nftables.kernel import NftablesKernel
from pyproxy.backends.nftables.layout import TABLE, layout_text
from pyproxy.backends.nftables.mode import nftables_settings
from pyproxy.backends.nftables.program import NftablesProgram
from pyproxy.backends.nftables.ruleset_text import read_ruleset
from pyproxy.backends.nftables.text import family_name, table_text
from pyproxy.config.config import Config
from pyproxy.errors import ApplyError
from pyproxy.linux.addresses import kernel_families
from pyproxy.linux.command import run
from pyproxy.linux.ruleset_counter import NftGeneration
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.node.context import NodeContext
from pyproxy.node.local_traffic import nftables_config
from pyproxy.plan.service_plan import ServicePlan

_ENDPOINT_MAPS = frozenset(
    choice.endpoints.name for sets in (ADDRESSED, NODE_PORTS) for choice in (sets.main, sets.local)
)


class NftablesDumper:
    """Lists the elements of both families; implements `backends.interface.Dumper`."""

    script_formats = frozenset({"restore", "nft"})
    scripts_hold_one_family = False
    rule_noun = "element"

    def __init__(self, config: Config) -> None:
        self._config = nftables_config(config)
        # The script of each family's table without elements, from the last call of `planned` or `live`.
        self._tables: dict[Family, str] = {}

    def planned(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> RuleListing:
        """Return the elements that these plans need in one family's table."""
        settings = nftables_settings(self._config, family, context)
        entries: dict[ElementKey, Value] = desired_entries(NftablesProgram(settings), plans)
        chained = {key: b"" for key in entries if key != LAYOUT and SETS[key[0]].leads_to_chains}
        # Chains for numbers, such as counts, are part of the table, so the elements that lead to them have to be known.
        table, _, _ = table_text(family, layout_text(settings), chained).partition("add element")
        self._tables[family] = table
        return list_elements(family, entries)

    def program(self, family: Family, context: NodeContext, _: object) -> NftablesProgram:
        """Return an empty program with the settings that the agent would have on this node."""
        return NftablesProgram(nftables_settings(self._config, family, context))

    async def read(self) -> dict[Family, dict[ElementKey, Value]]:
        """Return the elements in the kernel; see `Dumper`."""
        found = {}
        with NftGeneration() as generation:
            for family in kernel_families():
                with NftablesKernel(family, generation.counter(), {}, ChangeMonitor(TABLE)) as kernel:
                    found[family] = await kernel.read()
        return found

    def listing(
        self, family: Family, entries: Mapping[ElementKey, Value], also: Mapping[ElementKey, Value]
    ) -> RuleListing:
        """Return elements as a listing; see `Dumper`."""
        return list_elements(family, entries, also)

    def leftovers(self, *_: object) -> Collection[ElementKey]:
        """Return nothing; see `Dumper`."""
        return ()

    def users(
        self, family: Family, keys: Collection[ElementKey], entries: Mapping[ElementKey, Value]
    ) -> list[ServicePortName]:
        """Return the Service ports that share elements; see `Dumper`."""
        return users(family, keys, entries)

    def endpoint(self, rule: ListedRule) -> str | None:
        """Return the data of an element of a map of endpoints."""
        if rule.chain not in _ENDPOINT_MAPS:
            return None
        ip, port = rule.rule.removesuffix(" }").rpartition(" : ")[2].split(" . ")
        return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

    async def live(self) -> list[RuleListing]:
        """Return the elements in the kernel, of each family that has our table.

        Raises:
            ApplyError: a table cannot be read.
        """
        listings = []
        with NftGeneration() as generation:
            for family in Family:
                with NftablesKernel(family, generation.counter(), {}, ChangeMonitor(TABLE)) as kernel:
                    entries = await kernel.read()
                if not entries:
                    continue
                # Terse leaves out the elements: `nft` takes seconds for those of a large cluster, and the netlink dump has them.
                argv = ["nft", "--stateless", "--terse", "list", "table", family_name(family), TABLE]
                result = await run(argv)
                if result.status:
                    message = f"{' '.join(argv)}: exit status {result.status}: {result.stderr.strip()}"
                    raise ApplyError(message, retryable=True)
                self._tables[family] = result.stdout
                listings.append(list_elements(family, entries))
        return listings

    def interpreter(
        self, family: Family, context: NodeContext, plans: Mapping[ServicePortName, ServicePlan]
    ) -> Interpreter:
        """Return an interpreter of the elements for these plans."""
        settings = nftables_settings(self._config, family, context)
        entries: dict[ElementKey, Value] = desired_entries(NftablesProgram(settings), plans)
        return partial(paths, read_ruleset(table_text(family, layout_text(settings), entries)))

    def script(self, listing: RuleListing) -> str:
        """Return a listing as input for ``nft -f``: the table without elements, then the elements by Service port."""
        parts = [self._tables[listing.family]]
        groups = [
            ("", listing.common),
            *((f"{name} {name.protocol.value}", rules) for name, rules in listing.services.items()),
        ]
        for title, rules in groups:
            parts += [f"# {title}\n"] if title else []
            parts += [f"add element {rule.table} {rule.rule}\n" for rule in rules if rule.chain != LAYOUT[1:].decode()]
        return "".join(parts)


DUMPER: Callable[[Config], Dumper] = NftablesDumper
