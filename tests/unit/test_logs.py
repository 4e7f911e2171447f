"""Log lines: which are written, how they look, and how often the same one is. Times are the records' own."""

import json
import logging

import pytest

from pyproxy.logs import V2, JsonFormatter, RepeatFilter, TextFormatter

DAY_SECONDS = 86400
START = 1_700_000_000.0


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
