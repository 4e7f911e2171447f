"""Finds the API server and credentials: in files, or with the `kubernetes` package in a child process.

The agent never imports the package, which costs 25 MB and half a second with the interpreter locked much of the time. An
exec plugin or an identity provider needs it; `credentials` then runs as a separate program, which can be killed if a
plugin hangs, unlike a thread.
"""

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import PIPE

import msgspec

from pyproxy.errors import ConfigError, SourceError
from pyproxy.kubeapi.access import Access, AccessSettings
from pyproxy.kubeapi.kubeconfig import CONFIG_ERROR_STATUS, read_settings

LOAD_SECONDS = 60.0
"""Time limit for an exec plugin."""
_PROGRAM = "pyproxy.kubeapi.credentials"


async def load_access(settings: AccessSettings) -> Access:
    """Find the API server and credentials.

    Raises:
        ConfigError: the configuration cannot work; the message names file and field.
        SourceError: an exec plugin failed or took longer than `LOAD_SECONDS`.
    """
    found = read_settings(settings)
    if not found.needs_package:
        return found.access
    # The child has the module path of this process, which may be a checkout, a virtual environment or a zip file. With
    # PYTHONPATH an exec plugin in Python would inherit it.
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
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # the whole session: a plugin is a child of our child
            await child.wait()
    if child.returncode == 0:
        return msgspec.json.decode(output, type=Access)
    text = "; ".join((*output.decode().splitlines(), *complaints.decode().splitlines()[-1:]))
    raise (ConfigError if child.returncode == CONFIG_ERROR_STATUS else SourceError)(text)
