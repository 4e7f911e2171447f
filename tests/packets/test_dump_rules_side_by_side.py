"""``pyproxy dump-rules`` of a trial beside kube-proxy in iptables mode: which Services it has, and in which chains."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.packets.cluster import FLAGS, PYPROXY, wait_until
from tests.packets.objects import port, service, slices
from tests.packets.own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")

TRIED = service("tried", 1, port(80), labels={"service.kubernetes.io/service-proxy-name": "trial"})
OTHER = service("other", 2, port(80))


def test_planned_and_live_rules_of_a_trial(tmp_path: Path) -> None:
    """What should be there is what is: the tried Service, told as such, in chains of the trial's own, and no other."""
    manifest, log = tmp_path / "objects.json", tmp_path / "log"
    items = [TRIED, *slices(TRIED, "pod1-1", "pod2-1"), OTHER, *slices(OTHER, "pod1-1")]
    manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    trial = ("--service-proxy-name=trial", "--proxy-mode=iptables", "--iptables-variant=nft")
    objects = f"--manifests={manifest}"
    with log.open("wb") as stream, subprocess.Popen([PYPROXY, "run", objects, *trial, *FLAGS], stderr=stream) as agent:
        try:
            wait_until(lambda: "first sync done" in log.read_text(), "the rules")
            live = run(PYPROXY, "dump-rules", "--live", "-o", "restore", *trial)
            planned = run(PYPROXY, "dump-rules", objects, "-o", "restore", *trial)
            shown = run(PYPROXY, "dump-rules", "--live", *trial)
        finally:
            agent.terminate()

    without_counters = re.sub(r"^\[\d+:\d+\] ", "", live, flags=re.MULTILINE)
    assert sorted(planned.splitlines()) == sorted(without_counters.splitlines())
    assert ["default/tried tcp"] * 2 == re.findall(r"^default/.*", shown, re.MULTILINE)
    assert "KUBE-" not in planned
