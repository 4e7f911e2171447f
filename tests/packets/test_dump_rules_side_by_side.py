"""``pyproxy dump-rules`` side-by-side with kube-proxy in iptables mode: its Services, and its chains."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.lab.waiting import wait_until
from tests.packets.cluster import FLAGS, PYPROXY
from tests.packets.objects import port, service, slices
from tests.packets.own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")

TRIED = service("tried", 1, port(80), labels={"service.kubernetes.io/service-proxy-name": "side-by-side"})
OTHER = service("other", 2, port(80))


def test_planned_and_live_rules(tmp_path: Path) -> None:
    """Planned and live rules are equal: only the labelled Service has rules, and they are in pyproxy's own chains."""
    manifest, log = tmp_path / "objects.json", tmp_path / "log"
    items = [TRIED, *slices(TRIED, "pod1-1", "pod2-1"), OTHER, *slices(OTHER, "pod1-1")]
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    side_by_side = ("--service-proxy-name=side-by-side", "--proxy-mode=iptables", "--iptables-variant=nft")
    objects = f"--manifests={manifest}"
    with (
        log.open("wb") as stream,
        subprocess.Popen([PYPROXY, "run", objects, *side_by_side, *FLAGS], stderr=stream) as agent,
    ):
        try:
            wait_until(lambda: "first sync done" in log.read_text(), "the rules")
            live = run(PYPROXY, "dump-rules", "--live", "-o", "restore", "--family=ipv4", *side_by_side)
            planned = run(PYPROXY, "dump-rules", objects, "-o", "restore", "--family=ipv4", *side_by_side)
            shown = run(PYPROXY, "dump-rules", "--live", *side_by_side)
        finally:
            agent.terminate()

    without_counters = re.sub(r"^\[\d+:\d+\] ", "", live, flags=re.MULTILINE)
    assert sorted(planned.splitlines()) == sorted(without_counters.splitlines())
    assert ["default/tried tcp"] * 2 == re.findall(r"^default/.*", shown, re.MULTILINE)
    assert "KUBE-" not in planned
