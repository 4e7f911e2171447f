"""What ``dump-rules`` asks of a mode."""

from collections.abc import Iterable
from typing import Protocol

from pyproxy.compile.plan import ServicePlan
from pyproxy.model.address import Family
from pyproxy.model.listing import Listing
from pyproxy.modes.surroundings import Surroundings


class Dumper(Protocol):
    """Lists the rules of one mode."""

    def planned(self, family: Family, surroundings: Surroundings, plans: Iterable[ServicePlan]) -> Listing:
        """Return what belongs into the kernel."""
        ...

    async def live(self) -> list[Listing]:
        """Return what is in the kernel, of each family that has something."""
        ...

    def script(self, listing: Listing) -> str:
        """Return a listing, got from `planned` or `live`, as input for the tool that loads such rules."""
        ...
