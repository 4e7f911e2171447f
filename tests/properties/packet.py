"""What becomes of a packet, as the oracle says it, and what an interpreter of rules finds, in the same words."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

from pyproxy.backends import explanation
from pyproxy.backends.explanation import Host, Packet
from pyproxy.backends.iptables.explain import Ruleset, paths
from pyproxy.model.endpoint import Endpoint
from tests.fakes.tables import Tables


class Fate(Enum):
    """How it ends."""

    ARRIVES = "arrives"
    REJECTED = "rejected"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One way that a packet can go."""

    fate: Fate
    endpoint: Endpoint | None = None
    """Where its destination was changed to; None: it was not. Only of a packet that arrives."""
    is_masqueraded: bool = False


_FATES = {
    explanation.Fate.FORWARDED: Fate.ARRIVES,
    explanation.Fate.UNCHANGED: Fate.ARRIVES,
    explanation.Fate.REJECTED: Fate.REJECTED,
    explanation.Fate.DROPPED: Fate.DROPPED,
}


def outcomes(
    tables: Tables, host: Host, packet: Packet, pins: Collection[str] = frozenset()
) -> dict[Outcome, Fraction]:
    """Return every way that a packet can go through rules of iptables, with its probability."""
    return outcomes_of(paths(Ruleset(tables.chains), packet, host, pins))


def outcomes_of(found: Iterable[explanation.Path]) -> dict[Outcome, Fraction]:
    """Return what an interpreter has found, and require that it could evaluate every rule."""
    ways: dict[Outcome, Fraction] = {}
    for path in found:
        assert path.is_certain, path
        outcome = Outcome(_FATES[path.fate], path.endpoint, path.is_masqueraded)
        ways[outcome] = ways.get(outcome, Fraction(0)) + path.share
    return ways
