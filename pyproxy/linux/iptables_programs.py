"""Names of the iptables programs: two variants, each for two families."""

import shutil
from enum import Enum

from pyproxy.model.address import Family

LOCK_WAIT_SECONDS = 5
# Exit status for a resource problem (iptables(8)); a busy xtables lock is one.
STATUS_RESOURCE_PROBLEM = 4


class Variant(Enum):
    """The two implementations of iptables; the value is the infix of the program names."""

    LEGACY = "legacy"
    NFT = "nft"


def program(family: Family, variant: Variant, verb: str = "") -> str:
    """Return the name of a program, such as ``ip6tables-legacy-restore``."""
    stem = "iptables" if family is Family.IPV4 else "ip6tables"
    return f"{stem}-{variant.value}{'-' if verb else ''}{verb}"


def is_available(family: Family, variant: Variant) -> bool:
    """Return whether the programs of a variant are installed."""
    return shutil.which(program(family, variant, "restore")) is not None
