"""Chains that the iptables mode and the IPVS mode have in common: what happens to a packet besides its DNAT."""

from pyproxy.backends.iptables import chain_names as names
from pyproxy.backends.iptables.rules import comment, rules, source_is_destination
from pyproxy.node.context import FamilySettings


def mark_chain(settings: FamilySettings) -> str:
    """Return the chain that marks packets for masquerading.

    Masquerading is possible in POSTROUTING only, where a packet no longer has the Service's address, so the decision is
    made before the DNAT and carried in one bit of the mark.
    """
    return rules(names.MARK_MASQUERADE, f"-j MARK --set-xmark {settings.mark}")


def forward_chain(settings: FamilySettings, *first: str) -> str:
    """Return the chain that accepts Service traffic that the node forwards, for nodes whose FORWARD policy is DROP.

    Args:
        settings: the settings of the family.
        first: rules of the mode that come before.
    """
    return rules(
        names.FORWARD,
        *first,
        f"{comment('kubernetes forwarding rules')} -m mark --mark {settings.mark} -j ACCEPT",
        # The marked packets above are the first ones of connections; this is for all later ones, and for replies.
        f"{comment('kubernetes forwarding conntrack rule')} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    )


def hairpin_rule(settings: FamilySettings, translated: str) -> str:
    """Return the rule that marks hairpin traffic: packets from an endpoint that a Service sent back to the same endpoint.

    Without masquerading such an endpoint would receive a packet from its own address, and drop it or answer itself.
    Packets that leave by lo are excluded: the node talks to itself there, which works without masquerading, and the
    packet may have been redirected by another agent.

    Args:
        settings: the settings of the family.
        translated: the match for a connection that was sent to an endpoint.
    """
    remark = comment("kubernetes hairpin traffic")
    return f"! -o lo {remark} {translated} {source_is_destination(settings.family)} -j {names.MARK_MASQUERADE}"


def postrouting_chain(settings: FamilySettings, *first: str, marked: str = "", random_fully: bool = True) -> str:
    """Return the chain that masquerades marked packets.

    Args:
        settings: the settings of the family, with the mark.
        first: rules that come before, and may mark more packets.
        marked: a rule for marked packets only; empty: no such rule.
        random_fully: choose source ports at random. By default the kernel keeps the source port, or takes the next free
            one, and then two CPUs that translate at the same moment choose the same port, and one packet is dropped.
    """
    return rules(
        names.POSTROUTING,
        *first,
        f"-m mark ! --mark {settings.mark} -j RETURN",
        *([marked] if marked else []),
        # Clear the mark (xor with the bit that is known to be set): a packet that is encapsulated passes POSTROUTING a
        # second time, inside the tunnel's packet, and must not be masqueraded again.
        f"-j MARK --set-xmark {settings.masquerade_mark:#x}/0x0",
        f"{comment('kubernetes service traffic requiring SNAT')} -j MASQUERADE{' --random-fully' if random_fully else ''}",
    )
