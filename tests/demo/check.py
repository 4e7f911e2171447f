"""The checks of the demo: requests, expected answers, and their comparison.

Pure: nothing is sent or printed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tests.lab import IPAddress, Outcome, Probe, Verdict

Answers: TypeAlias = Counter[str]
"""The number of requests by result, each in a few words."""
Summary: TypeAlias = Callable[[Outcome], str]
"""The relevant part of an answer, in a few words; outcomes with the same summary are counted together."""

LEAST_SHARE = 0.5
"""Fraction of a fair share of the requests; with 100 for 2 pods, or 400 for 4, at least five standard deviations below."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected answers of a check."""

    words: str
    is_met: Callable[[Answers], bool]
    summary: Summary = lambda outcome: outcome.server or str(outcome)


@dataclass(frozen=True, slots=True)
class Check:
    """Requests of one kind from one host."""

    client: str
    """The name of the host in the lab."""
    probe: Probe
    expected: Expectation
    requests: int = 1
    one_by_one: bool = False
    """Whether each request waits for the answer to the previous one; otherwise all are sent concurrently."""

    @property
    def sent(self) -> str:
        """The requests, in a few words."""
        times = f"{self.requests} x " if self.requests > 1 else ""
        return f"{times}{self.probe.protocol.value} {self.probe.to}"

    def judge(self, outcomes: Iterable[Outcome]) -> Result:
        """Compare the answers with the expectation."""
        answers = Counter(map(self.expected.summary, outcomes))
        return Result(self.client, self.sent, self.expected.words, describe(answers), self.expected.is_met(answers))


@dataclass(frozen=True, slots=True)
class Result:
    """A line of the table."""

    client: str
    sent: str
    expected: str
    answered: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Section:
    """The checks of one feature."""

    title: str
    example: str
    """The name of the file in `examples/`."""
    law: str
    """A sentence about the feature."""
    checks: Sequence[Check]


def spread(*servers: str) -> Expectation:
    """Expect answers from all of these servers, each with its share."""
    expected = frozenset(servers)

    def is_met(answers: Answers) -> bool:
        least = LEAST_SHARE * answers.total() / len(expected)
        return answers.keys() == expected and all(count >= least for count in answers.values())

    return Expectation(f"evenly over {len(expected)} pods", is_met)


def any_of(*servers: str) -> Expectation:
    """Expect answers only from these servers."""
    words = servers[0] if len(servers) == 1 else f"any of {len(servers)} pods"
    return Expectation(words, lambda answers: answers.keys() <= {*servers})


def one_of(*servers: str) -> Expectation:
    """Expect that all answers come from the same one of these servers."""
    return Expectation("always the same pod", lambda answers: len(answers) == 1 and answers.keys() <= {*servers})


def seen_by(client: IPAddress, *servers: str) -> Expectation:
    """Expect an answer from one of these servers that sees this client address."""
    summaries = {f"{server} sees {client}" for server in servers}
    server = servers[0] if len(servers) == 1 else "a pod"
    return Expectation(f"{server} sees {client}", lambda answers: answers.keys() <= summaries, sees)


def reached_at(*places: str) -> Expectation:
    """Expect answers from all of these servers, each written as server:port."""
    return Expectation(", ".join(places), lambda answers: answers.keys() == {*places}, place)


def refused() -> Expectation:
    """Expect a refusal within the time-out of the probe."""
    return Expectation("refused at once", _all_begin_with(Verdict.REFUSED))


def dropped() -> Expectation:
    """Expect no answer."""
    return Expectation("dropped: no answer", _all_begin_with(Verdict.TIMEOUT))


def sees(outcome: Outcome) -> str:
    """Return the server that answered, and the client address that it sees."""
    return f"{outcome.server} sees {outcome.client_ip}" if outcome.identity else str(outcome)


def place(outcome: Outcome) -> str:
    """Return the server that answered, and its port."""
    return f"{outcome.server}:{outcome.identity.reached.port}" if outcome.identity else str(outcome)


def describe(answers: Answers) -> str:
    """Describe the answers in a few words; different answers are listed with their counts."""
    if len(answers) == 1:
        return next(iter(answers))
    return ", ".join(f"{summary} {count}" for summary, count in sorted(answers.items()))


def _all_begin_with(verdict: Verdict) -> Callable[[Answers], bool]:
    return lambda answers: all(summary.startswith(verdict.value) for summary in answers)
