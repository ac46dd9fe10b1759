"""Configuration of the fleet (`kubekeeper.yaml`) and app settings, as typed and validated values.

Owns the shape of both and the error lines for what is wrong in them. Reads files and the environment only
through `load_settings`; secrets are resolved by `shared.secret` when a client needs them and never kept.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from shared.autoscaling.policy import AutoscalingPolicy
from shared.disk_release.policy import DiskReleasePolicy
from shared.errors import NotFoundError, SettingsError
from shared.etcd_backup.policy import Encryption, EtcdBackupPolicy
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.model.duration import parse_duration
from shared.settings_document import read_document

DEFAULT_CONFIG = "kubekeeper.yaml"

Automation = Literal["autoscaling", "etcd-backup", "disk-release", "ingress-sync"]
SecretRef = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^(file:|setting:).+",
        description="`file:/path` or `setting:NAME` (an app setting), never the secret itself",
        examples=["file:/etc/kubekeeper/etcd/ca.crt", "setting:ETCD_CA"],
    ),
]
"""Where a secret is; an app setting may be a Key Vault reference."""


StorageAccountId = Annotated[
    str,
    msgspec.Meta(
        # Resource ids ignore case; editors read this as ECMAScript, which has no (?i).
        pattern=r"^/[sS]ubscriptions/[0-9a-fA-F-]{36}/[rR]esource[gG]roups/[^/]+/[pP]roviders"
        r"/[mM]icrosoft\.[sS]torage/[sS]torage[aA]ccounts/[a-z0-9]{3,24}$"
    ),
]
"""`/subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.Storage/storageAccounts/NAME`."""


class EtcdTls(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """PEM documents for mTLS to etcd."""

    ca: SecretRef
    """Certificates that the server's certificate is checked against."""
    certificate: SecretRef | None = None
    """Client certificate, where etcd asks for one."""
    key: SecretRef | None = None
    """Private key of the client certificate."""
    server_name: str | None = None
    """Name to expect in the server's certificate when it is not the host of the endpoint."""


class EtcdConnection(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """How to reach a cluster's etcd members."""

    endpoints: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    """`https://10.0.0.4:2379` per member (http only where etcd has no TLS)."""
    tls: EtcdTls | None = None
    """Needed where the endpoints are https."""
    user: str | None = None
    """etcd user, where authentication is on; needs the role `root` (snapshots are an admin call)."""
    password: SecretRef | None = None
    """Password of `user`."""


class KubernetesConnection(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """How to reach a cluster's API server: a kubeconfig, or `server` with one way to log in."""

    kubeconfig: SecretRef | None = None
    """A whole kubeconfig; its current context is used. Stands alone."""
    server: Annotated[str, msgspec.Meta(pattern="^https?://", description="https://HOST:PORT")] | None = None
    """Address of the API server (http only to this machine)."""
    ca: SecretRef | None = None
    """Certificates that the server's certificate is checked against; the system's by default."""
    token: SecretRef | None = None
    """Bearer token of a service account; read again for each request, so it may be replaced at any time."""
    certificate: SecretRef | None = None
    """Client certificate, where no token is used."""
    key: SecretRef | None = None
    """Private key of the client certificate."""
    entra: bool = False
    """Log in to AKS with the app's own Entra identity."""


SubscriptionId = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$",
        description="a subscription id, such as 00000000-0000-0000-0000-000000000000",
    ),
]
ResourceGroup = Annotated[
    str,
    msgspec.Meta(pattern=r"^[\w().-]{0,89}[\w()-]$", description="the name of a resource group"),
]
ManagedClusterId = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^/[sS]ubscriptions/[0-9a-fA-F-]{36}/[rR]esource[gG]roups/[^/]+/[pP]roviders"
        r"/[mM]icrosoft\.[cC]ontainer[sS]ervice/[mM]anaged[cC]lusters/[^/]+$",
        description="/subscriptions/ID/resourceGroups/GROUP/providers/Microsoft.ContainerService/managedClusters/NAME",
    ),
]


class AzureScope(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Where in Azure the cluster's machines, disks and gateway are."""

    subscription: SubscriptionId
    """Subscription of the cluster."""
    resource_groups: Annotated[tuple[ResourceGroup, ...], msgspec.Meta(min_length=1)]
    """Groups that hold its machines and disks; for AKS the node resource group (`MC_...`)."""
    location: Annotated[str, msgspec.Meta(pattern="^[a-z0-9]+$", description="a region, such as westeurope")]
    """Region of the machines."""
    managed_cluster: ManagedClusterId | None = None
    """The AKS cluster; absent for clusters you manage yourself."""


class Cluster(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One Kubernetes cluster of the fleet."""

    name: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
            description="1 to 63 lower-case letters, digits and hyphens, no hyphen at either end",
        ),
    ]
    """Unique in the fleet; names blobs, queue messages and events."""
    etcd: EtcdConnection | None = None
    """The cluster's etcd; needed for backups."""
    etcd_backup: EtcdBackupPolicy | None = None
    """Turns backups on: `{}` takes every default. Absent: no backups of this cluster."""
    kubernetes: KubernetesConnection | None = None
    """The cluster's API server; needed for everything but backups."""
    azure: AzureScope | None = None
    """The cluster's place in Azure; needed for everything but backups."""
    autoscaling: AutoscalingPolicy | None = None
    """Lets node pools follow demand: `{}` takes every default. Absent: no node is added or removed."""
    disk_release: DiskReleasePolicy | None = None
    """Frees disks that a dead VM holds: `{}` takes every default. Absent: no disk is looked at."""
    ingress_sync: IngressSyncPolicy | None = None
    """Turns Ingress objects into the configuration of an Application Gateway. Absent: none is touched."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The whole of kubekeeper.yaml."""

    clusters: Annotated[tuple[Cluster, ...], msgspec.Meta(min_length=1)]
    """The clusters to look after, at least one."""
    storage_account: StorageAccountId | None = None
    """ARM resource id of the account that holds the backups; without it nobody checks how that is set up."""

    def cluster(self, name: str) -> Cluster:
        """The named cluster; SettingsError names the ones that exist."""
        for cluster in self.clusters:
            if cluster.name == name:
                return cluster
        known = ", ".join(c.name for c in self.clusters)
        raise SettingsError(f"unknown cluster '{name}'; the configuration has: {known}")


def parse_settings(text: str | bytes, source: str) -> Settings:
    """YAML (or JSON) text to Settings.

    Raises SettingsError with one line, `source:LINE: key path: what is wrong, what is expected`. Values are
    never repeated in it where they could be a secret written into the wrong place.
    """
    document = read_document(text, source)
    if document.value is None:
        raise SettingsError(
            f"{source}: the configuration is empty; it needs 'clusters:' with at least one cluster"
        )
    try:
        settings = msgspec.convert(document.value, Settings)
    except msgspec.ValidationError as error:
        unknown = next(_unknown_keys(document.value, msgspec.inspect.type_info(Settings), ""), None)
        raise document.error(*(unknown or _translate(str(error)))) from None
    for path, problem in _contradictions(settings):
        raise document.error(path, problem)
    return settings


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the path or blob URL in the app setting KUBEKEEPER_CONFIG (default `kubekeeper.yaml`).

    Raises SettingsError for what is wrong in it, ApiError when the blob's store does not answer.
    """
    location = environ.get("KUBEKEEPER_CONFIG", "").strip() or DEFAULT_CONFIG
    if location.startswith(("https://", "http://")):
        return _load_blob(location, environ)
    try:
        return parse_settings(Path(location).read_bytes(), location)
    except OSError as error:
        raise SettingsError(
            f"cannot read the configuration '{location}': {error.strerror}; "
            "set KUBEKEEPER_CONFIG to its path or blob URL"
        ) from error


def _load_blob(url: str, environ: Mapping[str, str]) -> Settings:
    from shared.clients.blob import read_blob_url

    shown = url.partition("?")[0]  # behind the question mark stands a SAS token
    try:
        return parse_settings(read_blob_url(url, environ), shown)
    except NotFoundError as error:
        raise SettingsError(
            f"there is no configuration at '{shown}'; upload it, or correct KUBEKEEPER_CONFIG"
        ) from error


def _unknown_keys(value: Any, kind: Any, path: str) -> Iterator[tuple[str, str]]:
    """(path, problem) for every key that the configuration does not have, in document order."""
    inspect = msgspec.inspect
    if isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        kind = next(t for t in kind.types if not isinstance(t, inspect.NoneType))
    if isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown_keys(item, kind.item_type, f"{path}[{index}]")
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        fields = {field.encode_name: field for field in kind.fields}
        for key, item in value.items():
            at = f"{path}.{key}" if path else key
            if key not in fields:
                yield at, f"unknown key '{key}'; {_suggestion(key, list(fields))}"
            else:
                yield from _unknown_keys(item, fields[key].type, at)


def _suggestion(key: str, known: list[str]) -> str:
    import difflib

    folded = {name.lower(): name for name in known}
    near = difflib.get_close_matches(key.lower().replace("_", "").replace("-", ""), folded, n=1, cutoff=0.6)
    return f"did you mean '{folded[near[0]]}'?" if near else f"known here: {', '.join(known)}"


_PLACE = re.compile(r"^(?P<problem>.*?)(?: - at `\$\.?(?P<path>.*)`)?$")


def _translate(error: str) -> tuple[str, str]:
    """(path, problem) in an operator's words from a msgspec error; msgspec repeats no values."""
    match = _PLACE.fullmatch(error)
    assert match is not None
    path, problem = match["path"] or "", match["problem"]
    missing = re.fullmatch(r"Object missing required field `(.+)`", problem)
    if missing:
        return path, f"the key '{missing[1]}' is missing"
    description = _description(path)
    if description and ("regex" in problem or "of length" in problem):
        return path, f"expected {description}"
    for theirs, ours in _WORDS.items():
        problem = problem.replace(theirs, ours)
    if problem.endswith("got true or false"):
        problem += "; put quotes around it"  # YAML 1.1 reads yes, no, on and off as booleans
    return path, problem[0].lower() + problem[1:]


_WORDS = {
    "`object`": "a mapping",
    "`array`": "a list",
    "`str`": "text",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
}


def _description(path: str) -> str:
    """What the value at `path` is, from the annotation of its type; empty where the type says nothing."""
    inspect = msgspec.inspect
    kind: Any = inspect.type_info(Settings)
    described = ""
    for step in re.findall(r"[^.\[\]]+|\[\d+\]", path):
        if isinstance(kind, inspect.StructType):
            field = next((f for f in kind.fields if f.encode_name == step), None)
            if field is None:
                return ""
            kind = field.type
        elif isinstance(kind, inspect.VarTupleType):
            kind = kind.item_type
        described = ""
        while isinstance(kind, inspect.Metadata | inspect.UnionType):
            if isinstance(kind, inspect.Metadata):
                described = (kind.extra_json_schema or {}).get("description", described)
                kind = kind.type
            else:
                kind = next(t for t in kind.types if not isinstance(t, inspect.NoneType))
    return described


def _contradictions(settings: Settings) -> Iterator[tuple[str, str]]:
    """(path, problem) for values that are each well-formed but cannot be meant together."""
    seen: set[str] = set()
    for index, cluster in enumerate(settings.clusters):
        path = f"clusters[{index}]"
        if cluster.name in seen:
            yield f"{path}.name", f"'{cluster.name}' is already the name of another cluster; names are unique"
        seen.add(cluster.name)
        if cluster.etcd:
            yield from _connection_contradictions(cluster.etcd, f"{path}.etcd")
        if cluster.etcd_backup:
            if cluster.etcd is None:
                yield f"{path}.etcdBackup", "backups need 'etcd' with the endpoints of this cluster beside it"
            yield from _policy_contradictions(cluster.etcd_backup, f"{path}.etcdBackup")
        if cluster.kubernetes:
            yield from _kubernetes_contradictions(cluster.kubernetes, f"{path}.kubernetes")
        for key in ("autoscaling", "disk_release", "ingress_sync"):
            if getattr(cluster, key) is not None and (cluster.kubernetes is None or cluster.azure is None):
                name = msgspec.structs.fields(Cluster)
                shown = next(field.encode_name for field in name if field.name == key)
                yield f"{path}.{shown}", "needs 'kubernetes' and 'azure' of this cluster beside it"


def _kubernetes_contradictions(connection: KubernetesConnection, path: str) -> Iterator[tuple[str, str]]:
    others = [
        name for name in ("server", "ca", "token", "certificate", "key", "entra") if getattr(connection, name)
    ]
    if connection.kubeconfig:
        if others:
            yield path, f"'kubeconfig' stands alone; remove it or {', '.join(repr(n) for n in others)}"
        return
    if not connection.server:
        yield path, "needs 'kubeconfig', or 'server' with a way to log in"
        return
    if (connection.certificate is None) != (connection.key is None):
        yield path, "'certificate' and 'key' belong together; give both or neither"
    ways = [bool(connection.token), bool(connection.certificate), connection.entra]
    if sum(ways) != 1:
        yield path, "needs exactly one way to log in: 'token', 'certificate' with 'key', or 'entra: true'"
    if connection.server.startswith("http:") and not _is_this_machine(connection.server):
        yield f"{path}.server", "a token must not travel over http; write it with https"


def _is_this_machine(url: str) -> bool:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _connection_contradictions(etcd: EtcdConnection, path: str) -> Iterator[tuple[str, str]]:
    schemes = set()
    for index, endpoint in enumerate(etcd.endpoints):
        problem = _endpoint_problem(endpoint)
        if problem:
            yield f"{path}.endpoints[{index}]", problem
        schemes.add(endpoint.partition("://")[0])
    if len(set(etcd.endpoints)) < len(etcd.endpoints):
        yield f"{path}.endpoints", "an endpoint stands here twice"
    if len(schemes) > 1:
        yield f"{path}.endpoints", "some endpoints are http and some https; all members speak the same"
    if schemes == {"https"} and etcd.tls is None:
        yield path, "the endpoints are https; add 'tls' with the 'ca' that signed their certificates"
    if schemes == {"http"} and etcd.tls is not None:
        yield f"{path}.tls", "the endpoints are http, so TLS would not be used; write them with https"
    if etcd.tls and (etcd.tls.certificate is None) != (etcd.tls.key is None):
        yield f"{path}.tls", "'certificate' and 'key' belong together; give both or neither"
    if (etcd.user is None) != (etcd.password is None):
        yield path, "'user' and 'password' belong together; give both or neither"


def _endpoint_problem(endpoint: str) -> str | None:
    from urllib.parse import urlsplit

    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError:
        return "expected https://HOST:PORT of one etcd member"
    if url.username or url.password:
        return (
            "a user or password stands in the endpoint; use 'user' and 'password' (file: or setting:) instead"
        )
    if url.scheme not in ("http", "https") or not url.hostname or port is None:
        return "expected https://HOST:PORT of one etcd member, such as https://10.0.0.4:2379"
    if url.path.strip("/") or url.query or url.fragment:
        return "expected https://HOST:PORT of one etcd member and nothing behind the port"
    return None


_CONTAINER_NAME = re.compile(r"[a-z0-9](?!.*--)[a-z0-9-]{1,61}[a-z0-9]")


def _policy_contradictions(policy: EtcdBackupPolicy, path: str) -> Iterator[tuple[str, str]]:
    for name, cron in (("schedule", policy.schedule), ("drillSchedule", policy.drill_schedule)):
        problem = _cron_problem(cron) if cron is not None else None
        if problem:
            yield f"{path}.{name}", problem
    durations = {
        "objective": policy.objective,
        "fullEvery": policy.full_every,
        "stallTimeout": policy.stall_timeout,
        "totalTimeout": policy.total_timeout,
    }
    for name, text in durations.items():
        if not parse_duration(text):
            yield f"{path}.{name}", "must be longer than nothing"
    if parse_duration(policy.stall_timeout) > parse_duration(policy.total_timeout):
        yield (
            f"{path}.stallTimeout",
            f"is longer than totalTimeout ({policy.total_timeout}), so it could never act",
        )
    if not _CONTAINER_NAME.fullmatch(policy.container):
        yield (
            f"{path}.container",
            "expected 3 to 63 lower-case letters, digits and single hyphens, as Azure containers are named",
        )
    retention = policy.retention
    if not retention.hourly + retention.daily + retention.weekly + retention.monthly:
        yield f"{path}.retention", "all counts are 0, so nothing would be kept; keep at least one"
    if policy.encryption:
        yield from _encryption_contradictions(policy.encryption, f"{path}.encryption")


def _encryption_contradictions(encryption: Encryption, path: str) -> Iterator[tuple[str, str]]:
    if (encryption.key_vault_key is None) == (encryption.key_file is None):
        yield path, "needs exactly one of 'keyVaultKey' and 'keyFile'"
    if encryption.key_vault_key and not re.fullmatch(
        r"https?://[^/]+/keys/[^/]+(/[^/]+)?/?", encryption.key_vault_key
    ):
        yield (
            f"{path}.keyVaultKey",
            "expected a key identifier, https://VAULT.vault.azure.net/keys/NAME/VERSION",
        )
    if encryption.key_file and not re.match(r"(file|setting):.", encryption.key_file):
        yield f"{path}.keyFile", "expected file:/path or setting:NAME of the key, never the key itself"


def _cron_problem(cron: str) -> str | None:
    from datetime import UTC, datetime

    from cronsim import CronSim, CronSimError

    if len(cron.split()) != 5:
        return (
            f"'{cron}' has {len(cron.split())} fields; expected five: minute hour day month weekday, in UTC"
        )
    try:
        next(CronSim(cron, datetime(2024, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        return (
            f"'{cron}' is not a cron schedule ({str(error).lower()}); expected: minute hour day month weekday"
        )
    except StopIteration:
        return f"'{cron}' never comes"
    return None
