"""KubeProxyConfiguration files: each field sets the value of a flag, and errors name file and field.

`test_grammar` and `test_config` have the valid values, tests/cli the precedence of flags over files.
"""

import json
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.config.config import OPTIONS, Config, NodePortAddresses, ProxyMode, build_config
from pyproxy.config.config_file import FIELDS, ConfigFile, read_config_file
from pyproxy.errors import ConfigError
from pyproxy.logs import LogFormat
from pyproxy.model.address import ListenAddress, parse_ip, parse_network
from pyproxy.model.node import DetectLocalMode

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
INPUTS = Path(__file__).parents[2] / "inputs"
KUBEADM = INPUTS / "kubeadm-config.yaml"
"""The content of kube-proxy's ConfigMap after ``kubeadm init --pod-network-cidr=10.244.0.0/16``."""
EXPLICIT = INPUTS / "explicit-config.yaml"
"""Every field of v1alpha1 with kube-proxy's default, as ``kube-proxy --write-config-to`` writes them."""


def read(tmp_path: Path, text: str, head: str = HEAD, **typed: object) -> ConfigFile:
    """Read a file with this text, together with these flags."""
    path = tmp_path / "config.conf"
    path.write_text(head + text)
    return read_config_file(str(path), typed)


def test_the_file_of_kubeadm() -> None:
    """The file of kubeadm sets the kubeconfig and the pod CIDR blocks, keeps all other defaults, and causes no warning."""
    file = read_config_file(str(KUBEADM), {})

    expected = Config(kubeconfig="/var/lib/kube-proxy/kubeconfig.conf", cluster_cidr=(parse_network("10.244.0.0/16"),))
    assert (expected, ()) == (build_config(file.values), file.warnings)


def test_explicit_defaults_are_ours() -> None:
    """A file with all defaults of kube-proxy gives our defaults, except for the minimal sync period."""
    file = read_config_file(str(EXPLICIT), {})

    assert (Config(iptables_min_sync_period_seconds=1.0), ()) == (build_config(file.values), file.warnings)


def test_the_explicit_defaults_have_every_field() -> None:
    """The file of the previous test has every field."""
    text = EXPLICIT.read_text()

    assert [] == [path for path in FIELDS if f"{path.rpartition('.')[2]}:" not in text]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("mode: iptables", {"proxy_mode": ProxyMode.IPTABLES}),
        ("mode: auto", {"proxy_mode": ProxyMode.AUTO}),
        ("hostnameOverride: ' Node-1 '", {"hostname_override": "node-1"}),
        ("bindAddress: 192.0.2.1", {"bind_address": parse_ip("192.0.2.1")}),
        ("metricsBindAddress: 0.0.0.0:9090", {"metrics_bind_address": ListenAddress(bytes(4), 9090)}),
        ("metricsBindAddress: '[::1]:9090'", {"metrics_bind_address": ListenAddress(parse_ip("::1"), 9090)}),
        ("metricsBindAddress: 192.0.2.1", {"metrics_bind_address": ListenAddress(parse_ip("192.0.2.1"), 10249)}),
        ("metricsBindAddress: 127.0.0.1:0", {"metrics_bind_address": None}),
        ("metricsBindAddress: ''", {}),
        ("detectLocalMode: NodeCIDR", {"detect_local_mode": DetectLocalMode.NODE_CIDR}),
        (
            "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
            {"detect_local_mode": DetectLocalMode.BRIDGE_INTERFACE, "pod_bridge_interface": "cni0"},
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
            {"detect_local_mode": DetectLocalMode.INTERFACE_NAME_PREFIX, "pod_interface_name_prefix": "veth"},
        ),
        (
            "clusterCIDR: 10.244.0.0/16,fd00::/56",
            {"cluster_cidr": (parse_network("10.244.0.0/16"), parse_network("fd00::/56"))},
        ),
        ("nodePortAddresses: [primary]", {"nodeport_addresses": (NodePortAddresses.PRIMARY,)}),
        (
            "nodePortAddresses:\n- 10.0.0.0/8\n- fd00::/8",
            {"nodeport_addresses": (parse_network("10.0.0.0/8"), parse_network("fd00::/8"))},
        ),
        ("nodePortAddresses: []", {}),
        (
            "nodePortAddresses:\n- primary\n- localhost\n- 10.0.0.0/8",
            {
                "nodeport_addresses": (
                    NodePortAddresses.PRIMARY,
                    NodePortAddresses.LOCALHOST,
                    parse_network("10.0.0.0/8"),
                )
            },
        ),
        ("iptables: {masqueradeBit: 0}", {"iptables_masquerade_bit": 0}),
        ("iptables: {masqueradeAll: true}", {"masquerade_all": True}),
        ("iptables: {localhostNodePorts: false}", {"iptables_localhost_nodeports": False}),
        ("iptables: {syncPeriod: 0s}", {}),
        ("iptables: {syncPeriod: 1m30s}", {"iptables_sync_period_seconds": 90.0}),
        ("iptables: {minSyncPeriod: 0s}", {}),
        ("iptables: {minSyncPeriod: 500ms}", {"iptables_min_sync_period_seconds": 0.5}),
        ("iptables: null", {}),
        ("conntrack: {maxPerCore: 0, min: 0}", {"conntrack_max_per_core": 0, "conntrack_min": 0}),
        ("conntrack: {tcpEstablishedTimeout: 0s}", {"conntrack_tcp_timeout_established_seconds": 0.0}),
        ("conntrack: {tcpCloseWaitTimeout: 2h}", {"conntrack_tcp_timeout_close_wait_seconds": 7200.0}),
        ("conntrack: {tcpBeLiberal: true}", {"conntrack_tcp_be_liberal": True}),
        ("conntrack: {udpTimeout: 1m}", {"conntrack_udp_timeout_seconds": 60.0}),
        ("conntrack: {udpStreamTimeout: 2m}", {"conntrack_udp_timeout_stream_seconds": 120.0}),
        ("oomScoreAdj: 0", {"oom_score_adj": 0}),
        ("oomScoreAdj: -998", {"oom_score_adj": -998}),
        ("logging: {flushFrequency: 5000000000}", {"log_flush_frequency_seconds": 5.0}),
        ("logging: {format: json, verbosity: 4}", {"logging_format": LogFormat.JSON, "v": 4}),
        ("", {}),
    ],
)
def test_a_field_becomes_a_flags_value(tmp_path: Path, text: str, values: dict[str, Any]) -> None:
    """A field sets the value of its flag; null, empty and most zeros leave the default."""
    file = read(tmp_path, text)

    assert (build_config(values), ()) == (build_config(file.values), file.warnings)


def test_json_is_yaml(tmp_path: Path) -> None:
    """The file may be JSON."""
    text = '{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "oomScoreAdj": -5}'

    assert {"oom_score_adj": -5} == read(tmp_path, text, head="").values


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        (ProxyMode.IPTABLES, (1, True, 10.0)),
        (ProxyMode.IPVS, (1, True, 10.0)),
        (ProxyMode.NFTABLES, (2, False, 20.0)),
        (ProxyMode.AUTO, (2, True, 20.0)),
    ],
    ids=str,
)
def test_each_mode_reads_its_block(tmp_path: Path, mode: ProxyMode, values: tuple[int, bool, float]) -> None:
    """The nftables mode reads its own section, iptables and ipvs that of iptables; auto reads both, nftables wins."""
    text = "iptables: {masqueradeBit: 1, masqueradeAll: true, syncPeriod: 10s}\n"
    text += "nftables: {masqueradeBit: 2, syncPeriod: 20s}\n"
    file = read(tmp_path, text, proxy_mode=mode)
    names = ("iptables_masquerade_bit", "masquerade_all", "iptables_sync_period_seconds")

    assert values == tuple(file.values.get(name, False) for name in names)


def test_the_nftables_section_wins_wherever_it_is(tmp_path: Path) -> None:
    """In mode auto the nftables section wins over the iptables section, also if it comes first in the file."""
    text = "nftables: {masqueradeBit: 2}\niptables: {masqueradeBit: 1}\n"

    assert 2 == read(tmp_path, text, proxy_mode=ProxyMode.AUTO).values["iptables_masquerade_bit"]


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    """Values of a wrong type and values out of their limits are reported together, in the order of the file."""
    text = "iptables: {masqueradeBit: 32}\nipvs: {strictARP: 1, excludeCIDRs: [1]}\nconntrack: []\nmode: ipfs\n"
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)

    expected = (
        "line 3: iptables.masqueradeBit: 32 is not within 0..31",
        "line 4: ipvs.strictARP: must be a boolean, not an integer",
        "line 4: ipvs.excludeCIDRs[0]: must be a string, not an integer",
        "line 5: conntrack: must be a mapping, not a list",
        "line 6: mode: 'ipfs' is not one of auto, iptables, ipvs, nftables (did you mean ipvs?)",
    )
    assert [f"{tmp_path}/config.conf: {line}" for line in expected] == str(caught.value).splitlines()


def test_aliases_share_a_mistake(tmp_path: Path) -> None:
    """A mistake in a section that an alias repeats is reported for each place."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "iptables: &a {masqueradeAll: 1}\nnftables: *a\n")

    assert ["iptables", "nftables"] == sorted(
        line.split(": ")[2].split(".")[0] for line in str(caught.value).splitlines()
    )


def nulls(path: str) -> list[str]:
    """Return a file in which one field is null, and one for each section around it."""
    names = path.split(".")
    return [
        "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(names[:end]))
        for end in range(1, len(names) + 1)
    ]


@pytest.mark.parametrize("path", FIELDS)
def test_null_is_an_absent_field(tmp_path: Path, path: str) -> None:
    """A null, of a field or of a section, leaves the default and causes no warning, as in kube-proxy."""
    for text in nulls(path):
        file = read(tmp_path, text.rstrip() + " null\n")

        assert (text, {}, ()) == (text, file.values, file.warnings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("featureGates: {A: null, B: true}", {"feature_gates": (("A", False), ("B", True))}),
        ("nodePortAddresses: [null]", "line 3: nodePortAddresses[0]: must be a string, not null"),
        ("ipvs: {excludeCIDRs: [null]}", "line 3: ipvs.excludeCIDRs[0]: must be a string, not null"),
        ("logging: {vmodule: [null]}", "line 3: logging.vmodule[0]: must be a mapping, not null"),
        (
            "logging: {vmodule: [{filePattern: null, verbosity: 1}]}",
            "line 3: logging.vmodule[0].filePattern: must be a string, not null",
        ),
    ],
)
def test_null_in_a_list_or_mapping(tmp_path: Path, text: str, expected: object) -> None:
    """A feature gate that is null is off, as for Go's decoder; an item that is null is an error with its place."""
    if isinstance(expected, dict):
        assert expected == read(tmp_path, text).values
    else:
        with pytest.raises(ConfigError) as caught:
            read(tmp_path, text)
        assert f"{tmp_path}/config.conf: {expected}" == str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@given(path=st.sampled_from([*FIELDS]), depth=st.integers(0, 2), value=JSON)
def test_any_value_anywhere_is_read_or_an_error(path: str, depth: int, value: object) -> None:
    """Whatever value a field or section has, the file is read, or the error names the file and a field in it."""
    *sections, name = path.split(".")[: depth + 1]
    tree: dict[str, object] = {name: value}
    for section in reversed(sections):
        tree = {section: tree}
    head = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
    with NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(json.dumps(head | tree))
        file.flush()
        try:
            read_config_file(file.name, {})
        except ConfigError as error:
            assert str(error).startswith(f"{file.name}: ")  # noqa: PT017 (both outcomes are right)


def test_a_flag_overrides_its_field(tmp_path: Path) -> None:
    """A flag overrides its field and no other field."""
    file = read(tmp_path, "hostnameOverride: other\noomScoreAdj: -5\n", hostname_override="node-1")

    assert {"oom_score_adj": -5} == file.values


def test_manifests_replace_the_api_server_of_the_file(tmp_path: Path) -> None:
    """With --manifests the kubeconfig in the file is ignored; it is not a contradiction."""
    file = read(tmp_path, "clientConnection: {kubeconfig: /k}\n", manifests="/m")

    assert {} == file.values


@pytest.mark.parametrize(
    ("typed", "metrics"),
    [({}, "[::1]:10249"), ({"metrics_bind_address": ListenAddress(bytes(4), 1)}, "")],
)
def test_servers_follow_the_bind_address(tmp_path: Path, typed: dict[str, Any], metrics: str) -> None:
    """If the node's address is IPv6, servers listen on IPv6 unless their address is given."""
    file = read(tmp_path, "bindAddress: '::'\n", **typed)

    assert metrics == str(file.values.get("metrics_bind_address", ""))
    assert "[::]:10256" == str(file.values["healthz_bind_address"])


def test_fields_without_effect_cause_warnings(tmp_path: Path) -> None:
    """Each unknown field and each field without effect causes one warning; all other fields are used."""
    text = "bindAdress: 192.0.2.1\niptables: {masqeradeAll: true, later: 1}\nfeatureGates: {A: true}\n"
    text += "clientConnection: {acceptContentTypes: application/json, burst: 20}\nwinkernel: {enableDSR: true}\n"
    text += "portRange: 1-2\nlogging: {vmodule: [{filePattern: a, verbosity: 4}]}\noomScoreAdj: -5\n"
    file = read(tmp_path, text)

    assert [
        "bindAdress is unknown and ignored (did you mean bindAddress?)",
        "iptables.masqeradeAll is unknown and ignored (did you mean iptables.masqueradeAll?)",
        "iptables.later is unknown and ignored",
        f"featureGates {OPTIONS['feature_gates'].ignored}",
        "clientConnection.acceptContentTypes is accepted but has no effect: pyproxy always requests JSON",
        f"clientConnection.burst {OPTIONS['kube_api_burst'].ignored}",
        "winkernel.enableDSR is for Windows and has no effect",
        "portRange is accepted but has no effect, as in kube-proxy",
        f"logging.vmodule {OPTIONS['vmodule'].ignored}",
    ] == [warning.removeprefix(f"{tmp_path}/config.conf: ") for warning in file.warnings]
    assert build_config(file.values).oom_score_adj == -5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "mode: IPTABLES",
            "line 3: mode: 'IPTABLES' is not one of auto, iptables, ipvs, nftables (did you mean iptables?)",
        ),
        ("iptables:\n  masqueradeBit: 32", "line 4: iptables.masqueradeBit: 32 is not within 0..31"),
        ("iptables:\n  masqueradeBit: true", "line 4: iptables.masqueradeBit: must be an integer, not a boolean"),
        ("iptables: {syncPeriod: 30}", "line 3: iptables.syncPeriod: must be a string, not an integer"),
        (
            "iptables: {syncPeriod: '30'}",
            "line 3: iptables.syncPeriod: '30' is not a duration such as 30s, 1m30s or 500ms",
        ),
        ("iptables: {masqueradeAll: 'true'}", "line 3: iptables.masqueradeAll: must be a boolean, not a string"),
        ("iptables: [1]", "line 3: iptables: must be a mapping, not a list"),
        ("clusterCIDR: 10.244.0.0", "line 3: clusterCIDR: '10.244.0.0' is not a CIDR block"),
        ("clusterCIDR: [10.244.0.0/16]", "line 3: clusterCIDR: must be a string, not a list"),
        ("nodePortAddresses: primary", "line 3: nodePortAddresses: must be a list, not a string"),
        (
            "nodePortAddresses: [primary, locahost]",
            "line 3: nodePortAddresses: 'locahost' is not a CIDR block or one of the keywords primary",
        ),
        ("featureGates: {A: 1}", "line 3: featureGates[...]: must be a boolean, not an integer"),
        ("featureGates: [A]", "line 3: featureGates: must be a mapping, not a list"),
        ("oomScoreAdj: -1001", "line 3: oomScoreAdj: -1001 is not within -1000..1000"),
        ("mode: a\nmode: b", "line 4: duplicate key mode"),
        ("mode: [", "line "),
        ("iptables: &a [*a]", "line 3: an alias for a node that contains it"),
        (f"iptables: 0x{'f' * 5000}", "line 3: a number of more than 100 digits"),
        (f"oomScoreAdj: 0x{'f' * 90}", "line 3: oomScoreAdj: '"),
        ("clientConnection: {qps: nan}", "line 3: clientConnection.qps: 'nan' is not a number"),
        ("clientConnection: {qps: 1e999}", "line 3: clientConnection.qps: '1e999' is not a number"),
    ],
)
def test_a_mistake_names_file_and_field(tmp_path: Path, text: str, message: str) -> None:
    """A value that the flag would refuse is an error that names file, line and field."""
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)

    assert str(caught.value).startswith(f"{tmp_path}/config.conf: {message}")


def test_only_the_first_document_counts(tmp_path: Path) -> None:
    """As in kube-proxy only the first document is read; a warning says so."""
    file = read(tmp_path, "mode: ipvs\n---\nmode: nftables\n---\na: [\n")

    assert {"proxy_mode": ProxyMode.IPVS} == file.values
    assert (f"{tmp_path}/config.conf: only the first document is read, and 2 more are ignored",) == file.warnings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a KubeProxyConfiguration"),
        ("- 1", "is not a KubeProxyConfiguration"),
        ("kind: KubeProxyConfiguration", "apiVersion: null is not kubeproxy.config.k8s.io/v1alpha1"),
        (HEAD.replace("v1alpha1", "v1"), 'apiVersion: "kubeproxy.config.k8s.io/v1" is not kubeproxy'),
        (
            HEAD.replace("kind: KubeProxy", "kind: Kubelet"),
            'kind: "KubeletConfiguration" is not KubeProxyConfiguration',
        ),
    ],
)
def test_another_kind_of_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    """A file of another kind or version is an error."""
    with pytest.raises(ConfigError, match=f"config.conf: {message}"):
        read(tmp_path, text, head="")


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A missing file and a binary file are errors that name flag and file."""
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for path, reason in ((tmp_path / "missing", "No such file or directory"), (binary, "is not UTF-8")):
        with pytest.raises(ConfigError, match=f"^--config: {path}: {reason}$"):
            read_config_file(str(path), {})


@pytest.mark.parametrize(
    ("text", "typed", "message"),
    [
        (
            "detectLocalMode: BridgeInterface",
            {},
            "{path}: detectLocal.bridgeInterface: must be given with detectLocalMode=BridgeInterface",
        ),
        (
            "iptables: {syncPeriod: 1s, minSyncPeriod: 2s}",
            {},
            "{path}: iptables.minSyncPeriod: 2s is longer than iptables.syncPeriod, 1s",
        ),
        (
            "nftables: {syncPeriod: 1s, minSyncPeriod: 2s}",
            {"proxy_mode": ProxyMode.AUTO},
            "{path}: nftables.minSyncPeriod: 2s is longer than nftables.syncPeriod, 1s",
        ),
        (
            "iptables: {minSyncPeriod: 2s}",
            {"iptables_sync_period_seconds": 1.0},
            "{path}: iptables.minSyncPeriod: 2s is longer than --iptables-sync-period, 1s",
        ),
        (
            "",
            {"manifests": "/m", "kubeconfig": "/k", "master": "https://m"},
            "--manifests: replaces the API server; --kubeconfig and --master cannot be given with it",
        ),
    ],
)
def test_contradictions_name_what_was_given(tmp_path: Path, text: str, typed: dict[str, Any], message: str) -> None:
    """The message about a contradiction names each value as the user gave it: by field or by flag."""
    file = read(tmp_path, text, **typed)
    with pytest.raises(ConfigError) as caught:
        build_config({**file.values, **typed})

    assert message.format(path=tmp_path / "config.conf") == file.with_fields(str(caught.value))


def test_flags_without_a_field() -> None:
    """Each flag of kube-proxy that has a field in kube-proxy's file has it here."""
    in_files = {field.attribute for field in FIELDS.values()}
    without = {about.flag for name, about in OPTIONS.items() if name not in in_files and not about.own}

    what_to_do = {"config", "master", "init-only", "write-config-to", "healthz-port", "metrics-port"}
    without_effect_there = {"boot-id-file", "machine-id-file"}
    klog = {"add-dir-header", "alsologtostderr", "log-backtrace-at", "log-dir", "log-file", "log-file-max-size"}
    klog |= {"logtostderr", "one-output", "skip-headers", "skip-log-headers", "stderrthreshold"}
    assert what_to_do | without_effect_there | klog == without
