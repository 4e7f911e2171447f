"""What the rules of one family depend on in every mode."""

from dataclasses import dataclass

from pyproxy.model.address import Family
from pyproxy.model.node import LocalTraffic


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilySettings:
    """What is the same in every mode; each mode adds its own."""

    family: Family
    masquerade_mark: int = 0x4000
    """The bit of the packet mark that says: masquerade this packet."""
    masquerade_all: bool = False
    """Masquerade all traffic to cluster IPs, wherever it comes from."""
    local_traffic: LocalTraffic | None = None
    """How to tell a pod's packet; None: nothing is known to be a pod's."""

    @property
    def mark(self) -> str:
        """Return the mark as value and mask."""
        return f"{self.masquerade_mark:#x}/{self.masquerade_mark:#x}"
