"""Services without rules: they never become a `Service`, but commands can name them and say why."""

from msgspec import Struct

from pyproxy.model.names import NamespacedName
from pyproxy.model.service import NoPacketPath


class UnservedService(Struct, frozen=True, gc=False):
    """The name of a Service without rules, and the reason."""

    name: NamespacedName
    """Not checked: the name of an invalid object can be any text."""
    kind: NoPacketPath | None = None
    """None: the object is invalid."""
    problem: str = ""
    """What is wrong with an invalid object."""
