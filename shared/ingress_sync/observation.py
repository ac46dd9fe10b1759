"""What one look at a cluster's ingress and its gateway found, as one frozen value and as a snapshot file.

`observe` makes it, `decide` reads it; loaded from a file it decides the same plan, byte for byte. The file
(docs/reference/snapshot-file.md) holds, under `kubernetes`, the lists named in `KINDS`, with only the fields
that routing needs, and Secrets without data (`kubekeeper` has their facts); under `azure` the gateway, the
public addresses of its frontends, and, where it is asked for, `<gateway id>/backendHealth`.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from functools import cached_property
from typing import Any

import msgspec

from shared.errors import MessageError
from shared.ingress_sync.policy import IngressSyncPolicy
from shared.ingress_sync.state import State, read_state
from shared.model import snapshot
from shared.model.gateway import COLLECTIONS, Document, digest_of, inside, part_content, parts
from shared.model.ingress import (
    EndpointSlice,
    Ingress,
    IngressClass,
    IngressNode,
    KubeStruct,
    Malformed,
    Pod,
    ProhibitedTarget,
    Rewrite,
    Service,
    TlsSecret,
    decode_list,
)
from shared.model.plan import canonical_json, utc
from shared.model.snapshot import AzureReading

AUTOMATION = "ingress-sync"

KINDS: dict[str, type[KubeStruct]] = {
    "ingresses": Ingress,
    "ingressclasses": IngressClass,
    "services": Service,
    "endpointslices": EndpointSlice,
    "secrets": TlsSecret,
    "pods": Pod,
    "nodes": IngressNode,
    "azureapplicationgatewayrewrites": Rewrite,
    "azureingressprohibitedtargets": ProhibitedTarget,
}
"""Plural name of each list in the file, which is also the field of `Kubernetes`, and its type."""


class Kubernetes(msgspec.Struct, frozen=True, kw_only=True):
    """The objects, in the order of the API. `malformed` maps a plural to what did not fit its type."""

    ingresses: tuple[Ingress, ...] = ()
    ingressclasses: tuple[IngressClass, ...] = ()
    services: tuple[Service, ...] = ()
    endpointslices: tuple[EndpointSlice, ...] = ()
    secrets: tuple[TlsSecret, ...] = ()
    pods: tuple[Pod, ...] = ()
    nodes: tuple[IngressNode, ...] = ()
    azureapplicationgatewayrewrites: tuple[Rewrite, ...] = ()
    azureingressprohibitedtargets: tuple[ProhibitedTarget, ...] = ()
    malformed: dict[str, tuple[Malformed, ...]] = {}


class Observation(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One cluster and its gateway, once. `cluster_entry` is its entry of the configuration as plain JSON.

    `azure` holds the raw answers: the gateway under the policy's id (whatever its status), public addresses
    under theirs, the health under `<gateway id>/backendHealth`. `state` is the automation's own document.
    """

    cluster: str
    now: datetime
    cluster_entry: dict[str, Any] = {}
    kubernetes: Kubernetes = Kubernetes()
    azure: tuple[AzureReading, ...] = ()
    state: dict[str, Any] = {}

    @cached_property
    def policy(self) -> IngressSyncPolicy:
        """The policy in the cluster's entry; msgspec.ValidationError when it has none or a wrong one."""
        return msgspec.convert(self.cluster_entry.get("ingressSync") or {}, IngressSyncPolicy)

    @cached_property
    def record(self) -> State:
        """The typed state document."""
        return read_state(self.state)

    def reading(self, resource_id: str) -> AzureReading | None:
        """The answer for an id, compared without regard to case."""
        key = resource_id.lower()
        return next((reading for reading in self.azure if reading.id.lower() == key), None)

    @property
    def gateway(self) -> Document | None:
        """The gateway's document as it was answered; None when it could not be read or is not there."""
        found = self.reading(self.policy.gateway)
        return found.body if found and found.status == 200 else None

    @cached_property
    def addresses(self) -> dict[str, str]:
        """`public` and `private`: the addresses of the gateway's frontends, as far as they are known."""
        found: dict[str, str] = {}
        for frontend in parts(self.gateway or {}, "frontendIPConfigurations"):
            public = (inside(frontend).get("publicIPAddress") or {}).get("id")
            if public:
                reading = self.reading(public)
                address = ((reading.body or {}).get("properties") or {}).get("ipAddress") if reading else None
                found.setdefault("public", str(address or ""))
            else:
                found.setdefault("private", str(inside(frontend).get("privateIPAddress") or ""))
        return {kind: address for kind, address in found.items() if address}

    @cached_property
    def unhealthy(self) -> frozenset[str]:
        """Addresses that the gateway's own health says are not healthy; empty when it was not asked."""
        return frozenset(address for address, health in self._health() if health != "Healthy")

    @cached_property
    def healthy(self) -> frozenset[str]:
        """Addresses that the gateway's own health says are healthy everywhere they are used."""
        return frozenset(address for address, _ in self._health()) - self.unhealthy

    def _health(self) -> list[tuple[str, str]]:
        reading = self.reading(self.policy.gateway + "/backendHealth")
        body = (reading.body or {}) if reading else {}
        return [
            (str(server.get("address")), str(server.get("health")))
            for pool in body.get("backendAddressPools") or ()
            for used in pool.get("backendHttpSettingsCollection") or ()
            for server in used.get("servers") or ()
        ]

    @cached_property
    def inputs_digest(self) -> str:
        """Of everything but the gateway, the state and the time that a decision rests on."""
        digest = hashlib.sha256(msgspec.json.encode(self.kubernetes, order="deterministic"))
        digest.update(canonical_json([self.cluster, self.cluster_entry, self.addresses]))
        digest.update(canonical_json([sorted(self.healthy), sorted(self.unhealthy)]))
        return digest.hexdigest()[:32]

    @cached_property
    def gateway_digest(self) -> str:
        """Of what W13 compares of the gateway, all owners together; "" without a gateway."""
        gateway = self.gateway
        if gateway is None:
            return ""
        content = {
            collection: [part_content(collection, part) for part in parts(gateway, collection)]
            for collection in COLLECTIONS
        }
        return digest_of([content, operational_state(gateway)])


def operational_state(gateway: Document) -> str:
    """Running, Stopped, Starting or Stopping; "" when it is not said."""
    return str((gateway.get("properties") or {}).get("operationalState") or "")


def provisioning_state(gateway: Document) -> str:
    """Succeeded, Updating, Failed or Deleting; "" when it is not said."""
    return str((gateway.get("properties") or {}).get("provisioningState") or "")


def read_objects(pages: dict[str, list[bytes]]) -> Kubernetes:
    """The objects in raw list pages by plural name; MsgspecError when a page is no list."""
    fields: dict[str, Any] = {}
    malformed: dict[str, tuple[Malformed, ...]] = {}
    for plural, kind in KINDS.items():
        read = [decode_list(page, kind) for page in pages.get(plural, ())]
        fields[plural] = tuple(found for objects, _ in read for found in objects)
        bad = tuple(found for _, refused in read for found in refused)
        if bad:
            malformed[plural] = bad
    return Kubernetes(**fields, malformed=malformed)


def save(observation: Observation) -> bytes:
    """The snapshot file; Secrets hold facts only."""
    kubernetes = {}
    for plural in KINDS:
        items = [msgspec.to_builtins(found) for found in getattr(observation.kubernetes, plural)]
        items += [bad.raw for bad in observation.kubernetes.malformed.get(plural, ())]
        if items:
            kubernetes[plural] = {"kind": "List", "apiVersion": "v1", "items": items}
    return snapshot.save(
        snapshot.Snapshot(
            automation=AUTOMATION,
            now=observation.now,
            cluster=observation.cluster_entry | {"name": observation.cluster},
            kubernetes=kubernetes,
            azure=observation.azure,
            state=observation.state,
        )
    )


def load(data: bytes, source: str) -> Observation:
    """The observation in a snapshot file; MessageError names `source`, the key and what is expected there."""
    found = snapshot.load(data, source, AUTOMATION)
    try:
        pages = {plural: [msgspec.json.encode(body)] for plural, body in found.kubernetes.items()}
        observation = Observation(
            cluster=found.cluster_name,
            now=utc(found.now),
            cluster_entry=found.cluster,
            kubernetes=read_objects(pages),
            azure=found.azure,
            state=found.state,
        )
        observation.policy, observation.record  # noqa: B018  wrong ones are refused here, by the file's name
    except (msgspec.MsgspecError, ValueError) as error:
        raise MessageError(f"{source}: {error}; see docs/reference/snapshot-file.md") from error
    return observation
