"""What the counters of connection tracking mean."""

from collections import Counter

from pyproxy.doctor.conntrack import losses
from pyproxy.doctor.finding import Severity

BEFORE = Counter({"drop": 5, "insert_failed": 7, "invalid": 9})


def found(now: Counter[str]) -> list[tuple[Severity, str]]:
    """Return severity and text of each finding."""
    return [(each.severity, each.text) for each in losses(BEFORE, now, be_liberal=False)]


def test_growing_counters() -> None:
    """Packets that are lost now are a warning with their rate."""
    now = BEFORE + Counter({"drop": 2, "insert_failed": 1})

    assert [
        (Severity.WARN, "packets are dropped because the connection tracking table is full: 120 a minute"),
        (Severity.WARN, "first packets are dropped because another packet created the same entry: 60 a minute"),
    ] == found(now)


def test_old_losses() -> None:
    """Packets that were lost earlier are information; INVALID packets are then nothing to report."""
    since = "since the start of the kernel, none now"

    assert [
        (Severity.INFO, f"packets are dropped because the connection tracking table is full: 5 {since}"),
        (Severity.INFO, f"first packets are dropped because another packet created the same entry: 7 {since}"),
    ] == found(BEFORE)
