"""The chains that are the same whatever sends connections to endpoints: iptables' DNAT or IPVS."""

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.rules import comment, rules, source_is_destination
from pyproxy.node.context import FamilySettings


def mark_chain(settings: FamilySettings) -> str:
    """Return the chain that marks packets to be masqueraded."""
    return rules(names.MARK_MASQUERADE, f"-j MARK --set-xmark {settings.mark}")


def forward_chain(settings: FamilySettings, *first: str) -> str:
    """Return the chain that lets packets of Services pass the node, behind some rules of the mode's own."""
    return rules(
        names.FORWARD,
        *first,
        f"{comment('kubernetes forwarding rules')} -m mark --mark {settings.mark} -j ACCEPT",
        f"{comment('kubernetes forwarding conntrack rule')} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )


def hairpin_rule(settings: FamilySettings, translated: str) -> str:
    """Return the rule for an endpoint that reached itself by way of a Service, told by the packet.

    What leaves by lo is the node talking to itself, which needs no masquerade and may be another agent's redirect.

    Args:
        settings: of the family.
        translated: the match for a connection that was sent to an endpoint.
    """
    remark = comment("kubernetes hairpin traffic")
    return f"! -o lo {remark} {translated} {source_is_destination(settings.family)} -j {names.MARK_MASQUERADE}"


def postrouting_chain(settings: FamilySettings, *first: str, marked: str = "", random_fully: bool = True) -> str:
    """Return the chain that masquerades what is marked.

    Args:
        settings: has the mark.
        first: rules in front, which may mark more.
        marked: a rule that only marked packets meet; none if empty.
        random_fully: choose source ports at random.
    """
    return rules(
        names.POSTROUTING,
        *first,
        f"-m mark ! --mark {settings.mark} -j RETURN",
        *([marked] if marked else []),
        # Off again: a packet that passes here twice (a tunnel) is masqueraded once.
        f"-j MARK --set-xmark {settings.masquerade_mark:#x}/0x0",
        f"{comment('kubernetes service traffic requiring SNAT')} -j MASQUERADE{' --random-fully' if random_fully else ''}",
    )
