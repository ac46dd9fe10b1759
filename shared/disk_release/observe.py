"""Reads what a decision about disks needs, once: lists of Kubernetes, then single resources of suspects only.

Which machines and disks are suspect is said by `cases.needs`, purely, from the lists; while nothing is stuck,
Azure is asked for one list of disks and no machine at all. Pods are listed node by node for nodes that are
suspect. Nothing is cached. What Azure refuses to say becomes part of the snapshot, with status and code, and
is never "gone". Called by `reconcile`, by `act` for its last look before a write, and by `keeper snapshot`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import msgspec

from shared.disk_release.cases import cases, is_suspect, needs
from shared.disk_release.observation import AUTOMATION, Observation, read
from shared.errors import ApiError, ConflictError, NotFoundError, SettingsError
from shared.model.disk import is_disk_id, key
from shared.model.plan import utc
from shared.model.snapshot import AzureReading, Snapshot
from shared.settings import Cluster

Document = dict[str, Any]
Listed = dict[str, list[Document]]

NODES = "/api/v1/nodes"
PODS = "/api/v1/pods"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"
LISTS: Mapping[str, str] = {
    "nodes": NODES,
    "leases": LEASES,
    "persistentvolumes": "/api/v1/persistentvolumes",
    "persistentvolumeclaims": "/api/v1/persistentvolumeclaims",
    "volumeattachments": ATTACHMENTS,
    "csinodes": "/apis/storage.k8s.io/v1/csinodes",
    "storageclasses": "/apis/storage.k8s.io/v1/storageclasses",
}
"""Read whole; everything but the first is small."""

EVENT_REASONS = ("ProvisioningFailed", "FailedAttachVolume", "FailedMount")
"""Events that say why a claim or a pod waits."""

WORKERS = 8
NODES_BY_ONE = 20
"""With more suspect nodes than that, one list of all pods is cheaper than a list for each."""
MAX_SINGLE_READS = 100
"""Of machines and disks in one pass. More suspects at once are no case for single reads; the rest stays
unknown, so nothing is done about it, and the next pass comes to it."""


class Kube(Protocol):
    """What observing needs of `shared.clients.kube.KubeClient`."""

    def find(self, path: str) -> Document | None: ...
    def pages(self, path: str, *, limit: int = ..., **query: str | int) -> Iterator[bytes]: ...


class PageBlob(Protocol):
    """What observing needs of `shared.clients.blob.PageBlob`."""

    def properties(self) -> Document: ...


class Azure(Protocol):
    """What observing needs of `shared.clients.arm.Arm`."""

    def get(self, resource_id: str, **query: str) -> Any: ...
    def pages(self, path: str, **query: str) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class World:
    """Both sides, and the clock that dates what is read."""

    kube: Kube
    azure: Azure
    now: Callable[[], datetime]
    page_blob: Callable[[str], PageBlob] | None = None
    """How to reach unmanaged disks; they are not asked about without it."""


def observe(
    cluster: Cluster,
    world: World,
    *,
    state: Document,
    now: datetime,
    asked_for: Sequence[str] = (),
    with_census: bool = True,
) -> Observation:
    """One look. `asked_for` are disks, by resource id, that somebody wants to know about in any case.

    ApiError when Kubernetes cannot be read: without it nothing can be decided.
    """
    return _Look(cluster, world, state, now, asked_for).run(with_census=with_census)


@dataclass
class _Look:
    cluster: Cluster
    world: World
    state: Document
    now: datetime
    asked_for: Sequence[str]
    kubernetes: Listed = field(default_factory=dict)
    azure: list[AzureReading] = field(default_factory=list)
    _parsed: tuple[int, Observation] | None = None
    """The last observation, with how many answers of Azure it is made of."""

    def run(self, *, with_census: bool) -> Observation:
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="disk-observe") as pool:
            names = [*LISTS, "pending", "events"]
            found = dict(zip(names, pool.map(self._list, names), strict=True))
            if with_census:
                self.azure += [r for listed in pool.map(self._census, self._groups()) for r in listed]
            pending = found.pop("pending")
            self.kubernetes = found
            self.kubernetes["pods"] = self._pods(pool, pending)
            self._parsed = None
            for _ in range(2):  # a disk may name a machine that nobody had thought of
                self._read_needed(pool)
        return self._observation()

    def _observation(self) -> Observation:
        if self._parsed is None or self._parsed[0] != len(self.azure):
            found = read(snapshot_of(self.cluster, self.now, self.kubernetes, self.azure, self.state))
            self._parsed = (len(self.azure), found)
        return self._parsed[1]

    # Kubernetes

    def _list(self, name: str) -> list[Document]:
        if name == "pending":
            return listed(self.world.kube, PODS, "pods", "status.phase=Pending")
        if name == "events":
            return [
                event
                for reason in EVENT_REASONS
                for event in listed(self.world.kube, "/api/v1/events", name, f"reason={reason}")
            ]
        return listed(self.world.kube, LISTS[name], name)

    def _pods(self, pool: ThreadPoolExecutor, pending: list[Document]) -> list[Document]:
        """Those that wait, those of suspect nodes and of silent ones: the only ones that can matter."""
        observation, now = self._observation(), self.world.now()
        suspects = {c.node_name for c in cases(observation) if c.node_name and is_suspect(c, now)}
        nodes = sorted(suspects | {node.name for node in observation.nodes.values() if not node.is_ready})
        if len(nodes) > NODES_BY_ONE:
            return listed(self.world.kube, PODS, "pods")
        found = pool.map(lambda node: pods_of_node(self.world.kube, node), nodes)
        every = [*pending, *(pod for pods in found for pod in pods)]
        by_uid = {pod["metadata"].get("uid") or str(number): pod for number, pod in enumerate(every)}
        return list(by_uid.values())

    # Azure

    def _groups(self) -> list[str]:
        scope = self.cluster.azure
        if scope is None:
            return []
        return [f"/subscriptions/{scope.subscription}/resourceGroups/{g}" for g in scope.resource_groups]

    def _census(self, group: str) -> list[AzureReading]:
        """All disks of a resource group; good for finding suspects, and no ground for a write."""
        path, asked = f"{group}/providers/Microsoft.Compute/disks", self.world.now()
        try:
            found = [disk for page in self.world.azure.pages(path) for disk in _values(page)]
        except ApiError as error:
            return [refusal(path, error, asked)]
        return [AzureReading(id=path, status=200, read_at=asked, body={"value": found})]

    def _read_needed(self, pool: ThreadPoolExecutor) -> None:
        observation = self._observation()
        wanted = needs(observation, observation.policy, self.world.now())
        done = {reading.id.lower() for reading in self.azure}
        extra = (*(disk for disk in self.asked_for if is_disk_id(disk)), *freed_by_list(observation))
        spared = spared_machines(observation, self.world.now())
        machines = [vm for vm in wanted.machines if key(vm) not in spared]
        ids = [i for i in _unique((*machines, *wanted.disks, *extra)) if i.lower() not in done]
        # An unmanaged disk's address stands in an object of the cluster: asked only where that is wanted.
        blobs = [b for b in wanted.blobs if b.lower() not in done] if self.world.page_blob else []
        blobs = blobs if observation.policy.break_leases else []
        self.azure += pool.map(lambda i: read_single(self.world, i), (*ids, *blobs)[:MAX_SINGLE_READS])


def spared_machines(observation: Observation, now: datetime) -> frozenset[str]:
    """Machines found off that need no further read: Kubernetes is detaching, or the disks are free.

    The node must still be NotReady, and out of service while a VolumeAttachment names it: one that comes back
    is read again, and so is one whose taint Kubernetes refused.
    """
    found = set()
    turn = observation.policy.limits.detach_after
    for vm, release in observation.state.releases.items():
        node = observation.nodes.get(release.node)
        if release.open_write or node is None or node.is_ready:
            continue
        if not node.out_of_service and observation.attachments_of_node.get(node.name):
            continue
        owned = [d for d in release.disks if d not in observation.census or _is_owned(observation, d, vm)]
        is_turn = release.tainted_at is not None and now < release.tainted_at + turn
        if is_turn or (release.disks and not owned):
            found.add(vm)
    return frozenset(found)


def _is_owned(observation: Observation, disk_id: str, vm: str) -> bool:
    return observation.census[disk_id].is_owned_by(vm)


def freed_by_list(observation: Observation) -> Iterator[str]:
    """Disks of releases that a list shows free of their machine: read on their own, that is the end of it."""
    state = observation.state
    noted = {(done.disk, done.vm, done.epoch) for done in state.done}
    for vm, release in state.releases.items():
        for disk_id in release.disks:
            disk = observation.census.get(disk_id)
            if disk and not disk.is_owned_by(vm) and (disk_id, vm, release.epoch) not in noted:
                yield disk.id


def snapshot_of(
    cluster: Cluster, now: datetime, kubernetes: Listed, azure: Iterable[AzureReading], state: Document
) -> Snapshot:
    """What was read, as the contract's snapshot."""
    return Snapshot(
        automation=AUTOMATION,
        now=utc(now),
        cluster=msgspec.json.decode(msgspec.json.encode(cluster)),
        kubernetes={plural: {"items": items} for plural, items in sorted(kubernetes.items())},
        azure=tuple(azure),
        state=state,
    )


def read_single(world: World, resource_id: str) -> AzureReading:
    """One machine (with its instance view, in the same answer), disk or page blob, or why none was read."""
    if resource_id.startswith("https://"):
        return _read_blob(world, resource_id)
    expand = {} if is_disk_id(resource_id) else {"$expand": "instanceView"}
    asked = world.now()  # before the request: what comes back is at least as fresh as that
    try:
        answer = world.azure.get(resource_id, **expand)
    except ApiError as error:
        return refusal(resource_id, error, asked)
    return AzureReading(id=resource_id, status=200, read_at=asked, body=_slim_azure(answer.document), code="")


def _read_blob(world: World, url: str) -> AzureReading:
    assert world.page_blob is not None, "unmanaged disks are not asked about here"
    asked = world.now()
    try:
        body = world.page_blob(url).properties()
    except SettingsError as error:
        return AzureReading(id=url, status=400, read_at=asked, code=str(error)[:200])
    except ApiError as error:
        return refusal(url, error, asked)
    return AzureReading(id=url, status=200, read_at=asked, body=body)


def refusal(resource_id: str, error: ApiError, asked: datetime) -> AzureReading:
    """An answer that is none; without a status the request was not answered at all."""
    status = error.status or (404 if isinstance(error, NotFoundError) else 503)
    return AzureReading(id=resource_id, status=status, read_at=asked, code=error.code or "")


def listed(kube: Kube, path: str, plural: str, selector: str = "") -> list[Document]:
    """All objects of a list, less what nobody here reads (environments of containers, images of nodes).

    `selector` is one of fields. A list that outlives the moment it began at is begun again, once.
    """
    slim = _SLIM.get(plural, _as_it_is)
    try:
        pages = list(kube.pages(path, fieldSelector=selector) if selector else kube.pages(path))
    except ConflictError:
        pages = list(kube.pages(path, fieldSelector=selector) if selector else kube.pages(path))
    return [slim(item) for page in pages for item in _items(page)]


def pods_of_node(kube: Kube, node: str) -> list[Document]:
    """Pods bound to a node, whether or not there is a Node of that name."""
    return listed(kube, PODS, "pods", f"spec.nodeName={node}")


class _Items(msgspec.Struct):
    items: list[Document] | None = None


class _Values(msgspec.Struct):
    value: list[Document] | None = None


def _items(page: bytes) -> list[Document]:
    return msgspec.json.decode(page, type=_Items).items or []


def _values(page: bytes) -> list[Document]:
    return msgspec.json.decode(page, type=_Values).value or []


def _unique(ids: Iterable[str]) -> list[str]:
    return list({key(resource_id): resource_id for resource_id in ids}.values())


# What is kept of large objects


def _as_it_is(document: Document) -> Document:
    metadata = {n: v for n, v in (document.get("metadata") or {}).items() if n != "managedFields"}
    return {**document, "metadata": metadata}


def _slim_node(document: Document) -> Document:
    status = document.get("status") or {}
    kept = {n: status[n] for n in ("conditions", "volumesInUse", "volumesAttached") if status.get(n)}
    return {**_as_it_is(document), "status": kept}


def _slim_pod(document: Document) -> Document:
    spec, status = document.get("spec") or {}, document.get("status") or {}
    volumes = [v for v in spec.get("volumes") or () if "persistentVolumeClaim" in v or "ephemeral" in v]
    spec = {"volumes": volumes, **{n: spec[n] for n in ("nodeName",) if spec.get(n)}}
    status = {n: status[n] for n in ("phase", "conditions") if status.get(n)}
    metadata = _as_it_is(document)["metadata"]
    return {"metadata": metadata, "spec": spec, "status": status}


_SLIM: Mapping[str, Callable[[Document], Document]] = {"nodes": _slim_node, "pods": _slim_pod}


def _slim_azure(document: Document) -> Document:
    """Without what machines say about their users and networks."""
    properties = dict(document.get("properties") or {})
    computer = (properties.get("osProfile") or {}).get("computerName")
    for name in ("osProfile", "networkProfile", "userData", "diagnosticsProfile", "extensionProfile"):
        properties.pop(name, None)
    properties |= {"osProfile": {"computerName": computer}} if computer else {}
    return {n: v for n, v in document.items() if n not in ("identity", "resources")} | {
        "properties": properties
    }


# The last look before a write


def look_again(
    observation: Observation, world: World, *, node: str, ids: Sequence[str], state: Document
) -> Observation:
    """The same observation with everything about one node, and with these machines and disks, read anew.

    What stays as it was (volumes, claims, other nodes) names things; what a write rests on is fresh.
    """
    known = observation.snapshot
    assert known is not None, "an observation that was not read from a snapshot cannot be renewed"
    now = world.now()
    kubernetes = {plural: list(listed_["items"]) for plural, listed_ in known.kubernetes.items()}
    if node:
        for plural, path in (("nodes", f"{NODES}/{node}"), ("leases", f"{LEASES}/{node}")):
            kubernetes[plural] = _renewed(kubernetes.get(plural, []), node, _one(world.kube, path, plural))
        others = [
            pod for pod in kubernetes.get("pods", []) if (pod.get("spec") or {}).get("nodeName") != node
        ]
        kubernetes["pods"] = [*others, *pods_of_node(world.kube, node)]
    kubernetes["volumeattachments"] = listed(world.kube, ATTACHMENTS, "volumeattachments")
    wanted = {resource_id.lower() for resource_id in ids}
    azure = [reading for reading in known.azure if reading.id.lower() not in wanted]
    azure += [read_single(world, resource_id) for resource_id in _unique(ids)]
    snapshot = msgspec.structs.replace(
        known,
        now=utc(now),
        kubernetes={plural: {"items": items} for plural, items in sorted(kubernetes.items())},
        azure=tuple(azure),
        state=state,
    )
    return read(snapshot)


def raw(observation: Observation, plural: str, name: str) -> Document | None:
    """An object of the observation as the API returned it."""
    assert observation.snapshot is not None
    found = (item for item in observation.snapshot.items(plural) if item["metadata"]["name"] == name)
    return next(found, None)


def _one(kube: Kube, path: str, plural: str) -> Document | None:
    found = kube.find(path)
    return _SLIM.get(plural, _as_it_is)(found) if found is not None else None


def _renewed(items: list[Document], name: str, found: Document | None) -> list[Document]:
    others = [item for item in items if item["metadata"]["name"] != name]
    return [*others, found] if found is not None else others
