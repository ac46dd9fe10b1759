"""Clusters to plan for, as raw objects: `Case` builds a snapshot, decides, and says what would happen."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from shared.autoscaling.decide import Decision, consider
from shared.autoscaling.observation import AUTOMATION, Observation, from_snapshot
from shared.model.plan import ActionKind, LeftAlone
from shared.model.snapshot import AzureReading, Snapshot

NOW = datetime(2026, 11, 25, 10, tzinfo=UTC)
BASE = "/subscriptions/s/resourcegroups/g/providers/microsoft.compute"
SETS = f"{BASE}/virtualmachinescalesets"
SKUS = "/subscriptions/s/providers/Microsoft.Compute/skus"
LOCATION = "westeurope"
Document = dict[str, Any]


def stamp(ago: timedelta = timedelta(hours=3)) -> str:
    return f"{NOW - ago:%Y-%m-%dT%H:%M:%SZ}"


def pod_document(name: str, *, node: str = "", owner: str = "ReplicaSet", **spec: Any) -> Document:
    """A pod; `requests`, `labels`, `namespace`, `ports` (host ports), and anything of its spec."""
    requests = spec.pop("requests", {})
    labels, namespace = spec.pop("labels", {}), spec.pop("namespace", "default")
    annotations = spec.pop("annotations", {})
    ports = [{"containerPort": 80, "hostPort": one} for one in spec.pop("ports", ())]
    container = {"name": "main", "resources": {"requests": requests}, "ports": ports}
    metadata: Document = {
        "name": name,
        "namespace": namespace,
        "uid": name,
        "labels": labels,
        "annotations": annotations,
        "creationTimestamp": stamp(),
    }
    if owner:
        kind, _, owned = owner.partition("/")
        metadata["ownerReferences"] = [{"kind": kind, "name": owned or "web", "controller": True, "uid": "o"}]
    document = {"metadata": metadata, "spec": {"containers": [container], **spec}}
    document["status"] = {"phase": "Running" if node else "Pending"}
    if node:
        document["spec"]["nodeName"] = node
    return document


@dataclass
class Case:
    """One cluster. Pools are uniform scale sets whose nodes are `allocatable`; nodes belong to pools."""

    policy: Document = field(default_factory=dict)
    pods: list[Document] = field(default_factory=list)
    nodes: list[Document] = field(default_factory=list)
    more: dict[str, list[Document]] = field(default_factory=dict)
    sets: list[Document] = field(default_factory=list)
    machines: dict[str, list[Document]] = field(default_factory=dict)
    state: Document = field(default_factory=dict)
    azure: list[AzureReading] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
    pools: dict[str, Document] = field(default_factory=dict)

    def pool(
        self,
        name: str,
        allocatable: Document,
        *,
        size: int = 0,
        capacity: int | None = None,
        min: int = 0,
        max: int = 1000,
        zones: tuple[str, ...] = (),
        labels: Document | None = None,
        taints: tuple[Document, ...] = (),
        sku: str = "",
        **policy: Any,
    ) -> Case:
        """A pool of `size` full nodes (a template even at 0, by the policy's resources)."""
        full = {"pods": "110", **allocatable}
        self.pools[name] = {
            "allocatable": full,
            "labels": labels or {},
            "taints": list(taints),
            "zones": zones,
        }
        self.sets.append(
            {
                "id": f"{SETS}/{name}",
                "name": name,
                "location": LOCATION,
                "zones": list(zones),
                "sku": {"name": sku or f"size-{name}", "capacity": size if capacity is None else capacity},
                "properties": {"orchestrationMode": "Uniform", "provisioningState": "Succeeded"},
            }
        )
        own = {"name": name, "min": min, "max": max, "resources": full, "labels": labels or {}, **policy}
        own["taints"] = [
            {"key": t["key"], "value": t.get("value", ""), "effect": t["effect"]} for t in taints
        ]
        self.policy.setdefault("pools", []).append(own)
        self._size(sku or f"size-{name}", zones)
        for _ in range(size):
            self.node(name, is_full=True)
        return self

    def _size(self, name: str, zones: tuple[str, ...]) -> None:
        known = next((one for one in self.azure if one.id.endswith("/skus")), None)
        if known is None:
            known = AzureReading(
                id="/subscriptions/s/providers/Microsoft.Compute/skus",
                status=200,
                read_at=NOW,
                body={"value": []},
            )
            self.azure.append(known)
        assert known.body is not None
        known.body["value"].append(
            {
                "resourceType": "virtualMachines",
                "name": name,
                "family": f"family-{name}",
                "locations": [LOCATION],
                "locationInfo": [{"location": LOCATION, "zones": list(zones)}],
                "capabilities": [{"name": "vCPUs", "value": "4"}, {"name": "MemoryGB", "value": "16"}],
            }
        )

    def node(
        self,
        pool: str,
        name: str = "",
        *,
        zone: str = "",
        is_full: bool = False,
        ready: bool = True,
        **more: Any,
    ) -> str:
        """A node of the pool; a full one holds a pod that takes all of it."""
        about = self.pools[pool]
        number = sum(one["metadata"]["labels"].get("pool") == pool for one in self.nodes)
        name = name or f"{pool}-{number:03d}"
        zones = about["zones"]
        zone = zone or (f"{LOCATION}-{zones[number % len(zones)]}" if zones else "0")
        labels = {
            "pool": pool,
            "kubernetes.io/hostname": name,
            "topology.kubernetes.io/zone": zone,
            **about["labels"],
            **more.pop("labels", {}),
        }
        changed = more.pop("changed", stamp())
        self.nodes.append(
            {
                "metadata": {
                    "name": name,
                    "uid": name,
                    "labels": labels,
                    "creationTimestamp": stamp(),
                    "annotations": more.pop("annotations", {}),
                },
                "spec": {
                    "providerID": f"azure://{SETS}/{pool}/virtualMachines/{number}",
                    "taints": [*about["taints"], *more.pop("taints", [])],
                    **more,
                },
                "status": {
                    "allocatable": about["allocatable"],
                    "conditions": [
                        {
                            "type": "Ready",
                            "status": "True" if ready else "Unknown",
                            "lastTransitionTime": changed,
                        }
                    ],
                },
            }
        )
        if is_full:
            requests = {k: v for k, v in about["allocatable"].items() if k != "pods"}
            self.pods.append(
                pod_document(f"full-{name}", node=name, owner="DaemonSet/full", requests=requests)
            )
        return name

    def pending(self, count: int, name: str = "web", **spec: Any) -> Case:
        """So many alike pods without a node."""
        self.pods += [pod_document(f"{name}-{number}", **spec) for number in range(count)]
        return self

    def on(self, node: str, count: int, name: str = "app", **spec: Any) -> Case:
        """Running pods on a node."""
        self.pods += [pod_document(f"{name}-{node}-{n}", node=node, **spec) for n in range(count)]
        return self

    # What comes of it

    def observation(self) -> Observation:
        lists = {"pods": self.pods, "nodes": self.nodes, **self.more}
        readings = [AzureReading(id=SETS, status=200, read_at=NOW, body={"value": self.sets}), *self.azure]
        for one in self.sets:
            body = {"value": self.machines.get(one["name"], [])}
            readings.append(
                AzureReading(id=f"{one['id']}/virtualMachines", status=200, read_at=NOW, body=body)
            )
        snapshot = Snapshot(
            automation=AUTOMATION,
            now=NOW,
            cluster={"name": "prod", "autoscaling": self.policy},
            kubernetes={name: {"items": items} for name, items in lists.items()},
            azure=tuple(readings),
            metrics=tuple(self.metrics),
            state=self.state,
        )
        return from_snapshot(msgspec.json.decode(msgspec.json.encode(snapshot), type=Snapshot))

    def decide(self) -> Result:
        observation = self.observation()
        return Result(consider(observation, observation.policy, NOW))


@dataclass
class Result:
    """A decision, asked."""

    decision: Decision

    @property
    def new(self) -> dict[str, int]:
        """New nodes by pool."""
        return {
            one.target: int(one.parameters["to"]) - int(one.parameters["from"])
            for one in self.decision.plan.actions
            if one.kind is ActionKind.SCALE_UP
        }

    @property
    def removed(self) -> list[str]:
        return sorted(
            name
            for one in self.decision.plan.actions
            if one.kind is ActionKind.SCALE_DOWN
            for name in one.parameters["nodes"]
        )

    def left(self, subject: str) -> LeftAlone:
        name = (
            subject
            if "/" in subject or subject in {one.subject for one in self.decision.plan.left_alone}
            else f"default/{subject}"
        )
        return next(one for one in self.decision.plan.left_alone if one.subject == name)

    def reasons(self, prefix: str = "") -> dict[str, int]:
        """How many pods (or nodes) ended with each reason."""
        found: dict[str, int] = {}
        for one in self.decision.plan.left_alone:
            if one.subject.startswith(prefix):
                found[one.reason] = found.get(one.reason, 0) + 1
        return found
