"""Helpers of the tests of decoding."""

from typing import Any

from pyproxy.decode.objects import Decoded
from pyproxy.model.address import parse_ip


def ips(*texts: str) -> tuple[bytes, ...]:
    """Pack addresses."""
    return tuple(map(parse_ip, texts))


def the_object(decoded: Decoded[Any]) -> Any:  # noqa: ANN401 any model type
    """Return an object that was decoded without problems."""
    assert () == decoded.problems
    assert decoded.object is not None
    return decoded.object


def fields_of(decoded: Decoded[Any]) -> list[str]:
    """Return the paths of the fields with problems."""
    return [problem.field for problem in decoded.problems]
