"""The command line: one module for each command, and how results are shown."""

from pyproxy.cli.program import main

__all__ = ["main"]
