"""What a backend has to offer to be driven by `loop.reconcile`: the pure half of it.

A backend turns plans into *entries*: keys and values in named kernel tables (chains, map elements,
virtual servers). Adding a backend means a `Program` here and a `Kernel` in `apply`, and nothing else.
"""

from collections.abc import Iterator
from typing import Protocol, TypeVar

from pyproxy.compile.plan import ServicePlan
from pyproxy.model.names import ServicePortName

K = TypeVar("K")
V_co = TypeVar("V_co", covariant=True)


class Program(Protocol[K, V_co]):
    """What one backend wants in the kernel for one family. Pure; cost of a change is that of the change."""

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[K]:
        """Take in the plan of a port (None: it is gone) and return the keys whose value may have changed."""
        ...

    def value(self, key: K) -> V_co | None:
        """Return what should be at a key; None is nothing."""
        ...

    def keys(self) -> Iterator[K]:
        """Yield every key that should have a value."""
        ...
