"""The status page for people: its content, and that all values in it are escaped."""

from html.parser import HTMLParser

import pytest

from pyproxy.model.address import Family
from pyproxy.serve.statusz import FamilyStatus, StatusBoard, duration_text, status_page

STARTED = 1_700_000_000.0
NOW = STARTED + 3 * 3600 + 5 * 60
EVIL = "<script>alert('&\"')</script>"


class Text(HTMLParser):
    """Collects what a browser shows, and the tags that it sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take a tag."""
        self.tags.append(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data: str) -> None:
        """Take text."""
        self.words += data.split()

    @property
    def text(self) -> str:
        """Return what is shown."""
        return " ".join(self.words)


def board(node_name: str = "node-1") -> StatusBoard:
    """Return the board of an agent that did not sync yet."""
    return StatusBoard("nftables", node_name, STARTED)


def shown(of: StatusBoard) -> Text:
    """Return what a browser shows."""
    page = status_page(of, lambda: NOW)
    assert "text/html; charset=utf-8" == page.content_type
    return Text(page.body)


def test_an_agent_in_order() -> None:
    """Mode, time since the start, numbers by family and kind, and the last sync are there, and that all is well."""
    healthy = board()
    healthy.families[Family.IPV4] = FamilyStatus({"service_port": 12, "node_port": 3}, synced_at=NOW - 42)
    healthy.families[Family.IPV6] = FamilyStatus({"service_port": 7, "node_port": 0}, synced_at=NOW - 61)
    healthy.set_watch("Service", "", STARTED)

    text = shown(healthy).text

    assert "pyproxy on node-1" in text
    assert "The kernel has what the cluster wants." in text
    assert "Mode nftables" in text
    assert "Up 3 h 5 min, since 2023-11-14 22:13:20 UTC" in text
    assert "IPv4 IPv6 service port 12 7 node port 3 0 last good sync 42 s ago" in text
    assert "1 min 1 s ago" in text
    assert "No Service port is in quarantine." in text
    assert "Service watched 3 h 5 min" in text


def test_what_is_wrong_is_on_top() -> None:
    """The first line names a failed sync, quarantine and a lost API server; the reason of each is below."""
    broken = board()
    broken.families[Family.IPV4] = FamilyStatus(
        synced_at=NOW, error="no memory", quarantined={"default/web:http (TCP)": "bad port"}
    )
    broken.set_watch("Service", "refused", NOW - 90)
    broken.set_watch("Service", "still refused", NOW - 1)

    text = shown(broken).text

    expected = "The last sync failed; Services are in quarantine; the API server is lost, the last good state is kept."
    assert expected in text
    assert "last error no memory" in text
    assert "IPv4 default/web:http (TCP) bad port" in text
    assert "Service lost 1 min 30 s still refused" in text


def test_before_the_first_sync() -> None:
    """An agent that waits for its objects says so."""
    assert "Rules have not been written yet." in shown(board()).text


def test_everything_is_escaped() -> None:
    """Names and messages from outside are shown as text, whatever they contain; the page loads nothing."""
    evil = board(EVIL)
    evil.families[Family.IPV4] = FamilyStatus({EVIL: 1}, error=EVIL, quarantined={EVIL: EVIL})
    evil.set_watch(EVIL, EVIL, NOW)

    page = shown(evil)

    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert not {"src", "onclick"} & page.attributes.keys()
    assert 7 <= page.text.count(EVIL)


def test_many_in_quarantine() -> None:
    """A page stays a page where thousands are in quarantine."""
    many = board()
    many.families[Family.IPV4] = FamilyStatus(quarantined={f"default/s{number}": "no" for number in range(5000)})

    page = shown(many)

    assert "and 4800 more." in page.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (59, "59 s"), (60, "1 min 0 s"), (90061, "1 d 1 h"), (7200, "2 h 0 min")],
)
def test_duration(seconds: float, text: str) -> None:
    """A duration is written in its two largest units."""
    assert text == duration_text(seconds)
