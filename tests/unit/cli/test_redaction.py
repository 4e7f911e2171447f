"""Text without credentials, and text that only looks as if it had some."""

import pytest

from pyproxy.cli.redaction import kubeconfig_secrets, without_secrets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic REDACTED"),
        ("authorization=bearer abc.def_123", "authorization=bearer REDACTED"),
        ('{"client-key-data": "LS0t", "x": 1}', '{"client-key-data": "REDACTED", "x": 1}'),
        (r"{\"password\":\"hunter22\"}", r"{\"password\":\"REDACTED\"}"),
        ("--kube-api-token=abc --v=2", "--kube-api-token=REDACTED --v=2"),
        ("DB_PASSWORD=abc", "DB_PASSWORD=REDACTED"),
        ("https://user:pass@host:6443/", "https://host:6443/"),
        ("-----BEGIN EC PRIVATE KEY-----\nMHc\n(cut)", "REDACTED"),
    ],
)
def test_credentials_are_replaced(text: str, expected: str) -> None:
    """The value is replaced and its name stays, so that a reader sees what was there."""
    assert expected == without_secrets(text)


@pytest.mark.parametrize(
    "text",
    [
        '-A KUBE-SERVICES -d 10.96.0.9/32 -m comment --comment "default/token:http cluster IP" -j KUBE-SVC-X',
        "default/api-key-server  10.96.0.9:80/TCP  ok",
        "cannot read token file /var/run/secrets/kubernetes.io/serviceaccount/token: Permission denied",
        "the token is not valid; basic settings are",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    ],
)
def test_harmless_text_stays(text: str) -> None:
    """Names of Services and messages about credentials stay."""
    assert text == without_secrets(text)


def test_known_credentials_are_replaced() -> None:
    """A known credential is replaced wherever it is, the longest first; one that is too short is not."""
    assert "a REDACTED b REDACTED c ab" == without_secrets(
        "a secret1 b secret1-long c ab", ["secret1", "secret1-long", "ab"]
    )


def test_environment_of_a_plugin() -> None:
    """Of the variables of an exec plugin only those that a name marks as a credential are secrets."""
    variables = {
        "AWS_PROFILE": "default",
        "AWS_REGION": "us-east-1",
        "AWS_SECRET_ACCESS_KEY": "abc123",
        "API_TOKEN": "def456",
    }
    exec_entry = {"env": [{"name": name, "value": value} for name, value in variables.items()]}

    assert ["abc123", "def456"] == [*kubeconfig_secrets({"users": [{"user": {"exec": exec_entry}}]})]
