"""The format, verbosity and destination of log lines: one line per event, to standard error, as in kube-proxy.

Text lines have klog's header, which log collectors for Kubernetes parse; JSON has the keys of component-base. ``-v`` has
klog's meaning: 0 shows what an operator always needs, 2 adds each sync that changed something, 4 and above every step. In a
cluster without changes an agent logs nothing up to 3. A repeated line is written less and less often.

JSON lines also have fields, so that programs need not parse the text. Family and Service are found among the arguments of
a log call, the other fields are in its ``extra``.
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
    """Format of log lines; the values are those of ``--logging-format``."""

    TEXT = "text"
    JSON = "json"


FIELDS = ("service", "family", "mode", "duration_ms", "entries")
"""Fields of JSON lines, where they apply."""
V2 = logging.INFO - 2
"""Level of lines that ``-v 2`` shows: normal operation, one line for each sync."""
DEBUG_VERBOSITY = 4
"""The ``-v`` from which every step is logged: in Kubernetes' logging conventions 4 is debug level."""
# Number of times that a line is written without a pause.
_PLAIN_REPEATS = 3
_FIRST_PAUSE_SECONDS = 60.0
_LONGEST_PAUSE_SECONDS = 3600.0
# Maximum number of lines whose repeats are counted.
_MOST_LINES = 1000


class TextFormatter(logging.Formatter):
    """Write ``I0612 15:04:05.123456    4711 pyproxy.agent.daemon] message``: level, date, time, process, module."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it if there is one."""
        clock = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        micros = int(record.created % 1 * 10**6)
        # Log collectors parse only klog's four letters: levels below info are I, those above error F.
        letter = {logging.WARNING: "W", logging.ERROR: "E"}.get(record.levelno, "F")
        if record.levelno <= logging.INFO:
            letter = "I"
        header = f"{letter}{clock}.{micros:06d} {record.process:>7} {record.name}] "
        text = record.getMessage()
        if not text.isprintable():
            # Text from outside (a request line, an error of a server) must not be able to forge a log line.
            record = copy(record)
            record.msg = "".join(
                character if character.isprintable() else character.encode("unicode_escape").decode()
                for character in text
            )
            record.args = ()
        return header + super().format(record)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the fields of a line, by name."""
    # Commands that only print help must not pay for the model.
    from pyproxy.errors import DecodeError  # noqa: PLC0415
    from pyproxy.model.address import Family  # noqa: PLC0415
    from pyproxy.model.event import Event  # noqa: PLC0415
    from pyproxy.model.names import ServicePortName  # noqa: PLC0415

    found: dict[str, object] = {}
    for argument in record.args if isinstance(record.args, tuple) else ():
        match argument:
            case Family():
                found["family"] = str(argument)
            case ServicePortName():
                found["service"] = str(argument.service)
            case DecodeError(subject=subject) if subject.startswith("Service "):
                found["service"] = subject.removeprefix("Service ")
    match getattr(record, "event", None):
        case Event(kind="Service", name=name):
            found["service"] = str(name)
    found |= {name: value for name, value in vars(record).items() if name in FIELDS}
    return {name: found[name] for name in FIELDS if name in found}


class JsonFormatter(logging.Formatter):
    """Write an object: ``ts`` (ms since 1970), ``level``, ``caller``, ``msg``, ``v`` up to level info, ``err``: a traceback.

    The fields follow.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the object on one line."""
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
        return json.dumps(line | fields_of(record), ensure_ascii=False)


@dataclass(slots=True)
class _Repeats:
    """The repeats of a line; times are in seconds since 1970."""

    since: float
    last: float = 0.0
    count: int = 0
    pause: float = _FIRST_PAUSE_SECONDS
    next_at: float = 0.0


class RepeatFilter(logging.Filter):
    """Writes the same line three times, then with a count and with pauses that grow from a minute to an hour.

    Lines that only a higher ``-v`` shows are not filtered. A line that did not occur for as long as its last pause, and for
    at least ten minutes, counts as new.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: dict[tuple[int, str], _Repeats] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to write a line; append the number of repeats to its text."""
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
                vars(record).update(fields_of(record))  # before the arguments are lost
                record.msg, record.args = f"{text} ({known.count} times since {since})", ()
                known.pause = min(2 * known.pause, _LONGEST_PAUSE_SECONDS)
            known.next_at = record.created + known.pause
        return True

    def _known(self, key: tuple[int, str], now: float) -> _Repeats:
        known = self._lines.pop(key, None)
        if known is None or now - known.last > max(10 * _FIRST_PAUSE_SECONDS, known.pause):
            known = _Repeats(since=now)
        self._lines[key] = known  # now the last one; the first one, unused for the longest time, is forgotten
        if len(self._lines) > _MOST_LINES:
            del self._lines[next(iter(self._lines))]
        return known


def set_up_logging(verbosity: int, log_format: LogFormat) -> None:
    """Log to standard error: pyproxy up to a verbosity, libraries from warning level.

    Args:
        verbosity: the value of ``-v``.
        log_format: text or JSON.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    lines.addFilter(RepeatFilter())
    logging.basicConfig(level=logging.WARNING, handlers=[lines], force=True)
    level = logging.DEBUG if verbosity >= DEBUG_VERBOSITY else logging.INFO - verbosity
    logging.getLogger("pyproxy").setLevel(level)
