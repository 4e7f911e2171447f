"""Damaged answers of the kernel: each request by netlink ends, with a result or with an error that its callers handle."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from pyproxy.errors import ApplyError
from tests.fuzz.conftest import Sources
from tests.fuzz.mutation import damaged_bytes
from tests.fuzz.netlink_replies import FOLDER, IPVS_REQUESTS, REQUESTS, recorded, replayed

ALL = {**REQUESTS, **IPVS_REQUESTS}
LIMIT_SECONDS = 10
each_request = pytest.mark.parametrize("name", ALL)


@contextmanager
def limited() -> Iterator[None]:
    """Fail a block that does not end."""

    def stop(*_: object) -> None:
        message = f"the parser did not end within {LIMIT_SECONDS} s"
        raise AssertionError(message)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_every_recording_is_used() -> None:
    """Each file has the answers to a request."""
    assert sorted(ALL) == sorted(path.stem for path in FOLDER.iterdir())


@each_request
def test_undamaged_answers(name: str) -> None:
    """Answers as they were recorded are read without an error, except for the refused transaction."""
    if name == "commit":
        with replayed(recorded(name)), pytest.raises(ApplyError, match="No such file or directory"):
            ALL[name]()
    else:
        with replayed(recorded(name)):
            assert ALL[name]() is not None


def _run(perform: Callable[[], object]) -> None:
    # A refusal of IPVS, a transaction or a dump, and an answer that cannot be parsed.
    with suppress(ApplyError, OSError):
        perform()


@each_request
def test_damaged_answers(sources: Sources, name: str) -> None:
    """Answers that are damaged, cut, repeated or missing give a result, or an error of the kernel."""
    answers = recorded(name)
    for source in sources(200):
        sent = [list(of_socket) for of_socket in answers]
        of_socket = source.choice([each for each in sent if each])
        at = source.randrange(len(of_socket))
        match source.randrange(10):
            case 0:
                del of_socket[at]
            case 1:
                of_socket.insert(at, of_socket[at])
            case _:
                of_socket[at] = damaged_bytes(of_socket[at], source, most=8)
        with replayed(sent), limited():
            _run(ALL[name])
