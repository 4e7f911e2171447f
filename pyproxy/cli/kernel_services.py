"""The Services that have rules in the kernel, for ``services`` on a node where no agent runs."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from pyproxy.cli.dump_rules import live_rules
from pyproxy.cli.output import OutputFormat, print_document, print_rows
from pyproxy.config.config import Config, ProxyMode
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.plan.service_values import API_VERSION, FAMILIES, PROTOCOLS


class ServiceRulesValues(Struct, rename="camel", forbid_unknown_fields=True):
    """A Service port that has rules in the kernel."""

    namespace: str
    name: str
    port_name: str
    protocol: Literal["TCP", "UDP", "SCTP"]
    family: Literal["IPv4", "IPv6"]
    rules: Annotated[int, Meta(description="How many rules, elements or virtual and real servers it has.")]


class ServiceRulesList(Struct, rename="camel", forbid_unknown_fields=True):
    """The document that ``pyproxy services -o json`` prints if no agent answers."""

    api_version: Literal["pyproxy.io/v1alpha1"]
    kind: Literal["ServiceRulesList"]
    mode: Annotated[str, Meta(description="The proxy mode of the rules: iptables, nftables or ipvs.")]
    items: list[ServiceRulesValues]


def read_kernel(config: Config, mode: ProxyMode | None) -> ServiceRulesList:
    """Return the Services that have rules in the kernel.

    Args:
        config: all settings.
        mode: the mode given on the command line, if any.

    Raises:
        ApplyError: the kernel has no rules of pyproxy.
        RightsError: this process may not read the kernel's rules.
    """
    require_capabilities("services")
    rules = live_rules(config, mode)
    # Rules name their Service port in a comment. Whether its endpoints are right cannot be seen in them.
    items = [
        ServiceRulesValues(
            name.service.namespace,
            name.service.name,
            name.port,
            PROTOCOLS[name.protocol],
            FAMILIES[listing.family],
            len(of_port),
        )
        for listing in rules.listings
        for name, of_port in listing.services.items()
    ]
    return ServiceRulesList(API_VERSION, "ServiceRulesList", rules.mode.value, items)


def print_kernel_services(found: ServiceRulesList, output: OutputFormat) -> None:
    """Print Services with the number of their rules."""
    if output in {OutputFormat.JSON, OutputFormat.YAML}:
        print_document(found, output)
        return
    rows = [
        [
            f"{item.namespace}/{item.name}",
            item.port_name or "-",
            item.protocol,
            item.family,
            str(item.rules),
            "in the kernel, no agent runs",
        ]
        for item in found.items
    ]
    print_rows(("SERVICE", "PORT", "PROTOCOL", "FAMILY", "RULES", "STATE"), rows)
