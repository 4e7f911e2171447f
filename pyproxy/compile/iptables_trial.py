"""The iptables mode on trial beside kube-proxy: the same rules in chains of other names, and nothing that both would share.

Our marker is left out, because it says that kube-proxy's chains are ours; so is what belongs to the kubelet as well.
"""

from collections.abc import Iterator
from itertools import filterfalse

from pyproxy.compile import chain_names as names
from pyproxy.compile.iptables import IptablesProgram
from pyproxy.compile.iptables_static import IptablesSettings, known_hooks
from pyproxy.compile.plan import ServicePlan
from pyproxy.model.address import Family
from pyproxy.model.names import ServicePortName
from pyproxy.model.ruleset import ChainKey, HookKey, RulesetKey


class TrialProgram:
    """See `IptablesProgram`."""

    def __init__(self, settings: IptablesSettings) -> None:
        self._program = IptablesProgram(settings)

    def put(self, name: ServicePortName, plan: ServicePlan | None) -> set[RulesetKey]:
        """See `Program`."""
        return {_on_trial(key) for key in self._program.put(name, plan)}

    def value(self, key: RulesetKey) -> str | None:
        """See `Program`."""
        original = _off_trial(key)
        rules = None if _is_shared(original) else self._program.value(original)
        return None if rules is None else names.on_trial(rules)

    def keys(self) -> Iterator[RulesetKey]:
        """See `Program`."""
        yield from map(_on_trial, filterfalse(_is_shared, self._program.keys()))


def trial_hooks(family: Family) -> tuple[HookKey, ...]:
    """Return every rule that a trial may have in a chain of others."""
    return tuple(_hook_on_trial(hook) for hook in known_hooks(family) if not _is_shared(hook))


def _is_shared(key: RulesetKey) -> bool:
    if isinstance(key, ChainKey):
        return key.chain in (names.CANARY, names.KUBELET_FIREWALL)
    return names.KUBELET_FIREWALL in (key.chain, key.rule.rpartition(" ")[2])


def _on_trial(key: RulesetKey) -> RulesetKey:
    return key._replace(chain=names.on_trial(key.chain)) if isinstance(key, ChainKey) else _hook_on_trial(key)


def _hook_on_trial(key: HookKey) -> HookKey:
    return key._replace(rule=names.on_trial(key.rule))


def _off_trial(key: RulesetKey) -> RulesetKey:
    if isinstance(key, ChainKey):
        return key._replace(chain=names.off_trial(key.chain))
    return key._replace(rule=names.off_trial(key.rule))
