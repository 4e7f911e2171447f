"""The ipsets of the IPVS mode, put together: names and types of `compile`, the door of `apply`."""

from pyproxy.apply.ipset import IpSets, SetType
from pyproxy.compile.ipvs_static import SET_TYPES, set_prefix
from pyproxy.model.address import Family

_TYPES = {kind.value[0]: kind for kind in SetType}


def ipvs_sets(family: Family) -> tuple[IpSets, dict[str, SetType]]:
    """Return the door to a family's sets, and their types by name."""
    return IpSets(family, set_prefix(family)), {name: _TYPES[kind] for name, kind in SET_TYPES.items()}
