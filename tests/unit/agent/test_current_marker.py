"""The time at which the rules were last known to be up to date, across restarts."""

from pathlib import Path

from pyproxy.agent.current_marker import CurrentMarker


def test_the_next_run_knows_the_time(tmp_path: Path) -> None:
    """A later run reads the time of the file, which only root can read."""
    socket = str(tmp_path / "control.sock")
    before = CurrentMarker(socket).read()
    CurrentMarker(socket).set()
    file = tmp_path / "control.sock.current"

    assert (None, file.stat().st_mtime) == (before, CurrentMarker(socket).read())
    assert file.stat().st_mode & 0o777 == 0o600


def test_without_a_place_for_it(tmp_path: Path) -> None:
    """Without a control socket, or without its directory, nothing is remembered and nothing fails."""
    for path in ("", str(tmp_path / "missing" / "control.sock")):
        CurrentMarker(path).set()
        assert CurrentMarker(path).read() is None
