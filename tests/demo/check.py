"""What is sent, what shall come back, and whether it did.

Law: values and judgement only; nothing is sent and nothing printed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tests.lab import IPAddress, Outcome, Probe, Verdict

Answers: TypeAlias = Counter[str]
"""How many requests met the same, by what they met in a few words."""
Face: TypeAlias = Callable[[Outcome], str]
"""What counts of an answer, in a few words; outcomes with the same face are counted together."""

LEAST_SHARE = 0.5
"""Of a fair share of the requests; with 100 for 2 pods, or 400 for 4, five standard deviations below it or more."""


@dataclass(frozen=True, slots=True)
class Expectation:
    """What the answers to a check shall be."""

    words: str
    is_met: Callable[[Answers], bool]
    face: Face = lambda outcome: outcome.server or str(outcome)


@dataclass(frozen=True, slots=True)
class Check:
    """Requests of one kind from one host."""

    client: str
    """The name of the host in the lab."""
    probe: Probe
    expected: Expectation
    requests: int = 1
    one_by_one: bool = False
    """Send each request when the one before is answered; otherwise all are sent at once."""

    @property
    def sent(self) -> str:
        """What is sent, in a few words."""
        times = f"{self.requests} x " if self.requests > 1 else ""
        return f"{times}{self.probe.protocol.value} {self.probe.to}"

    def judge(self, outcomes: Iterable[Outcome]) -> Result:
        """Compare what came back with what was expected."""
        answers = Counter(map(self.expected.face, outcomes))
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
    """What the feature is, in a sentence."""
    checks: Sequence[Check]


def spread(*servers: str) -> Expectation:
    """Expect answers from all of these, each with its share."""
    expected = frozenset(servers)

    def is_met(answers: Answers) -> bool:
        least = LEAST_SHARE * answers.total() / len(expected)
        return answers.keys() == expected and all(count >= least for count in answers.values())

    return Expectation(f"evenly over {len(expected)} pods", is_met)


def any_of(*servers: str) -> Expectation:
    """Expect answers from no others than these."""
    words = servers[0] if len(servers) == 1 else f"any of {len(servers)} pods"
    return Expectation(words, lambda answers: answers.keys() <= {*servers})


def one_of(*servers: str) -> Expectation:
    """Expect that one of these answers, and always the same."""
    return Expectation("always the same pod", lambda answers: len(answers) == 1 and answers.keys() <= {*servers})


def seen_by(client: IPAddress, *servers: str) -> Expectation:
    """Expect that one of these answers, and sees that address as its client."""
    faces = {f"{server} sees {client}" for server in servers}
    server = servers[0] if len(servers) == 1 else "a pod"
    return Expectation(f"{server} sees {client}", lambda answers: answers.keys() <= faces, sees)


def reached_at(*places: str) -> Expectation:
    """Expect answers from all of these, each written as server:port."""
    return Expectation(", ".join(places), lambda answers: answers.keys() == {*places}, place)


def refused() -> Expectation:
    """Expect that somebody says no, within the time-out of the probe."""
    return Expectation("refused at once", _all_begin_with(Verdict.REFUSED))


def dropped() -> Expectation:
    """Expect silence."""
    return Expectation("dropped: no answer", _all_begin_with(Verdict.TIMEOUT))


def sees(outcome: Outcome) -> str:
    """Tell who answered, and whom it sees."""
    return f"{outcome.server} sees {outcome.client_ip}" if outcome.identity else str(outcome)


def place(outcome: Outcome) -> str:
    """Tell who answered, and at which port."""
    return f"{outcome.server}:{outcome.identity.reached.port}" if outcome.identity else str(outcome)


def describe(answers: Answers) -> str:
    """Write the answers in a few words; where they differ, each with its count."""
    if len(answers) == 1:
        return next(iter(answers))
    return ", ".join(f"{face} {count}" for face, count in sorted(answers.items()))


def _all_begin_with(verdict: Verdict) -> Callable[[Answers], bool]:
    return lambda answers: all(face.startswith(verdict.value) for face in answers)
