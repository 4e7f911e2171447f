"""How log lines look, which of them there are, and where they go: one line each, to standard error, as kube-proxy's.

Text has klog's header, which log collectors for Kubernetes know; JSON has component-base's keys. ``-v`` is klog's, too:
0 tells what an operator always wants to know, 2 each sync that did something, 4 and above every step. An agent on a
cluster where nothing happens is silent up to 3. A line that comes again and again is let through less and less often.
"""

import json
import logging
import sys
import threading
import time
from copy import copy
from dataclasses import dataclass
from enum import Enum


class LogFormat(Enum):
    """How log lines look; values as ``--logging-format`` takes them."""

    TEXT = "text"
    JSON = "json"


V2 = logging.INFO - 2
"""Level of lines that ``-v 2`` shows: steady state, one for each sync."""
DEBUG_VERBOSITY = 4
"""The ``-v`` from which every step is told: in Kubernetes' logging conventions 4 is debug level."""
_PLAIN_REPEATS = 3
"""So often a line is let through as it is."""
_FIRST_PAUSE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 3600.0
_MOST_LINES = 1000
"""Lines whose repeats are counted."""


def _letter(record: logging.LogRecord) -> str:
    """Return klog's letter; collectors parse no others."""
    if record.levelno <= logging.INFO:
        return "I"
    return {logging.WARNING: "W", logging.ERROR: "E"}.get(record.levelno, "F")


def _harmless(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


class TextFormatter(logging.Formatter):
    """Write ``I0612 15:04:05.123456    4711 pyproxy.agent.daemon] message``: level, date, time, process, module."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it if there is one."""
        clock = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        micros = int(record.created % 1 * 10**6)
        header = f"{_letter(record)}{clock}.{micros:06d} {record.process:>7} {record.name}] "
        text = record.getMessage()
        if not text.isprintable():
            # What others send (a request line, words of a kernel or a server) must not look like lines of ours.
            record = copy(record)
            record.msg, record.args = "".join(map(_harmless, text)), ()
        return header + super().format(record)


class JsonFormatter(logging.Formatter):
    """Write an object: ``ts`` (ms since 1970), ``level``, ``caller``, ``msg``, ``v`` if no trouble, ``err``: a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object in one line."""
        line: dict[str, object] = {
            "ts": round(record.created * 1000, 3),
            "level": record.levelname.lower() if record.levelno > logging.INFO else "info",
            "caller": f"{record.name}:{record.lineno}",
            "msg": record.getMessage(),
        }
        if record.levelno <= logging.INFO:
            line["v"] = min(logging.INFO - record.levelno, DEBUG_VERBOSITY)
        if record.exc_info:
            line["err"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


@dataclass(slots=True)
class _Repeats:
    """How often a line came, in seconds since 1970 where it is a time."""

    since: float
    last: float = 0.0
    count: int = 0
    pause: float = _FIRST_PAUSE_SECONDS
    next_at: float = 0.0


class RepeatFilter(logging.Filter):
    """Lets the same line through three times, then with pauses that grow from a minute to an hour, and a count.

    Lines that only a higher ``-v`` shows are all let through. A line that stays away for as long as it was held back,
    and for ten minutes at least, is a new one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[tuple[int, str], _Repeats] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a line is to be written; its text is given the count of those that were not."""
        if record.levelno < logging.INFO or record.exc_info:
            return True
        text = record.getMessage()
        with self._lock:
            known = self._known((record.levelno, text), record.created)
            known.count += 1
            known.last = record.created
            if known.count > _PLAIN_REPEATS:
                if record.created < known.next_at:
                    return False
                since = time.strftime("%H:%M:%S", time.localtime(known.since))
                record.msg, record.args = f"{text} ({known.count} times since {since})", ()
                known.pause = min(2 * known.pause, _LONGEST_PAUSE_SECONDS)
            known.next_at = record.created + known.pause
        return True

    def _known(self, key: tuple[int, str], now: float) -> _Repeats:
        known = self._lines.pop(key, None)
        if known is None or now - known.last > max(10 * _FIRST_PAUSE_SECONDS, known.pause):
            known = _Repeats(since=now)
        self._lines[key] = known  # the last one again, so that the first one is the one to forget
        if len(self._lines) > _MOST_LINES:
            del self._lines[next(iter(self._lines))]
        return known


def set_up_logging(verbosity: int, log_format: LogFormat) -> None:
    """Send pyproxy's lines up to a verbosity, and libraries' from warning level on, to standard error.

    Args:
        verbosity: the number behind ``-v``.
        log_format: text or JSON.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    lines.addFilter(RepeatFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[lines], force=True)
    level = logging.DEBUG if verbosity >= DEBUG_VERBOSITY else logging.INFO - verbosity
    logging.getLogger("pyproxy").setLevel(level)
