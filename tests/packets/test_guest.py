"""The guest kernel of `python -m tests.guest`: it runs a command to its end, and says why where it does not."""

import re
from pathlib import Path

import pytest

from tests.guest.guest import GuestError, run


def test_exit_status_and_output(capsys: pytest.CaptureFixture[str]) -> None:
    """The command's exit status and output are those of the runner; the kernel is the project's own and has IPVS."""
    status = run(["sh", "-c", "uname -r; cat /proc/net/ip_vs; exit 3"], memory="256M")

    assert 3 == status
    assert re.search(r"^6\.1\..*\nIP Virtual Server version", capsys.readouterr().out, re.MULTILINE)


def test_random_numbers_come_at_once() -> None:
    """The guest's kernel has a seed: nothing waits for randomness."""
    python = "import os; os.urandom(8)"

    assert 0 == run(["timeout", "5", "python3", "-c", python], memory="256M")


def test_guest_that_does_not_boot(tmp_path: Path) -> None:
    """Where the first process cannot be started, the error has the kernel's own last lines."""
    with pytest.raises(GuestError, match=r"(?s)ended without a result .*Requested init .*/nothing failed"):
        run(["true"], memory="256M", init=tmp_path / "nothing")


def test_guest_without_memory() -> None:
    """Where the kernel cannot even start, the error has what it wrote to standard error or its console."""
    with pytest.raises(GuestError, match=r"(?s)ended without a result .*\n.*(memory|panic|alloc)"):
        run(["true"], memory="4M")


def test_guest_that_takes_too_long() -> None:
    """A guest whose time is up is ended, and the error says so."""
    with pytest.raises(GuestError, match="ended after 3 s"):
        run(["sleep", "60"], memory="256M", timeout_seconds=3.0)
