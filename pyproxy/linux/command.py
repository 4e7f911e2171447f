"""Child processes: a fixed locale, an argument list instead of a shell, and a result with the complete output.

All other programs of the node that pyproxy calls (``nft``, ``iptables``) run through `run`.
"""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass

from pyproxy.errors import ApplyError


@dataclass(frozen=True, slots=True)
class Result:
    """Exit status and output of a program."""

    status: int
    stdout: str
    stderr: str


class CommandError(ApplyError):
    """A program could not be started or took too long."""


async def run(argv: Sequence[str], *, stdin: str = "", timeout_seconds: float = 120.0) -> Result:
    """Run a program, wait until it exits, and return status and output.

    Raises:
        CommandError: the program is missing, or did not exit in time and was killed.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # The output of iptables and nft is parsed, so it must not be translated.
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError as error:
        message = f"{argv[0]}: {error.strerror}"
        raise CommandError(message, retryable=False) from error
    try:
        async with asyncio.timeout(timeout_seconds):
            stdout, stderr = await process.communicate(stdin.encode())
    except TimeoutError:
        message = f"{argv[0]} did not exit within {timeout_seconds:g} s"
        raise CommandError(message, retryable=True) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Result(process.returncode or 0, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
