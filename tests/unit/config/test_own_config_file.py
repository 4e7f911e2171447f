"""PyproxyConfiguration files, and the precedence of flags and both files.

`test_config_file` tests kube-proxy's file alone.
"""

from pathlib import Path
from typing import Any

import pytest

from pyproxy.config.config import OPTIONS, IptablesVariant, ProxyMode, build_config
from pyproxy.config.config_file import OWN_FIELDS, ConfigFile, read_files, read_own_file
from pyproxy.errors import ConfigError

HEAD = "apiVersion: pyproxy.io/v1alpha1\nkind: PyproxyConfiguration\n"
KUBE_PROXYS = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def read(tmp_path: Path, text: str, head: str = HEAD, **typed: object) -> ConfigFile:
    """Read a file with this text, together with these flags."""
    path = tmp_path / "pyproxy.yaml"
    path.write_text(head + text)
    return read_own_file(str(path), typed)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("mode: auto", {"proxy_mode": ProxyMode.AUTO}),
        ("manifests: /m", {"manifests": "/m"}),
        ("iptablesVariant: nft", {"iptables_variant": IptablesVariant.NFT}),
        (
            "apiServers: [https://a:6443, 'https://[fd00::1]:6443']",
            {"api_servers": ("https://a:6443", "https://[fd00::1]:6443")},
        ),
        ("apiServers: []", {}),
        ("serviceProxyName: mine", {"service_proxy_name": "mine"}),
    ],
)
def test_a_field_becomes_a_flags_value(tmp_path: Path, text: str, values: dict[str, Any]) -> None:
    """A field sets the value of pyproxy's own flag."""
    file = read(tmp_path, text)

    assert (values, ()) == (file.values, file.warnings)


def test_every_own_flag_is_a_field() -> None:
    """Each own option, except the one that names the file, is a field of the file and described in the docs."""
    page = (Path(__file__).parents[3] / "docs" / "configuration.md").read_text()
    own = {name for name, about in OPTIONS.items() if about.own} - {"pyproxy_config"}

    assert own | {"proxy_mode", "metrics_bind_address"} == {field.attribute for field in OWN_FIELDS.values()}
    assert set() == {name for name in OWN_FIELDS if f"`{name}`" not in page}


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    """Each wrong value is reported with file, line and field; an unknown field only causes a warning."""
    text = "iptablesVariant: old\napiServers: {a: b}\nmode: ipfs\nmanifest: /m\n"
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)

    expected = (
        "line 3: iptablesVariant: 'old' is not one of auto, legacy, nft",
        "line 4: apiServers: must be a boolean, an integer, a string or a list, not a mapping",
        "line 5: mode: 'ipfs' is not one of auto, iptables, ipvs, nftables (did you mean ipvs?)",
    )
    assert [f"{tmp_path}/pyproxy.yaml: {line}" for line in expected] == str(caught.value).splitlines()
    assert (f"{tmp_path}/pyproxy.yaml: manifest is unknown and ignored (did you mean manifests?)",) == (
        read(tmp_path, "manifest: /m").warnings
    )


def test_a_file_of_kube_proxy_is_an_error(tmp_path: Path) -> None:
    """A file of kube-proxy is an error here."""
    with pytest.raises(ConfigError, match=r"pyproxy\.yaml: apiVersion: .* is not pyproxy\.io/v1alpha1"):
        read(tmp_path, "", head=KUBE_PROXYS)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Give flags that name both files; both files set a mode."""
    own, kube_proxys = tmp_path / "pyproxy.yaml", tmp_path / "config.conf"
    own.write_text(f"{HEAD}mode: nftables\napiServers: [https://a, https://b]\n")
    kube_proxys.write_text(
        f"{KUBE_PROXYS}mode: ipvs\nnftables: {{syncPeriod: 9s}}\nclientConnection: {{kubeconfig: /k}}\n"
    )
    return {"pyproxy_config": str(own), "config": str(kube_proxys)}


def test_the_own_file_wins_over_kube_proxys(files: dict[str, Any]) -> None:
    """The own file overrides kube-proxy's, of which the section of the resulting mode is read; the kubeconfig is kept."""
    own, kube_proxys = read_files(files)

    assert {"proxy_mode": ProxyMode.NFTABLES, "api_servers": ("https://a", "https://b")} == own.values
    assert {"iptables_sync_period_seconds": 9.0, "kubeconfig": "/k"} == kube_proxys.values
    assert {
        "iptables_sync_period_seconds": f"{kube_proxys.path}: nftables.syncPeriod"
    }.items() <= kube_proxys.origins().items()
    assert {"proxy_mode": f"{own.path}: mode"}.items() <= own.origins().items()


def test_flags_win_over_both(files: dict[str, Any]) -> None:
    """A flag overrides both files, and the mode that it sets selects the section."""
    own, kube_proxys = read_files({**files, "proxy_mode": ProxyMode.IPVS})

    assert (None, None) == (own.values.get("proxy_mode"), kube_proxys.values.get("proxy_mode"))
    assert "iptables_sync_period_seconds" not in kube_proxys.values


def test_manifests_of_the_own_file_replace_the_api_server(files: dict[str, Any]) -> None:
    """With manifests the kubeconfig in kube-proxy's file is ignored; it is not a contradiction."""
    Path(files["pyproxy_config"]).write_text(f"{HEAD}manifests: /m\n")
    own, kube_proxys = read_files(files)

    assert "/m" == build_config({**kube_proxys.values, **own.values}).manifests
