"""Runs the sections of the demo in order: sends the requests, compares the answers, prints the results.

This module decides only how many requests are sent concurrently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from tests.lab import Host, Lab, Outcome, Probe, probe_all

from . import rollout
from .check import Check, Result
from .cluster import Cluster
from .scenes import SECTIONS
from .screen import Screen

BURST = 100
"""Concurrent requests. Their time-outs start together, so a slow machine must be able to answer the last in time."""


def send_everything(cluster: Cluster, screen: Screen) -> None:
    """Run all sections and print the results."""
    screen.head()
    for section in SECTIONS:
        with screen.busy(section.title):
            results = _results(cluster.lab, section.checks)
        screen.section(section, results)
    with screen.busy(rollout.SECTION.title):
        results = [*rollout.roll_out(cluster), *_results(cluster.lab, rollout.SECTION.checks)]
    screen.section(rollout.SECTION, results)


def _results(lab: Lab, checks: Sequence[Check]) -> list[Result]:
    outcomes = _outcomes([(lab[check.client], check.probe) for check in checks for _ in range(_at_once(check))])
    return [check.judge([*islice(outcomes, _at_once(check)), *_one_by_one(lab, check)]) for check in checks]


def _outcomes(flows: Sequence[tuple[Host, Probe]]) -> Iterator[Outcome]:
    for start in range(0, len(flows), BURST):
        yield from probe_all(flows[start : start + BURST])


def _at_once(check: Check) -> int:
    return 0 if check.one_by_one else check.requests


def _one_by_one(lab: Lab, check: Check) -> Iterator[Outcome]:
    for _ in range(check.requests - _at_once(check)):
        yield from lab[check.client].probe(check.probe)
