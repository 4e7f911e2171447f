"""`pyproxy dump-rules` for files with mistakes: valid objects in them are still shown."""

from pathlib import Path

import pytest

from .test_cli import pyproxy

INPUTS = Path(__file__).parents[1] / "inputs"


@pytest.mark.parametrize(
    ("name", "complaint", "skipped", "shown"),
    [
        ("bad-fields.yaml", "13: Service default/misspelt-field: spec.externalIps: unknown field", "", "10.96.0.9"),
        ("syntax-error.yaml", "15: YAML: did not find expected ',' or '}'", "", "10.96.0.2"),
        ("two-claims.yaml", "2: Service default/younger: spec.ports: node port 30080/TCP", "", "10.96.0.1"),
        (
            "health-check-ports.yaml",
            "2: Service default/younger: spec.healthCheckNodePort: node port 30100/TCP belongs to Service default/older",
            "",
            "10.96.0.1",
        ),
        (
            "health-check-ports.yaml",
            "39: Service default/agents: spec.healthCheckNodePort: 10256 is not served: it is used by pyproxy (--healthz-",
            "",
            "10.96.0.3",
        ),
        (
            "health-check-ports.yaml",
            "51: Service default/node-port: spec.ports: node port 30100/TCP belongs to Service default/older",
            "",
            "10.96.0.4",
        ),
        (
            "tutorial-deployment.yaml",
            "39: Service default/hello: spec.clusterIP: missing",
            "skipped: 1 Deployment, 1 Pod",
            "KUBE-SERVICES",
        ),
    ],
)
def test_mistakes_exit_2(name: str, complaint: str, skipped: str, shown: str) -> None:
    """Each mistake is a line on standard error that begins with file and line; the rest is shown, and the exit code is 2."""
    done = pyproxy("dump-rules", f"--manifests={INPUTS / name}")
    mistakes = [line for line in done.stderr.splitlines() if line != skipped]

    assert 2 == done.returncode
    assert any(line.startswith(f"{INPUTS / name}, line {complaint}") for line in mistakes)
    assert all(line.startswith(f"{INPUTS / name}, line ") for line in mistakes)
    assert skipped in done.stderr
    assert shown in done.stdout


@pytest.mark.parametrize(
    ("name", "said"), [("tutorial-endpoints.yaml", ""), ("kubectl-list.yaml", "skipped: 1 ConfigMap\n")]
)
def test_good_files_exit_0(name: str, said: str) -> None:
    """A file without a mistake is shown; objects of other kinds are only counted."""
    done = pyproxy("dump-rules", f"--manifests={INPUTS / name}")

    assert (0, said) == (done.returncode, done.stderr)
    assert "KUBE-SERVICES" in done.stdout
