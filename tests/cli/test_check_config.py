"""What `check-config` finds in files that an agent would start with."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyproxy.cli.program import pyproxy

OBJECTS = """\
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {pyproxy.io/ipvs-scheduler: wlcc}}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: web, port: 8080}]
endpoints: [{addresses: [10.244.0.1]}]
---
apiVersion: v1
kind: Node
metadata: {name: node-1}
---
apiVersion: v1
kind: Servce
metadata: {name: misspelt}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: unrelated}
"""


def call(*words: str) -> Result:
    """Check a configuration."""
    return CliRunner().invoke(pyproxy, ["check-config", *words])


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """Provide a file with a mistake of each kind."""
    file = tmp_path / "objects.yaml"
    file.write_text(OBJECTS)
    return file


def test_mistakes_in_objects(objects: Path) -> None:
    """Each probable mistake is a warning with the object, and a suggestion if there is a similar word."""
    result = call(f"--manifests={objects}", "--hostname-override=node1", "--ipvs-scheduler=wr")

    assert (0, "errors: 0, warnings: 5") == (result.exit_code, result.stdout.splitlines()[-1])
    assert [
        "Warning: --ipvs-scheduler: the IPVS scheduler wr is not known (did you mean wrr?)",
        f"Warning: {objects}: objects of the unknown kind Servce are skipped (did you mean Service?)",
        "Warning: --hostname-override: no Node has the name node1 (did you mean node-1?)",
        "Warning: Service default/web: the IPVS scheduler wlcc is not known (did you mean wlc?)",
        "Warning: EndpointSlice default/web-1: port 'web'/tcp matches no port of Service default/web, which has 'http'/tcp",
    ] == result.stderr.splitlines()


def test_strict(objects: Path) -> None:
    """With ``--strict`` warnings fail."""
    assert 2 == call(f"--manifests={objects}", "--strict").exit_code


def test_missing_kubeconfig() -> None:
    """A kubeconfig that is missing is a warning: it may be on the node only."""
    result = call("--kubeconfig=/nowhere")

    warning = "Warning: --kubeconfig: /nowhere is not on this machine and was not checked\n"
    assert (0, warning) == (result.exit_code, result.stderr)
    assert 2 == call("--kubeconfig=/nowhere", "--strict").exit_code


def test_document(objects: Path) -> None:
    """``-o json`` prints errors, warnings and notes in one document."""
    result = call(f"--manifests={objects}", "-o", "json")

    values = json.loads(result.stdout)
    assert ("ConfigurationCheck", [], 3) == (values["kind"], values["errors"], len(values["warnings"]))
    assert "" == result.stderr


def test_the_environment_names_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without flags, both configuration files come from the environment, as in the container of the DaemonSet; flags win."""
    theirs, ours, other = (tmp_path / name for name in ("config.conf", "config.yaml", "other.yaml"))
    theirs.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.9.0.0/16\n"
    )
    for file, mode in ((ours, "nftables"), (other, "ipvs")):
        file.write_text(f"apiVersion: pyproxy.io/v1alpha1\nkind: PyproxyConfiguration\nmode: {mode}\n")
    monkeypatch.setenv("KUBE_PROXY_CONFIG", str(theirs))
    monkeypatch.setenv("PYPROXY_CONFIG", str(ours))

    assert call().stdout.startswith("configuration: nftables mode;")
    assert f"{theirs}: clusterCIDR=10.9.0.0/16" in call().stdout
    assert "ipvs mode" in call(f"--pyproxy-config={other}").stdout
