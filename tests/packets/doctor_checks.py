"""One check of ``pyproxy doctor`` at a time, in the namespace of the test."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pyproxy.config.config import Config
from pyproxy.doctor.checks import CHECKS, examine
from pyproxy.doctor.finding import Finding, Severity
from pyproxy.doctor.inputs import Inputs
from pyproxy.doctor.installed_rules import find_installed_rules
from pyproxy.model.address import parse_network
from pyproxy.model.node import Node

SYS = Path("/proc/sys/net")
PODS = parse_network("10.244.1.0/24")
NODE = Node(name="node1", pod_cidrs=(PODS,))


def findings(check: str, inputs: Inputs | None = None) -> list[Finding]:
    """Run one check in this namespace, by default with the rules that are in it, and return what is not fine."""
    if inputs is None:
        inputs = Inputs(Config(), NODE, rules=asyncio.run(find_installed_rules()))
    [one] = [each for each in CHECKS if each.name == check]
    return [each for each in asyncio.run(examine(inputs, (one,))) if each.severity is not Severity.OK]


def only(check: str, inputs: Inputs | None = None) -> tuple[Severity, str]:
    """Return severity and text of the only finding of a check."""
    [found] = findings(check, inputs)
    assert found.check == check
    assert found.evidence
    assert found.fix or found.severity is Severity.INFO
    return found.severity, found.text


def write(name: str, value: int | str) -> None:
    """Write a setting of this namespace."""
    (SYS / name).write_text(str(value))
