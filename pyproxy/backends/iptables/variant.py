"""Detects which variant of iptables this node uses, without creating a table in either variant.

The kernel applies the rules of both variants, so two agents that use different ones see only a part of the rules each. The
kubelet creates a chain as a hint: KUBE-IPTABLES-HINT (older kubelets: KUBE-KUBELET-CANARY) in the mangle table of the variant
that it uses (KEP-3178).
"""

import asyncio
import logging

from pyproxy.backends.iptables.reader import chains_and_jumps
from pyproxy.backends.iptables.ruleset import MANGLE, NAT
from pyproxy.errors import ApplyError, ConfigError
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import Variant, is_available
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

KUBELET_HINTS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
"""Chains that the kubelet creates."""
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
        return installed[0], "the other variant is not installed"
    # nft is first in `installed`: if both have a hint, a kubelet that moved to nft left the one in legacy behind.
    for variant in installed:
        for family in Family:
            chains, _ = await _chains_and_jumps(family, variant, MANGLE, "PREROUTING")
            if hint := next((hint for hint in KUBELET_HINTS if hint in chains), None):
                return variant, f"its tables contain the kubelet's chain {hint}"
    # A jump from PREROUTING, not the chain alone: a chain without it may be stale.
    for variant in installed:
        jumps = [(await _chains_and_jumps(family, variant, NAT, "PREROUTING"))[1] for family in Family]
        if any(_DISPATCH_CHAIN in targets for targets in jumps):
            return variant, "its tables contain rules for Services"
    # Neither a kubelet nor a proxy has left rules. Most likely the node uses the variant that its other programs call.
    try:
        version = (await run(["iptables", "--version"])).stdout.strip()
    except ApplyError:
        return installed[0], "there is no iptables on PATH"
    variant = Variant.NFT if "nf_tables" in version else Variant.LEGACY
    return variant, f"the iptables on PATH is {version}"


async def _chains_and_jumps(family: Family, variant: Variant, table: str, chain: str) -> tuple[list[str], set[str]]:
    # A table that cannot be read counts as empty: the other variant may be in use.
    try:
        return await asyncio.to_thread(chains_and_jumps, family, variant, table, chain)
    except ApplyError as error:
        logger.debug("%s", error)
        return [], set()
