"""The iptables mode on trial beside kube-proxy: the same rules in chains of other names, and nothing that both would share.

Our marker is left out, because it says that kube-proxy's chains are ours; so is what belongs to the kubelet as well.
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
    """See `IptablesProgram`."""

    def __init__(self, settings: IptablesSettings) -> None:
        self._program = IptablesProgram(settings)

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[RulesetKey]:
        """See `Program`."""
        return {_to_side_by_side(key) for key in self._program.put(name, plan)}

    def value(self, key: RulesetKey) -> str | None:
        """See `Program`."""
        original = _from_side_by_side(key)
        rules = None if _is_shared(original) else self._program.value(original)
        return None if rules is None else names.to_side_by_side(rules)

    def keys(self) -> Iterator[RulesetKey]:
        """See `Program`."""
        yield from map(_to_side_by_side, filterfalse(_is_shared, self._program.keys()))


def side_by_side_hooks(family: Family) -> tuple[HookKey, ...]:
    """Return every rule that a trial may have in a chain of others."""
    return tuple(_hook_to_side_by_side(hook) for hook in known_hooks(family) if not _is_shared(hook))


def _is_shared(key: RulesetKey) -> bool:
    if isinstance(key, ChainKey):
        return key.chain in (names.CANARY, names.KUBELET_FIREWALL)
    return names.KUBELET_FIREWALL in (key.chain, key.rule.rpartition(" ")[2])


def _to_side_by_side(key: RulesetKey) -> RulesetKey:
    return (
        key._replace(chain=names.to_side_by_side(key.chain))
        if isinstance(key, ChainKey)
        else _hook_to_side_by_side(key)
    )


def _hook_to_side_by_side(key: HookKey) -> HookKey:
    return key._replace(rule=names.to_side_by_side(key.rule))


def _from_side_by_side(key: RulesetKey) -> RulesetKey:
    if isinstance(key, ChainKey):
        return key._replace(chain=names.from_side_by_side(key.chain))
    return key._replace(rule=names.from_side_by_side(key.rule))
