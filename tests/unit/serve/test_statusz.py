"""The status as a page for a browser and as plain text: its content, and that hostile text stays text."""

from __future__ import annotations

from html.parser import HTMLParser

import msgspec
import pytest
from msgspec.structs import replace

from pyproxy.serve.agent_status import (
    AgentStatus,
    Change,
    DoctorStatus,
    EarlierRules,
    FamilyStatus,
    Finding,
    NodeStatus,
    QuarantinedPort,
    ServicePage,
    ServiceStatus,
    WatchStatus,
)
from pyproxy.serve.status_text import duration_text, status_text
from pyproxy.serve.statusz import status_page

from .status import status

EVIL = "<script>alert('&\"')</script>\x1b[2J\u202e\nforged: line"
IPV4 = FamilyStatus("IPv4", {"service_port": 12, "node_port": 3}, "2026-11-21T18:14:58Z", 42, "", 0, [])
IPV6 = FamilyStatus("IPv6", {"service_port": 7, "node_port": 0}, "2026-11-21T18:14:39Z", 61, "", 0, [])
WEB = ServiceStatus("default/web", "10.96.0.10:80/TCP", "ClusterIP", "cluster", "2/2 (1)", "-", "ok", is_problem=False)


class Text(HTMLParser):
    """Collects what a browser shows, and the tags that it sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str | None]] = {}
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take a tag."""
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)

    def handle_data(self, data: str) -> None:
        """Take text."""
        self.words += data.split()

    @property
    def text(self) -> str:
        """Return what is shown."""
        return " ".join(self.words)


def shown(of: AgentStatus) -> tuple[str, str]:
    """Return what a browser shows and what a terminal shows, each with single spaces."""
    return Text(status_page(of)).text, " ".join(status_text(of).split())


def test_an_agent_in_order() -> None:
    """Node, mode, variant, time since the start, counts by family, the last sync and the watches are there."""
    watch = WatchStatus("Service", "watched", 11100, 12, "")
    for text in shown(replace(status(), families=[IPV4, IPV6], watches=[watch])):
        assert "pyproxy on node-1" in text
        assert "OK" in text
        assert "The kernel has what the cluster wants." in text
        assert "Mode iptables, iptables-nft" in text
        assert "Node addresses 172.18.0.11, fd00:18::11 Pod CIDRs 10.244.1.0/24 Cluster CIDRs 10.244.0.0/16" in text
        assert "Up 3 h 5 min, since 2026-11-21T15:10:40Z" in text
        assert "IPv4 IPv6 service port 12 7 node port 3 0 quarantined 0 0 last good sync 42 s ago" in text
        assert "1 min 1 s ago" in text
        assert "Service watched for 3 h 5 min 12 s ago" in text


def test_problems_are_on_top() -> None:
    """The banner has the verdict and all problems; the reason of each is below."""
    family = replace(
        IPV4, error="no memory", quarantined_count=1, quarantined=[QuarantinedPort("a/b (TCP)", "bad port")]
    )
    broken = replace(
        status(),
        verdict="fail",
        problems=["the last IPv4 sync failed", "1 problem of input objects"],
        families=[family],
        watches=[WatchStatus("Service", "lost", 90, 95, "refused")],
        invalid_count=1,
        invalid=["Service default/typo: spec.ports[0].port: Expected int, got str"],
        doctor=DoctorStatus("t", 5, "", 27, [Finding("forwarding", "fail", "forwarding is off", "sysctl", "set it")]),
    )
    for text in shown(broken):
        assert "FAILURE" in text
        assert "The last IPv4 sync failed. 1 problem of input objects." in text
        assert "last error no memory" in text
        assert "IPv4 a/b (TCP) bad port" in text
        assert "Service lost for 1 min 30 s 1 min 35 s ago refused" in text
        assert "Service default/typo: spec.ports[0].port: Expected int, got str" in text
        assert "27 checks found nothing, 5 s ago." in text
        assert "forwarding is off" in text


def test_before_the_first_sync() -> None:
    """An agent that waits for its objects says which rules are in the kernel, and how old they are."""
    for text in shown(replace(status(), earlier_rules=EarlierRules(3, 4, "2026-11-21T18:00:00Z", 940, ""))):
        assert "In the kernel rules of 3 Services (4 ports) of an earlier run" in text
        assert "Last up to date 15 min 40 s ago (2026-11-21T18:00:00Z)" in text


def test_services_and_changes() -> None:
    """The list of Services has a search field with the query, and links to the other pages; changes have their age."""
    page = ServicePage("web & <co>", 10_000, 120, 2, 3, [WEB], "")
    found = replace(
        status(), services=page, changes=[Change("t", 75, "IPv6", "default/web (TCP)", "endpoints +[fd00::1]:80")]
    )
    browser = Text(status_page(found))

    for text in shown(found):
        assert "120 of 10000 Services match; page 2 of 3" in text
        assert "default/web 10.96.0.10:80/TCP ClusterIP cluster 2/2 (1) - ok" in text
        assert "1 min 15 s ago IPv6 default/web (TCP) endpoints +[fd00::1]:80" in text
    assert "web & <co>" in browser.attributes["value"]
    links = {f"?service=web+%26+%3Cco%3E&page={number}#services" for number in (1, 3)}
    assert links | {"/"} == set(browser.attributes["href"])


def test_everything_is_escaped() -> None:
    """Names and messages from outside are text, whatever they contain: no element, no attribute, no line, no escape code."""
    evil = replace(
        status(),
        verdict="fail",
        problems=[EVIL],
        node=NodeStatus(EVIL, [EVIL], [EVIL], [EVIL], EVIL),
        mode=EVIL,
        families=[FamilyStatus(EVIL, {EVIL: 1}, EVIL, 1, EVIL, 1, [QuarantinedPort(EVIL, EVIL)])],
        earlier_rules=EarlierRules(1, 1, EVIL, 1, EVIL),
        watches=[WatchStatus(EVIL, "lost", 1, 1, EVIL)],
        invalid_count=1,
        invalid=[EVIL],
        doctor=DoctorStatus(EVIL, 1, EVIL, 1, [Finding(EVIL, "warn", EVIL, EVIL, EVIL)]),
        changes=[Change(EVIL, 1, EVIL, EVIL, EVIL)],
        services=ServicePage(
            EVIL, 1, 1, 2, 3, [ServiceStatus(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, is_problem=True)], EVIL
        ),
    )
    page, harmless = Text(status_page(evil)), Text(status_page(_with_letters(evil)))
    text = status_text(evil)

    assert harmless.tags == page.tags
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert not {"src", "onclick", "onload"} & page.attributes.keys()
    assert page.text.count("<script>alert('&\"')</script>") > 25
    assert not [line for line in text.splitlines() if line.startswith("forged")]
    assert all(each.isprintable() or each == "\n" for each in text)


def _with_letters(of: AgentStatus) -> AgentStatus:
    """Return a status with letters instead of each hostile text."""
    return msgspec.convert(_replaced(msgspec.to_builtins(of)), AgentStatus)


def _replaced(value: object) -> object:
    if isinstance(value, dict):
        return {_replaced(key): _replaced(each) for key, each in value.items()}
    if isinstance(value, list):
        return [*map(_replaced, value)]
    return "abc" if value == EVIL else value


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (90061, "1 d 1 h"), (7200, "2 h 0 min")],
)
def test_duration(seconds: float, text: str) -> None:
    """A duration is written in its two largest units."""
    assert text == duration_text(seconds)
