"""Log lines: which are written, how they look, and how often the same one is. Times are the records' own."""

import ast
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyproxy
from pyproxy.errors import DecodeError
from pyproxy.logs import V2, JsonFormatter, RepeatFilter, TextFormatter
from pyproxy.model.address import Family
from pyproxy.model.event import event_extra
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName

DAY_SECONDS = 86400
START = 1_700_000_000.0
WEB = NamespacedName("default", "web")
METHODS = {"debug", "info", "warning", "error", "critical", "exception", "log"}
REPR = re.compile(r"%[-+ #0-9.]*[ra]")


def record(text: str, level: int = logging.WARNING, created: float = START) -> logging.LogRecord:
    """Return a line of a moment."""
    made = logging.LogRecord("pyproxy.test", level, __file__, 1, text, (), None)
    made.created = created
    return made


def written(filter_: RepeatFilter, text: str, seconds: float, *, times: int, level: int = logging.WARNING) -> list[str]:
    """Return what is written of a line that comes several times, each some seconds after the one before."""
    records = [record(text, level, START + number * seconds) for number in range(times)]
    return [each.getMessage() for each in records if filter_.filter(each)]


def test_the_same_warning_is_not_printed_a_thousand_times() -> None:
    """A line that comes every second for a day is written some thirty times, the last ones with a count."""
    lines = written(RepeatFilter(), "failed", 1, times=DAY_SECONDS)

    assert ["failed"] * 3 == lines[:3]
    assert len(lines) < 40
    assert " times since " in lines[-1]
    assert lines[3].startswith("failed (63 times since ")


def test_all_other_lines_are_written() -> None:
    """What is not the same line, or of a higher level of detail, is not held back."""
    filter_ = RepeatFilter()

    assert 100 == sum(filter_.filter(record(f"failed {number}")) for number in range(100))
    assert 100 == len(written(filter_, "synced", 1, times=100, level=V2))
    assert 100 == len(written(filter_, "step", 1, times=100, level=logging.DEBUG))


def test_a_line_after_a_quiet_time_is_a_new_one() -> None:
    """What stayed away for ten minutes is written as it is again."""
    filter_ = RepeatFilter()
    written(filter_, "failed", 1, times=20)
    later = record("failed", created=START + 700)

    assert (True, "failed") == (filter_.filter(later), later.getMessage())


def test_memory_has_a_limit() -> None:
    """The lines of a year are not all remembered."""
    filter_ = RepeatFilter()
    for number in range(5000):
        filter_.filter(record(f"failed {number}"))

    assert len(filter_._lines) <= 1000


@pytest.mark.parametrize(
    ("level", "letter"),
    [
        (logging.DEBUG, "I"),
        (V2, "I"),
        (logging.INFO, "I"),
        (logging.WARNING, "W"),
        (logging.ERROR, "E"),
        (logging.CRITICAL, "F"),
    ],
)
def test_text_has_klogs_letters(level: int, letter: str) -> None:
    """A line begins with one of the four letters that collectors know."""
    assert letter == TextFormatter().format(record("text", level))[0]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (logging.DEBUG, {"level": "info", "v": 4}),
        (V2, {"level": "info", "v": 2}),
        (logging.INFO, {"level": "info", "v": 0}),
        (logging.ERROR, {"level": "error"}),
    ],
)
def test_json_has_the_verbosity(level: int, expected: dict[str, object]) -> None:
    """Lines up to level info have the -v that shows them, as in component-base."""
    line = json.loads(JsonFormatter().format(record("text", level)))

    assert {"ts": START * 1000, "caller": "pyproxy.test:1", "msg": "text"} | expected == line


def test_words_of_others_stay_in_their_line() -> None:
    """A line break or an escape sequence in them is written as what it is; letters of any script stay."""
    line = TextFormatter().format(record("GET /\nE1231 ] fake \x1b[2J grün"))

    assert line.endswith("] GET /\\nE1231 ] fake \\x1b[2J grün")


@pytest.mark.parametrize(
    ("arguments", "extra", "fields"),
    [
        ((Family.IPV6, ServicePortName(WEB, "http", Protocol.TCP)), {}, {"service": "default/web", "family": "IPv6"}),
        ((WEB, 1), {"duration_ms": 1.5, "entries": 3}, {"duration_ms": 1.5, "entries": 3}),
        (("a", "b"), event_extra("Service", WEB, "Refused", "Program"), {"service": "default/web"}),
        (("a", "b"), event_extra("Node", WEB, "Starting", "Start"), {}),
        (
            (DecodeError("Service default/web", "spec", "bad"), ""),
            {"mode": "ipvs"},
            {"service": "default/web", "mode": "ipvs"},
        ),
    ],
    ids=["arguments", "extra", "event of a Service", "event of a Node", "decode error"],
)
def test_json_has_fields(arguments: tuple[object, ...], extra: dict[str, object], fields: dict[str, object]) -> None:
    """The fields that apply to a line are in its JSON, also in a line with a number of repetitions; the text is the same."""
    made = [record("%s: %s", logging.INFO, START + 61 * number) for number in range(4)]
    lines = []
    filter_ = RepeatFilter()
    for each in made:
        each.args = arguments
        vars(each).update(extra)
        assert filter_.filter(each)
        lines.append(json.loads(JsonFormatter().format(each)))

    shown = ": ".join(map(str, arguments))
    names = ("service", "family", "mode", "duration_ms", "entries")
    assert [fields] * 4 == [{name: line[name] for name in names if name in line} for line in lines]
    assert shown == lines[0]["msg"]
    assert lines[3]["msg"].startswith(f"{shown} (4 times since ")


def log_calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield all calls of loggers in the package, with their places."""
    for path in sorted(Path(pyproxy.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="logger"), attr=attr)) if attr in METHODS:
                    yield f"{path}:{node.lineno}", node


def test_no_line_is_written_for_python_programmers() -> None:
    """No log call formats a value with repr: neither by its format, nor by a function, nor by a conversion."""
    calls = list(log_calls())
    found = [
        place
        for place, call in calls
        for node in ast.walk(call)
        if (isinstance(node, ast.Constant) and isinstance(node.value, str) and REPR.search(node.value))
        or (isinstance(node, ast.Name) and node.id in {"repr", "ascii"})
        or (isinstance(node, ast.FormattedValue) and node.conversion in {ord("r"), ord("a")})
    ]

    assert len(calls) > 50
    assert [] == found
