"""The guest kernel of `python -m tests.guest`: it runs a command, and reports why if it cannot."""

import re
from pathlib import Path

import pytest

from tests.guest.guest import GuestError, run


def test_exit_status_and_output(capsys: pytest.CaptureFixture[str]) -> None:
    """The runner passes on the command's exit status and output; the kernel is the project's build and has IPVS."""
    status = run(["sh", "-c", "uname -r; cat /proc/net/ip_vs; exit 3"], memory="256M")

    assert 3 == status
    assert re.search(r"^6\.1\..*\nIP Virtual Server version", capsys.readouterr().out, re.MULTILINE)


def test_random_numbers_are_available() -> None:
    """The guest kernel gets a seed, so that programs do not wait for random numbers."""
    python = "import os; os.urandom(8)"

    assert 0 == run(["timeout", "5", "python3", "-c", python], memory="256M")


def test_guest_that_does_not_boot(tmp_path: Path) -> None:
    """If the first process cannot be started, the error has the last lines of the kernel log."""
    with pytest.raises(GuestError, match=r"(?s)ended without a result .*Requested init .*/nothing failed"):
        run(["true"], memory="256M", init=tmp_path / "nothing")


def test_guest_without_memory() -> None:
    """If the kernel cannot start, the error has its standard error or console output."""
    with pytest.raises(GuestError, match=r"(?s)ended without a result .*\n.*(memory|panic|alloc)"):
        run(["true"], memory="4M")


def test_guest_that_takes_too_long() -> None:
    """A guest that exceeds its time limit is killed, and the error says so."""
    with pytest.raises(GuestError, match="ended after 3 s"):
        run(["sleep", "60"], memory="256M", timeout_seconds=3.0)
