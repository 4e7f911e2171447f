"""The result of a check."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pyproxy.doctor.inputs import Inputs, Objects
from pyproxy.errors import PyproxyError, SourceError


class Severity(Enum):
    """How serious a finding is; values are those of JSON output."""

    OK = "ok"
    INFO = "info"
    """Worth knowing; does not change the exit code."""
    WARN = "warn"
    """Some traffic may fail, or will fail later."""
    FAIL = "fail"
    """Traffic fails now, or changes of Services do not arrive."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    severity: Severity
    text: str
    evidence: str = ""
    """Where this can be seen on the node: a file, a command or a URL."""
    fix: str = ""
    check: str = ""
    """Name of the check; `pyproxy.doctor.checks` sets it."""
    is_skipped: bool = False
    """Whether the check did not run because something that it reads was not given."""


# Not a warning, unlike a check that fails to run: the user chose not to give its input.
class NotCheckedError(PyproxyError):
    """A check cannot run, because something that it reads was not given; the message says what."""


class Check(NamedTuple):
    """A check of the node."""

    name: str
    subject: str
    """What is checked, as a noun phrase."""
    run: Callable[[Inputs], Awaitable[list[Finding]]]
    """Returns nothing if all is well. An error means that the check could not run."""
    needs_node: bool = True
    """Whether it reads this machine and not only files."""


def require_objects(inputs: Inputs) -> Objects:
    """Return the known objects.

    Raises:
        NotCheckedError: neither files nor an agent have them.
        SourceError: the agent cannot be asked.
    """
    if inputs.objects_error:
        raise SourceError(inputs.objects_error)
    if inputs.objects is None:
        message = "no agent answers on --control-socket; give --manifests PATH"
        raise NotCheckedError(message)
    return inputs.objects


def fail(text: str, evidence: str, fix: str) -> Finding:
    """Return a failure."""
    return Finding(Severity.FAIL, text, evidence, fix)


def warn(text: str, evidence: str, fix: str) -> Finding:
    """Return a warning."""
    return Finding(Severity.WARN, text, evidence, fix)


def info(text: str, evidence: str, fix: str = "") -> Finding:
    """Return information."""
    return Finding(Severity.INFO, text, evidence, fix)
