"""Whether configuration files still say what was read at the start: the agent ends when they do not, to be started anew.

Law of this file: polling, and contents. ConfigMap volumes swap a symbolic link beside the file (``..data``) also for
another file's sake, editors rename, and inotify tells of neither in the same way; two `stat` calls a second cost
nothing. Content is what counts, so that a touch or a swap without a change disturbs nobody. A file that is gone for
a while, or being written, has not changed yet.
"""

import asyncio
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from pyproxy.manifests.file_version import FileVersion, file_version

POLL_SECONDS = 1.0

_Version = FileVersion | None
"""Of the file behind links; None if it does not exist or is a pipe."""


def texts_of(path: str) -> dict[str, str]:
    """Return the content of a file by its path; nothing where there is none: whoever needs it says so.

    A pipe gives its content once, and not to us.
    """
    try:
        return {path: Path(path).read_text(errors="replace")} if _version(path) else {}
    except OSError:
        return {}


async def changed_file(texts: Mapping[str, str], poll_seconds: float = POLL_SECONDS) -> str:
    """Return the path of the first file whose content is not the given one any more, and has come to rest.

    Args:
        texts: path to what was read of it.
        poll_seconds: time between two looks; a change is seen after one to two of them.
    """
    seen: dict[str, _Version] = dict.fromkeys(texts)
    good: dict[str, _Version] = dict.fromkeys(texts)
    while True:
        for path, text in texts.items():
            version = _version(path)
            # One that looks different from the last time may still be being written.
            if version is not None and version == seen[path] != good[path]:
                if _differs(path, text):
                    return path
                good[path] = version
            seen[path] = version
        await asyncio.sleep(poll_seconds)


def _version(path: str) -> _Version:
    try:
        status = os.stat(path)  # noqa: PTH116  # a Path for each look would be all that it costs
    except OSError:
        return None
    return file_version(status) if stat.S_ISREG(status.st_mode) else None


def _differs(path: str, text: str) -> bool:
    return texts_of(path).get(path, text) != text
