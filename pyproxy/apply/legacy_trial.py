"""Tries a rule in a legacy table by python-iptables: ``python -m pyproxy.apply.legacy_trial IPV4 RULE SECONDS``.

Prints why the rule is refused, nothing where it is taken. Everything happens under one lock, which is waited for
so many seconds, and the table is afterwards what it was.
"""

import sys

from pyproxy.apply.legacy_tables import open_tables
from pyproxy.errors import ApplyError
from pyproxy.model.address import Family
from pyproxy.model.ruleset import FILTER

PROBE_CHAIN = "PYPROXY-PROBE"
"""No rule jumps to it, so what stands in it meets no packet. It is there for the length of a trial only."""
BUSY = 75
"""Exit status (EX_TEMPFAIL): nothing was tried, another time it may be."""
_CANNOT = 69
"""Exit status (EX_UNAVAILABLE): python-iptables cannot be used here."""


def _why_refused(family: Family, rule: str, lock_wait_seconds: float) -> str:
    with open_tables(family, (FILTER,), lock_wait_seconds=lock_wait_seconds) as tables:
        table = tables[FILTER]
        if PROBE_CHAIN in table.chains():  # of a trial that was killed
            table.delete_chains((PROBE_CHAIN,))
        try:
            table.create_chain(PROBE_CHAIN)
            table.append_rule(PROBE_CHAIN, rule)
            table.commit()
        except ApplyError as error:
            if error.retryable:
                raise
            return str(error)
        table.delete_chains((PROBE_CHAIN,))
        table.commit()
    return ""


def main(family: str, rule: str, lock_wait_seconds: str) -> int:
    """Try a rule and return the exit status."""
    try:
        sys.stdout.write(_why_refused(Family[family], rule, float(lock_wait_seconds)))
    except ApplyError as error:
        sys.stderr.write(str(error))
        return BUSY if error.retryable else _CANNOT
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
