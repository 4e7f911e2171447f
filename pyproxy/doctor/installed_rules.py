"""Finds the proxies that have rules in the kernel, by the names of tables and chains. Rules of Services are not read."""

import shutil
from itertools import product

from pyproxy.backends import kube_proxy
from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.reader import chains_and_jumps
from pyproxy.backends.iptables.ruleset import MANGLE, NAT
from pyproxy.backends.iptables.variant import KUBELET_HINTS
from pyproxy.backends.ipvs.static_rules import is_ours_alone
from pyproxy.config.config import ProxyMode
from pyproxy.doctor.inputs import KUBE_PROXY, PYPROXY, InstalledRules, RuleSet
from pyproxy.errors import ApplyError
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family

_TABLES = {"pyproxy": PYPROXY, kube_proxy.NFT_TABLE: KUBE_PROXY}
# Only kube-proxy's IPVS mode has it.
_KUBE_PROXY_IPVS_CHAIN = "KUBE-LOAD-BALANCER"


async def find_installed_rules() -> InstalledRules:
    """Return what is in the kernel; an error is part of the result."""
    found: set[RuleSet] = set()
    kubelet: set[Variant] = set()
    try:
        for variant, family in product(Variant, Family):
            nat, jumps = chains_and_jumps(family, variant, NAT, "PREROUTING")
            mangle, _ = chains_and_jumps(family, variant, MANGLE, "PREROUTING")
            if names.CANARY in nat:
                is_ipvs = any(is_ours_alone(MANGLE, chain) for chain in mangle)
                mode = ProxyMode.IPVS if is_ipvs else ProxyMode.IPTABLES
                found.add(RuleSet(PYPROXY, mode.value, variant.value))
            # A takeover removes the marker chains of kube-proxy, and nothing but a clean-up removes ours. So kube-proxy wrote
            # last if both are there.
            if _KUBE_PROXY_IPVS_CHAIN in nat:
                found.add(RuleSet(KUBE_PROXY, ProxyMode.IPVS.value, variant.value))
            elif names.KUBE_PROXY_CANARY in nat or (names.CANARY not in nat and names.SERVICES in jumps):
                found.add(RuleSet(KUBE_PROXY, ProxyMode.IPTABLES.value, variant.value))
            if not set(mangle).isdisjoint(KUBELET_HINTS):
                kubelet.add(variant)
        if shutil.which("nft"):
            for line in (await run(["nft", "list", "tables"])).stdout.splitlines():
                _, family_name, table = line.split()
                if family_name in ("ip", "ip6") and table in _TABLES:
                    found.add(RuleSet(_TABLES[table], ProxyMode.NFTABLES.value))
    except (ApplyError, OSError) as error:
        return InstalledRules(error=str(error))
    return InstalledRules(tuple(sorted(found)), tuple(each for each in Variant if each in kubelet))
