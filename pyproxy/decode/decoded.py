"""The result of decoding an object, and the name of the object in messages.

It has only what `decode.service`, `decode.slices` and `decode.objects` share.
"""

import re
from sys import intern
from typing import Generic, TypeVar

from msgspec import Struct, ValidationError

from pyproxy.decode import wire
from pyproxy.decode.fields import Problems, is_label, read_label, shown
from pyproxy.errors import DecodeError
from pyproxy.model.names import NamespacedName
from pyproxy.model.unserved import UnservedService

T = TypeVar("T")

CLUSTER_WIDE = frozenset({"Node", "ServiceCIDR"})
"""The kinds whose objects do not belong to a namespace."""

DEFAULT_NAMESPACE = "default"

# msgspec writes the place of a wrong value at the end, such as "Expected `int`, got `str` - at `$.spec.ports[0].port`".
_WRONG_TYPE = re.compile(r"(?P<reason>.*) - at `(?:key in )?\$\.?(?P<path>[^`]*)`", re.DOTALL)


class Decoded(Struct, Generic[T], frozen=True, gc=False):
    """The result of decoding one API object."""

    object: T | None
    """None without a problem: the object is not used (headless, ExternalName, another proxy's, host names for addresses)."""
    problems: tuple[DecodeError, ...] = ()
    unserved: UnservedService | None = None
    """Set for a Service that has no rules."""


def object_name(metadata: wire.ObjectMeta | None) -> NamespacedName:
    """Return the name of a namespaced object, not validated; without a namespace it is in ``default``."""
    metadata = metadata or wire.NO_METADATA
    # A namespace is part of thousands of names: keep one copy.
    return NamespacedName(intern(metadata.namespace or DEFAULT_NAMESPACE), metadata.name or "")


def cluster_wide_name(metadata: wire.ObjectMeta | None) -> NamespacedName:
    """Return the name of an object without a namespace, not validated."""
    return NamespacedName("", (metadata or wire.NO_METADATA).name or "")


def subject(kind: str, name: NamespacedName) -> str:
    """Return kind and name for messages, for example ``Service default/web``; an unusual name is quoted."""
    return f"{kind} {shown(name.namespace)}/{shown(name.name)}" if name.namespace else f"{kind} {shown(name.name)}"


def wrong_type(what: str, error: ValidationError) -> DecodeError:
    """Convert an error of msgspec about one object; `what` is the object's `subject`."""
    text = str(error)
    match = _WRONG_TYPE.fullmatch(text)
    path, reason = (match["path"], match["reason"]) if match else ("", text)
    return DecodeError(what, path, reason.replace("`", "").replace(" | null", ""))


def errors(kind: str, name: NamespacedName, problems: Problems) -> tuple[DecodeError, ...]:
    """Convert the problems of one object to errors that name it."""
    if not problems:
        return ()
    what = subject(kind, name)
    return tuple(DecodeError(what, field, reason) for field, reason in problems)


def is_usable(name: NamespacedName, problems: Problems) -> bool:
    """Return whether namespace and name are DNS-1123 labels, as required for a Service."""
    has_namespace = has_usable_namespace(name, problems)
    return read_label(name.name, "metadata.name", problems) is not None and has_namespace


def has_usable_namespace(name: NamespacedName, problems: Problems) -> bool:
    """Return whether the namespace is a DNS-1123 label."""
    return is_label(name.namespace) or read_label(name.namespace, "metadata.namespace", problems) is not None
