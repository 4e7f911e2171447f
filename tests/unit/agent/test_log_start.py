"""What the agent logs first, and which of it becomes an Event of the Node."""

import logging
from pathlib import Path

import pytest

from pyproxy.agent.sources import log_start
from pyproxy.config.config import ProxyMode
from pyproxy.config.settings import resolve_settings


def reasons(caplog: pytest.LogCaptureFixture, path: Path | None, text: str = "", **flags: object) -> list[str]:
    """Return the reasons of the Events of a start with flags and a kube-proxy configuration file."""
    if path is not None:
        path.write_text(f"apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n{text}\n")
        flags["config"] = str(path)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        log_start(resolve_settings(flags), "node1")
    return [vars(record)["event"].reason for record in caplog.records if "event" in vars(record)]


def test_default_mode_is_warned_of(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Without a mode, or with an empty one as in kubeadm's ConfigMap, the start warns that the default will change."""
    path = tmp_path / "config.conf"
    for found in (reasons(caplog, None), reasons(caplog, path), reasons(caplog, path, 'mode: ""')):
        assert ["Starting", "KubeProxyDefaultMode"] == found
    assert "set --proxy-mode=iptables" in caplog.text


def test_chosen_mode_is_not_warned_of(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A mode that a flag or a file names, the default one included, is a decision."""
    path = tmp_path / "config.conf"
    for mode in ProxyMode:
        assert ["Starting"] == reasons(caplog, None, proxy_mode=mode)
    assert ["Starting"] == reasons(caplog, path, "mode: iptables")
