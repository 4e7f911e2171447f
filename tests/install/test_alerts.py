"""Unit tests of the alerts, run by Prometheus' own promtool."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from .machine import ROOT, run

PROMTOOL = ROOT / ".cache" / "promtool" / "usr" / "bin" / "promtool"
CASES = ROOT / "tests" / "inputs" / "alerts.yaml"
RULES = yaml.safe_load((ROOT / "manifests" / "monitoring" / "rules.yaml").read_text())["spec"]


@pytest.fixture(scope="module", autouse=True)
def promtool() -> None:
    """Unpack promtool."""
    run("tests/install/promtool.sh")


def without_annotations() -> dict[str, object]:
    """Return the rule file without annotations, so that cases need to name only labels."""
    groups = [
        {**group, "rules": [{key: rule[key] for key in rule if key != "annotations"} for rule in group["rules"]]}
        for group in RULES["groups"]
    ]
    return {"groups": groups}


def test_alerts_fire_for_their_fault_only(tmp_path: Path) -> None:
    """Each alert fires for the node with its fault and for no other node."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(without_annotations()))
    shutil.copy(CASES, tmp_path / "cases.yaml")

    done = subprocess.run(
        [PROMTOOL, "test", "rules", "cases.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert (0, "") == (done.returncode, done.stderr), done.stdout + done.stderr


def test_the_rule_file_is_valid(tmp_path: Path) -> None:
    """Promtool accepts the rules with their annotations."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES))

    done = subprocess.run(
        [PROMTOOL, "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert not done.returncode, done.stdout + done.stderr


def test_each_alert_has_a_case() -> None:
    """No alert is without a case in which it fires."""
    cases = yaml.safe_load(CASES.read_text())["tests"]
    fires = {test["alertname"] for case in cases for test in case["alert_rule_test"] if test["exp_alerts"]}

    assert {rule["alert"] for group in RULES["groups"] for rule in group["rules"]} == fires
