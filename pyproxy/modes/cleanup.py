"""The command ``cleanup``: takes out of the kernel what is ours, in all modes, variants and families.

A second run finds nothing. What is ours, and what stays, is `modes.leftovers`' and `modes.ipvs_cleanup`'s decision.
"""

import asyncio
import shutil
from itertools import product

from pyproxy.apply.iptables import Variant, is_available
from pyproxy.config import Config, IptablesVariant
from pyproxy.model.address import Family
from pyproxy.modes.leftovers import NFT_FAMILIES, clean, delete_nft_table, nft_tables


def cleanup(config: Config, *, its_too: bool) -> int:
    """Remove our rules and say what was removed; return the exit status.

    Args:
        config: which variant, or both.
        its_too: remove what kube-proxy made too, in any mode, even where pyproxy never ran.

    Raises:
        ApplyError: some rules could not be removed.
    """
    return asyncio.run(_cleanup(config, its_too=its_too))


async def _cleanup(config: Config, *, its_too: bool) -> int:
    asked = config.iptables_variant
    variants = Variant if asked is IptablesVariant.AUTO else (Variant(asked.value),)
    for variant in variants:
        for family in Family:
            if is_available(family, variant):
                _say(f"{family}, iptables-{variant.value}", await clean(family, variant, its_too=its_too))
    if shutil.which("nft"):
        for owner, family in product(nft_tables(its_too=its_too), Family):
            _say(f"{family}, nftables", await delete_nft_table(f"{NFT_FAMILIES[family]} {owner}"))
    # Last: a set that a rule names cannot be destroyed.
    from pyproxy.modes.ipvs_cleanup import remove_ipvs  # noqa: PLC0415  # most nodes never had this mode

    for family, what in remove_ipvs(its_too=its_too):
        _say(f"{family}, IPVS", what)
    return 0


def _say(where: str, what: str) -> None:
    if what:
        print(f"{where}: {what}")  # noqa: T201  # this command's output is for people
