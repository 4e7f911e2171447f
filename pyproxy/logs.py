"""How log lines look and where they go: one line for each event, to standard error, as kube-proxy's.

Text has klog's header, which log collectors for Kubernetes know; JSON has component-base's keys.
"""

import json
import logging
import sys
import time

from pyproxy.config import LogFormat

DEBUG_VERBOSITY = 4
"""The ``-v`` from which every step is told: in Kubernetes' logging conventions 4 is debug level."""

# klog has these four letters only, and collectors parse no others.
_LETTERS = {"DEBUG": "I", "INFO": "I", "WARNING": "W", "ERROR": "E", "CRITICAL": "F"}


class TextFormatter(logging.Formatter):
    """Write ``I0612 15:04:05.123456    4711 pyproxy.loop.daemon] message``: level, date, time, process, module."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it if there is one."""
        clock = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        micros = int(record.created % 1 * 10**6)
        header = f"{_LETTERS[record.levelname]}{clock}.{micros:06d} {record.process:>7} {record.name}] "
        return header + super().format(record)


class JsonFormatter(logging.Formatter):
    """Write an object: ``ts`` (milliseconds since 1970), ``level``, ``caller``, ``msg``, and a traceback as ``err``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object in one line."""
        line: dict[str, object] = {
            "ts": round(record.created * 1000, 3),
            "level": record.levelname.lower(),
            "caller": f"{record.name}:{record.lineno}",
            "msg": record.getMessage(),
        }
        if record.exc_info:
            line["err"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up_logging(verbosity: int, log_format: LogFormat) -> None:
    """Send pyproxy's lines from info level, or debug level, and libraries' from warning level to standard error.

    Args:
        verbosity: the number behind ``-v``.
        log_format: text or JSON.
    """
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[lines], force=True)
    logging.getLogger("pyproxy").setLevel(logging.DEBUG if verbosity >= DEBUG_VERBOSITY else logging.INFO)
