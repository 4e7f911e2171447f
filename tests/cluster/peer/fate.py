"""The possible results of a packet on both sides, as comparable strings."""

from dataclasses import dataclass
from typing import TypeAlias

from .packets import Packet

Answers: TypeAlias = frozenset[str]


@dataclass(frozen=True, slots=True)
class Fate:
    """The possible results of a packet with kube-proxy, and with pyproxy."""

    packet: Packet
    kube_proxy: Answers
    pyproxy: Answers

    @property
    def is_equal(self) -> bool:
        """Return whether both sides agree."""
        return self.kube_proxy == self.pyproxy

    def __str__(self) -> str:
        """Return a readable description."""
        lines = [str(self.packet)]
        for name, answers in (("kube-proxy", self.kube_proxy), ("pyproxy", self.pyproxy)):
            lines += [f"    {name:10} {answer}" for answer in sorted(answers)]
        return "\n".join(lines)
