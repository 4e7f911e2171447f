"""What this kernel takes, found by giving it a rule and taking it back; no table of versions knows backports.

A trial is two writes to the kernel, and a restart on an unchanged cluster must make none. So a caller
first looks whether the rule is in the kernel already: that is an answer too.

``--random-fully`` is not tried: it came with iptables 1.6.2 and Linux 3.14, and the programs that we run got their
names (iptables-legacy, iptables-nft) with 1.8.0.
"""

from pyproxy.backends.interface import Unsupported
from pyproxy.backends.iptables.kernel import RestoreError, restore
from pyproxy.backends.iptables.ruleset import FILTER, ChainKey
from pyproxy.backends.iptables.variant import legacy_tables
from pyproxy.linux.command import run
from pyproxy.linux.iptables_programs import Variant, program
from pyproxy.model.address import Family

PROBE_CHAIN = "PYPROXY-PROBE"
"""No rule jumps to it, so what stands in it meets no packet. It is there for the length of a trial only."""
_LOCK_WAIT_SECONDS = 5


async def chain_rules(family: Family, variant: Variant, key: ChainKey) -> str:
    """Return the rules of one chain as ``iptables-save`` writes them; nothing where it does not exist."""
    # The programs of the legacy variant would create the table.
    if variant is Variant.LEGACY and key.table not in legacy_tables(family):
        return ""
    argv = [program(family, variant), "--wait", str(_LOCK_WAIT_SECONDS), "-t", key.table, "-S", key.chain]
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
        # The nft variant has no lock, and says of every refusal that it may pass.
        if error.retryable and variant is Variant.LEGACY:
            raise
        return Unsupported(str(error))
    await restore(family, variant, f"{chain}-X {PROBE_CHAIN}\nCOMMIT\n")
    return None
