"""The commands of the README and of docs/install.md, run in a machine with a real systemd."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.controlplane import KUBE_PROXY_USER, ControlPlane
from tests.cluster.process import BINARIES
from tests.lab import Lab, tcp
from tests.lab.waiting import wait_until
from tests.packets.objects import port, service, slices

from .conftest import ARCHIVES
from .machine import PATIENCE_SECONDS, ROOT, Machine

GREETING = "hello from a Service"
PROGRAMS = "/srv/programs"
WEB = service("web", 10, port(80))
CONFIG = """\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: /var/lib/kube-proxy/kubeconfig}
hostnameOverride: node1
mode: iptables
clusterCIDR: "10.244.0.0/16,fd00:10:244::/48"
# Settings of the whole machine, which tests do not change.
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
oomScoreAdj: 0
"""
KUBE_PROXY = f"""\
[Service]
ExecStart={PROGRAMS}/kube-proxy --config=/var/lib/kube-proxy/kube-proxy-config.yaml
[Install]
WantedBy=multi-user.target
"""


def commands(heading: str, file: str = "docs/install.md") -> list[str]:
    """Return the blocks of shell commands under a heading of a page."""
    page = (ROOT / file).read_text()
    [section] = re.findall(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert found
    return found


@pytest.fixture
def machine(debian: None, dist: Path, built: None, lab: Lab) -> Iterator[Machine]:  # noqa: ARG001 - needs the files
    """Provide an empty machine, with the archive in the home directory of root."""
    with Machine(lab["node1"], {ARCHIVES: dist, PROGRAMS: BINARIES.resolve()}) as booted:
        booted.run("sh", "-euc", f"cp {ARCHIVES}/pyproxy-*.tar.gz /root")
        # There is no name server, and commands should not wait for one.
        booted.write("/etc/resolv.conf", "")
        yield booted


def paste(machine: Machine, blocks: list[str]) -> str:
    """Run blocks of commands in one shell, as a user who copies them, and return their output."""
    return machine.run("sh", "-eu", stdin="cd /root\n" + "".join(blocks))


def answer(lab: Lab) -> str | None:
    """Return the server that answers for the Service of the cluster."""
    [outcome] = lab.client_pod.probe(tcp("10.96.0.10", 80, timeout_seconds=1.0))
    return outcome.server


def test_an_empty_machine(machine: Machine) -> None:
    """The copied commands set up a Service that answers, and remove pyproxy without a trace."""
    blocks = commands("Systemd: machine without a cluster")
    [back] = [number for number, block in enumerate(blocks) if "disable --now pyproxy" in block]

    said = paste(machine, blocks[:back])

    assert GREETING in said.splitlines()
    assert "default/web" in said

    paste(machine, blocks[back:])

    assert "10.96.0.10" not in machine.run("nft", "list", "ruleset")
    assert "" == machine.run("sh", "-c", "command -v pyproxy; ls -d /opt/pyproxy 2>/dev/null; true")
    assert "" == machine.attempt("systemctl", "list-unit-files", "--no-legend", "pyproxy*").stdout


def test_the_package_of_the_readme(machine: Machine) -> None:
    """The commands of the README install the Debian package, set up a Service that answers, and remove everything."""
    [there, back] = commands("Try it", "README.md")
    machine.run("ln", "--symbolic", ARCHIVES, "/root/dist")

    said = paste(machine, [there])

    assert GREETING in said.splitlines()
    assert re.search(r"default/web +10\.96\.0\.10:80/TCP", said)

    paste(machine, [back])

    assert "10.96.0.10" not in machine.run("nft", "list", "ruleset")
    assert "" == machine.run("sh", "-c", "command -v pyproxy; ls -d /opt/pyproxy 2>/dev/null; true")


@pytest.fixture
def cluster(machine: Machine, lab: Lab) -> Iterator[None]:
    """Make the machine a node of a cluster with a Service, with a real kube-proxy as a systemd service."""
    with ExitStack() as stack:
        control_plane = stack.enter_context(ControlPlane())
        server = stack.enter_context(control_plane.exposed_in(lab["node1"].namespace.name))
        control_plane.create_node("node1", list(map(str, lab["node1"].addresses)))
        for item in (WEB, *slices(WEB, "pod1-1")):
            control_plane.request("POST", _collection(item["kind"]), item)
        user = {"token": control_plane.static_token(KUBE_PROXY_USER)}
        kubeconfig = control_plane.kubeconfig_for(user, server).read_text()
        certificate = str(control_plane.authority.certificate)
        machine.write("/var/lib/kube-proxy/ca.crt", Path(certificate).read_text())
        machine.write("/var/lib/kube-proxy/kubeconfig", kubeconfig.replace(certificate, "/var/lib/kube-proxy/ca.crt"))
        machine.write("/var/lib/kube-proxy/kube-proxy-config.yaml", CONFIG)
        machine.write("/etc/systemd/system/kube-proxy.service", KUBE_PROXY)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", "kube-proxy")
        yield


def _collection(kind: str) -> str:
    return {
        "Service": "/api/v1/namespaces/default/services",
        "EndpointSlice": "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
    }[kind]


@pytest.mark.usefixtures("cluster")
def test_in_place_of_kube_proxy(machine: Machine, lab: Lab) -> None:
    """The commands replace kube-proxy by pyproxy and roll back; the Service answers all the time."""
    [install, *_] = commands("Systemd: machine without a cluster")
    [there, back] = commands("Systemd: replace kube-proxy.service")
    paste(machine, [install])
    wait_until(lambda: answer(lab) == "pod1-1", "kube-proxy's rules", timeout_seconds=PATIENCE_SECONDS)
    with lab.client_pod.load(tcp("10.96.0.10", 80, timeout_seconds=4.0), per_second=20) as load:
        paste(machine, [there])

        machine.wait_for("pyproxy.service", ActiveState="active", UnitFileState="enabled")
        machine.wait_for("kube-proxy.service", ActiveState="inactive", UnitFileState="disabled")
        assert "KUBE-SEP-" not in machine.run("iptables-save")

        paste(machine, [back])

        machine.wait_for("pyproxy.service", ActiveState="inactive", UnitFileState="disabled")
        wait_until(
            lambda: "KUBE-SEP-" in machine.run("iptables-save"), "kube-proxy's rules", timeout_seconds=PATIENCE_SECONDS
        )
    report = load.report()
    assert () == tuple(report.failures)
    assert {"pod1-1"} == set(report.replies)
