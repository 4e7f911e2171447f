"""What packets meet in both labs, and where that differs.

Law: what a packet may meet is a set of words, and two proxies agree on it if the sets are equal. Silence counts only
if it is there again with a patience that no busy machine exceeds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tests.lab import Outcome, Probe, Verdict, probe_all

from .packets import Packet
from .pair import Pair

Answers: TypeAlias = frozenset[str]
Both: TypeAlias = tuple[Outcome, Outcome]
"""What one probe met: with kube-proxy, and with pyproxy."""

LOUD_BATCH = 150
"""Probes at once in each lab where answers are expected: a server takes as many, even if all are for it."""
SILENT_BATCH = 1500
"""Probes at once in each lab that nobody is expected to answer: each batch waits once."""
PATIENCE_SECONDS = 4.0
NOT_STICKY = "servers that change from one connection of a client to the next"
_SILENT = {Verdict.TIMEOUT, Verdict.UNREACHABLE}


@dataclass(frozen=True, slots=True)
class Fate:
    """What may become of a packet on both sides."""

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


def fates(pair: Pair, packets: Sequence[Packet]) -> list[Fate]:
    """Send all packets in both labs, as often as each needs, and return what became of them."""
    found = [*_fates_of_plain(pair, [packet for packet in packets if not packet.is_sticky])]
    found += [_fate_of_sticky(pair, packet) for packet in packets if packet.is_sticky]
    return [fate if fate.is_equal else _with_patience(pair, fate) for fate in found]


def _fates_of_plain(pair: Pair, packets: Sequence[Packet]) -> Iterator[Fate]:
    probes = {packet: packet.probes() for packet in packets}
    first = _send(pair, [(packet, probes[packet][0]) for packet in packets], LOUD_BATCH)
    met = {packet: [both] for packet, both in zip(packets, first, strict=True)}
    loud = [packet for packet in packets if not any(outcome.verdict in _SILENT for outcome in met[packet][0])]
    silent = [packet for packet in packets if packet not in loud]
    for group, batch in ((loud, LOUD_BATCH), (silent, SILENT_BATCH)):
        more = [(packet, probe) for packet in group for probe in probes[packet][1:]]
        for (packet, _), both in zip(more, _send(pair, more, batch), strict=True):
            met[packet].append(both)
    yield from (_fate(packet, probes[packet], met[packet]) for packet in packets)


def _fate_of_sticky(pair: Pair, packet: Packet) -> Fate:
    """Send each client's packet twice: the second shall meet whom the first met."""
    pair.forget_clients()
    probes = packet.probes()
    flows = [(packet, probe) for probe in probes]
    first, second = (_send(pair, flows, LOUD_BATCH) for _ in range(2))
    fate = _fate(packet, probes, first)
    changed = [
        any(before.server != after.server for before, after in zip(*both, strict=True))
        for both in zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    ]
    kube_proxy, pyproxy = (frozenset({NOT_STICKY} if is_changed else ()) for is_changed in changed)
    return Fate(packet, fate.kube_proxy | kube_proxy, fate.pyproxy | pyproxy)


def _with_patience(pair: Pair, fate: Fate) -> Fate:
    """Send a packet again and wait for as long as it takes; only the silence of now counts."""
    probes = [replace(probe, timeout_seconds=PATIENCE_SECONDS) for probe in fate.packet.probes()]
    again = _fate(fate.packet, probes, _send(pair, [(fate.packet, probe) for probe in probes], LOUD_BATCH))
    return Fate(
        fate.packet,
        again.kube_proxy | _without_silence(fate.kube_proxy),
        again.pyproxy | _without_silence(fate.pyproxy),
    )


def _without_silence(answers: Answers) -> Answers:
    silent = tuple(verdict.value for verdict in _SILENT)
    return frozenset(answer for answer in answers if not answer.startswith(silent))


def _fate(packet: Packet, probes: Sequence[Probe], met: Iterable[Both]) -> Fate:
    words = [
        (_in_words(probe, kube_proxy), _in_words(probe, pyproxy))
        for probe, (kube_proxy, pyproxy) in zip(probes, met, strict=True)
    ]
    return Fate(packet, *(frozenset(column) for column in zip(*words, strict=True)))


def _in_words(probe: Probe, outcome: Outcome) -> str:
    if outcome.identity is None:
        return str(outcome)
    seen = "itself" if outcome.client_ip == probe.source else outcome.client_ip
    return f"{outcome.server} at {outcome.reached} sees {seen}"


def _send(pair: Pair, flows: Sequence[tuple[Packet, Probe]], batch: int) -> list[Both]:
    found: list[Both] = []
    for start in range(0, len(flows), batch):
        part = flows[start : start + batch]
        outcomes = probe_all([(side.lab[packet.source.host], probe) for side in pair.sides for packet, probe in part])
        found += zip(outcomes[: len(part)], outcomes[len(part) :], strict=True)
    return found
