"""`pyproxy plan` as users call it, with two sets of objects: neither root nor a cluster is needed."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import yaml

from pyproxy.cli.plan_report import PlanDocument, ServiceChange

from .test_cli import pyproxy

INPUTS = Path(__file__).parents[1] / "inputs"
BEFORE, AFTER = INPUTS / "plan-before.yaml", INPUTS / "plan-after.yaml"
RULES = INPUTS / "kube-proxy-rules.txt"
PAGE = INPUTS.parents[1] / "docs" / "takeover.md"
PYPROXY = str(Path(sys.executable).with_name("pyproxy"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
MODES = ("iptables", "nftables", "ipvs")


def planned(*words: object) -> tuple[int, PlanDocument]:
    """Return exit code and document of a run."""
    done = pyproxy("plan", *map(str, words), "--node=node1", "-o", "json")
    return done.returncode, msgspec.json.decode(done.stdout, type=PlanDocument)


def actions(services: Sequence[ServiceChange]) -> list[tuple[str, str]]:
    """Return what happens to each Service."""
    return [(item.action, item.name) for item in services]


@pytest.mark.parametrize("mode", MODES)
def test_changes_of_each_service(mode: str) -> None:
    """A change, an addition and a removal of a Service port are shown with their endpoints; a Service that stays is not."""
    status, found = planned(BEFORE, AFTER, f"--proxy-mode={mode}")

    assert (3, "Plan", "node1", mode, "files") == (status, found.kind, found.node, found.mode, found.source)
    assert [("add", "new"), ("remove", "old"), ("change", "web")] == actions(found.services)
    new, old, web = found.services
    assert (["10.96.0.44:80"], 2, 0) == (new.frontends, new.endpoints, len(new.rules.removed))
    assert (1, 0) == (old.endpoints, len(old.rules.added))
    assert (["10.244.1.30:8080"], ["10.244.2.11:8080"]) == (web.endpoints_added, web.endpoints_removed)
    assert (1, 1) == (len(web.rules.added), len(web.rules.removed))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_changes(mode: str) -> None:
    """The same objects change nothing: exit code 0."""
    status, found = planned(BEFORE, BEFORE, f"--proxy-mode={mode}")

    assert (0, [], []) == (status, found.services, found.shared)


def test_text() -> None:
    """The text has a line for each Service port and a summary; wide adds the rules."""
    words = ("plan", str(BEFORE), str(AFTER), "--node=node1")
    done, wide = pyproxy(*words), pyproxy(*words, "-o", "wide")

    assert (3, 3) == (done.returncode, wide.returncode)
    lines = done.stdout.splitlines()
    assert ["+ default/new:http tcp", "- default/old udp", "~ default/web tcp"] == [
        line.partition("  ")[0] for line in lines[:-1]
    ]
    assert "Plan: 1 to change, 1 to add, 1 to remove. Nothing was written." == lines[-1]
    assert lines == [line for line in wide.stdout.splitlines() if not line.startswith(" ")]
    assert "    - nat: -A KUBE-SVC-LOLE4ISW44XBNF3G -p tcp -j DNAT --to-destination 10.244.2.11:8080" in wide.stdout


def test_many_endpoints(tmp_path: Path) -> None:
    """Many endpoints are cut in the text and complete in the document."""
    objects = [item for item in yaml.safe_load_all(AFTER.read_text()) if item["metadata"]["name"].startswith("web")]
    objects[1]["endpoints"] = [{"addresses": [f"10.244.3.{number}"]} for number in range(1, 11)]
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(objects))

    _, found = planned(BEFORE, path)
    text = pyproxy("plan", str(BEFORE), str(path), "--node=node1").stdout

    assert 10 == len(found.services[-1].endpoints_added)
    assert "+10.244.3.4:8080 +(6 more) -10.244.1.10:8080" in text


def test_yaml_document() -> None:
    """The YAML document equals the JSON document."""
    words = ("plan", str(BEFORE), str(AFTER), "--node=node1", "-o")
    assert yaml.safe_load(pyproxy(*words, "yaml").stdout) == msgspec.json.decode(pyproxy(*words, "json").stdout)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((BEFORE, "missing"), 2, "missing: No such file or directory"),
        ((BEFORE, AFTER, "third"), 2, "unexpected extra argument"),
        ((BEFORE, AFTER, "--proxy-mode=auto"), 2, "--proxy-mode=auto depends on the kernel"),
        ((BEFORE, AFTER, "-o", "xml"), 2, "xml"),
    ],
)
def test_errors(words: tuple[object, ...], status: int, message: str) -> None:
    """An error is one message with exit code 1 or 2, and prints no plan."""
    done = pyproxy("plan", "--node=node1", *map(str, words))

    assert (status, "") == (done.returncode, done.stdout)
    assert message in done.stderr


def after_kube_proxy(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a network namespace that has rules of kube-proxy, in the nft variant; check that they stay."""
    script = f"""
        iptables-nft-restore --noflush {RULES}
        iptables-nft-save | grep -v "^#" | sed "s/ \\[.*//" | sha256sum >&2
        "$@"
        code=$?
        iptables-nft-save | grep -v "^#" | sed "s/ \\[.*//" | sha256sum >&2
        exit $code
    """
    words = (PYPROXY, "plan", str(AFTER), "--node=node1", *flags)
    argv = ["unshare", "--net", "sh", "-c", script, "sh", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    sums = [line for line in done.stderr.splitlines() if line.endswith(" -")]
    assert 2 == len(sums)
    assert sums[0] == sums[1]
    return done


@needs_root
def test_takeover() -> None:
    """Where kube-proxy has rules, the plan has what changes, appears and goes, as docs/takeover.md shows."""
    done = after_kube_proxy("--proxy-mode=iptables", "--iptables-variant=nft")

    assert 3 == done.returncode
    assert ["- default/gone tcp", "+ default/new:http tcp", "+ default/same tcp", "~ default/web tcp"] == [
        line.partition("  ")[0] for line in done.stdout.splitlines()[:4]
    ]
    assert "- 1 chain in iptables-nft, removed once" in done.stdout
    assert textwrap.indent(done.stdout, "    ") in PAGE.read_text()


@needs_root
def test_takeover_by_another_mode() -> None:
    """In another mode than kube-proxy's all Service ports are new, and all chains of kube-proxy go."""
    done = after_kube_proxy("--proxy-mode=nftables")

    assert 3 == done.returncode
    assert "~ default" not in done.stdout
    assert "- 12 chains in iptables-nft, removed once" in done.stdout
    assert done.stdout.endswith(
        "Plan: 0 to change, 3 to add, 0 to remove, shared elements to change, rules of another proxy or mode to remove;"
        " 0 connections cut. Nothing was written.\n"
    )
