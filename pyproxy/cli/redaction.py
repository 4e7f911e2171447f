"""What a support bundle may contain: objects and kubeconfigs reduced to harmless fields, and text without credentials.

Objects are reduced to a list of allowed fields. Text is searched twice: for the known credentials of this node, and for
what looks like a credential. Pure functions.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Final

from pyproxy.model.urls import without_credentials

REDACTED = "REDACTED"
_METADATA = ("name", "namespace", "labels", "resourceVersion", "creationTimestamp", "deletionTimestamp")
_ANNOTATIONS = (
    "endpoints.kubernetes.io/last-change-trigger-time",
    "pyproxy.io/ipvs-scheduler",
    "service.kubernetes.io/topology-mode",
)
# Allowed fields beside metadata, by kind; objects of other kinds are left out.
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "Service": ("spec", "status"),
    "EndpointSlice": ("addressType", "endpoints", "ports"),
    "Endpoints": ("subsets",),
    "Node": ("spec", "status"),
    "ServiceCIDR": ("spec", "status"),
}
_NODE_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "spec": ("podCIDR", "podCIDRs", "taints", "unschedulable"),
    "status": ("addresses", "conditions"),
}
# Allowed fields of the entries of a kubeconfig; all other fields keep their names only.
_KUBECONFIG_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "cluster": ("server", "certificate-authority", "insecure-skip-tls-verify", "tls-server-name", "proxy-url"),
    "context": ("cluster", "user", "namespace"),
    # These are paths; the fields with the same names and -data have the credentials themselves.
    "user": ("client-certificate", "client-key", "tokenFile"),
}
_SECRET_FIELDS = ("token", "password", "client-key-data", "client-certificate-data", "id-token", "refresh-token")
_SECRET_VARIABLE = re.compile(r"(?i)token|passw|passphrase|secret|credential|key")
# A shorter text would also be found inside harmless words.
_SHORTEST_SECRET = 6

# The end of a key may be missing: files are cut at a limit, and logs at the end of a line.
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_JSON_WEB_TOKEN = re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?")
_AUTHORIZATION = re.compile(r"(?i)\b(bearer|authorization\W{1,4}basic)(\W{1,4})[\w.~+/=-]{6,}")
# Not after a slash: NAMESPACE/NAME:PORT may be a Service whose name is such a word.
_ASSIGNMENT = re.compile(
    r"""(?ix) (?<![/\w.-])
    ( [\w.-]{0,64} (?:token|passw(?:or)?d|passphrase|secret|credentials?|api-?_?key|private-?_?key|key-data|certificate-data)
      \\?["']? \s? [:=] \s{0,2} \\?["']? )
    ( [^\s"',;}\\]+ )"""
)


def without_secrets(text: str, known: Collection[str] = ()) -> str:
    """Return text without known credentials, and without anything that looks like one."""
    # The longest first, because a credential may contain a shorter one.
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, REDACTED)
    text = _PRIVATE_KEY.sub(REDACTED, text)
    text = _JSON_WEB_TOKEN.sub(REDACTED, text)
    text = _AUTHORIZATION.sub(rf"\1\2{REDACTED}", text)
    text = _ASSIGNMENT.sub(rf"\1{REDACTED}", text)
    return without_credentials(text)


def shared_object(item: Mapping[str, Any], node_name: str) -> dict[str, Any] | None:
    """Return the allowed fields of an API object; None for other kinds, and for Nodes other than this one."""
    kind, metadata = str(item.get("kind")), _fields(item.get("metadata"), (*_METADATA, "annotations"))
    if kind not in _FIELDS or (kind == "Node" and metadata.get("name") != node_name):
        return None
    if "annotations" in metadata:
        metadata["annotations"] = _fields(metadata["annotations"], _ANNOTATIONS)
    found = {"apiVersion": item.get("apiVersion"), "kind": kind, "metadata": metadata, **_fields(item, _FIELDS[kind])}
    if kind == "Node":
        found |= {name: _fields(item.get(name), fields) for name, fields in _NODE_FIELDS.items()}
    return found


def shared_kubeconfig(values: object) -> dict[str, Any]:
    """Return a kubeconfig in which all values that may be credentials are replaced."""
    found: dict[str, Any] = _fields(values, ("apiVersion", "kind", "current-context"))
    for plural, kind in (("clusters", "cluster"), ("contexts", "context"), ("users", "user")):
        found[plural] = []
        for entry in _entries(values, plural):
            fields = entry.get(kind)
            # The names of all fields are kept: they say how a user authenticates without a credential in them.
            kept = {
                str(name): value if name in _KUBECONFIG_FIELDS[kind] else REDACTED
                for name, value in (fields.items() if isinstance(fields, Mapping) else ())
            }
            found[plural].append({"name": entry.get("name"), kind: kept})
    return found


def kubeconfig_secrets(values: object) -> Iterator[str]:
    """Yield the credentials in a kubeconfig, also those that exec plugins get as environment variables."""
    for entry in _entries(values, "users"):
        user = entry.get("user")
        provider = _fields(user, ("auth-provider",)).get("auth-provider")
        for holder in (user, _fields(provider, ("config",)).get("config")):
            yield from map(str, _fields(holder, _SECRET_FIELDS).values())
        for variable in _entries(_fields(user, ("exec",)).get("exec"), "env"):
            # Other variables, such as AWS_PROFILE=default, are words that the objects contain as well.
            if _SECRET_VARIABLE.search(str(variable.get("name"))):
                yield str(variable.get("value", ""))


def _entries(values: object, plural: str) -> list[Mapping[str, Any]]:
    found = values.get(plural) if isinstance(values, Mapping) else None
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _fields(values: object, names: Collection[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values} if isinstance(values, Mapping) else {}
