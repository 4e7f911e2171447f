"""``--init-only``: makes the kernel settings that need full privileges, and does nothing else."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .cluster import PYPROXY
from .own_namespace import run

pytestmark = pytest.mark.usefixtures("own_tables")

SYS = Path("/proc/sys/net")
FLAGS = ("--init-only", "--conntrack-max-per-core=0", "--hostname-override=node1", "--iptables-variant=nft")
WANTED = {
    "ipv4/conf/all/route_localnet": 1,
    "netfilter/nf_conntrack_tcp_timeout_established": 1234,
    "netfilter/nf_conntrack_tcp_timeout_close_wait": 56,
    "netfilter/nf_conntrack_tcp_be_liberal": 1,
    "netfilter/nf_conntrack_udp_timeout": 7,
    "netfilter/nf_conntrack_udp_timeout_stream": 89,
}
SETTINGS = (
    "--conntrack-tcp-timeout-established=1234s",
    "--conntrack-tcp-timeout-close-wait=56s",
    "--conntrack-tcp-be-liberal",
    "--conntrack-udp-timeout=7s",
    "--conntrack-udp-timeout-stream=89s",
)


def settings() -> dict[str, int]:
    """Return the settings of this namespace that the agent may change."""
    return {name: int((SYS / name).read_text()) for name in WANTED}


def test_settings_are_made_and_nothing_else() -> None:
    """The settings are made without an API server or manifests, and no rules are written."""
    assert WANTED != settings()

    run(PYPROXY, "run", *FLAGS, *SETTINGS)

    assert WANTED == settings()
    assert "KUBE" not in run("nft", "list", "ruleset")
    assert "PYPROXY" not in run("nft", "list", "ruleset")


def test_a_timeout_of_less_than_a_second() -> None:
    """A time-out below one second becomes 1 s: the kernel counts in seconds, and 0 would expire every flow immediately."""
    run(PYPROXY, "run", *FLAGS, "--conntrack-udp-timeout=500ms", "--conntrack-udp-timeout-stream=1500ms")

    found = settings()
    assert (1, 1) == tuple(found[f"netfilter/nf_conntrack_udp_timeout{suffix}"] for suffix in ("", "_stream"))


def test_a_start_that_cannot_work_changes_nothing() -> None:
    """An agent with an invalid kubeconfig reports the error before it changes any setting."""
    before = settings()
    command = [PYPROXY, "run", "--kubeconfig=/nonexistent", *SETTINGS, "--oom-score-adj=0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (2, before) == (done.returncode, settings())
    assert "Error: kubeconfig /nonexistent: " in done.stderr
    assert "" == run("nft", "list", "ruleset")


def test_loopback_is_routed_only_where_node_ports_answer_there() -> None:
    """route_localnet is set only if node ports are served on loopback addresses."""
    run(PYPROXY, "run", *FLAGS, "--iptables-localhost-nodeports=false")

    assert settings()["ipv4/conf/all/route_localnet"] == 0


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    """It can be repeated before every start, and be combined with a configuration file."""
    config = tmp_path / "config.conf"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n"
        "kind: KubeProxyConfiguration\n"
        "conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 1234s, tcpCloseWaitTimeout: 56s, tcpBeLiberal: true,"
        " udpTimeout: 7s, udpStreamTimeout: 89s}\n"
    )
    for _ in range(2):
        run(PYPROXY, "run", f"--config={config}", *FLAGS)

        assert WANTED == settings()


def test_a_setting_that_cannot_be_written_is_a_failure() -> None:
    """Where a kernel setting is read-only the exit status is 1, and the log names the setting."""
    flags = (*FLAGS, "--conntrack-tcp-timeout-close-wait=77s")
    read_only = 'mount --bind -o ro /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", read_only, "sh", PYPROXY, "run", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert 1 == done.returncode
    assert "nf_conntrack_tcp_timeout_close_wait: cannot be set to 77: Read-only file system" in done.stderr
    assert "--init-only: some kernel settings could not be written" in done.stderr
