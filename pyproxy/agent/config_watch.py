"""Detects that a configuration file has changed since the start. The agent then ends, so that its supervisor restarts it.

Notifications of the kernel say when to look again, and what is compared is the content. So a touch does not restart the
agent, nor does a ConfigMap volume that swaps its symbolic link (``..data``) because another file changed. A file that is
missing for some time or is being written does not count as changed.
"""

import asyncio
import os
import stat
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from pyproxy.linux.file_notifications import FileNotifications
from pyproxy.manifests.file_version import FileVersion, directories_of, file_version

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
        poll_seconds: shortest time between two checks, and the time between them without notifications.
    """
    # `good` has the versions whose content was compared and found equal, so that a file is read only when its version changes.
    seen: dict[str, _Version] = dict.fromkeys(texts)
    good: dict[str, _Version] = dict.fromkeys(texts)
    with FileNotifications() as notifications:
        while True:
            for path, text in texts.items():
                version = _version(path)
                # A file that has changed since the last check may not be complete yet.
                if version is not None and version == seen[path] != good[path]:
                    if texts_of(path).get(path, text) != text:
                        return path
                    good[path] = version
                seen[path] = version
            is_covered = notifications.cover(chain.from_iterable(map(directories_of, texts)))
            if is_covered and all(seen[path] in {None, good[path]} for path in texts):
                await notifications.wait()
            await asyncio.sleep(poll_seconds)


def _version(path: str) -> _Version:
    try:
        status = os.stat(path)  # noqa: PTH116  # creating a Path takes longer than the call
    except OSError:
        return None
    return file_version(status) if stat.S_ISREG(status.st_mode) else None
