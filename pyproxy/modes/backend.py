"""What the agent asks of a mode. A new mode is a class with these methods and a row in `modes.registry`."""

from collections.abc import Hashable
from typing import Any, Protocol

from pyproxy.apply.iptables import Variant
from pyproxy.apply.kernel import Kernel
from pyproxy.compile.program import Program
from pyproxy.config import ProxyMode
from pyproxy.model.address import Family
from pyproxy.model.node import Node
from pyproxy.modes.surroundings import Surroundings


class Backend(Protocol):
    """One mode on this node."""

    mode: ProxyMode
    """Which mode it is."""
    families: tuple[Family, ...]
    """Families that the node supports in this mode."""

    @property
    def iptables_variant(self) -> Variant | None:
        """Return the variant of iptables that the mode writes to; None: it has no rules in iptables."""
        ...

    def is_placed(self, node: Node) -> bool:
        """Say whether the Node tells all that the settings need; what is missing is logged once."""
        ...

    def settings(self, family: Family, surroundings: Surroundings) -> Hashable:
        """Return what the program depends on besides Services."""
        ...

    def program(self, settings: Any) -> Program[Any, Any]:  # noqa: ANN401  # what `settings` returned
        """Return an empty program for settings of this backend."""
        ...

    def kernel(self, family: Family) -> Kernel[Any, Any]:
        """Return the door to one family's tables."""
        ...

    def prepare(self) -> None:
        """Set the kernel settings that the mode needs; what cannot be set is logged."""
        ...

    def owns_chain(self, table: str, chain: str) -> bool:
        """Say whether a chain of iptables is one of this mode's."""
        ...
