"""Which variant of iptables this node uses, found without creating a table in either.

The kubelet leaves a hint for just this: the chain KUBE-IPTABLES-HINT (older: KUBE-KUBELET-CANARY) in the
mangle table of the variant that it uses (KEP-3178).
"""

import logging
from pathlib import Path

from pyproxy.apply.command import run
from pyproxy.apply.iptables import Variant, is_available, program
from pyproxy.errors import ApplyError, ConfigError
from pyproxy.model.address import Family

logger = logging.getLogger(__name__)

_HINTS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
_DISPATCH_CHAIN = "KUBE-SERVICES"
_LEGACY_TABLES = {
    Family.IPV4: Path("/proc/net/ip_tables_names"),
    Family.IPV6: Path("/proc/net/ip6_tables_names"),
}


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
        text = await _output(family, variant, "mangle", "-t", "mangle", verb="save")
        found = {line[1 : line.index(" ")] for line in text.splitlines() if line.startswith(":")}
        for hint in _HINTS:
            if hint in found:
                return hint
    return ""


async def _has_service_rules(variant: Variant) -> bool:
    texts = [await _output(family, variant, "nat", "-t", "nat", "-S", "PREROUTING") for family in Family]
    return any(f"-j {_DISPATCH_CHAIN}" in text for text in texts)


async def _output(family: Family, variant: Variant, table: str, *arguments: str, verb: str = "") -> str:
    """Return what a reading program prints; nothing where it cannot say."""
    # Asking the legacy programs for a table creates it, and an empty table still costs every packet.
    # The nft programs create nothing when they read (1.8.9, tried).
    if variant is Variant.LEGACY and table not in legacy_tables(family):
        return ""
    try:
        return (await run([program(family, variant, verb), *arguments])).stdout
    except ApplyError as error:
        logger.debug("%s", error)
        return ""


def legacy_tables(family: Family) -> set[str]:
    """Return the names of the legacy tables that exist in this network namespace."""
    try:
        return set(_LEGACY_TABLES[family].read_text().split())
    except OSError:
        return set()


async def _variant_on_path(otherwise: Variant) -> tuple[Variant, str]:
    try:
        version = (await run(["iptables", "--version"])).stdout.strip()
    except ApplyError:
        return otherwise, "there is no iptables on PATH"
    variant = Variant.NFT if "nf_tables" in version else Variant.LEGACY
    return variant, f"the iptables on PATH is {version}"
