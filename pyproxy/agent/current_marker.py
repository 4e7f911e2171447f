"""Remembers across restarts when the rules in the kernel were last known to be up to date.

The time is that of an empty file beside the control socket. Both are in a file system that a reboot empties, like the rules.
"""

from contextlib import suppress
from pathlib import Path

_MODE = 0o600


class CurrentMarker:
    """The file; without a control socket, or if the file cannot be written, nothing is remembered."""

    def __init__(self, control_socket: str) -> None:
        self._path = Path(f"{control_socket}.current") if control_socket else None

    def read(self) -> float | None:
        """Return the time, in seconds since 1970."""
        with suppress(OSError):
            return self._path.stat().st_mtime if self._path else None
        return None

    def set(self) -> None:
        """Record that the rules are up to date now."""
        if self._path is not None:
            with suppress(OSError):
                self._path.touch(mode=_MODE)
