"""What `explain --rules` has to find in the rules of kube-proxy for tests/inputs/explain.yaml, stored or fresh."""

from dataclasses import dataclass
from pathlib import Path

from pyproxy.backends.explanation import Fate
from pyproxy.cli.explain import explain_dump
from pyproxy.cli.explain_report import Explanation

INPUTS = Path(__file__).parents[1] / "inputs"
NODE_IPS = {"node1": "172.18.0.11", "node2": "172.18.0.12"}
ENDPOINTS = ("10.244.1.11:8080", "10.244.2.12:8080")
SHOP = ("10.244.1.11:8443", "10.244.2.12:8443")


@dataclass(frozen=True, slots=True)
class Case:
    """A connection, and what becomes of it."""

    node: str
    words: str
    verdict: str
    service: str
    endpoints: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("iptables", "nftables")

    def __str__(self) -> str:
        return f"{self.node}: {self.words}"


CASES = (
    Case("node1", "10.244.1.50 10.96.0.10:80", "FORWARDED", "default/web", ENDPOINTS),
    Case("node2", "172.18.0.12 10.96.0.10:80", "FORWARDED", "default/web", ENDPOINTS),
    Case("node1", "outside 172.18.0.11:30090", "FORWARDED", "default/audit", ENDPOINTS[:1]),
    Case("node2", "outside 172.18.0.12:30090", "DROPPED", "default/audit"),
    Case("node2", "10.244.2.50 172.18.0.12:30090", "FORWARDED", "default/audit", ENDPOINTS[:1]),
    Case("node2", "10.244.2.50 10.96.0.8:80", "REJECTED", "default/mismatch:http"),
    Case("node2", "10.244.2.50 10.96.0.9:53/UDP", "REJECTED", "default/unready"),
    Case("node1", "outside 203.0.113.10:443", "DROPPED", "default/shop"),
    Case("node1", "198.51.100.7 203.0.113.10:443", "FORWARDED", "default/shop", SHOP),
    Case("node1", "10.244.1.50 10.96.7.7:80", "NO SERVICE", "", modes=("iptables",)),
    Case("node1", "10.244.1.50 10.96.0.10:81", "NO SERVICE", "", modes=("iptables",)),
    Case("node1", "10.244.1.50 10.96.0.10:81", "REJECTED", "", modes=("nftables",)),
    Case("node1", "10.244.1.50 10.96.7.7:80", "DROPPED", "", modes=("nftables",)),
)
FATES = {
    "FORWARDED": Fate.FORWARDED,
    "REJECTED": Fate.REJECTED,
    "DROPPED": Fate.DROPPED,
    "NO SERVICE": Fate.UNCHANGED,
}


def stored_dump(mode: str, node: str) -> Path:
    """Return the file with the rules of a node as kube-proxy 1.37.2 wrote them."""
    return INPUTS / "kube-proxy" / f"{mode}-{node}.txt"


def check(rules: Path, case: Case) -> Explanation:
    """Explain a connection by the rules in a file, compare, and return the explanation."""
    source, destination = case.words.split()
    found = explain_dump(str(rules), source, destination, NODE_IPS[case.node], None)
    forwarded = {str(path.endpoint) for path in found.paths if path.endpoint}
    assert (FATES[case.verdict], case.service, {*case.endpoints}) == (found.fate, found.service, forwarded)
    assert all(path.is_certain for path in found.paths)
    assert case.verdict == "FORWARDED" or (found.reason and found.fix)
    return found
