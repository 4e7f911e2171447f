"""The first difference between intended rules and those in the kernel, for one packet."""

import pytest

from pyproxy.backends.explanation import Host, Packet, Path
from pyproxy.backends.iptables.explain import paths, read_save
from pyproxy.cli.explain_node import first_difference
from pyproxy.cli.explain_rules import read_node_rules
from pyproxy.model.address import parse_ip
from pyproxy.model.names import Protocol

INTENDED = """\
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-X - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-X
-A KUBE-SVC-X -p tcp -m statistic --mode random --probability 0.50000000000 -j DNAT --to-destination 10.244.1.11:8080
-A KUBE-SVC-X -p tcp -j DNAT --to-destination 10.244.2.12:8080
COMMIT
*filter
:FORWARD ACCEPT [0:0]
COMMIT
"""


def explained(text: str) -> tuple[Path, ...]:
    """Return the paths of a packet to the Service."""
    packet = Packet(parse_ip("192.0.2.7"), parse_ip("10.96.0.10"), Protocol.TCP, 80, "eth0")
    return paths(read_save(text), packet, Host(frozenset()))


def difference_of(text: str) -> str:
    """Return the first difference between the intended rules and those in a text."""
    found = first_difference(explained(INTENDED), explained(text), read_node_rules(text))
    return found.text if found else ""


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("-A KUBE-SERVICES -d", "-A KUBE-SVC-X -d", "the kernel lacks in KUBE-SERVICES: -d 10.96.0.10/32"),
        ("10.244.2.12", "10.244.9.9", "the kernel has in KUBE-SVC-X: -p tcp -j DNAT --to-destination 10.244.9.9:8080"),
        (":FORWARD ACCEPT", ":FORWARD DROP", "the kernel has in FORWARD: -P FORWARD DROP"),
        (
            "-A PREROUTING -j",
            "-A PREROUTING -s 192.0.2.7/32 -j DROP\n-A PREROUTING -j",
            "the kernel has in PREROUTING: -s",
        ),
    ],
)
def test_first_difference(old: str, new: str, difference: str) -> None:
    """A missing rule, another endpoint, a policy and a rule of another program are named."""
    assert difference in difference_of(INTENDED.replace(old, new))


def test_no_difference() -> None:
    """Rules for other packets make no difference."""
    more = INTENDED.replace(":FORWARD ACCEPT [0:0]", ":FORWARD ACCEPT [0:0]\n-A FORWARD -d 10.9.9.9/32 -j DROP")

    assert "" == difference_of(more)
