"""``python -m tests.guest COMMAND ...``: run a command under a kernel that has IPVS, in the project's directory."""

import sys

from tests.guest.guest import GuestError, run

if __name__ == "__main__":
    try:
        sys.exit(run(sys.argv[1:] or ["uname", "-a"]))
    except GuestError as error:
        sys.exit(str(error))
