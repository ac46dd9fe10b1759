"""What an operator may set for the ingress of one cluster; pure values with defaults.

Every field is a key under `ingressSync` in kubekeeper.yaml (camelCase). Durations are strings (`10m`), parsed
by `shared.model.duration`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from shared.model.duration import Duration

GatewayId = Annotated[
    str,
    msgspec.Meta(
        # Resource ids ignore case; editors read this as ECMAScript, which has no (?i).
        pattern=r"^/[sS]ubscriptions/[^/]+/[rR]esource[gG]roups/[^/]+/[pP]roviders"
        r"/[mM]icrosoft\.[nN]etwork/[aA]pplication[gG]ateways/[^/]+$",
        description="the resource id of an Application Gateway (v2)",
    ),
]
PartName = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z]+/[^/]+$",
        description="`collection/name` of a part of the gateway; a name may end in *",
        examples=["httpListeners/default", "backendAddressPools/pool-*"],
    ),
]


class Approval(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Which changes wait for the operation `approve`; none by default."""

    listener_removal: bool = False
    """A change that takes a listener, or a host of one, away, and so cuts its connections."""
    certificate_change: bool = False
    """A change of the certificate of a listener that is in use."""
    routes: Annotated[int, msgspec.Meta(ge=0)] = 0
    """More changed routes than this in one change; 0 means any number."""


class Compatibility(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Behaviour of AGIC that is fixed here and that somebody may rely on (docs/ingress-annotations.md)."""

    prefix_within_segment: bool = False
    """`true`: Prefix `/foo` also takes `/foobar`, as AGIC does; Kubernetes says it does not."""
    not_ready_endpoints: bool = False
    """`true`: endpoints that are not ready are sent requests too, as AGIC does."""


class IngressSyncPolicy(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """What an operator decides about the ingress of one cluster."""

    gateway: GatewayId
    """Resource id of the Application Gateway that this cluster's Ingress objects are compiled to."""
    enabled: bool = True
    """`false` stops everything here for this cluster; to rest for a while, use the operation `pause`."""
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,24}$")] | None = None
    """Begins the name of every part made here; by default `kk_` and the cluster's name. Two clusters on one
    gateway need different ones; a changed one leaves the old parts behind."""
    controller: str = "azure/application-gateway"
    """`spec.controller` of the IngressClass objects that are ours."""
    legacy_class: str = "azure/application-gateway"
    """The value of the annotation kubernetes.io/ingress.class that is ours."""
    namespaces: tuple[str, ...] = ()
    """Only Ingress objects of these namespaces; empty: of all."""
    excluded_namespaces: tuple[str, ...] = ("kube-system", "kube-public")
    """Never Ingress objects of these."""
    backend: Literal["pods", "nodePorts"] = "pods"
    """Where requests are sent: to the pods' own addresses, or to a service's port on every ready node."""
    use_private_ip: bool = False
    """Ingress objects without the annotation use-private-ip listen on the private frontend."""
    http_beside_https: bool = False
    """Hosts with a certificate and without ssl-redirect are served over http too, as Kubernetes has it; AGIC
    serves them over https only. Not where a client certificate is asked for."""
    drain_timeout: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 0
    """Seconds that connections to a removed endpoint live on, for objects without an annotation; 0: none."""
    adopt: bool = False
    """Take over parts that have our prefix but are not on record; after a lost state document."""
    take_over: tuple[PartName, ...] = ()
    """Parts of others that may be replaced or removed: the portal's default listener, or what AGIC left."""
    approval: Approval = Approval()
    """Changes that wait for the operation `approve`."""
    refuse_deviations: tuple[str, ...] = ()
    """Names of declared deviations (docs/ingress-sync.md) for which an object is quarantined instead."""
    compatibility: Compatibility = Compatibility()
    """Behaviour of AGIC to keep."""
    quiet: Duration = "2s"
    """A change waits until nothing more has changed for this long."""
    longest_wait: Duration = "10s"
    """But no change waits longer than this."""
    pool_interval: Duration = "30s"
    """Writes that only change pools are at least this far apart; every write may cut WebSockets."""
    put_deadline: Duration = "60m"
    """A write whose operation has not ended by then is given up; platform upgrades take up to 45 minutes."""
    retry: Duration = "1m"
    """Wait after a failed write; doubled for each further failure."""
    longest_retry: Duration = "30m"
    """But never longer than this."""
    expiry_warning: Duration = "21d"
    """Warn when a certificate in use expires within this time."""
    certificate_grace: Duration = "1d"
    """A certificate of ours that no listener uses is kept this long, so that going back needs no upload."""
    status: bool = True
    """Write addresses into the Ingress objects' status, and what is wrong into an annotation."""
    readiness_gate: bool = False
    """Set the condition `kubekeeper.io/gateway-ready` of pods that ask for it from the gateway's health."""
