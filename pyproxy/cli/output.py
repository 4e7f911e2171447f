"""How commands print: tables for people by rich, JSON and YAML documents for programs."""

from collections.abc import Mapping
from enum import Enum
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

API_VERSION = "pyproxy.io/v1alpha1"


class OutputFormat(Enum):
    """An output format; values as ``-o`` takes them."""

    TEXT = "text"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


def document(kind: str, fields: Mapping[str, Any], output: OutputFormat) -> str:
    """Return an output document for programs, with ``apiVersion`` and ``kind`` first."""
    values = {"apiVersion": API_VERSION, "kind": kind, **fields}
    if output is OutputFormat.YAML:
        import yaml  # noqa: PLC0415  # not needed for other formats

        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return msgspec.json.format(msgspec.json.encode(values), indent=2).decode() + "\n"


def console() -> Console:
    """Return a console for standard output: colours on a terminal only, and lines that are not wrapped elsewhere."""
    made = Console(highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = 10_000
    return made


def table(*columns: str) -> Table:
    """Return a table without borders whose columns are as wide as their content, as kubectl prints it."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column, no_wrap=True, overflow="ignore")
    return made
