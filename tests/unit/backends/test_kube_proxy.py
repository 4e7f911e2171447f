"""kube-proxy's chains and sets, as opposed to ours and to foreign ones."""

import pytest

from pyproxy.backends.kube_proxy import SETS, cut, is_kube_proxys, is_needed_by, set_prefix
from pyproxy.model.address import Family

SERVICES = ("nat", "KUBE-SERVICES")
MARKER = ("nat", "PYPROXY-CANARY")
CANARY = ("nat", "KUBE-PROXY-CANARY")
LOAD_BALANCER = ("nat", "KUBE-LOAD-BALANCER")


@pytest.mark.parametrize(
    ("table", "chain", "expected"),
    [
        (*SERVICES, True),
        (*CANARY, True),
        ("mangle", "KUBE-PROXY-CANARY", True),
        ("nat", "KUBE-SEP-SXIVWICOYRO3J4NJ", True),
        ("filter", "KUBE-IPVS-OUT-FILTER", True),
        ("nat", "KUBE-IPVS-OUT-FILTER", False),
        ("filter", "KUBE-FIREWALL", False),
        ("mangle", "KUBE-KUBELET-CANARY", False),
        ("mangle", "KUBE-IPTABLES-HINT", False),
        (*MARKER, False),
        ("nat", "PYPROXY-SERVICES", False),
    ],
)
def test_chains(table: str, chain: str, expected: object) -> None:
    """The chains are those of all modes of kube-proxy, without those of the kubelet and of pyproxy only."""
    assert expected is is_kube_proxys(table, chain)


@pytest.mark.parametrize(
    ("found", "chain", "expected"),
    [
        ([SERVICES, MARKER], SERVICES, False),
        ([SERVICES, MARKER, CANARY], SERVICES, True),
        ([SERVICES, MARKER, CANARY], MARKER, False),
        ([SERVICES, MARKER, CANARY], ("filter", "KUBE-IPVS-FILTER"), False),
        ([SERVICES, MARKER, LOAD_BALANCER], SERVICES, True),
        ([SERVICES, MARKER, LOAD_BALANCER], ("filter", "KUBE-IPVS-FILTER"), True),
        ([SERVICES, MARKER, LOAD_BALANCER], ("nat", "KUBE-NODEPORTS"), False),
        ([SERVICES, MARKER, ("mangle", "KUBE-PROXY-CANARY")], SERVICES, False),
    ],
)
def test_who_was_here_last(found: list[tuple[str, str]], chain: tuple[str, str], expected: object) -> None:
    """A kube-proxy that has returned needs the chains of its mode, which the existing chains reveal."""
    assert expected is is_needed_by(found, *chain)


def test_names_of_sets_fit_and_differ() -> None:
    """Names are shortened to the kernel's limit, as in kube-proxy, and stay unique."""
    names = {set_prefix(family) + cut(family, name) for family in Family for name in SETS}

    assert 2 * len(SETS) == len(names)
    assert max(map(len, names)) == 31
    assert {"KUBE-6-LOAD-BALANCER-SOURCE-CID", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS", "KUBE-CLUSTER-IP"} < names
