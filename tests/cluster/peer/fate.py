"""What may become of a packet on both sides, in words that can be compared."""

from dataclasses import dataclass
from typing import TypeAlias

from .packets import Packet

Answers: TypeAlias = frozenset[str]


@dataclass(frozen=True, slots=True)
class Fate:
    """What may become of a packet with kube-proxy, and what with pyproxy."""

    packet: Packet
    kube_proxy: Answers
    pyproxy: Answers

    @property
    def is_equal(self) -> bool:
        """Say whether both sides agree."""
        return self.kube_proxy == self.pyproxy

    def __str__(self) -> str:
        """Write it for a person."""
        lines = [str(self.packet)]
        for name, answers in (("kube-proxy", self.kube_proxy), ("pyproxy", self.pyproxy)):
            lines += [f"    {name:10} {answer}" for answer in sorted(answers)]
        return "\n".join(lines)
