"""Which variant of iptables this node uses, found without creating a table in either.

The kubelet leaves a hint for just this: the chain KUBE-IPTABLES-HINT (older: KUBE-KUBELET-CANARY) in the
mangle table of the variant that it uses (KEP-3178).
"""

import asyncio
import logging

from pyproxy.backends.iptables.legacy_entries import legacy_tables
from pyproxy.backends.iptables.reader import chains_and_jumps
from pyproxy.backends.iptables.ruleset import MANGLE, NAT
from pyproxy.errors import ApplyError, ConfigError
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import Variant, is_available
from pyproxy.model.address import Family

__all__ = ["detect_variant", "legacy_tables"]

logger = logging.getLogger(__name__)

_HINTS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
_DISPATCH_CHAIN = "KUBE-SERVICES"


async def detect_variant() -> tuple[Variant, str]:
    """Return the variant to use and the reason for it.

    Raises:
        ConfigError: no iptables is installed.
    """
    installed = [variant for variant in (Variant.NFT, Variant.LEGACY) if is_available(Family.IPV4, variant)]
    if not installed:
        message = "--iptables-variant: neither iptables-nft-restore nor iptables-legacy-restore is installed"
        raise ConfigError(message)
    if len(installed) == 1:
        return installed[0], "no other is installed"
    for variant in installed:
        hint = await _kubelet_hint(variant)
        if hint:
            return variant, f"the kubelet's chain {hint} is there"
    for variant in installed:
        if await _has_service_rules(variant):
            return variant, "Service rules are there"
    return await _variant_on_path(installed[0])


async def _kubelet_hint(variant: Variant) -> str:
    for family in Family:
        found, _ = await _chains_and_jumps(family, variant, MANGLE, "PREROUTING")
        for hint in _HINTS:
            if hint in found:
                return hint
    return ""


async def _has_service_rules(variant: Variant) -> bool:
    jumps = [(await _chains_and_jumps(family, variant, NAT, "PREROUTING"))[1] for family in Family]
    return any(_DISPATCH_CHAIN in targets for targets in jumps)


async def _chains_and_jumps(family: Family, variant: Variant, table: str, chain: str) -> tuple[list[str], set[str]]:
    """Return what `chains_and_jumps` does; nothing where it cannot say. No table is created."""
    try:
        return await asyncio.to_thread(chains_and_jumps, family, variant, table, chain)
    except ApplyError as error:
        logger.debug("%s", error)
        return [], set()


async def _variant_on_path(otherwise: Variant) -> tuple[Variant, str]:
    try:
        version = (await run(["iptables", "--version"])).stdout.strip()
    except ApplyError:
        return otherwise, "there is no iptables on PATH"
    variant = Variant.NFT if "nf_tables" in version else Variant.LEGACY
    return variant, f"the iptables on PATH is {version}"
