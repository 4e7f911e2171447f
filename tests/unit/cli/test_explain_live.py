"""What ``explain`` reads in /proc: affinity entries of xt_recent and of IPVS."""

from pathlib import Path

import pytest

from pyproxy.backends.ipvs.entries import VirtualServer
from pyproxy.cli import explain_ipvs, explain_live
from pyproxy.model.address import parse_ip
from pyproxy.model.endpoint import Endpoint


def test_ages_of_recent_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ages are ticks since the client was last seen, divided by the ticks per second of the kernel."""
    lists, timers = tmp_path / "xt_recent", tmp_path / "timer_list"
    lists.mkdir()
    now = explain_live.ticks_of(seconds=explain_live.uptime(), per_second=250)
    timers.write_text(f"Timer List Version: v0.9\njiffies: {now}\n")
    (lists / "KUBE-SEP-X").write_text(f"src=10.244.1.14 ttl: 64 last_seen: {now - 2500} oldest_pkt: 1 {now - 2500}\n")
    monkeypatch.setattr(explain_live, "RECENT", lists)
    monkeypatch.setattr(explain_live, "TIMERS", timers)

    assert {"KUBE-SEP-X": {parse_ip("10.244.1.14"): 10.0}} == explain_live.recent_lists()


def test_persistence_of_ipvs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates, which have port 0, are affinity entries; connections are not."""
    file = tmp_path / "ip_vs_conn"
    file.write_text(
        "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
        "TCP 0AF4010E 0000 0A6000B6 0050 0AF4010B 1F90 NONE          10790\n"
        "TCP 0AF4010E A3F2 0A6000B6 0050 0AF4010B 1F90 TIME_WAIT       110\n"
    )
    monkeypatch.setattr(explain_ipvs, "CONNECTIONS", file)

    virtual = VirtualServer(parse_ip("10.96.0.182"), 6, 80)
    assert {(virtual, parse_ip("10.244.1.14")): Endpoint(parse_ip("10.244.1.11"), 8080)} == explain_ipvs.persistence()
