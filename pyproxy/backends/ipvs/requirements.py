"""The kernel features that the IPVS mode needs, each checked by a probe whose error names the missing module.

A node that already runs the mode has virtual servers and rules that answer the question, so there nothing is written.
"""

from typing import NoReturn

from pyproxy.backends.iptables.capabilities import chain_rules, probe_rule
from pyproxy.backends.iptables.chain_names import POSTROUTING
from pyproxy.backends.iptables.rules import source_is_destination
from pyproxy.backends.iptables.ruleset import NAT, ChainKey
from pyproxy.backends.ipvs.entries import Scheduling, VirtualServer
from pyproxy.backends.ipvs.ipset import IpSets, IpsetType
from pyproxy.backends.ipvs.vips import Vips
from pyproxy.backends.ipvs.virtual_servers import IpvsConnection
from pyproxy.errors import ApplyError, ConfigError
from pyproxy.linux.command import CommandError, run
from pyproxy.linux.iptables_programs import Variant
from pyproxy.model.address import Family, parse_ip

_ALTERNATIVES = "load it, or use --proxy-mode=nftables or --proxy-mode=iptables"
# In TEST-NET-2, which is reserved for documentation (RFC 5737), so no real traffic reaches it.
_PROBE_SERVER = VirtualServer(parse_ip("198.51.100.0"), 6, 20000)
_PROBE_SETS = "PYPROXY-PROBE-"


async def require_ipvs() -> None:
    """Check that the kernel has IPVS, and load its module if necessary.

    Raises:
        ConfigError: the kernel has no IPVS.
    """
    try:
        IpvsConnection().close()
    except OSError as error:
        reason = str(error.strerror)
    else:
        return
    try:
        reason = (await run(["modprobe", "ip_vs"])).stderr.strip() or reason
        IpvsConnection().close()
    except CommandError as error:
        _raise_missing("ip_vs", str(error))
    except OSError:
        _raise_missing("ip_vs", reason)


def require_scheduler(scheduler: str) -> None:
    """Check that the kernel has a scheduler. Nothing is written if a virtual server already uses it.

    Raises:
        ConfigError: the kernel does not have the scheduler.
    """
    with IpvsConnection() as servers:
        try:
            if any(how.scheduler == scheduler for family in Family for _, how in servers.services(family)):
                return
            # The kernel loads ip_vs_NAME by itself when a virtual server names it (`ip_vs_sched.c`, ip_vs_scheduler_get).
            servers.perform([servers.add(_PROBE_SERVER, Scheduling(scheduler))])
            servers.perform_deletes([servers.delete(_PROBE_SERVER)])
        except ApplyError as error:
            message = f"--ipvs-scheduler: {scheduler}: the kernel module ip_vs_{scheduler} is not available ({error})"
            raise ConfigError(message) from error


async def require_rules(family: Family, variant: Variant) -> None:
    """Check that the kernel has what the helper rules need: tables, sets, matches and a dummy device.

    Raises:
        ConfigError: something is missing; the message names the module and the alternatives.
    """
    if "-m ipvs" in await chain_rules(family, variant, ChainKey(NAT, POSTROUTING)):
        return
    # The plainest rule first. If the kernel refuses it, the variant itself does not work, and no match is to blame.
    if unsupported := await probe_rule(family, variant, "-j RETURN"):
        other = next(each for each in Variant if each is not variant)
        message = (
            f"--proxy-mode: ipvs needs rules in iptables-{variant.value}, which this kernel does not support"
            f" ({_first_lines(unsupported.reason)});"
            f" use --iptables-variant={other.value}, --proxy-mode=nftables or --proxy-mode=iptables"
        )
        raise ConfigError(message)
    try:
        sets = IpSets(family, _PROBE_SETS)
    except OSError as error:
        _raise_missing("ip_set", str(error.strerror))
    # One empty set of each type in use; a rule can match a set only while it exists.
    types = {kind.name: kind for kind in IpsetType}
    try:
        try:
            sets.create(types, types)
        except ApplyError as error:
            _raise_missing("ip_set, ip_set_hash_ip, ip_set_hash_ipport or ip_set_hash_ipportnet", str(error))
        for module, rule in (
            ("xt_set", f"-m set --match-set {_PROBE_SETS}{IpsetType.IP.name} dst"),
            ("xt_ipvs", "-m ipvs --ipvs"),
            ("xt_bpf", source_is_destination(family)),
        ):
            if unsupported := await probe_rule(family, variant, f"{rule} -j RETURN"):
                _raise_missing(module, _first_lines(unsupported.reason))
    finally:
        sets.destroy(types)
        sets.close()
    try:
        with Vips(family) as vips:
            vips.ensure_device()
    except ApplyError as error:
        _raise_missing("dummy", str(error))


def _first_lines(reason: str) -> str:
    # The first two lines are the program's error; the lines after them quote the input.
    return " ".join(reason.splitlines()[:2])


def _raise_missing(module: str, reason: str) -> NoReturn:
    message = f"--proxy-mode: ipvs needs the kernel module {module}, which is not available ({reason}); {_ALTERNATIVES}"
    raise ConfigError(message)
