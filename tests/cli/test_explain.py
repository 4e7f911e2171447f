"""`pyproxy explain` as users call it: names, verdicts with exit codes, reasons, documents, dumps of a node."""

from itertools import product
from pathlib import Path

import msgspec
import pytest
import yaml

from pyproxy.backends.explanation import Fate
from pyproxy.cli.explain import explain_files
from pyproxy.cli.explain_report import Explanation, ExplanationDocument
from pyproxy.config.config import Config, ProxyMode
from pyproxy.model.address import parse_network

from .kube_proxy_rules import CASES, Case, check, stored_dump
from .test_cli import pyproxy

INPUTS = Path(__file__).parents[1] / "inputs"
OBJECTS = INPUTS / "explain.yaml"
FLAGS = (f"--manifests={OBJECTS}", "--cluster-cidr=10.244.0.0/16")


def explained(*words: str, flags: tuple[str, ...] = FLAGS) -> tuple[int, ExplanationDocument]:
    """Return exit code and document of a run."""
    done = pyproxy("explain", *flags, *words, "-o", "json")
    return done.returncode, msgspec.json.decode(done.stdout, type=ExplanationDocument)


@pytest.mark.parametrize(
    ("words", "code", "verdict", "node"),
    [
        ("client default/web", 0, "FORWARDED", "node2"),
        ("default/client default/web:80", 0, "FORWARDED", "node2"),
        ("web-1 web.default.svc", 0, "FORWARDED", "node1"),
        ("client web.default.svc.cluster.local:80/TCP", 0, "FORWARDED", "node2"),
        ("10.244.1.50 10.96.0.10:80", 0, "FORWARDED", "node1"),
        ("outside 172.18.0.11:30090", 0, "FORWARDED", "node1"),
        ("outside node1:30090", 0, "FORWARDED", "node1"),
        ("localhost 30090 --node=node2", 0, "FORWARDED", "node2"),
        ("localhost localhost:30090 --node=node1", 0, "FORWARDED", "node1"),
        ("outside 30090/tcp --node=node2", 5, "DROPPED", "node2"),
        ("node1 node2:30090", 5, "DROPPED", "node2"),
        ("client default/unready", 4, "REJECTED", "node2"),
        ("client default/web:80/UDP", 6, "NO SERVICE", "node2"),
        ("client default/web:8080", 6, "NO SERVICE", "node2"),
        ("client default/none", 6, "NO SERVICE", ""),
        ("client default/missing", 6, "NO SERVICE", ""),
    ],
)
def test_verdicts(words: str, code: int, verdict: str, node: str) -> None:
    """Names are resolved, the node is that of the client or of the destination, and the exit code is the verdict's."""
    status, found = explained(*words.split())

    assert (code, verdict, node) == (status, found.verdict, found.node)


ALL_MODES = pytest.mark.parametrize("mode", ["iptables", "nftables", "ipvs"])


@ALL_MODES
@pytest.mark.parametrize(
    ("words", "reason", "fix"),
    [
        (
            "outside 172.18.0.12:30090",
            "1 endpoint elsewhere (10.244.1.11 on node1), 0 here",
            "send the client to node1",
        ),
        ("client default/mismatch", 'slice has port "web", Service wants "http"', "same name"),
        ("client default/unready", "the only endpoint is not ready (10.244.1.13 on node1)", "kubectl describe pod"),
        ("outside 203.0.113.10 --node=node1", "192.0.2.7 is not in spec.loadBalancerSourceRanges", "add the client's"),
        ("client default/none", "headless", "connect to an endpoint"),
        ("client default/wbe", "did you mean default/web?", "kubectl get services"),
        ("client 10.96.0.10:81", "has only the port 80/TCP", "connect to port 80/TCP"),
        ("client 10.244.1.11:80", "the address of pod default/web-1", "NetworkPolicies"),
        ("client 10.96.7.7:80", "no Service has this address", "pyproxy services"),
    ],
)
def test_reasons(mode: str, words: str, reason: str, fix: str) -> None:
    """A connection that fails has the cause in words, and what to do, the same in each mode."""
    _, found = explained(*words.split(), f"--proxy-mode={mode}")

    assert reason in found.reason
    assert fix in found.fix


def test_guard_of_loopback() -> None:
    """The rule that protects the loopback addresses is not attributed to a field of a Service."""
    examples = Path(__file__).parents[2] / "examples"
    flags = (f"--manifests={examples}", "--proxy-mode=iptables", "--nodeport-addresses=127.0.0.0/8")
    status, found = explained("node1", "127.0.0.1:30080", flags=flags)

    assert (5, "DROPPED") == (status, found.verdict)
    assert "KUBE-FIREWALL" in found.reason
    assert "SourceRanges" not in found.reason


@ALL_MODES
def test_paths(mode: str) -> None:
    """Endpoints have their probability, pod and node, and the source that they see."""
    _, found = explained("web-1", "default/web", f"--proxy-mode={mode}")

    assert [
        ("10.244.1.11:8080", 0.5, "pod default/web-1 on node1", True),
        ("10.244.2.12:8080", 0.5, "pod default/web-2 on node2", False),
    ] == [(path.endpoint, path.probability, path.place, path.masqueraded) for path in found.paths]
    assert "spec.clusterIP" in [step.field for step in found.paths[0].steps]


@ALL_MODES
def test_affinity(mode: str) -> None:
    """With session affinity the time-out is part of each path."""
    _, found = explained("198.51.100.7", "203.0.113.10", "--node=node1", f"--proxy-mode={mode}")

    assert [10800, 10800] == [path.affinity_seconds for path in found.paths]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nowhere default/web", "SRC: nowhere is not an address"),
        ("client nonsense", "DST: nonsense is not ADDRESS:PORT"),
        ("client 172.18.0.11", "needs a port"),
        ("client default/web:99999", "99999 is not a port number"),
        ("outside default/web", "--node: give the node"),
        ("2001:db8::1 10.96.0.10:80 --node=node1", "no address family in common"),
    ],
)
def test_wrong_arguments(words: str, message: str) -> None:
    """What cannot be understood is an error with exit code 2, in one line that names the argument."""
    done = pyproxy("explain", *FLAGS, *words.split())

    assert 2 == done.returncode
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_text_and_yaml() -> None:
    """The text begins with the verdict, and YAML has the same document as JSON."""
    words = ("client", "default/mismatch")
    text = pyproxy("explain", *FLAGS, *words).stdout
    document = yaml.safe_load(pyproxy("explain", *FLAGS, *words, "-o", "yaml").stdout)

    assert text.startswith(
        "REJECTED  pod default/client 10.244.2.50 -> 10.96.0.8:80/TCP on node2, default/mismatch:http"
    )
    assert msgspec.convert(document, ExplanationDocument) == explained(*words)[1]


def test_unknown_port_in_nftables_mode() -> None:
    """A port that a cluster IP does not have is rejected in nftables mode, and the output names the ports it has."""
    status, found = explained("client", "default/web:81", "--proxy-mode=nftables")

    assert (4, "REJECTED") == (status, found.verdict)
    assert "has only the port 80/TCP" in found.reason


def test_rules_of_a_node(tmp_path: Path) -> None:
    """A dump explains itself: the Service comes from comments, and endpoints from the rules."""
    rules = pyproxy("dump-rules", *FLAGS, "--node=node1", "-o", "restore").stdout
    dump = tmp_path / "rules"
    dump.write_text(rules)
    status, found = explained("10.244.1.50", "10.96.0.10:80", flags=(f"--rules={dump}",))

    assert (0, "default/web", "") == (status, found.service, found.node)
    assert ["10.244.1.11:8080", "10.244.2.12:8080"] == [path.endpoint for path in found.paths]


def test_rules_of_a_node_port(tmp_path: Path) -> None:
    """Node ports depend on the addresses of the node, and the rule that drops a packet is named."""
    dump = tmp_path / "rules"
    dump.write_text(pyproxy("dump-rules", *FLAGS, "--node=node2", "-o", "restore").stdout)
    words = ("outside", "172.18.0.12:30090")
    status, found = explained(*words, flags=(f"--rules={dump}", "--node-ip=172.18.0.12"))

    assert (5, "default/audit") == (status, found.service)
    assert "no endpoint on this node, and its traffic policy is Local" in found.reason
    assert found.fix


def test_rules_that_are_none(tmp_path: Path) -> None:
    """A file that is not such output is refused with its line."""
    done = pyproxy("explain", f"--rules={OBJECTS}", "outside", "10.96.0.10:80")

    assert 2 == done.returncode
    assert "not output of iptables-save" in done.stderr
    assert 2 == pyproxy("explain", f"--rules={tmp_path / 'absent'}", "outside", "10.96.0.10:80").returncode


STORED = [(mode, case) for case in CASES for mode in case.modes]


@pytest.mark.parametrize(("mode", "case"), STORED, ids=[f"{mode}, {case}" for mode, case in STORED])
def test_rules_of_kube_proxy(mode: str, case: Case) -> None:
    """Stored rules of kube-proxy 1.37.2 have the verdict, the endpoints, the Service, a reason and what to do."""
    check(stored_dump(mode, case.node), case)


def test_rules_of_both_families_and_programs(tmp_path: Path) -> None:
    """One file may have the output of several programs; each family has its own rules."""
    dump = tmp_path / "rules"
    dump.write_text("".join(stored_dump(mode, "node1").read_text() for mode in ("nftables", "iptables")))
    case = CASES[0]

    assert [0.5, 0.5] == [float(path.share) for path in check(dump, case).paths]
    status, found = explained("fd00::1", "[fd00:10:96::7]:80", flags=(f"--rules={dump}",))
    assert (5, "no Service has this cluster IP") == (status, found.reason)


def test_own_nftables_table(tmp_path: Path) -> None:
    """The dump of pyproxy's own table explains itself, too."""
    dump = tmp_path / "rules"
    flags = ("--node=node1", "--proxy-mode=nftables", "-o", "nft")
    dump.write_text(pyproxy("dump-rules", *FLAGS, *flags).stdout)
    status, found = explained("10.244.1.50", "10.96.0.10:80", flags=(f"--rules={dump}",))

    assert (0, "default/web") == (status, found.service)
    assert ["10.244.1.11:8080", "10.244.2.12:8080"] == [path.endpoint for path in found.paths]
    assert "no usable endpoint" in explained("10.244.1.50", "10.96.0.8:80", flags=(f"--rules={dump}",))[1].reason


SOURCES = ("outside", "localhost", "node1", "10.244.1.11", "198.51.100.7")
DESTINATIONS = (
    *("10.96.0.10:80", "10.96.0.10:81", "10.96.0.10:80/UDP", "10.96.0.8:80", "10.96.0.9:53/UDP", "10.96.7.7:80"),
    *("203.0.113.10:443", "203.0.113.10:80", "172.18.0.12:30090", "172.18.0.12:22", "127.0.0.1:30090", "8.8.8.8:53"),
)


@pytest.mark.parametrize("mode", ["iptables", "nftables", "ipvs"])
def test_every_dead_end_has_a_reason(mode: str) -> None:
    """Whatever is not forwarded has a reason in words, and what to do."""
    pods = (parse_network("10.244.0.0/16"),)
    config = Config(proxy_mode=ProxyMode(mode), manifests=str(OBJECTS), cluster_cidr=pods, hostname_override="node2")
    for source, destination in product(SOURCES, DESTINATIONS):
        found = explain_files(config, source, destination, None)
        assert isinstance(found, Explanation)
        is_dead_end = found.fate is not Fate.FORWARDED
        assert is_dead_end == bool(found.reason), (source, destination)
        assert is_dead_end == bool(found.fix), (source, destination)


def test_node_without_manifests(tmp_path: Path) -> None:
    """`--node` selects among the nodes of files; without them it would be ignored, so it is an error."""
    rules = tmp_path / "rules"
    rules.write_text("*nat\nCOMMIT\n")
    for words in (("--rules", str(rules)), ()):
        done = pyproxy("explain", "--node=node2", *words, "10.244.1.9", "10.96.0.10:80")
        assert (2, True) == (done.returncode, "--node needs --manifests" in done.stderr)
