"""What commands say about wrong input: the exit code, whether the usage is shown, and the reason."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyproxy.cli.program import pyproxy

BROKEN = Path(__file__).parents[1] / "inputs" / "broken-services.yaml"
SECTIONS = [
    "Options:",
    "API server and other sources of objects:",
    "Node:",
    "iptables and nftables mode:",
    "IPVS mode:",
    "Connection tracking:",
    "Serving:",
    "Logging:",
    "Compatibility: flags of kube-proxy that change nothing:",
]


def call(*words: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(pyproxy, words)


@pytest.mark.parametrize(
    "words",
    [
        ("dump-rules", "--manifests=/nowhere"),
        ("services", "--manifests=/nowhere"),
        ("explain", "--manifests=/nowhere", "outside", "default/web"),
        ("check-config", "--manifests=/nowhere"),
        ("dump-rules", "--manifests=/", "--config=/nowhere"),
        ("explain", "--rules=/nowhere", "10.0.0.1", "10.96.0.1:80"),
    ],
    ids=" ".join,
)
def test_missing_file(words: tuple[str, ...]) -> None:
    """A missing file is one line that names it, without the usage; exit code 2."""
    result = call(*words)

    [first] = result.stderr.splitlines()
    assert 2 == result.exit_code
    assert re.fullmatch(r"Error: (--[a-z]+: )?/nowhere: No such file or directory", first)


@pytest.mark.parametrize(
    ("words", "has_usage"),
    [
        (("check-config", "--proxy-mod=ipvs"), True),
        (("check-config", "--proxy-mode=ipfs"), True),
        (("check-config", "--detect-local-mode=BridgeInterface"), False),
        (("check-config", "--iptables-masquerade-bit=32"), False),
        (("check-config", "--manifests=x", "--kubeconfig=y"), False),
    ],
    ids=str,
)
def test_usage_is_shown_for_mistakes_in_flags_only(words: tuple[str, ...], *, has_usage: bool) -> None:
    """The usage is shown if a flag is written incorrectly, and not if values contradict each other."""
    result = call(*words)

    assert (2, has_usage) == (result.exit_code, "Usage:" in result.stderr)


@pytest.mark.parametrize(
    ("service", "reason"),
    [
        ("shop/peers", "the Service is headless (clusterIP: None): DNS returns its endpoints"),
        ("shop/alias", "the Service is of type ExternalName: DNS returns another name"),
        ("shop/startin", "there is no such Service (did you mean shop/starting?)"),
        ("shop/nothing-like-it", "there is no such Service"),
    ],
)
def test_service_without_rules(service: str, reason: str) -> None:
    """A Service that has no rules is named with the reason, or with a similar name."""
    result = call("dump-rules", f"--manifests={BROKEN}", f"--service={service}")

    assert (2, "") == (result.exit_code, result.stdout)
    assert f"Error: --service: {service} has no rules: {reason}" == result.stderr.splitlines()[-1]


def test_misspelt_service_of_the_list() -> None:
    """The list of Services suggests a similar name as well."""
    result = call("services", f"--manifests={BROKEN}", "shop/startin")

    assert (
        "Error: the files have no Service shop/startin (did you mean shop/starting?)" == result.stderr.splitlines()[-1]
    )


@pytest.mark.parametrize(
    "flags", [("--service=default/web", "--service=shop/starting"), ("--service=default/web,shop/starting",)]
)
def test_two_services(flags: tuple[str, ...]) -> None:
    """``--service`` twice shows the rules of both Services."""
    result = call("dump-rules", f"--manifests={BROKEN}", "-o", "json", *flags)

    [family] = json.loads(result.stdout)["families"]
    assert {"web", "starting"} == {service["name"] for service in family["services"]}


@pytest.mark.parametrize("command", ["run", "check-config"])
def test_sections_of_help(command: str) -> None:
    """The help of a command with all flags has sections, and each flag once."""
    lines = call(command, "--help").stdout.splitlines()

    assert SECTIONS == [line for line in lines if line and not line.startswith((" ", "Usage"))]
    flags = [line.split()[0] for line in lines[lines.index("Options:") :] if line.startswith("  -")]
    assert len(flags) == len(set(flags))
    assert "--proxy-mode" in flags


def test_version_as_a_document() -> None:
    """``version -o json`` has the version of the kernel as well, and ``-V`` is ``--version``."""
    values = json.loads(call("version", "-o", "json").stdout)

    assert ("pyproxy.io/v1alpha1", "Version", "0.1.0") == (values["apiVersion"], values["kind"], values["version"])
    assert values["kernel"] == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert "pyproxy 0.1.0\n" == call("-V").stdout
