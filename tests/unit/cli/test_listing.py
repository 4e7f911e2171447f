"""Listings of rules as text, as restore input and as JSON values."""

from pyproxy.backends.iptables.restore_text import listing_restore
from pyproxy.backends.listing import Counters, ListedRule, RuleListing
from pyproxy.cli.listing import listing_text, listing_values
from pyproxy.model.address import Family
from pyproxy.model.names import NamespacedName, Protocol, ServicePortName

FIRST = ListedRule("nat", "OUTPUT", "-A OUTPUT -j KUBE-SERVICES", Counters(12, 720))
WEB = ListedRule("nat", "KUBE-SERVICES", "-A KUBE-SERVICES -j KUBE-SVC-X", Counters(3, 180))
REFUSED = ListedRule("filter", "KUBE-SERVICES", "-A KUBE-SERVICES -j DROP")
LAST = ListedRule("nat", "KUBE-SERVICES", "-A KUBE-SERVICES -j KUBE-NODEPORTS")
NAME = ServicePortName(NamespacedName("default", "web"), "http", Protocol.TCP)
LISTING = RuleListing(
    Family.IPV4, (("filter", "KUBE-SERVICES"), ("nat", "KUBE-SERVICES")), (FIRST,), {NAME: (REFUSED, WEB)}, (LAST,)
)


def test_text() -> None:
    """Text has the shared rules, then a heading for each Service port, and packet counters where they are known."""
    assert listing_text(LISTING) == (
        "IPv4\n"
        "\nall Services\n"
        "          12 nat    -A OUTPUT -j KUBE-SERVICES\n"
        "  nat    -A KUBE-SERVICES -j KUBE-NODEPORTS\n"
        "\ndefault/web:http tcp\n"
        "  filter -A KUBE-SERVICES -j DROP\n"
        "           3 nat    -A KUBE-SERVICES -j KUBE-SVC-X\n"
    )


def test_restore() -> None:
    """Restore input is grouped by table, with a comment for each Service port, and ends with the rules that must be last."""
    assert listing_restore(LISTING) == (
        "# IPv4, input for iptables-restore --noflush\n"
        "*filter\n"
        ":KUBE-SERVICES - [0:0]\n"
        "# default/web:http tcp\n"
        "-A KUBE-SERVICES -j DROP\n"
        "COMMIT\n"
        "*nat\n"
        ":KUBE-SERVICES - [0:0]\n"
        "[12:720] -A OUTPUT -j KUBE-SERVICES\n"
        "# default/web:http tcp\n"
        "[3:180] -A KUBE-SERVICES -j KUBE-SVC-X\n"
        "-A KUBE-SERVICES -j KUBE-NODEPORTS\n"
        "COMMIT\n"
    )


def test_values() -> None:
    """JSON values have the same rules, with counters where they are known."""
    web = {"table": "nat", "chain": "KUBE-SERVICES", "rule": WEB.rule, "packets": 3, "bytes": 180}
    refused = {"table": "filter", "chain": "KUBE-SERVICES", "rule": REFUSED.rule}
    values = listing_values(LISTING)

    assert ("IPv4", [FIRST.rule, LAST.rule]) == (values["family"], rules_of(values["common"]))
    assert values["services"] == [
        {"namespace": "default", "name": "web", "port": "http", "protocol": "tcp", "rules": [refused, web]}
    ]


def rules_of(values: object) -> list[object]:
    """Return the texts of the rules in values."""
    assert isinstance(values, list)
    return [value["rule"] for value in values]
