"""The results of packets in both labs, and their differences.

The possible results of a packet are a set of strings, and two proxies agree if the sets are equal. A time-out counts
only if it is confirmed with a longer time-out, which is enough for any busy machine.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeAlias

from tests.lab import Outcome, Probe, Protocol, Verdict, probe_all

from .fate import Answers, Fate
from .objects import Entry, JsonObject
from .packets import Packet
from .pair import Pair

Both: TypeAlias = tuple[Outcome, Outcome]
"""The results of one probe, with kube-proxy and with pyproxy."""

SILENT_BURSTS = 3
"""How many bursts are sent as one if few answers are expected."""
_SCTP_WEIGHT = 4
"""The weight of an SCTP probe: a host delivers each packet to all its raw sockets."""
PATIENCE_SECONDS = 4.0
NOT_STICKY = "different servers for two connections of a client"
_SILENT = {Verdict.TIMEOUT, Verdict.UNREACHABLE}


def fates(pair: Pair, packets: Sequence[Packet]) -> list[Fate]:
    """Send all packets in both labs, each as often as it needs, and return their fates."""
    found = [*_fates_of_plain(pair, [packet for packet in packets if not packet.is_sticky])]
    found += _fates_of_sticky(pair, [packet for packet in packets if packet.is_sticky])
    return [*_with_patience(pair, found)]


def divergences(pair: Pair, created: Sequence[tuple[Entry, JsonObject]], packets: Sequence[Packet]) -> list[str]:
    """Send all packets and return the unexpected differences, each with the objects involved."""
    objects = {item.name: [service["spec"], *item.slices] for item, service in created}
    different = [fate for fate in fates(pair, packets) if not fate.is_equal]
    return [f"{fate}\n{json.dumps(objects[fate.packet.destination.service])}" for fate in different]


def _fates_of_plain(pair: Pair, packets: Sequence[Packet]) -> Iterator[Fate]:
    """Send each packet once, then repeat packets grouped by result, so that time-outs are waited for only once."""
    probes = {packet: packet.probes() for packet in packets}
    first = _send(pair, [(packet, probes[packet][0]) for packet in packets])
    met = {packet: [both] for packet, both in zip(packets, first, strict=True)}
    silent = {packet for packet in packets if any(outcome.verdict in _SILENT for outcome in met[packet][0])}
    for group, bursts in ((silent, SILENT_BURSTS), ({*packets} - silent, 1)):
        flows = [(packet, probe) for packet in packets if packet in group for probe in probes[packet][1:]]
        for (packet, _), both in zip(flows, _send(pair, flows, bursts), strict=True):
            met[packet].append(both)
    yield from (_fate(packet, zip(probes[packet], met[packet], strict=True)) for packet in packets)


def _fates_of_sticky(pair: Pair, packets: Sequence[Packet]) -> Iterator[Fate]:
    """Send each client's packet twice: the second should reach the same server as the first."""
    while packets:
        # A client has one affinity entry for all destinations of a Service, so they are tested one after the other.
        now = [*{_pins(packet): packet for packet in packets}.values()]
        packets = [packet for packet in packets if packet not in now]
        pair.forget_clients()
        flows = [(packet, probe) for packet in now for probe in packet.probes()]
        first, second = (_send(pair, flows) for _ in range(2))
        for packet in now:
            places = [place for place, (other, _) in enumerate(flows) if other is packet]
            yield _fate_of_clients(packet, [(flows[at][1], first[at], second[at]) for at in places])


def _pins(packet: Packet) -> tuple[object, ...]:
    to = packet.destination
    return packet.source, to.service, to.protocol, to.version


def _fate_of_clients(packet: Packet, met: Sequence[tuple[Probe, Both, Both]]) -> Fate:
    fate = _fate(packet, [(probe, first) for probe, first, _ in met])
    kube_proxy, pyproxy = (
        frozenset({NOT_STICKY} if any(_is_another(first[at], second[at]) for _, first, second in met) else ())
        for at in range(2)
    )
    return Fate(packet, fate.kube_proxy | kube_proxy, fate.pyproxy | pyproxy)


def _is_another(first: Outcome, second: Outcome) -> bool:
    return first.server != second.server and not {first.verdict, second.verdict} & _SILENT


def _with_patience(pair: Pair, found: Sequence[Fate]) -> Iterator[Fate]:
    """Repeat packets with differences and a long time-out; only time-outs of this repetition count."""
    doubtful = [fate.packet for fate in found if not fate.is_equal]
    flows = [
        (packet, replace(probe, timeout_seconds=PATIENCE_SECONDS)) for packet in doubtful for probe in packet.probes()
    ]
    met: dict[Packet, list[tuple[Probe, Both]]] = {packet: [] for packet in doubtful}
    for (packet, probe), both in zip(flows, _send(pair, flows), strict=True):
        met[packet].append((probe, both))
    for fate in found:
        yield _with_timeouts_of(_fate(fate.packet, met[fate.packet]), fate) if fate.packet in met else fate


def _with_timeouts_of(again: Fate, fate: Fate) -> Fate:
    return Fate(
        fate.packet,
        again.kube_proxy | _without_timeouts(fate.kube_proxy),
        again.pyproxy | _without_timeouts(fate.pyproxy),
    )


def _without_timeouts(answers: Answers) -> Answers:
    silent = tuple(verdict.value for verdict in _SILENT)
    return frozenset(answer for answer in answers if not answer.startswith(silent))


def _fate(packet: Packet, met: Iterable[tuple[Probe, Both]]) -> Fate:
    words = [(_in_words(probe, kube_proxy), _in_words(probe, pyproxy)) for probe, (kube_proxy, pyproxy) in met]
    return Fate(packet, *(frozenset(column) for column in zip(*words, strict=True)))


def _in_words(probe: Probe, outcome: Outcome) -> str:
    if outcome.identity is None:
        return str(outcome)
    seen = "itself" if outcome.client_ip == probe.source else outcome.client_ip
    return f"{outcome.server} at {outcome.reached} sees {seen}"


def _send(pair: Pair, flows: Sequence[tuple[Packet, Probe]], bursts: int = 1) -> list[Both]:
    found: list[Both] = []
    for part in _batches(flows, bursts * pair.mode.pace.burst):
        outcomes = probe_all([(side.lab[packet.source.host], probe) for side in pair.sides for packet, probe in part])
        found += zip(outcomes[: len(part)], outcomes[len(part) :], strict=True)
    return found


def _batches(flows: Sequence[tuple[Packet, Probe]], most: int) -> Iterator[list[tuple[Packet, Probe]]]:
    part: list[tuple[Packet, Probe]] = []
    weight = 0
    for flow in flows:
        part.append(flow)
        weight += _SCTP_WEIGHT if flow[1].protocol is Protocol.SCTP else 1
        if weight >= most:
            yield part
            part, weight = [], 0
    if part:
        yield part
