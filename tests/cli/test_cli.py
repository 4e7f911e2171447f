"""The command line as a user types it: the resulting Config, output, exit codes, and docs/cli.md.

The effects of the commands are tested with the code that implements them.
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from pyproxy.cli.flags import SETTINGS, FlagCommand, config_flags, configured_settings
from pyproxy.config.config import OPTIONS, Config, IptablesVariant, NodePortAddresses, ProxyMode, build_config
from pyproxy.errors import ApplyError
from pyproxy.logs import V2, LogFormat
from pyproxy.model.address import ListenAddress, parse_ip, parse_network
from pyproxy.model.node import DetectLocalMode

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def loggers_as_they_were() -> Iterator[None]:
    """Restore pytest's log capture after a command has set up logging."""
    root, ours = logging.getLogger(), logging.getLogger("pyproxy")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def parsed(*words: str) -> tuple[Result, Config | None]:
    """Return the result of a command that has all flags of `run` and does nothing, and the Config that it got."""
    configs: list[Config] = []

    @click.command("probe", cls=FlagCommand, params=config_flags(OPTIONS), context_settings=SETTINGS)
    @click.pass_context
    def probe(ctx: click.Context, /, **_: object) -> None:
        configs.append(configured_settings(ctx).config)

    result = CliRunner().invoke(probe, words, catch_exceptions=False)
    return result, configs[0] if configs else None


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process that finds this checkout."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def pyproxy(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    return python("-m", "pyproxy", *words, **environment)


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ([], {}),
        (["--proxy-mode=iptables"], {"proxy_mode": ProxyMode.IPTABLES}),
        (["--proxy-mode="], {"proxy_mode": ProxyMode.IPTABLES}),
        (["--proxy-mode", "auto"], {"proxy_mode": ProxyMode.AUTO}),
        (["--iptables-variant=nft"], {"iptables_variant": IptablesVariant.NFT}),
        (["--manifests", "-"], {"manifests": "-"}),
        (["--hostname-override= Node-1 "], {"hostname_override": "node-1"}),
        (["--masquerade-all"], {"masquerade_all": True}),
        (["--masquerade_all=T"], {"masquerade_all": True}),
        (["--masquerade-all", "--masquerade-all=false"], {"masquerade_all": False}),
        (["--iptables-localhost-nodeports=0"], {"iptables_localhost_nodeports": False}),
        (["--v=4"], {"v": 4}),
        (["-v", "4"], {"v": 4}),
        (["-v=4"], {"v": 4}),
        (["-v4"], {"v": 4}),
        (["-v", "2", "--v=6"], {"v": 6}),
        (["--logging-format=json"], {"logging_format": LogFormat.JSON}),
        (["--oom-score-adj", "-998"], {"oom_score_adj": -998}),
        (["--iptables-masquerade-bit=0xf"], {"iptables_masquerade_bit": 15}),
        (["--iptables-sync-period=1h30m"], {"iptables_sync_period_seconds": 5400.0}),
        (["--iptables-min-sync-period", "500ms"], {"iptables_min_sync_period_seconds": 0.5}),
        (["--iptables-min-sync-period=0"], {"iptables_min_sync_period_seconds": 0.0}),
        (["--conntrack-tcp-timeout-established", "2h"], {"conntrack_tcp_timeout_established_seconds": 7200.0}),
        (["--bind-address=::"], {"bind_address": parse_ip("::")}),
        (
            ["--metrics-bind-address=[::1]:9090"],
            {"metrics_bind_address": ListenAddress(parse_ip("::1"), 9090)},
        ),
        (["--metrics-bind-address="], {"metrics_bind_address": None}),
        (
            ["--cluster-cidr=10.244.0.0/16,fd00::/56"],
            {"cluster_cidr": (parse_network("10.244.0.0/16"), parse_network("fd00::/56"))},
        ),
        (
            ["--cluster-cidr=10.244.0.0/16", "--cluster-cidr=10.1.0.0/16"],
            {"cluster_cidr": (parse_network("10.1.0.0/16"),)},
        ),
        (
            ["--nodeport-addresses=10.0.0.0/8,10.1.0.0/16", "--nodeport-addresses", "fd00::/8"],
            {"nodeport_addresses": tuple(map(parse_network, ("10.0.0.0/8", "10.1.0.0/16", "fd00::/8")))},
        ),
        (["--nodeport-addresses=primary"], {"nodeport_addresses": (NodePortAddresses.PRIMARY,)}),
        (
            ["--nodeport-addresses=localhost,10.0.0.0/8,primary", "--nodeport-addresses=all"],
            {
                "nodeport_addresses": (
                    NodePortAddresses.LOCALHOST,
                    parse_network("10.0.0.0/8"),
                    NodePortAddresses.PRIMARY,
                    NodePortAddresses.ALL,
                )
            },
        ),
        (["--nodeport-addresses="], {"nodeport_addresses": ()}),
        (["--detect-local-mode=NodeCIDR"], {"detect_local_mode": DetectLocalMode.NODE_CIDR}),
        (
            ["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"],
            {"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE, "pod_bridge_interface": "cni0"},
        ),
        (["--feature-gates=A=true", "--feature_gates=B=false"], {"feature_gates": (("A", True), ("B", False))}),
        (["--log_dir=/var/log"], {"log_dir": "/var/log"}),
        (["--init-only"], {"init_only": True}),
    ],
)
def test_a_command_line_becomes_a_config(words: list[str], values: dict[str, Any]) -> None:
    """Each flag sets its field, and all other fields keep their defaults."""
    result, config = parsed(*words)

    assert (0, build_config(values)) == (result.exit_code, config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--proxy-mod=iptables"], "unknown flag: --proxy-mod (did you mean --proxy-mode?)"),
        (["--masquerade-all", "false"], "unexpected extra argument (false)"),
        (["--", "--v=4"], "unexpected extra argument (--v=4)"),
        (["--kubeconfig"], "flag needs an argument: --kubeconfig"),
        (["--help=maybe"], "'maybe' is neither true nor false"),
        (["--proxy-mode=ebpf"], "'--proxy-mode': 'ebpf' is not one of auto, iptables, ipvs, nftables"),
        (
            ["--proxy-mode=IPVS"],
            "'--proxy-mode': 'IPVS' is not one of auto, iptables, ipvs, nftables (did you mean ipvs?)",
        ),
        (["--iptables-sync-period=30"], "'--iptables-sync-period': '30' is not a duration"),
        (["--iptables-masquerade-bit=32"], "--iptables-masquerade-bit: 32 is not within 0..31"),
        (["--cluster-cidr=10.244.0.0"], "'--cluster-cidr': '10.244.0.0' is not a CIDR block"),
        (
            ["--nodeport-addresses=primary,Localhost"],
            "'Localhost' is not a CIDR block or one of the keywords primary, localhost, all (did you mean localhost?)",
        ),
        (["--nodeport-addresses=all,all"], "--nodeport-addresses: all,all has the keyword all twice"),
        (
            ["--nodeport-addresses=10.0.0.1"],
            "'--nodeport-addresses': '10.0.0.1' is not a CIDR block or one of the keywords primary, localhost, all",
        ),
        (["--detect-local-mode=BridgeInterface"], "--pod-bridge-interface: must be given"),
        (["-v", "high"], "'high' is not a whole number from 0"),
        (["--vmodule=a=1,b"], "'b' is not PATTERN=LEVEL"),
        (["--vmodule=a=b"], "'b' is not a whole number from 0"),
        (["--ipvs-exclude-cidrs=x"], "'--ipvs-exclude-cidrs': 'x' is not a CIDR block"),
    ],
)
def test_wrong_input_exits_2_and_names_the_flag(words: list[str], message: str) -> None:
    """Wrong input gives one line on standard error and exit code 2, also for flags that have no effect."""
    result, config = parsed(*words)

    assert (2, None, "") == (result.exit_code, config, result.stdout)
    assert message in result.stderr


def test_a_failure_exits_1() -> None:
    """An error that is not caused by wrong input gives one line on standard error and exit code 1."""

    @click.command(cls=FlagCommand)
    def failing() -> None:
        message = "iptables-restore: exit status 4"
        raise ApplyError(message, retryable=True)

    result = CliRunner().invoke(failing)

    assert (1, "Error: iptables-restore: exit status 4\n") == (result.exit_code, result.stderr)


def test_the_command_line_of_kubeadm() -> None:
    """The arguments of kubeadm's DaemonSet work unchanged, without a warning."""
    file = ROOT / "tests" / "inputs" / "kubeadm-config.yaml"
    result, config = parsed(f"--config={file}", "--hostname-override=Node-1")

    expected = Config(
        config=str(file),
        kubeconfig="/var/lib/kube-proxy/kubeconfig.conf",
        cluster_cidr=(parse_network("10.244.0.0/16"),),
        hostname_override="node-1",
    )
    assert (0, "", expected) == (result.exit_code, result.stderr, config)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Give a file with fields that flags override and fields that cause warnings."""
    path = tmp_path / "config.conf"
    lines = (
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1",
        "kind: KubeProxyConfiguration",
        "hostnameOverride: file",
        "oomScoreAdj: -5",
        "logging: {format: json}",
        "enableProfiling: true",
        "future: 1",
    )
    path.write_text("\n".join(lines))
    return path


def test_flags_win_over_the_file(config_file: Path) -> None:
    """A value comes from the flag if that was given, else from the file, else it is the default."""
    _, config = parsed(f"--config={config_file}", "--hostname-override=flag", "-v=1")

    assert ("flag", -5, 1, Config().conntrack_min) == (
        config and (config.hostname_override, config.oom_score_adj, config.v, config.conntrack_min)
    )


def test_warnings_about_the_file_have_the_log_format_of_the_file(config_file: Path) -> None:
    """The file's own log format applies to warnings about the file."""
    result, _ = parsed(f"--config={config_file}")

    assert [
        f"{config_file}: enableProfiling is accepted but has no effect: the profiles are those of a Go program",
        f"{config_file}: future is unknown and ignored",
    ] == [json.loads(line)["msg"] for line in result.stderr.splitlines()]


def test_a_mistake_in_the_file_exits_2(config_file: Path) -> None:
    """A mistake in the file is a usage error that names file, line and field."""
    config_file.write_text(config_file.read_text() + "\nmode: ipfs")
    finished = pyproxy("run", f"--config={config_file}")

    assert (2, "") == (finished.returncode, finished.stdout)
    assert finished.stderr.endswith(
        f"Error: {config_file}: line 8: mode: 'ipfs' is not one of auto, iptables, ipvs, nftables (did you mean ipvs?)\n"
    )


def test_contradictions_in_the_file_exit_2(config_file: Path) -> None:
    """A contradiction between two fields gives an error that names both and the file."""
    config_file.write_text(config_file.read_text() + "\ndetectLocalMode: BridgeInterface")
    finished = pyproxy("run", f"--config={config_file}")

    assert (2, "") == (finished.returncode, finished.stdout)
    message = f"{config_file}: detectLocal.bridgeInterface: must be given with detectLocalMode=BridgeInterface"
    assert finished.stderr.endswith(f"Error: {message}\n")


def test_each_flag_without_effect_causes_one_warning() -> None:
    """Each flag without effect causes one warning, however often it is given."""
    words = ["--profiling", "--hostname-override=node-1", "--profiling", "--logtostderr=true", "--v=2"]

    result, _ = parsed(*words)
    warnings = [line.partition("] ")[2] for line in result.stderr.splitlines() if line.startswith("W")]

    assert [
        "--profiling is accepted but has no effect: the profiles are those of a Go program",
        "--logtostderr is accepted but has no effect: it configures klog, and pyproxy logs to standard error only",
    ] == warnings


def test_log_lines_have_klogs_header() -> None:
    """A text line starts with level, date and time like klog's."""
    result, _ = parsed("--profiling")

    assert re.match(
        r"W\d{4} \d{2}:\d{2}:\d{2}\.\d{6} +\d+ pyproxy\.cli\.flags\] --profiling is accepted", result.stderr
    )


def test_log_lines_can_be_json() -> None:
    """With --logging-format=json each line is an object with component-base's keys."""
    result, _ = parsed("--profiling", "--logging-format=json")
    line = json.loads(result.stderr)

    assert ["caller", "level", "msg", "ts"] == sorted(line)
    assert ("warning", "--profiling is accepted but has no effect: the profiles are those of a Go program") == (
        line["level"],
        line["msg"],
    )


@pytest.mark.parametrize(
    ("verbosity", "level"), [(0, logging.INFO), (2, V2), (3, V2 - 1), (4, logging.DEBUG), (9, logging.DEBUG)]
)
def test_verbosity(verbosity: int, level: int) -> None:
    """-v 2 adds the syncs, -v 4 and above every step; other packages stay at warnings."""
    parsed(f"-v={verbosity}")

    assert (level, logging.WARNING) == (logging.getLogger("pyproxy").level, logging.getLogger().level)


@pytest.mark.parametrize("words", [["--version"], ["version"], ["run", "--version"], ["run", "--version=raw"]])
def test_version(words: list[str]) -> None:
    """Each way to print the version prints the same line on standard output."""
    finished = pyproxy(*words)

    assert (0, "pyproxy 0.1.0\n", "") == (finished.returncode, finished.stdout, finished.stderr)


def test_under_the_name_kube_proxy_no_command_is_needed(tmp_path: Path) -> None:
    """The flags of kube-proxy follow its name directly."""
    program = tmp_path / "kube-proxy"
    program.write_text("from pyproxy.cli import main\nmain()\n")

    version = python(str(program), "--version")
    wrong = python(str(program), "--proxy-mode=userspace")

    assert (0, "pyproxy 0.1.0\n") == (version.returncode, version.stdout)
    assert (2, "Usage: kube-proxy [OPTIONS]") == (wrong.returncode, wrong.stderr.splitlines()[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dump-rules"], "give --manifests PATH (the rules for the objects there) or --live"),
        (["dump-rules", "--manifests=x", "--service=web"], "'--service': 'web' is not NAMESPACE/NAME"),
        (["dump-rules", "--manifests=x", "-o", "yaml"], "'yaml' is not one of restore, nft, json, text"),
        (["dump-rules", "--manifests=x", "--proxy-mode=auto"], "depends on the kernel of the node"),
        (["dump-rules", "--manifests=x", "-o", "nft"], "use -o restore"),
        (["cleanup", "--kube-prox"], "unknown flag: --kube-prox (did you mean --kube-proxy?)"),
        (["cleanup", "now"], "unexpected extra argument (now)"),
        (["clean"], "No such command 'clean'"),
    ],
)
def test_wrong_commands_exit_2(words: list[str], message: str) -> None:
    """Each command reports wrong arguments on standard error and exits 2."""
    finished = pyproxy(*words)

    assert (2, "") == (finished.returncode, finished.stdout)
    assert message in finished.stderr


def test_every_command_lists_the_exit_codes() -> None:
    """Help explains exit codes 0, 1 and 2."""
    helps = [pyproxy(*words, "--help").stdout for words in ([], ["run"], ["dump-rules"], ["cleanup"])]

    assert [True] * 4 == ["Exit codes: 0 done, 1 failed, 2 wrong flags or input." in text for text in helps]


@pytest.mark.parametrize("command", ["", "run", "check-config", "dump-rules", "cleanup", "version"])
def test_the_docs_show_the_help(command: str) -> None:
    """docs/cli.md has the exact output of --help on a terminal of 100 columns."""
    finished = pyproxy(*command.split(), "--help", COLUMNS="100")

    assert finished.stdout in (ROOT / "docs" / "cli.md").read_text()


def test_the_docs_show_nothing_else() -> None:
    """docs/cli.md is what its generator writes."""
    check = python("tests/docs/cli_page.py", "--check")

    assert (0, "") == (check.returncode, check.stderr)


def test_check_config_prints_the_resulting_configuration(config_file: Path) -> None:
    """A usable configuration exits 0 and prints the mode and the flags and fields in effect; warnings go to stderr."""
    finished = pyproxy("check-config", f"--config={config_file}", "--proxy-mode=nftables", "--hostname-override=a")

    assert 0 == finished.returncode
    assert (
        f"configuration: nftables mode; flags: --config={config_file}, --hostname-override=a, --proxy-mode=nftables;"
        f" {config_file}: logging.format=json, enableProfiling=true, oomScoreAdj=-5; all else is default\n"
        "API server: that of the pod's service account\n"
        "errors: 0, warnings: 2\n"
    ) == finished.stdout
    assert f"Warning: {config_file}: future is unknown and ignored" in finished.stderr


def test_check_config_names_file_object_and_field(tmp_path: Path, config_file: Path) -> None:
    """Each mistake, in a configuration file, a kubeconfig or an object, is a line with its place; exit code 2."""
    config_file.write_text(config_file.read_text() + "\nmode: ipfs\niptables: {masqueradeBit: 32}")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text("current-context: a\nclusters: []\ncontexts: []\n")
    objects = ROOT / "tests" / "inputs" / "bad-fields.yaml"
    of_file = pyproxy("check-config", f"--config={config_file}")
    of_kubeconfig = pyproxy("check-config", f"--kubeconfig={kubeconfig}")
    of_objects = pyproxy("check-config", f"--manifests={objects}")

    assert (2, 2, 2) == (of_file.returncode, of_kubeconfig.returncode, of_objects.returncode)
    assert f"{config_file}: line 8: mode: 'ipfs' is not one of" in of_file.stderr
    assert f"{config_file}: line 9: iptables.masqueradeBit: 32 is not within 0..31" in of_file.stderr
    assert f"Error: kubeconfig {kubeconfig}: contexts: no entry has the name 'a'" in of_kubeconfig.stderr
    assert f"{objects}, line 65: EndpointSlice default/web-1: endpoints[1].addresses[0]: " in of_objects.stderr


def test_check_config_without_the_kubeconfig(tmp_path: Path) -> None:
    """A ConfigMap can be checked where the node's kubeconfig is missing; the output says that it was not checked."""
    finished = pyproxy("check-config", f"--kubeconfig={tmp_path}/missing")

    assert 0 == finished.returncode
    assert f"--kubeconfig: {tmp_path}/missing is not on this machine and was not checked" in finished.stderr


def test_write_config_to(tmp_path: Path, config_file: Path) -> None:
    """The configuration of flags and file is written and nothing else is done; settings it cannot hold are logged."""
    written = tmp_path / "written"
    words = ("run", f"--config={config_file}", f"--write-config-to={written}", "--manifests=/nowhere", "--v=1")
    finished = pyproxy(*words)

    assert (0, "") == (finished.returncode, finished.stdout)
    assert "it does not have pyproxy's own settings: --manifests" in finished.stderr
    assert "oomScoreAdj: -5\n" in written.read_text()
    assert "  verbosity: 1\n" in written.read_text()


@pytest.mark.parametrize("server", ["metrics", "healthz"])
def test_a_deprecated_port_of_zero_is_no_server(server: str) -> None:
    """As in kube-proxy, --metrics-port=0 and --healthz-port=0 disable a server, and other values have no effect."""
    _, config = parsed(f"--{server}-port=0", f"--{server}-bind-address=127.0.0.1:1")
    _, other = parsed(f"--{server}-port=1")

    assert (None, getattr(Config(), f"{server}_bind_address")) == (
        getattr(config, f"{server}_bind_address"),
        getattr(other, f"{server}_bind_address"),
    )
