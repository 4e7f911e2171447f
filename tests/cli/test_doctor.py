"""`pyproxy doctor` as users call it: output, exit codes, and what happens without rights."""

import os
from pathlib import Path

import msgspec
import pytest
import yaml

from pyproxy.cli.doctor import DoctorReport

from .test_cli import pyproxy
from .test_rights import PYPROXY, WITHOUT_CAPABILITIES, run

INPUTS = Path(__file__).parents[1] / "inputs"
FLAGS = ("--offline", f"--manifests={INPUTS / 'broken-services.yaml'}", "--node=node2")


def test_broken_services_are_found() -> None:
    """Each Service that does not work has a line with the cause and what to do; the exit code is 1."""
    done = pyproxy("doctor", *FLAGS)

    lines = done.stdout.splitlines()
    assert (1, "") == (done.returncode, "".join(line for line in done.stderr.splitlines() if "Traceback" in line))
    assert {"default/mismatch", "shop/squatter", "shop/starting", "shop/typo"} == {
        line.split()[1] for line in lines if line.startswith("WARN")
    }
    assert ["default/audit"] == [line.split()[1] for line in lines if line.startswith("INFO")]
    assert all("fix: " in line for line in lines[:-1])
    assert "ok    2 more checks (-v)" == lines[-1]


def test_fine_checks_are_listed_on_request() -> None:
    """With -v the checks that found nothing are listed too."""
    done = pyproxy("doctor", *FLAGS, "-v")

    assert ["ok    name of the node", "ok    external IPs that are addresses of nodes"] == [
        line for line in done.stdout.splitlines() if line.startswith("ok")
    ]


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_documents_follow_the_schema(output: str) -> None:
    """JSON and YAML have the fields and types of docs/schemas/doctor-report.json."""
    done = pyproxy("doctor", *FLAGS, "-o", output)

    values = yaml.safe_load(done.stdout)  # JSON is YAML
    report = msgspec.convert(values, DoctorReport)
    assert ("DoctorReport", "node2", 1) == (report.kind, report.node, done.returncode)
    assert {"services", "node-name", "external-ips"} == {finding.check for finding in report.findings}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--offline"], "--offline needs --manifests PATH"),
        (["-o", "wide"], "-o: wide is not an output format of this command"),
    ],
)
def test_usage_errors(words: list[str], message: str) -> None:
    """Wrong flags and missing files have exit code 2 and a message."""
    done = pyproxy("doctor", *words)

    assert 2 == done.returncode
    assert message in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up capabilities of its own")
def test_without_rights(tmp_path: Path) -> None:
    """Without capabilities the checks that need them are reported, and all other checks run."""
    done = run(tmp_path, *("unshare", "--net"), *WITHOUT_CAPABILITIES, PYPROXY, "doctor")

    assert "" == done.stderr
    assert "WARN  doctor needs CAP_NET_ADMIN, which this process does not have: run it as root" in done.stdout
    assert "WARN  not checked: variants of iptables: " in done.stdout
    assert "FAIL  net.ipv4.ip_forward is 0" in done.stdout
    assert 2 == done.returncode
