"""The text that ``pyproxy drift`` prints."""

import re

import pytest

from pyproxy.backends.drift import DriftDocument, ServiceDrift, SharedDrift
from pyproxy.cli.drift import print_drift


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Each difference is a line with Service port, kind and rule; the last line has the numbers."""
    web = ServiceDrift("default", "web", "http", "TCP", "IPv4", ["nat: -A ONE", "nat: -A TWO"], ["nat: -A THREE"])
    order = ServiceDrift("default", "order", "", "UDP", "IPv6", [], [])
    shared = [
        SharedDrift(
            "IPv4", ["default/a TCP", "default/b TCP", "default/c TCP", "default/d TCP"], ["filter: -A FOUR"], []
        ),
        SharedDrift("IPv6", [], [], ["filter: -A FIVE"]),
    ]
    print_drift(
        DriftDocument("pyproxy.io/v1alpha1", "Drift", "node1", "iptables", "agent", "rule", [web, order], shared)
    )

    assert [
        ["default/web:http tcp", "missing", "nat: -A ONE"],
        ["default/web:http tcp", "missing", "nat: -A TWO"],
        ["default/web:http tcp", "unexpected", "nat: -A THREE"],
        ["default/order udp IPv6", "reordered"],
        ["shared by default/a TCP, default/b TCP, default/c TCP, 1 more", "missing", "filter: -A FOUR"],
        ["shared by all IPv6", "unexpected", "filter: -A FIVE"],
        ["Drift: 3 rules missing, 2 rules unexpected, 1 rule reordered. Nothing was written."],
    ] == [re.split(" {2,}", line) for line in capsys.readouterr().out.splitlines()]


def test_no_drift(capsys: pytest.CaptureFixture[str]) -> None:
    """Without drift there is only the summary."""
    print_drift(DriftDocument("pyproxy.io/v1alpha1", "Drift", "node1", "ipvs", "objects", "entry", [], []))

    assert "Drift: none. Nothing was written.\n" == capsys.readouterr().out
