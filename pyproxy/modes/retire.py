"""What the agent removes once a mode's rules are complete: what was left by all that ran before."""

from pyproxy.apply.iptables import Variant, is_available
from pyproxy.compile.ipvs_static import is_ours_alone
from pyproxy.config import Config, ProxyMode
from pyproxy.flags.takeover import Takeover
from pyproxy.model.address import Family
from pyproxy.modes.backend import Backend
from pyproxy.modes.leftovers import remove_chains, retire, retire_trial


async def retire_others(config: Config, backend: Backend) -> None:
    """Remove what is left of other modes and variants, and of a trial; on trial what is left of one, and nothing else.

    Args:
        config: says whether this is a trial, and whether what kube-proxy left goes as well.
        backend: the mode whose rules are complete.

    Raises:
        ApplyError: something could not be removed.
    """
    used = backend.iptables_variant
    if config.service_proxy_name:
        await retire_trial(used)
        return
    its_too = config.takeover is Takeover.AUTO
    await retire(used, backend.owns_chain, its_too=its_too)
    # Most nodes never had the IPVS mode; here its modules are imported once.
    from pyproxy.modes.ipvs_cleanup import retire_ipvs, retire_kube_proxys_ipvs  # noqa: PLC0415

    if backend.mode is not ProxyMode.IPVS:
        await _remove_helper_rules(used)
        await retire_ipvs(its_too=its_too)
    elif its_too:
        await retire_kube_proxys_ipvs()


async def _remove_helper_rules(used: Variant | None) -> None:
    """Remove the rules of the IPVS mode that are beside those of the iptables mode; any others are gone already."""
    if used is not None:
        for family in Family:
            if is_available(family, used):
                await remove_chains(family, used, is_ours_alone)
