"""A host that sends packets to the loopback address of a node, which must not answer them; `conftest.spoofer` is the fixture."""

from __future__ import annotations

from .objects import public

SPOOFED = public(71)[0]
"""An address that external hosts route to the node."""
SPOOFING = f"""
table ip spoofing {{
    chain postrouting {{ type filter hook postrouting priority raw; ip daddr {SPOOFED} ip daddr set 127.0.0.1; }}
    chain prerouting {{ type filter hook prerouting priority raw; iif eth0 ip saddr 127.0.0.1 ip saddr set {SPOOFED}; }}
}}
"""
