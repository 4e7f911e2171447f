"""Detects that a configuration file has changed since the start. The agent then ends, so that its supervisor restarts it.

Files are polled, and their content is compared. A ConfigMap volume swaps a symbolic link (``..data``) beside the file when
any of its files changes, and editors rename files; inotify reports these differently, and two `stat` calls a second cost
nothing. Because content counts, a touch or a swap without a change does not restart the agent. A file that is missing for
some time or is being written does not count as changed.
"""

import asyncio
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pyproxy.manifests.file_version import FileVersion, file_version

POLL_SECONDS = 1.0

# Of the file behind links; None if it does not exist or is a pipe.
_Version = FileVersion | None


def texts_of(path: str) -> dict[str, str]:
    """Return the content of a file by its path; empty if it cannot be read, which the code that needs it reports.

    A pipe is left out: its content can be read only once.
    """
    try:
        return {path: Path(path).read_text(errors="replace")} if _version(path) else {}
    except OSError:
        return {}


async def changed_file(texts: Mapping[str, str], poll_seconds: float = POLL_SECONDS) -> str:
    """Wait until the content of a file differs from the given one and is complete; return the path of that file.

    Args:
        texts: by path, the content that was read.
        poll_seconds: time between two checks; a change is detected after one or two of them.
    """
    # `good` has the versions whose content was compared and found equal, so that a file is read only when its version changes.
    seen: dict[str, _Version] = dict.fromkeys(texts)
    good: dict[str, _Version] = dict.fromkeys(texts)
    while True:
        for path, text in texts.items():
            version = _version(path)
            # A file that has changed since the last check may not be complete yet.
            if version is not None and version == seen[path] != good[path]:
                if texts_of(path).get(path, text) != text:
                    return path
                good[path] = version
            seen[path] = version
        await asyncio.sleep(poll_seconds)


def _version(path: str) -> _Version:
    try:
        status = os.stat(path)  # noqa: PTH116  # creating a Path takes longer than the call
    except OSError:
        return None
    return file_version(status) if stat.S_ISREG(status.st_mode) else None
