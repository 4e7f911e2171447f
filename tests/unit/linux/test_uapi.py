"""The numbers in `pyproxy.linux.uapi`, compared with the kernel headers of this machine by its C compiler."""

import inspect
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterator
from enum import IntEnum
from importlib import import_module

import pytest

from pyproxy.linux import uapi

INCLUDES = ("limits.h", "sys/socket.h", "netinet/in.h", "linux/netlink.h")
"""Headers that some headers of the kernel need before them."""
MODULES = [module.name for module in pkgutil.iter_modules(uapi.__path__)]
NOT_IN_HEADERS = {"CtaFilterF"}
"""Numbers of `net/netfilter/nf_internals.h`, which is not installed."""


def constants(enums: list[type[IntEnum]]) -> Iterator[tuple[str, int]]:
    """Yield name in the header and value of each member; the docstring of an enumeration begins with the prefix."""
    for enum in enums:
        prefix = re.match(r"`([A-Z0-9_]*)\*`", inspect.getdoc(enum) or "")
        assert prefix is not None, enum
        yield from ((prefix[1] + member.name, member.value) for member in enum)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler and the headers of the kernel")
@pytest.mark.parametrize("name", MODULES)
def test_numbers_are_those_of_the_header(name: str) -> None:
    """Each member of an enumeration has the value of the constant with that name."""
    module = import_module(f"{uapi.__name__}.{name}")
    headers = re.findall(r"`(linux/[a-z0-9_/]+\.h)`", inspect.getdoc(module) or "")
    enums = [
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, IntEnum) and found.__module__ == module.__name__ and found.__name__ not in NOT_IN_HEADERS
    ]
    lines = [f"#include <{header}>" for header in (*INCLUDES, *headers)]
    lines += [f'_Static_assert((long long)({text}) == {value}, "{text}");' for text, value in constants(enums)]
    command = ["gcc", "-w", "-fsyntax-only", "-x", "c", "-"]
    compiled = subprocess.run(command, input="\n".join(lines), text=True, capture_output=True, check=False)

    assert headers
    assert enums
    assert "" == compiled.stderr
