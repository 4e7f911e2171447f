"""The end-to-end tests as far as they need no cluster: their versions, their patterns and their tables."""

import json
import re
from pathlib import Path

from tests.e2e.report import counts, not_run, reason, results, table

ROOT = Path(__file__).parents[2]


def test_one_version_of_kubernetes() -> None:
    """The kubelets and the suite have the version of the API server and of kube-proxy."""
    modules = [ROOT / "tests" / folder / "go.mod" for folder in ("cluster/tools", "e2e/tools/kubernetes")]
    versions = [
        re.findall(r"^(?:require )?\t?k8s\.io/kubernetes (v\S+)", file.read_text(), re.MULTILINE) for file in modules
    ]

    assert versions[0] == versions[1] != []


def spec(name: str, state: str, message: str = "") -> dict[str, object]:
    """Return a test in ginkgo's JSON report."""
    return {
        "ContainerHierarchyTexts": ["[sig-network] Services"],
        "LeafNodeType": "It",
        "LeafNodeText": name,
        "State": state,
        "RunTime": 2_400_000_000,
        "Failure": {"Message": message},
    }


def test_tables(tmp_path: Path) -> None:
    """The table has a row for each test that ran in a column; every other network test is listed with a reason."""
    reports = {
        "pyproxy nftables": [spec("a", "passed"), spec("b", "failed", "timeout")],
        "kube-proxy nftables": [spec("a", "passed")],
    }
    columns = {}
    for name, specs in reports.items():
        file = tmp_path / f"{name}.json"
        # A test that no pattern selects is in the report as well, without a message.
        file.write_text(json.dumps([{"SpecReports": [*specs, spec("unselected", "skipped")]}]))
        columns[name] = results([file])

    assert "1 passed, 1 failed" == counts(columns["pyproxy nftables"])
    assert [
        "| test | pyproxy nftables | kube-proxy nftables |",
        "|---|---|---|",
        "| Services a | passed 2 | passed 2 |",
        "| Services b | **failed** 2 |  |",
        "| **all** | 1 passed, 1 failed | 1 passed |",
    ] == table(columns).splitlines()
    tests = ["[sig-network] Services a", "[sig-network] Services over SCTP", "[sig-node] other"]
    assert ["- Services over SCTP: the kernel of the test machine has no SCTP sockets"] == not_run(
        tests, columns
    ).splitlines()


def test_every_exclusion_has_a_reason() -> None:
    """A network policy is not reported as an unselected test."""
    assert "network plugin" in reason(
        "[sig-network] Netpol NetworkPolicy between server and client [Feature:NetworkPolicy]"
    )
