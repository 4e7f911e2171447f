"""Runs the network suites of Kubernetes against the cluster as it is, with ginkgo.

The focus and the exclusions are patterns of full test names. What is excluded has a reason here, which the table repeats.
"""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cluster import STATE, Cluster
from .network import CONTROL_ADDRESS

_SUBJECTS = (
    *(
        "Services ",
        "LoadBalancers",
        "Networking Granular Checks",
        "EndpointSlice",
        "Endpoints",
        "Conntrack",
        "HostPort",
    ),
    *("Traffic Distribution", "Topology", "Service endpoints latency", "KubeProxy", "Connectivity Pod Lifecycle"),
    *("NoSNAT", "Service CIDRs", "IPv6DualStack", "Proxy version", "DNS", "LocalhostNodePorts", "IPerf2"),
    *("should check kube-proxy urls", "should recreate its iptables rules"),
)
FOCUS = rf"\[sig-network\].*({'|'.join(_SUBJECTS)})"
EXCLUDED: dict[str, str] = {
    "SCTP|sctp": "the kernel of the test machine has no SCTP sockets",
    "NetworkPolicy|Netpol": "network policies are a task of the network plugin",
    "Ingress": "no ingress controller",
    "Internet connection": "the cluster has no access to the Internet",
    "DNS configMap": "the cluster has no upstream DNS server",
    "PerformanceDNS": "creates 10,000 Services, which takes hours here",
    "pull an image from a registry": "needs the image of a registry",
    "ServiceCIDR and IPAddress|API Server should|static URL paths": "tests only the API server",
    "Provider:GCE": "needs the API of a cloud",
    "iperf2": "reads the output of another version of iperf than Debian's",
    "multizone": "needs two nodes in each of three zones; the cluster has one",
}
SLOW: dict[str, str] = {
    "connectivity disruption during rolling update": "replaces all pods of a DaemonSet five times, which takes a quarter of an hour",
}
"""Excluded unless the flag --slow is given."""
EXCLUDED_IN_NFTABLES: dict[str, str] = {
    "LocalhostNodePorts": "in nftables mode node ports on localhost have to be configured, in kube-proxy as well",
}
_DISRUPTIVE = r"\[Disruptive\]|\[Serial\]"
SMOKE = r"\[sig-network\] Services should (serve a basic endpoint from pods|be able to create a functioning NodePort service)"
_LIMIT_SECONDS = 2 * 3600


@dataclass(frozen=True, slots=True)
class Run:
    """One run of ginkgo."""

    name: str
    focus: str
    skip: str
    processes: int

    def start(self, cluster: Cluster, programs: Mapping[str, Path], results: Path) -> int:
        """Run the tests, write NAME.json, NAME.xml (JUnit) and NAME.log, and return ginkgo's exit status."""
        command = cluster.control_plane.command(
            *("ginkgo", f"--procs={self.processes}", "--timeout=2h", "--no-color", "--silence-skips"),
            *(f"--focus={self.focus}", f"--skip={self.skip}", f"--output-dir={results}"),
            *(f"--json-report={self.name}.json", f"--junit-report={self.name}.xml", str(programs["e2e.test"]), "--"),
            *(
                f"--kubeconfig={cluster.control_plane.kubeconfig}",
                "--provider=local",
                f"--host=https://{CONTROL_ADDRESS}:6443",
            ),
            *(f"--kubectl-path={programs['kubectl']}", "--disable-log-dump", "--num-nodes=3", "--prepull-images=false"),
            "--dump-logs-on-failure=false",
        )
        ssh = {"KUBE_SSH_USER": "root", "KUBE_SSH_KEY_PATH": str(STATE / "ssh" / "id")}
        path = f"{programs['kubectl'].parent}:{os.environ['PATH']}"
        with (results / f"{self.name}.log").open("w") as log:
            return subprocess.run(
                command,
                env={**os.environ, **ssh, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=_LIMIT_SECONDS,
            ).returncode


def runs(column: str, mode: str, focus: str, processes: int, *, slow: bool) -> tuple[Run, Run]:
    """Return the run of tests that may run in parallel, and the run of those that must run alone."""
    name = re.sub(r"\W+", "-", column)
    patterns = (*EXCLUDED, *(() if slow else SLOW), *(EXCLUDED_IN_NFTABLES if mode == "nftables" else ()))
    excluded = "|".join(patterns)
    parallel = Run(name, focus, f"{excluded}|{_DISRUPTIVE}", processes)
    return parallel, Run(f"{name}-serial", rf"{focus}.*({_DISRUPTIVE})", excluded, 1)


def all_network_tests(cluster: Cluster, programs: Mapping[str, Path], results: Path) -> list[str]:
    """Return the names of all network tests of the suite."""
    command = [
        str(programs["e2e.test"]),
        "-ginkgo.dry-run",
        r"-ginkgo.focus=\[sig-network\]",
        f"-ginkgo.json-report={results}/all.json",
    ]
    environment = {**os.environ, "KUBECONFIG": str(cluster.control_plane.kubeconfig)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    [suite] = json.loads((results / "all.json").read_text())
    return [
        test_name(spec) for spec in suite["SpecReports"] if spec["LeafNodeType"] == "It" and spec["State"] != "skipped"
    ]


def test_name(spec: Mapping[str, Any]) -> str:
    """Return the full name of a test of ginkgo's JSON report."""
    return " ".join([*(spec.get("ContainerHierarchyTexts") or ()), spec["LeafNodeText"]])
