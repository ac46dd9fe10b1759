"""Raw API objects, as Kubernetes and Resource Manager answer them, to `shared.model.disk`; pure.

Takes what it needs and passes over the rest. MessageError names the object whose shape is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from shared.errors import MessageError
from shared.model.disk import (
    DISK_DRIVER,
    IN_TREE_DISK,
    Attachment,
    Blob,
    Claim,
    CsiNode,
    DataDisk,
    Disk,
    Event,
    Machine,
    Node,
    Pod,
    Readiness,
    StorageClass,
    Taint,
    Volume,
    is_disk_id,
    is_machine_id,
)

MACHINE, DISK, BLOB = "machine", "disk", "blob"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"

Document = Mapping[str, Any]
T = TypeVar("T")


def kind_of(resource_id: str) -> str:
    """What a reading is about; "" for lists and everything else."""
    if is_machine_id(resource_id):
        return MACHINE
    if is_disk_id(resource_id):
        return DISK
    return BLOB if resource_id.startswith("https://") else ""


def objects(items: Iterable[Any]) -> list[Document]:
    """List items that are objects with a name; MessageError for anything else."""
    found = list(items)
    for item in found:
        if not isinstance(item, dict) or not isinstance((item.get("metadata") or {}).get("name"), str):
            raise MessageError("a list item is not an object with metadata.name")
    return found


def parsed(parse: Callable[[Document], T]) -> Callable[[Document], T]:
    """Turn what a wrong shape raises into one line that names the object."""

    def wrapped(document: Document) -> T:
        try:
            return parse(document)
        except (AttributeError, KeyError, TypeError, ValueError, msgspec.MsgspecError) as error:
            name = document.get("id") or (document.get("metadata") or {}).get("name") or "?"
            raise MessageError(
                f"{parse.__name__} '{name}' has not the shape of an API object: {error}"
            ) from error

    return wrapped


def time_of(text: Any) -> datetime | None:
    """An RFC 3339 time; None for nothing, ValueError (msgspec's) for anything else."""
    return msgspec.convert(text, datetime) if text else None


# Kubernetes


def _meta(document: Document) -> Mapping[str, Any]:
    found: Mapping[str, Any] = document.get("metadata") or {}
    return found


def leases(items: Iterable[Document]) -> dict[str, datetime]:
    """When each node's lease was last renewed, by the node's name."""
    found = {}
    for item in objects(items):
        renewed = time_of((item.get("spec") or {}).get("renewTime"))
        if renewed and _meta(item).get("namespace", "kube-node-lease") == "kube-node-lease":
            found[_meta(item)["name"]] = renewed
    return found


def node(document: Document, renewed: Mapping[str, datetime]) -> Node:
    return parsed(lambda document: _node(document, renewed))(document)


def _node(document: Document, renewed: Mapping[str, datetime]) -> Node:
    meta, spec, status = _meta(document), document.get("spec") or {}, document.get("status") or {}
    ready: Document = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})
    return Node(
        name=meta["name"],
        uid=meta.get("uid", ""),
        version=meta.get("resourceVersion", ""),
        ready=Readiness(ready.get("status", "Unknown")),
        ready_since=time_of(ready.get("lastTransitionTime")),
        renewed_at=renewed.get(meta["name"]) or time_of(ready.get("lastHeartbeatTime")),
        created_at=time_of(meta.get("creationTimestamp")),
        provider_id=spec.get("providerID") or "",
        is_unschedulable=bool(spec.get("unschedulable")),
        taints=tuple(
            Taint(t["key"], t.get("effect", ""), t.get("value", ""), time_of(t.get("timeAdded")))
            for t in spec.get("taints") or ()
        ),
        labels=meta.get("labels") or {},
        annotations=meta.get("annotations") or {},
        volumes_in_use=frozenset(status.get("volumesInUse") or ()),
        volumes_attached=frozenset(entry["name"] for entry in status.get("volumesAttached") or ()),
    )


@parsed
def pod(document: Document) -> Pod:
    meta, spec, status = _meta(document), document.get("spec") or {}, document.get("status") or {}
    claims = [
        v["persistentVolumeClaim"]["claimName"]
        for v in spec.get("volumes") or ()
        if v.get("persistentVolumeClaim")
    ]
    claims += [f"{meta['name']}-{v['name']}" for v in spec.get("volumes") or () if v.get("ephemeral")]
    owner = next((o for o in meta.get("ownerReferences") or () if o.get("controller")), None)
    scheduled: Document = next(
        (c for c in status.get("conditions") or () if c.get("type") == "PodScheduled"), {}
    )
    return Pod(
        namespace=meta.get("namespace", "default"),
        name=meta["name"],
        uid=meta.get("uid", ""),
        version=meta.get("resourceVersion", ""),
        node=spec.get("nodeName") or "",
        phase=status.get("phase", "Pending"),
        claims=tuple(claims),
        labels=meta.get("labels") or {},
        owner=f"{owner['kind']}/{owner['name']}" if owner else "",
        created_at=time_of(meta.get("creationTimestamp")),
        deleting_since=time_of(meta.get("deletionTimestamp")),
        unschedulable=scheduled.get("message", "") if scheduled.get("status") == "False" else "",
    )


@parsed
def volume(document: Document) -> Volume:
    meta, spec = _meta(document), document.get("spec") or {}
    csi, in_tree = spec.get("csi") or {}, spec.get("azureDisk") or {}
    claim = spec.get("claimRef") or {}
    return Volume(
        name=meta["name"],
        uid=meta.get("uid", ""),
        # In-tree disks are migrated: their attachments and the node's status name the CSI driver.
        driver=csi.get("driver") or (DISK_DRIVER if in_tree else ""),
        handle=csi.get("volumeHandle") or in_tree.get("diskURI", ""),
        phase=(document.get("status") or {}).get("phase", "Available"),
        claim_namespace=claim.get("namespace", ""),
        claim_name=claim.get("name", ""),
        claim_uid=claim.get("uid", ""),
        storage_class=spec.get("storageClassName", ""),
        access_modes=tuple(spec.get("accessModes") or ()),
        reclaim_policy=spec.get("persistentVolumeReclaimPolicy", "Retain"),
        mount_options=tuple(spec.get("mountOptions") or ()),
        zones=_zones(((spec.get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms")),
        attributes=csi.get("volumeAttributes") or {},
    )


def _zones(terms: Sequence[Document] | None) -> tuple[str, ...]:
    """Values of every expression on a zone label, in the terms of an affinity or of allowed topologies."""
    found: list[str] = []
    for term in terms or ():
        for wanted in (*(term.get("matchExpressions") or ()), *(term.get("matchLabelExpressions") or ())):
            if wanted.get("key", "").endswith("/zone"):
                found += wanted.get("values") or ()
    return tuple(dict.fromkeys(zone for zone in found if zone))


@parsed
def claim(document: Document) -> Claim:
    meta, spec = _meta(document), document.get("spec") or {}
    return Claim(
        namespace=meta.get("namespace", "default"),
        name=meta["name"],
        uid=meta.get("uid", ""),
        phase=(document.get("status") or {}).get("phase", "Pending"),
        volume=spec.get("volumeName") or "",
        storage_class=spec.get("storageClassName"),
        access_modes=tuple(spec.get("accessModes") or ()),
        created_at=time_of(meta.get("creationTimestamp")),
    )


@parsed
def attachment(document: Document) -> Attachment:
    meta, spec, status = _meta(document), document.get("spec") or {}, document.get("status") or {}
    lun = (status.get("attachmentMetadata") or {}).get("LUN")
    return Attachment(
        name=meta["name"],
        uid=meta.get("uid", ""),
        version=meta.get("resourceVersion", ""),
        driver=DISK_DRIVER if spec["attacher"] == IN_TREE_DISK else spec["attacher"],
        node=spec["nodeName"],
        volume=(spec.get("source") or {}).get("persistentVolumeName", ""),
        attached=bool(status.get("attached")),
        deleting_since=time_of(meta.get("deletionTimestamp")),
        created_at=time_of(meta.get("creationTimestamp")),
        finalizers=tuple(meta.get("finalizers") or ()),
        lun=int(lun) if lun is not None else None,
        attach_error=(status.get("attachError") or {}).get("message", ""),
        detach_error=(status.get("detachError") or {}).get("message", ""),
    )


@parsed
def csi_node(document: Document) -> CsiNode:
    drivers = (document.get("spec") or {}).get("drivers") or ()
    return CsiNode(
        name=_meta(document)["name"],
        drivers={d["name"]: (d.get("allocatable") or {}).get("count") for d in drivers},
    )


@parsed
def storage_class(document: Document) -> StorageClass:
    meta = _meta(document)
    return StorageClass(
        name=meta["name"],
        provisioner=document["provisioner"],
        parameters=document.get("parameters") or {},
        mount_options=tuple(document.get("mountOptions") or ()),
        waits_for_consumer=document.get("volumeBindingMode") == "WaitForFirstConsumer",
        zones=_zones(document.get("allowedTopologies")),
        is_default=(meta.get("annotations") or {}).get(DEFAULT_CLASS) == "true",
    )


@parsed
def event(document: Document) -> Event:
    about = document.get("involvedObject") or document.get("regarding") or {}
    series = document.get("series") or {}
    at = series.get("lastObservedTime") or document.get("lastTimestamp") or document.get("eventTime")
    return Event(
        kind=about.get("kind", ""),
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        reason=document.get("reason") or "",
        message=document.get("message") or document.get("note") or "",
        at=time_of(at or document.get("deprecatedLastTimestamp")),
    )


# Azure


@parsed
def machine(document: Document) -> Machine:
    properties = document.get("properties") or {}
    storage = properties.get("storageProfile") or {}
    found = Machine(
        id=document["id"],
        vm_id=properties.get("vmId", ""),
        provisioning=properties.get("provisioningState", "Unknown"),
        computer_name=(properties.get("osProfile") or {}).get("computerName", ""),
        os_disk=_disk_of(storage.get("osDisk") or {}),
        data_disks=tuple(_data_disk(entry) for entry in storage.get("dataDisks") or ()),
        zones=tuple(document.get("zones") or ()),
        etag=document.get("etag", ""),
    )
    view = properties.get("instanceView")
    return with_view(found, view) if view else found


def with_view(found: Machine, view: Document) -> Machine:
    """The machine with what its instance view says."""
    codes = [status.get("code", "") for status in view.get("statuses") or ()]
    failed: Document = next(
        (s for s in view.get("statuses") or () if s.get("code", "").startswith("ProvisioningState/failed")),
        {},
    )
    return msgspec.structs.replace(
        found,
        power=next((c.partition("/")[2].lower() for c in codes if c.startswith("PowerState/")), "unknown"),
        is_hibernated=any(code.lower() == "hibernationstate/hibernated" for code in codes),
        failure=failed.get("message", "") or failed.get("code", ""),
    )


def _disk_of(entry: Document) -> str:
    return str((entry.get("managedDisk") or {}).get("id") or (entry.get("vhd") or {}).get("uri") or "")


def _data_disk(entry: Document) -> DataDisk:
    return DataDisk(
        disk=_disk_of(entry),
        lun=entry["lun"],
        caching=entry.get("caching") or "None",
        to_be_detached=bool(entry.get("toBeDetached")),
        detach_option=entry.get("detachOption") or "",
        delete_option=entry.get("deleteOption") or "Detach",
    )


def is_disk(document: Any) -> bool:
    return isinstance(document, dict) and is_disk_id(str(document.get("id", "")))


@parsed
def disk(document: Document) -> Disk:
    properties = document.get("properties") or {}
    shares = [share["vmUri"] for share in properties.get("shareInfo") or ()]
    return Disk(
        id=document["id"],
        unique_id=properties.get("uniqueId", ""),
        managed_by=document.get("managedBy") or "",
        managed_by_extended=tuple(document.get("managedByExtended") or shares),
        state=properties.get("diskState", ""),
        max_shares=int(properties.get("maxShares") or 1),
        owner_changed_at=time_of(properties.get("LastOwnershipUpdateTime")),
        created_at=time_of(properties.get("timeCreated")),
        os_type=properties.get("osType") or "",
        tags=document.get("tags") or {},
        zones=tuple(document.get("zones") or ()),
        sku=(document.get("sku") or {}).get("name", ""),
        size_gib=int(properties.get("diskSizeGB") or 0),
    )


@parsed
def blob(document: Document) -> Blob:
    """A page blob as `{"etag", "leaseState", "metadata", "snapshot"}`, the headers of its properties."""
    metadata = {name.lower(): value for name, value in (document.get("metadata") or {}).items()}
    return Blob(
        uri=document["id"],
        etag=document.get("etag", ""),
        lease=document.get("leaseState", ""),
        owner=metadata.get("microsoftazurecompute_vmname", ""),
        snapshot=document.get("snapshot") or "",
    )
