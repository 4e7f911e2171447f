"""The iptables mode side-by-side with kube-proxy: the same rules in chains with other names, and nothing shared.

Two kinds of entries are left out: our marker chain, which would say that kube-proxy's chains are ours, and those for the
kubelet's chain KUBE-FIREWALL, which kube-proxy has as well.
"""

from collections.abc import Iterator
from itertools import filterfalse

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.program import IptablesProgram
from pyproxy.backends.iptables.ruleset import ChainKey, HookKey, RulesetKey
from pyproxy.backends.iptables.static_rules import IptablesSettings, known_hooks
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.plan.service_plan import ServicePlan


class SideBySideProgram:
    """An `IptablesProgram` whose chains have other names."""

    def __init__(self, settings: IptablesSettings) -> None:
        self._program = IptablesProgram(settings)

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[RulesetKey]:
        """Record the plan of a port (None: it was removed) and return the entries whose value may have changed."""
        return {_to_side_by_side(key) for key in self._program.put(name, plan)}

    def value(self, key: RulesetKey) -> str | None:
        """Return the rules of a chain; None: the chain should not exist."""
        if isinstance(key, ChainKey):
            original: RulesetKey = key._replace(chain=names.from_side_by_side(key.chain))
        else:
            original = key._replace(rule=names.from_side_by_side(key.rule))
        # The wrapped program knows the usual names only.
        rules = None if _is_shared(original) else self._program.value(original)
        return None if rules is None else names.to_side_by_side(rules)

    def keys(self) -> Iterator[RulesetKey]:
        """Yield every chain and hook that should exist."""
        yield from map(_to_side_by_side, filterfalse(_is_shared, self._program.keys()))


def side_by_side_hooks(family: Family) -> tuple[HookKey, ...]:
    """Return every hook that a side-by-side pyproxy may have."""
    hooks = (hook for hook in known_hooks(family) if not _is_shared(hook))
    return tuple(hook._replace(rule=names.to_side_by_side(hook.rule)) for hook in hooks)


# KUBE-FIREWALL is the target of two hooks, and has a third one in it.
def _is_shared(key: RulesetKey) -> bool:
    if isinstance(key, ChainKey):
        return key.chain in (names.CANARY, names.KUBELET_FIREWALL)
    return names.KUBELET_FIREWALL in (key.chain, key.rule.rpartition(" ")[2])


def _to_side_by_side(key: RulesetKey) -> RulesetKey:
    if isinstance(key, ChainKey):
        return key._replace(chain=names.to_side_by_side(key.chain))
    return key._replace(rule=names.to_side_by_side(key.rule))
