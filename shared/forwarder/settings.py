"""The forwarder's settings: environment variables of its Deployment, typed and checked at start."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from shared.clients.eventgrid import ENDPOINT
from shared.clients.storage import CONNECTION
from shared.errors import SettingsError
from shared.forwarder.gather import Pace
from shared.model.duration import parse_duration
from shared.runtime.automation import AUTOMATIONS
from shared.settings import KubernetesConnection

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where Kubernetes puts a pod's token and the cluster's CA."""
MOST_SECRET_NAMESPACES = 20
"""Each is a watch of its own; beyond, take `*`."""
PREFIX = "Kubekeeper.Cluster."
"""Of the types of all events that are sent."""
SHORTEST_GAP = 3.0
"""Seconds between events of one type, however little the automation rests: sending costs, too."""
_CLUSTER = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAMESPACE = re.compile(r"\*|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class ForwarderSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All of them; seconds are seconds."""

    cluster: str
    kubernetes: KubernetesConnection
    automations: tuple[str, ...]
    secret_namespaces: tuple[str, ...]
    by_queue: bool
    """No Event Grid: messages go straight to the automations' queues."""
    pace: Pace
    resync: float
    etcd_interval: float
    """0: the API server is not asked."""
    port: int

    @property
    def events(self) -> frozenset[str]:
        """Short names of the events that any of the automations wants."""
        types = {kind for name in self.automations for kind in AUTOMATIONS[name].events}
        return frozenset(kind.removeprefix(PREFIX) for kind in types if kind.startswith(PREFIX))


def read_settings(environ: Mapping[str, str]) -> ForwarderSettings:
    """SettingsError names the variable that is missing or wrong, and what is expected."""
    cluster = environ.get("KUBEKEEPER_CLUSTER", "")
    if not _CLUSTER.fullmatch(cluster):
        raise SettingsError("set KUBEKEEPER_CLUSTER to the name this cluster has in kubekeeper.yaml")
    return ForwarderSettings(
        cluster=cluster,
        kubernetes=_kubernetes(environ),
        automations=_automations(environ.get("KUBEKEEPER_AUTOMATIONS", "")),
        secret_namespaces=_namespaces(environ.get("KUBEKEEPER_SECRET_NAMESPACES", "")),
        by_queue=_by_queue(environ),
        pace=_pace(environ),
        resync=max(1.0, _seconds(environ, "KUBEKEEPER_RESYNC", "10m")),
        etcd_interval=_seconds(environ, "KUBEKEEPER_ETCD_INTERVAL", "30s"),
        port=_port(environ.get("KUBEKEEPER_PORT", "8080")),
    )


def _kubernetes(environ: Mapping[str, str]) -> KubernetesConnection:
    server = environ.get("KUBEKEEPER_KUBERNETES_SERVER") or _in_cluster(environ)
    return KubernetesConnection(
        server=server,
        ca=f"file:{environ.get('KUBEKEEPER_KUBERNETES_CA', f'{ACCOUNT}/ca.crt')}",
        token=f"file:{environ.get('KUBEKEEPER_KUBERNETES_TOKEN', f'{ACCOUNT}/token')}",
    )


def _in_cluster(environ: Mapping[str, str]) -> str:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise SettingsError(
            "not in a cluster (KUBERNETES_SERVICE_HOST is not set); run it as infra/forwarder does, or set "
            "KUBEKEEPER_KUBERNETES_SERVER, KUBEKEEPER_KUBERNETES_CA and KUBEKEEPER_KUBERNETES_TOKEN"
        )
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _automations(text: str) -> tuple[str, ...]:
    names = tuple(_words(text)) or tuple(AUTOMATIONS)
    for name in names:
        if name not in AUTOMATIONS:
            raise SettingsError(
                f"KUBEKEEPER_AUTOMATIONS: unknown automation '{name}'; there are: {', '.join(AUTOMATIONS)}"
            )
    return names


def _namespaces(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(_words(text)))
    for name in names:
        if not _NAMESPACE.fullmatch(name):
            raise SettingsError(f"KUBEKEEPER_SECRET_NAMESPACES: '{name}' is no namespace; list names, or '*'")
    if "*" in names:
        return ("*",)
    if len(names) > MOST_SECRET_NAMESPACES:
        raise SettingsError(
            f"KUBEKEEPER_SECRET_NAMESPACES has {len(names)} namespaces, more than "
            f"{MOST_SECRET_NAMESPACES}; take '*' and bind the role for the whole cluster"
        )
    return names


def _by_queue(environ: Mapping[str, str]) -> bool:
    if environ.get(ENDPOINT):
        return False
    if any(environ.get(CONNECTION + more) for more in ("", "__accountName", "__queueServiceUri")):
        return True
    raise SettingsError(
        f"nowhere to send to; set {ENDPOINT} (Event Grid topic), or {CONNECTION}__accountName or "
        f"{CONNECTION} (the app's storage account)"
    )


def _seconds(environ: Mapping[str, str], name: str, default: str) -> float:
    text = environ.get(name) or default
    if text == "0":
        return 0.0
    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise SettingsError(f"{name}: {error}") from error


def _pace(environ: Mapping[str, str]) -> Pace:
    """Between events of one type lies what their automations rest between two looks; GAP overrides that."""
    gaps = {
        kind.removeprefix(PREFIX): max(SHORTEST_GAP, automation.settle.total_seconds())
        for automation in AUTOMATIONS.values()
        if automation.settle is not None
        for kind in automation.events
        if kind.startswith(PREFIX)
    }
    return Pace(
        quiet=_seconds(environ, "KUBEKEEPER_QUIET", "1s"),
        longest=_seconds(environ, "KUBEKEEPER_LONGEST", "5s"),
        gap=_seconds(environ, "KUBEKEEPER_GAP", "10s"),
        gaps={} if environ.get("KUBEKEEPER_GAP") else gaps,
    )


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise SettingsError(f"KUBEKEEPER_PORT: '{text}' is no port; write a number up to 65535")
    return int(text)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", text) if word]
