"""Damages valid inputs: trees of JSON, JSON and YAML as text, bytes of netlink messages."""

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

HOSTILE = (
    "\n", "\r\n", "\0", "\x1b[31m", "\x7f", "\u202e", "\ufeff", "\ud800", "é", "\U0001f600", '"', "'", "\\", "`", "$(reboot)",
    ";", "{", "}", "#", "<script>", "&lt;", "%s", "%n", "{0}", "*", "-j ACCEPT", "\nCOMMIT\n", '" -j DROP', "../", " ", "\t",
)  # fmt: skip
"""Texts with a meaning in some format that pyproxy writes: restore input, nft scripts, logs, HTML, metrics, terminals."""
WORDS = ("", "None", "null", "0", "-1", "65536", "0.0.0.0", "::", "::ffff:10.0.0.1", "10.0.0.256", "010.0.0.1", "fe80::1%eth0",  # noqa: S104
         "10.0.0.0/33", "0.0.0.0/0", "::/0", "1/1", "IPv4", "IPv6", "TCP", "udp", "Local", "ClusterIP", "ExternalName",
         "LoadBalancer", "ClientIP", "a" * 63, "a" * 64, "a." * 126 + "a", "a" * 100_000, "9" * 5000,
         "9999-12-31T23:59:59Z", "0001-01-01T00:00:00-23:59", "2026-01-01T00:00:00Z")  # fmt: skip
"""Values at the borders of what fields accept."""
NUMBERS = (
    0,
    1,
    -1,
    80,
    65535,
    65536,
    86400,
    86401,
    1 << 31,
    1 << 32,
    1 << 63,
    1 << 64,
    -(1 << 63),
    10**400,
    0.5,
    1e308,
)
DEEP = "@deep@"
"""Replaced by arrays that are nested too deeply for `json.dumps`."""
_DEPTHS = (10, 150, 900, 950, 990, 1000, 20_000)


def text(source: Random) -> str:
    """Return a text that no field expects."""
    if source.random() < 0.5:
        return source.choice(WORDS)
    parts = [source.choice((source.choice(HOSTILE), source.choice("abc-.:/09"))) for _ in range(source.randrange(1, 8))]
    return "".join(parts)


def value(source: Random) -> object:
    """Return a value of any type of JSON."""
    makers: Sequence[Callable[[], object]] = (
        lambda: text(source),
        lambda: source.choice(NUMBERS),
        lambda: source.choice((None, True, False)),
        lambda: [value(source) for _ in range(source.randrange(3))],
        lambda: {text(source): value(source) for _ in range(source.randrange(3))},
        lambda: DEEP,
    )
    return source.choice(makers)()


def _places(tree: object) -> list[tuple[Any, Any]]:
    # Each value of the tree as its parent and its key.
    found: list[tuple[Any, Any]] = []
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in pairs:
        found.append((tree, key))
        found += _places(inner)
    return found


def damaged(tree: dict[str, Any], source: Random) -> dict[str, Any]:
    """Return a copy of an object with a few changes."""
    copy: dict[str, Any] = json.loads(json.dumps(tree))
    for _ in range(source.choice((1, 1, 1, 2, 3))):
        places = _places(copy)
        if not places:
            break
        parent, key = source.choice(places)
        old = parent[key]
        match source.randrange(6):
            case 0:
                parent.pop(key)
            case 1 if isinstance(parent, list):
                parent += [old] * source.choice((1, 2, 200))
            case 2:
                other, other_key = source.choice(places)
                parent[key] = json.loads(json.dumps(other[other_key]))
            case 3 if isinstance(old, str):
                at = source.randrange(len(old) + 1)
                parent[key] = old[:at] + text(source) + old[at:]
            case 4 if isinstance(parent, dict):
                parent[text(source)] = parent.pop(key)
            case _:
                parent[key] = value(source)
    return copy


def packed(tree: object, source: Random) -> bytes:
    """Return an object as JSON, in one of five cases damaged as text."""
    data = json.dumps(tree, ensure_ascii=source.random() < 0.5).encode(errors="surrogatepass")
    depth = source.choice(_DEPTHS)
    data = data.replace(f'"{DEEP}"'.encode(), b"[" * depth + b"]" * depth, 2)
    return damaged_bytes(data, source) if source.random() < 0.2 else data


def damaged_bytes(data: bytes, source: Random, most: int = 3) -> bytes:
    """Return bytes with a few changes."""
    changed = bytearray(data)
    for _ in range(source.randrange(1, most + 1)):
        if not changed:
            break
        at = source.randrange(len(changed))
        match source.randrange(6):
            case 0:
                changed[at] ^= 1 << source.randrange(8)
            case 1:
                changed[at] = source.choice((0, 1, 3, 0x7F, 0x80, 0xFF))
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + source.randrange(1, 9)]
            case 4:
                changed[at:at] = source.randbytes(source.randrange(1, 9))
            case _:
                end = at + source.randrange(1, 65)
                changed[at:at] = changed[at:end]
    return bytes(changed)
