"""``python -m tests.guest [--seconds N] COMMAND ...``: run a command in the project's directory on a kernel with IPVS."""

import sys

from tests.guest.guest import GuestError, run

DEFAULT_SECONDS = 600.0


def main(words: list[str]) -> int:
    """Run the command of a command line, which may begin with a time limit."""
    seconds = DEFAULT_SECONDS
    if words[:1] == ["--seconds"]:
        seconds = float(words[1])
        words = words[2:]
    return run(words or ["uname", "-a"], timeout_seconds=seconds)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except GuestError as error:
        sys.exit(str(error))
