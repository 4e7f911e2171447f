"""Decoding of JSON that is nested too deeply for msgspec, which recurses also into values that it skips.

An API server accepts 10,000 levels (`maxNestingDepth` of Go's encoding/json), Python about 1,000. So a user who may write one
object could otherwise make every list that contains it undecodable. No field that pyproxy reads is nearly as deep.
"""

import re
from typing import TypeVar

import msgspec

T = TypeVar("T")

_MOST_LEVELS = 100
# Strings as a whole, because they may contain brackets. The quantifiers are possessive: a text is scanned only once.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


def decode_json(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T:
    """Return a decoded value; values that are nested too deeply count as null.

    Raises:
        msgspec.DecodeError: the text is not JSON, or not of the decoder's type.
        UnicodeDecodeError: a text in it is not UTF-8.
    """
    try:
        return decoder.decode(data)
    except RecursionError:
        return decoder.decode(shallow(bytes(data)))


def shallow(data: bytes) -> bytes:
    """Return JSON with null in the place of arrays and objects that are too deep."""
    parts: list[bytes] = []
    level = start = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            level += 1
            if level == _MOST_LEVELS + 1:
                parts.append(data[start : token.start()] + b"null")
        elif first in b"]}":
            if level == _MOST_LEVELS + 1:
                start = token.end()
            level -= 1
    # Text that ends within a deep value is cut there, and so stays invalid.
    return b"".join(parts) + (data[start:] if level <= _MOST_LEVELS else b"")
