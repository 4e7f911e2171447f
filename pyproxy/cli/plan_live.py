"""What the next sync would change in the kernel of this node. Only reads."""

from pyproxy.backends.registry import backend_class, choose_mode, open_dumper
from pyproxy.cli.control import is_agent_here
from pyproxy.cli.live_objects import known_objects
from pyproxy.cli.plan_report import Comparison, Leftover, PlanDocument, compared, plan_document
from pyproxy.config.config import Config, ProxyMode, Takeover
from pyproxy.linux.addresses import local_addresses
from pyproxy.linux.capabilities import require_capabilities
from pyproxy.linux.conntrack import delete_udp_flows
from pyproxy.linux.local_networks import local_networks
from pyproxy.model.address import Family
from pyproxy.model.flow import Flow
from pyproxy.node.context import NodeContext
from pyproxy.node.local_traffic import nftables_config, node_port_networks
from pyproxy.plan.planner import final_plans
from pyproxy.plan.service_values import FAMILIES
from pyproxy.plan.stale_flows import Frontends, NodeAddresses
from pyproxy.takeover.running_proxy import detect_running_proxy
from pyproxy.takeover.stale_rules import find_stale_rules, kube_proxy_nft_tables


async def plan_of_kernel(config: Config, *, with_leftovers: bool = True) -> PlanDocument:
    """Return what a full sync of an agent with this configuration would change now.

    Args:
        config: of the agent.
        with_leftovers: whether to look for rules of another proxy or mode, which the agent removes.

    Raises:
        ApplyError: the kernel cannot be read.
        ConfigError: this node does not support the configuration, or it leads to no API server.
        RightsError: this process may not read the kernel's rules.
        SourceError: the objects cannot be read.
    """
    # As an agent starts, in the same order: the mode, the objects, the entries in the kernel, and then the difference.
    require_capabilities("plan")
    config = await choose_mode(config)
    dumper = open_dumper(config)
    tracker, node = await known_objects(config)
    context = NodeContext(node=node, local_ips=local_addresses(), service_cidrs=tracker.take_service_cidrs())
    # The program gets the present entries, as in a full sync: a few values depend on them, such as names that can be kept.
    comparisons = [
        compared(dumper, family, present, dumper.program(family, context, present), final_plans(tracker, node, family))
        for family, present in (await dumper.read()).items()
    ]
    found = plan_document(node.name, config.proxy_mode.value, "kernel", dumper, comparisons)
    found.stale_flows = sum(_stale_flows(config, context, each) for each in comparisons)
    if with_leftovers and config.takeover is Takeover.AUTO and not config.service_proxy_name:
        found.leftovers = await _leftovers(config)
        # The agent of this node has the same kind of server as kube-proxy.
        if not (config.control_socket and is_agent_here(config.control_socket)):
            found.running_proxy = await detect_running_proxy(config)
    return found


def _stale_flows(config: Config, context: NodeContext, found: Comparison) -> int:
    """Return how many UDP flows the agent deletes when the rules are in place: a new agent looks at all frontends.

    Raises:
        ApplyError: conntrack cannot be read.
    """
    family, frontends, counted = found.after.family, Frontends(), 0
    touched = frontends.update((None, plan) for plan in found.plans.values())
    mode = nftables_config(config) if config.proxy_mode is ProxyMode.NFTABLES else config
    networks = node_port_networks(mode, family, context, local_networks(family))
    stale = frontends.stale(touched, NodeAddresses(networks), None)

    def count(flow: Flow) -> bool:
        nonlocal counted
        counted += stale.is_stale(flow)
        return False  # so that nothing is deleted

    if stale.destinations:
        delete_udp_flows(family, stale.destinations, count)
    return counted


async def _leftovers(config: Config) -> list[Leftover]:
    # What the agent removes when its own rules are complete: rules of kube-proxy, and of other modes.
    from pyproxy.backends.ipvs.cleanup import kube_proxy_state  # noqa: PLC0415  # most nodes never had this mode

    backend = backend_class(config.proxy_mode)
    found: list[Leftover] = []
    for saved in await find_stale_rules(await backend.choose_iptables_variant(config), backend.owns_chain):
        if chains := sum(map(len, saved.left.values())):
            where = f"iptables-{saved.variant.value}"
            found.append(Leftover(FAMILIES[saved.family], where, f"{chains} chain{'' if chains == 1 else 's'}"))
    for family, text in (await kube_proxy_nft_tables()).items():
        chains = text.count("\n\tchain ")
        found.append(Leftover(FAMILIES[family], "nftables", f"table kube-proxy with {chains} chains"))
    for family in Family:
        if left := kube_proxy_state(family):
            what = f"{len(left.virtuals)} virtual servers, {len(left.ips)} addresses and {len(left.names)} sets"
            found.append(Leftover(FAMILIES[family], "IPVS", what))
    return found
