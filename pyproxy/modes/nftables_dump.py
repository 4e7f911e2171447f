"""``dump-rules`` in the nftables mode: elements, by Service; and a script with the layout for ``nft -f``."""

from collections.abc import Iterable

from pyproxy.apply.command import run
from pyproxy.apply.nft_witness import Witness
from pyproxy.apply.nftables import NftablesKernel
from pyproxy.apply.ruleset_counter import NftGeneration
from pyproxy.compile.nft_attribution import list_elements
from pyproxy.compile.nft_layout import TABLE, layout_text
from pyproxy.compile.nft_text import family_name, table_text
from pyproxy.compile.nftables import NftablesProgram
from pyproxy.compile.plan import ServicePlan
from pyproxy.config import Config
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from pyproxy.model.listing import Listing
from pyproxy.model.nftables import LAYOUT, SETS
from pyproxy.modes.local_traffic import nftables_config
from pyproxy.modes.nftables_mode import nftables_settings
from pyproxy.modes.surroundings import Surroundings


class NftablesDumper:
    """See `modes.dumper.Dumper`."""

    def __init__(self, config: Config) -> None:
        self._config = nftables_config(config)
        self._tables: dict[Family, str] = {}
        """Each family's table without elements."""

    def planned(self, family: Family, surroundings: Surroundings, plans: Iterable[ServicePlan]) -> Listing:
        """See `Dumper`."""
        settings = nftables_settings(self._config, family, surroundings)
        program = NftablesProgram(settings)
        for plan in plans:
            program.put(plan.name, plan)
        entries = {key: value for key in program.keys() if (value := program.value(key)) is not None}  # noqa: SIM118  # no dict
        chained = {key: b"" for key in entries if key != LAYOUT and SETS[key[0]].leads_to_chains}
        table, _, _ = table_text(family, layout_text(settings), chained).partition("add element")
        self._tables[family] = table
        return list_elements(family, entries)

    async def live(self) -> list[Listing]:
        """See `Dumper`."""
        generation = NftGeneration()
        listings = []
        for family in Family:
            entries = await NftablesKernel(family, generation.counter(), {}, Witness(TABLE)).read()
            if entries:
                self._tables[family] = await _list_table(family)
                listings.append(list_elements(family, entries))
        return listings

    def script(self, listing: Listing) -> str:
        """See `Dumper`."""
        parts = [self._tables[listing.family]]
        groups = [
            ("", listing.common),
            *((f"{name} {name.protocol.value}", rules) for name, rules in listing.services.items()),
        ]
        for title, rules in groups:
            parts += [f"# {title}\n"] if title else []
            parts += [f"add element {rule.table} {rule.rule}\n" for rule in rules if rule.chain != LAYOUT[1:].decode()]
        return "".join(parts)


async def _list_table(family: Family) -> str:
    argv = ["nft", "--stateless", "--terse", "list", "table", family_name(family), TABLE]
    result = await run(argv)
    if result.status:
        message = f"{' '.join(argv)}: exit status {result.status}: {result.stderr.strip()}"
        raise ApplyError(message, retryable=True)
    return result.stdout
