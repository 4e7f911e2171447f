"""Finds the API server and our credentials: from files at once, by the `kubernetes` package in a child process.

Law of this file: the agent never imports the package (25 MB, and half a second with the interpreter locked much of the
time). What needs it, an exec plugin or an identity provider, happens in `credentials`, a program of its own, which can
be ended when a plugin hangs; a thread cannot.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process

import msgspec

from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi.access import Access, AccessSettings
from pyproxy.kubeapi.kubeconfig import CONFIG_ERROR_STATUS, read_settings

LOAD_SECONDS = 60.0
"""How long an exec plugin may take."""
_PROGRAM = "pyproxy.kubeapi.credentials"


async def load_access(settings: AccessSettings) -> Access:
    """Find the API server and our credentials.

    Raises:
        ConfigError: the configuration cannot work; the message names file and field.
        SourceError: an exec plugin failed or took longer than `LOAD_SECONDS`.
    """
    found = read_settings(settings)
    return await _ask_package(settings) if found.needs_package else found.access


async def _ask_package(settings: AccessSettings) -> Access:
    # The child finds its modules where we find ours, be it a checkout, a virtual environment or a zip file. PYTHONPATH
    # would do that too, but an exec plugin in Python would inherit it.
    program = f"import sys; sys.path[:] = {sys.path!r}; from {_PROGRAM} import main; sys.exit(main())"
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", program, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True
    )
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            output, complaints = await child.communicate(msgspec.json.encode(settings))
    except TimeoutError as error:
        message = f"no credentials after {LOAD_SECONDS:.0f} s: does the exec plugin hang?"
        raise SourceError(message) from error
    finally:
        await _end(child)
    if child.returncode == 0:
        return msgspec.json.decode(output, type=Access)
    text = "; ".join((*output.decode().splitlines(), *complaints.decode().splitlines()[-1:]))
    raise (ConfigError if child.returncode == CONFIG_ERROR_STATUS else SourceError)(text)


async def _end(child: Process) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # the whole session: a plugin is a child of our child
        await child.wait()
