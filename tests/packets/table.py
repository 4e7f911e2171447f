"""Packet tables: rows of text with the source of a packet, its destination, and the expected result.

    client-pod   web:80/tcp              pod1-1 pod2-1     itself
    outside1     node2:30080/udp         pod2-1:9090       node2
    outside1     public7:80/tcp          refused

Columns are separated by two or more spaces: source; destination (a Service by name, a host, ``host'`` for its second
address, ``publicN``, or an address) with port and protocol; answers; and the source address that the servers see. The
port of a server is `PORT` unless given. The source ``host@publicN`` binds to that address. In place of servers a row
may have one of these words:

    refused     ICMP port unreachable
    reset       a TCP reset
    dropped     no answer
    untouched   not translated: the packet went on to an address that no host has
    unserved    for a cluster IP, but not a port of its Service: the mode decides which of the above
    unclaimed   for an external address of a Service, but not a port of it: the mode decides which of the above

A row with several servers means that each of them answers some of the packets. This module is pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from math import ceil, log

import pytest

from tests.lab import IPAddress, Outcome, Probe, Protocol, RefusedBy, SocketAddress, Verdict
from tests.lab.shape import ExternalHostPlan, NodePlan

from .objects import ADDRESSES, NODE_OF, PLAN, PORT, VERSIONS, JsonObject, node_plan, public

SILENCE_SECONDS = 0.25
"""Time-out where no answer is expected: the slowest answers in the lab take a few milliseconds."""
_MISS = 1e-9
"""Upper limit of the probability that a row with several servers fails although all of them are used."""
_DESTINATION = re.compile(r"(?P<name>.+):(?P<port>\d+)/(?P<protocol>tcp|udp|sctp)")
_REFUSALS = {
    "refused": Outcome(Verdict.REFUSED, refused_by=RefusedBy.PORT_UNREACHABLE, error="ECONNREFUSED"),
    "reset": Outcome(Verdict.REFUSED, refused_by=RefusedBy.RESET, error="ECONNREFUSED"),
    "dropped": Outcome(Verdict.TIMEOUT),
}
"""Answers that come from no server."""
_UNTOUCHED = "untouched"
_MAY_BE_UNTOUCHED = {(_UNTOUCHED,), ("unserved",), ("unclaimed",)}
_RESULTS_OF_UNTOUCHED = {"timeout", "unreachable (ENETUNREACH)"}
"""Results for an address that no host has: in IPv6 the lab's router sends an error to hosts that it has a route to."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table, in one IP version."""

    text: str
    version: int
    source: str
    source_ip: IPAddress | None
    """The source address; None if the route chooses it."""
    protocol: Protocol
    to: SocketAddress
    answers: tuple[str, ...]
    seen_as: str
    table: list[Row] = field(compare=False, repr=False)
    """All rows of the same table, including this one."""

    def probes(self) -> list[Probe]:
        """Return enough probes to reach every server."""
        count = len(self.answers)
        needed = 1 if count == 1 else ceil(log(_MISS / count) / log(1 - 1 / count))
        timeout = SILENCE_SECONDS if self.answers in {("dropped",), *_MAY_BE_UNTOUCHED} else None
        return [Probe(self.protocol, self.to, source=self.source_ip, timeout_seconds=timeout)] * needed

    def expected(self, **chosen: str) -> set[str]:
        """Return the expected results, each of which occurs; `chosen` are the words that the mode decides."""
        return {self._expected(chosen.get(answer, answer)) for answer in self.answers}

    def observed(self, outcomes: Iterable[Outcome]) -> set[str]:
        """Return the results of probes, in the same words."""
        words = {in_words(outcome) for outcome in outcomes}
        return {_UNTOUCHED} if self.answers in _MAY_BE_UNTOUCHED and words <= _RESULTS_OF_UNTOUCHED else words

    def _expected(self, answer: str) -> str:
        if answer == _UNTOUCHED:
            return answer
        if answer in _REFUSALS:
            return str(_REFUSALS[answer])
        server, _, number = answer.partition(":")
        reached = SocketAddress(address_of(server, self.version), int(number or PORT))
        return f"{server} at {reached} sees {self._seen_address(server)}"

    def _seen_address(self, server: str) -> IPAddress:
        if self.seen_as == "itself":
            return self.source_ip or address_of(self.source, self.version)
        if NODE_OF.get(server) == self.seen_as != server:
            # A node connects to its own pods from its address on the pod bridge.
            return node_plan(self.seen_as).gateways[VERSIONS.index(self.version)]
        return address_of(self.seen_as, self.version)


def in_words(outcome: Outcome) -> str:
    """Return the result of a probe in words, without the client's port, which is arbitrary."""
    if outcome.identity:
        return f"{outcome.server} at {outcome.reached} sees {outcome.client_ip}"
    return str(outcome)


def address_of(name: str, version: int) -> IPAddress:
    """Return the address of a host in an IP version, the second one of ``host'``, or that of ``publicN``."""
    index = VERSIONS.index(version)
    if number := re.fullmatch(r"public(\d+)", name):
        return ip_address(public(int(number[1]))[index])
    if name.endswith("'"):
        hosts: tuple[NodePlan | ExternalHostPlan, ...] = (*PLAN.nodes, *PLAN.external_hosts)
        return next(host.second_addresses[index] for host in hosts if f"{host.name}'" == name)
    return ip_address(ADDRESSES[name][index])


def rows(table: str, objects: Sequence[JsonObject] = (), versions: Sequence[int] = VERSIONS) -> pytest.MarkDecorator:
    """Return the table as parameters of a test: each row in each IP version; a literal address only in its own."""
    services = {item["metadata"]["name"]: item["spec"] for item in objects if item["kind"] == "Service"}
    lines = [line.strip() for line in table.splitlines() if line.strip()]
    parsed: list[Row] = []
    for line in lines:
        parsed += (row for version in versions if (row := _row(line, version, services, parsed)))
    return pytest.mark.parametrize("row", [pytest.param(row, id=_id(row)) for row in parsed])


def _row(line: str, version: int, services: Mapping[str, JsonObject], table: list[Row]) -> Row | None:
    source, destination, answers, *rest = re.split(r"\s{2,}", line)
    found = _DESTINATION.fullmatch(destination)
    if not found:
        message = f"not HOST:PORT/PROTOCOL: {destination!r}"
        raise ValueError(message)
    ip = _destination(found["name"], version, services)
    host, _, bound = source.partition("@")
    if ip is None:
        return None
    return Row(
        text=line,
        version=version,
        source=host,
        source_ip=address_of(bound, version) if bound else None,
        protocol=Protocol(found["protocol"].upper()),
        to=SocketAddress(ip, int(found["port"])),
        answers=tuple(answers.split()),
        seen_as=rest[0] if rest else "",
        table=table,
    )


def _destination(name: str, version: int, services: Mapping[str, JsonObject]) -> IPAddress | None:
    if name in services:
        return ip_address(services[name]["clusterIPs"][VERSIONS.index(version)])
    try:
        ip = ip_address(name.strip("[]"))
    except ValueError:
        return address_of(name, version)
    return ip if ip.version == version else None


def _id(row: Row) -> str:
    return f"IPv{row.version}-{' '.join(row.text.split())}"
