"""Objects with hostile text in every field, through every output: no byte gets out of its place.

Metrics need no test: none of their labels has text of an object (`tests/docs/test_operations.py` compares the list of metrics).
"""

import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from pyproxy.cli.program import pyproxy
from pyproxy.config.config import ProxyMode
from pyproxy.kubeapi.events import PendingEvent, event_object
from pyproxy.logs import JsonFormatter, TextFormatter
from pyproxy.manifests.files import read_objects
from pyproxy.model.event import Event
from pyproxy.model.names import NamespacedName
from pyproxy.serve.agent_status import (
    AgentStatus,
    Change,
    DoctorStatus,
    FamilyStatus,
    Finding,
    QuarantinedPort,
    ServicePage,
    ServiceStatus,
    WatchStatus,
)
from pyproxy.serve.status_text import status_text
from pyproxy.serve.statusz import status_page
from tests.fuzz.conftest import TRIED, Sources
from tests.fuzz.mutation import HOSTILE, text
from tests.fuzz.objects import OBJECTS
from tests.unit.serve.status import status

KINDS = ("Service", "Service", "EndpointSlice", "EndpointSlice", "Node")
OBJECTS_PER_INPUT = 100
MARK = "qzq"
"""A part of each hostile text."""
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?/[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?::[-a-z0-9]+)?")
"""A valid name of a Service port."""
_QUOTED = re.compile(r'"[^"]*"')
_COMMENT = re.compile(r'"(?:NAME|[-A-Za-z0-9 _/.:;,()]*)(?: [a-z ]+)?"')
_WORDS = re.compile(r"[-A-Za-z0-9_.:,/!+%=@*<>\[\]{}()&|^; \t#$]*")


_made = count()


@pytest.fixture(scope="module", autouse=True)
def counted(pytestconfig: pytest.Config) -> Iterator[None]:
    """Add the number of hostile texts to the numbers of inputs."""
    yield
    pytestconfig.stash[TRIED]["hostile texts"] = next(_made)


def hostile(source: Random) -> str:
    """Return a hostile text of at most a few hundred characters. A text with half a character would spoil the whole file."""
    next(_made)
    parts = source.choice(("", "a", "web", "10.0.0.")), text(source)[:200], MARK, source.choice((*HOSTILE, "", ""))
    return "".join(parts).replace("\ud800", "")


def replaced(tree: Any, source: Random, chance: float) -> Any:  # noqa: ANN401  # a tree of JSON
    """Return a copy in which a share of the texts is hostile."""
    if isinstance(tree, dict):
        keys = ("kind", "apiVersion")
        return {key: value if key in keys else replaced(value, source, chance) for key, value in tree.items()}
    if isinstance(tree, list):
        return [replaced(value, source, chance) for value in tree]
    return hostile(source) if isinstance(tree, str) and source.random() < chance else tree


def some_objects(source: Random) -> list[dict[str, Any]]:
    """Return objects with hostile texts, few of them or many, so that some of the objects are used."""
    return [
        replaced(source.choice(OBJECTS[source.choice(KINDS)]), source, source.choice((0.05, 0.3)))
        for _ in range(OBJECTS_PER_INPUT)
    ]


def printed(*words: str) -> str:
    """Return what a command prints; each line must be printable, except that JSON only escapes what JSON has to."""
    result = CliRunner().invoke(pyproxy, words, catch_exceptions=False)
    if "json" in words:
        json.loads(result.stdout)
        return result.stdout
    for line in (result.stdout + result.stderr).splitlines():
        assert line.removeprefix("\t").removeprefix("\t").isprintable(), repr(line)
    return result.stdout


def check_rules(text: str) -> None:
    """Check that lines of rules have text of objects only in comments, and there only as valid names."""
    for line in text.splitlines():
        masked = _NAME.sub("NAME", line)
        assert all(_COMMENT.fullmatch(quoted) for quoted in _QUOTED.findall(masked)), repr(line)
        words = _QUOTED.sub("COMMENT", masked)
        assert _WORDS.fullmatch(words), repr(line)
        assert MARK not in masked, repr(line)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Provide the path of a file of objects."""
    return tmp_path / "objects.json"


def test_commands(sources: Sources, file: Path) -> None:
    """Rules have valid names only; tables, explanations and messages are printable, and JSON is JSON."""
    for source in sources(2):
        file.write_text(json.dumps({"kind": "List", "items": some_objects(source)}))
        flags = (f"--manifests={file}", "--node=node1", "--cluster-cidr=10.244.0.0/16")
        for mode in (ProxyMode.IPTABLES, ProxyMode.NFTABLES, ProxyMode.IPVS):
            check_rules(printed("dump-rules", f"--proxy-mode={mode.value}", *flags))
        check_rules(printed("dump-rules", "--proxy-mode=iptables", "--family=ipv4", "-o", "restore", *flags))
        check_rules(printed("dump-rules", "--proxy-mode=nftables", "-o", "nft", *flags))
        printed("dump-rules", "--proxy-mode=iptables", "-o", "json", *flags)
        printed("services", "-o", "wide", *flags[:2])
        rows = json.loads(printed("services", "-o", "json", *flags[:2]))["items"]
        names = [name for row in rows if _NAME.fullmatch(name := f"{row['namespace']}/{row['name']}")]
        printed("explain", *flags, "node1", source.choice([*names, "10.96.0.10:80"]))


def test_problems(sources: Sources, file: Path) -> None:
    """A message about an object is one line in the log, in both formats, in an Event and on the status page."""
    for source in sources(8):
        file.write_text(json.dumps({"kind": "List", "items": some_objects(source)}))
        messages = list(map(str, read_objects(file).problems))
        for message in messages:
            record = logging.LogRecord("pyproxy.fuzz", logging.WARNING, "fuzz", 1, "%s", (message,), None)
            assert TextFormatter().format(record).isprintable()
            assert message == json.loads(JsonFormatter().format(record))["msg"]
            name = NamespacedName("default", "web")
            note = PendingEvent(Event("Service", name, "Fuzz", "Fuzz"), message, is_warning=True, at=datetime.now(UTC))
            assert len(json.loads(msgspec.json.encode(event_object(note, "node1", "")))["note"].encode()) <= 1024
        check_status((messages * 8)[: len(messages) + 8])


class _Page(HTMLParser):
    """The tags with their attributes, in order, and the texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self._parts: list[list[str]] = [[]]
        self.feed(page)
        self.close()
        self.texts = {"".join(parts).strip() for parts in self._parts}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag."""
        self.tags.append((tag, *(name for name, _ in attrs)))
        self._parts.append([])

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self._parts[-1].append(data)


def status_with(texts: list[str]) -> AgentStatus:
    """Return a status with texts wherever objects, the kernel, other programs or the request may have put them."""
    found = status(texts[0])
    found.node.zone = found.variant = texts[1]
    found.problems = found.invalid = texts
    found.invalid_count = len(texts)
    port = QuarantinedPort(texts[2], texts[3])
    found.families = [FamilyStatus("IPv4", {}, None, None, texts[4], 1, [port])]
    found.watches = [WatchStatus("Service", "lost", 1, None, texts[5])]
    found.doctor = DoctorStatus(None, None, texts[6], 0, [Finding(texts[0], "warn", texts[1], texts[2], texts[3])])
    found.changes = [Change("", 1, "IPv4", texts[4], texts[5])]
    service, frontend, kind, policy, endpoints, affinity, state = texts[:7]
    row = ServiceStatus(service, frontend, kind, policy, endpoints, affinity, state, is_problem=True)
    found.services = ServicePage(texts[7], 1, 1, 2, 3, [row], "")
    return found


def check_status(texts: list[str]) -> None:
    """Check that the status page has the same structure as with harmless texts, and shows the texts themselves."""
    shown, harmless = status_with(texts), status_with(["a"] * len(texts))
    page = _Page(status_page(shown))
    assert _Page(status_page(harmless)).tags == page.tags
    assert {text.strip() for text in texts} <= page.texts
    lines, usual = status_text(shown).split("\n"), status_text(harmless).split("\n")
    assert len(usual) == len(lines)
    assert all(line.isprintable() for line in lines)
    assert shown.invalid == json.loads(msgspec.json.encode(shown))["invalid"]


def test_status_page(sources: Sources) -> None:
    """Any text is on the status page as text, in HTML, plain text and JSON, although decoding lets none of these through."""
    for source in sources(300):
        check_status([hostile(source).strip() for _ in range(8)])
