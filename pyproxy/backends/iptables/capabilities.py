"""Probes: which rules this kernel accepts, found by adding a rule and removing it again.

A table of kernel versions would not do, because distributions backport features. A probe writes to the kernel twice, and a
restart on an unchanged cluster must write nothing, so callers first look for the rule in the kernel: if it is there, it
is supported.

``--random-fully`` is not probed: it came with iptables 1.6.2 and Linux 3.14, and the programs that we run got their
names (iptables-legacy, iptables-nft) with iptables 1.8.0.
"""

from pyproxy.backends.interface import Unsupported
from pyproxy.backends.iptables.kernel import RestoreError, restore
from pyproxy.backends.iptables.legacy_entries import legacy_tables
from pyproxy.backends.iptables.ruleset import FILTER, ChainKey
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import LOCK_WAIT_SECONDS, Variant, program
from pyproxy.model.address import Family

PROBE_CHAIN = "PYPROXY-PROBE"
"""The chain for the rule. No rule jumps to it, so no packet reaches it; it exists during a probe only."""


async def chain_rules(family: Family, variant: Variant, key: ChainKey) -> str:
    """Return the rules of one chain as ``iptables-save`` prints them; an empty text if it does not exist."""
    # The programs of the legacy variant create a table that they look at, and then every packet passes it.
    if variant is Variant.LEGACY and key.table not in legacy_tables(family):
        return ""
    argv = [program(family, variant), "--wait", str(LOCK_WAIT_SECONDS), "-t", key.table, "-S", key.chain]
    return (await run(argv)).stdout


async def probe_rule(family: Family, variant: Variant, rule: str) -> Unsupported | None:
    """Try a rule such as ``-m bpf --bytecode … -j RETURN``, and remove it; None: the kernel accepted it.

    Raises:
        ApplyError: the rule could not be tried, so it is not known whether it is supported.
    """
    # Two transactions: iptables-nft-restore does not even send a rule that the same input removes again (1.8.9).
    chain = f"*{FILTER}\n:{PROBE_CHAIN} - [0:0]\n"
    try:
        await restore(family, variant, f"{chain}-A {PROBE_CHAIN} {rule}\nCOMMIT\n")
    except RestoreError as error:
        # Only the legacy variant has a lock that can be busy. iptables-nft exits with the same status (4) for every error
        # of the kernel, so there it does not mean that the rule may be accepted later.
        if error.retryable and variant is Variant.LEGACY:
            raise
        return Unsupported(str(error))
    await restore(family, variant, f"{chain}-X {PROBE_CHAIN}\nCOMMIT\n")
    return None
