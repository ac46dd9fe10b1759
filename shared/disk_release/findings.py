"""What is wrong with storage besides stuck disks: found, explained, never acted on; pure.

Why a PersistentVolumeClaim is Pending, in words; pods that a dead node keeps though none of their disks is
there; volumes and disks nobody claims, and what they cost; storage classes that cannot work in this cluster;
Azure Files mounted world-writable; two disks that a node has under one LUN; nodes whose slots are full.
Called by `decide`, which puts each under `leftAlone`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime

from shared.disk_release.cases import cases
from shared.disk_release.observation import Observation
from shared.disk_release.policy import DiskReleasePolicy
from shared.disk_release.rules import silent_for
from shared.model.disk import (
    CREATED_FOR_VOLUME,
    DISK_DRIVER,
    FILE_DRIVER,
    Claim,
    Disk,
    Event,
    Pod,
    StorageClass,
    key,
)
from shared.model.plan import LeftAlone

IN_TREE = {"kubernetes.io/azure-disk": DISK_DRIVER, "kubernetes.io/azure-file": FILE_DRIVER}
NO_PROVISIONER = "kubernetes.io/no-provisioner"
DISK_SKUS = frozenset(
    {
        "Standard_LRS",
        "StandardSSD_LRS",
        "StandardSSD_ZRS",
        "Premium_LRS",
        "Premium_ZRS",
        "PremiumV2_LRS",
        "UltraSSD_LRS",
    }
)

CLAIM_CAUSES = (
    (
        "waiting for first consumer",
        "WaitsForConsumer",
        "it is bound when the first pod that uses it is scheduled",
    ),
    ("authorizationfailed", "RoleMissing", "the disk driver's identity lacks a role on the resource group"),
    ("does not have authorization", "RoleMissing", "the disk driver's identity lacks a role"),
    ("quotaexceeded", "QuotaExceeded", "the subscription's quota of disks is used up; ask for more"),
    ("exceeding approved", "QuotaExceeded", "the subscription's quota is used up; ask for more"),
    ("operationnotallowed", "QuotaExceeded", "Azure refuses: mostly a quota of the subscription"),
    ("zonalallocationfailed", "ZoneFull", "the zone has no capacity for this SKU; try another zone or SKU"),
    ("skunotavailable", "SkuNotAvailable", "the SKU does not exist in this region or zone"),
    ("invalidparameter", "BadParameter", "Azure does not take a parameter of the storage class"),
    ("volume node affinity conflict", "ZoneConflict", "no node stands in the zone of the volume"),
    ("no persistent volumes available", "NoVolume", "no volume fits, and the class makes none"),
)
"""What an event says, in the order it is looked for."""


def findings(observation: Observation, policy: DiskReleasePolicy, now: datetime) -> Iterator[LeftAlone]:
    """All of them, in a stable order."""
    yield from pending_claims(observation)
    yield from kept_pods(observation, policy, now)
    yield from released_volumes(observation)
    yield from broken_classes(observation)
    yield from open_shares(observation)
    yield from shared_luns(observation)
    yield from full_nodes(observation)
    yield from unclaimed_disks(observation, policy, now)


# Claims


def pending_claims(observation: Observation) -> Iterator[LeftAlone]:
    """S12: why each waits."""
    for claim in sorted(observation.claims.values(), key=lambda claim: claim.title):
        if claim.phase == "Pending":
            reason, message = why_pending(claim, observation)
            yield LeftAlone(subject=f"pvc {claim.title}", reason=reason, message=f"Report (S12): {message}")


def why_pending(claim: Claim, observation: Observation) -> tuple[str, str]:
    """(reason, sentence): what keeps a claim from being bound, the surest cause first."""
    storage_class = _class_of(claim, observation)
    if storage_class is None:
        return _no_class(claim, observation)
    broken = class_problem(storage_class, observation)
    if broken:
        return broken
    events = _events(observation, "PersistentVolumeClaim", claim.namespace, claim.name)
    for event in events:
        text = event.message.lower()
        for part, reason, meaning in CLAIM_CAUSES:
            if part in text:
                return reason, f"{meaning} ({_short(event.message)})"
    if storage_class.waits_for_consumer:
        return _waits(claim, observation)
    if events:
        return "ProvisioningFailed", _short(events[0].message)
    return "NotProvisioned", f"provisioner {storage_class.provisioner} has not said anything yet"


def _class_of(claim: Claim, observation: Observation) -> StorageClass | None:
    if claim.storage_class is not None:
        return observation.classes.get(claim.storage_class)
    return next((found for found in observation.classes.values() if found.is_default), None)


def _no_class(claim: Claim, observation: Observation) -> tuple[str, str]:
    known = ", ".join(sorted(observation.classes)) or "none"
    if claim.storage_class:
        return "ClassMissing", f"there is no storage class '{claim.storage_class}'; there are: {known}"
    if claim.storage_class == "":
        return "NoVolume", "it asks for an existing volume (class ''), and none fits"
    return "NoDefaultClass", f"it names no storage class and none is the default; there are: {known}"


def _waits(claim: Claim, observation: Observation) -> tuple[str, str]:
    users = [p for p in observation.pods if p.namespace == claim.namespace and claim.name in p.claims]
    if not users:
        return "WaitsForConsumer", "no pod uses it yet; it is bound when the first one is scheduled"
    pod = users[0]
    if pod.unschedulable:
        return "PodUnschedulable", f"its pod {pod.title} cannot be scheduled: {_short(pod.unschedulable)}"
    return "WaitsForConsumer", f"it is bound when its pod {pod.title} is scheduled"


def _events(observation: Observation, kind: str, namespace: str, name: str) -> list[Event]:
    """Newest first."""
    found = [
        event
        for event in observation.events
        if (event.kind, event.namespace, event.name) == (kind, namespace, name)
    ]
    return sorted(found, key=lambda event: event.at or observation.now, reverse=True)


def _short(message: str) -> str:
    line = " ".join(message.split())
    return line if len(line) <= 200 else line[:197] + "..."


# Pods


def kept_pods(observation: Observation, policy: DiskReleasePolicy, now: datetime) -> Iterator[LeftAlone]:
    """S1 without a disk: a pod that a dead node keeps Terminating, with none of its disks there.

    No verdict is on it, since nothing holds its disk; and its StatefulSet makes no other while it is there.
    """
    going = [pod for pod in observation.pods if pod.deleting_since is not None and not pod.is_over]
    kept = [pod for pod in going if _is_dead(pod.node, observation, policy, now)]
    held = {(c.node_name, v.name) for c in (cases(observation) if kept else ()) for v in c.volumes}
    for pod in sorted(kept, key=lambda pod: pod.title):
        volumes = _disk_volumes(pod, observation)
        if volumes and not any((pod.node, name) in held for name in volumes):
            message = (
                f"Report (S1): dead node {pod.node} keeps it Terminating, and none of its disks is attached "
                f"there; power off or replace that machine, then: kubectl delete pod {pod.name} -n "
                f"{pod.namespace} --force"
            )
            yield LeftAlone(subject=f"pod {pod.title}", reason="PodKept", message=message)


def _is_dead(name: str, observation: Observation, policy: DiskReleasePolicy, now: datetime) -> bool:
    """Silent for its pool's grace, and not out of service: there the cluster itself deletes the pods."""
    node = observation.nodes.get(name)
    silence = silent_for(node, observation, now) if node else None
    if node is None or silence is None or node.out_of_service:
        return False
    return silence >= policy.grace_of(node.pool)


def _disk_volumes(pod: Pod, observation: Observation) -> list[str]:
    """The PersistentVolumes on disks that its claims are bound to."""
    claims = [observation.claims.get((pod.namespace, name)) for name in pod.claims]
    volumes = [observation.volumes.get(claim.volume) for claim in claims if claim]
    return [volume.name for volume in volumes if volume and volume.driver == DISK_DRIVER]


# Volumes


def released_volumes(observation: Observation) -> Iterator[LeftAlone]:
    """S11: their claim is gone."""
    for volume in sorted(observation.volumes.values(), key=lambda volume: volume.name):
        if volume.phase != "Released":
            continue
        claim = observation.claims.get((volume.claim_namespace, volume.claim_name))
        again = " (one of that name exists, with another uid)" if claim is not None else ""
        message = (
            f"Report (S11): its claim {volume.claim_namespace}/{volume.claim_name} is gone{again}; it holds "
            "that claim's data, and nobody gets it until an operator clears spec.claimRef or deletes it"
        )
        yield LeftAlone(subject=f"pv {volume.name}", reason="VolumeReleased", message=message)


def unclaimed_disks(
    observation: Observation, policy: DiskReleasePolicy, now: datetime
) -> Iterator[LeftAlone]:
    """Disks made for this cluster's volumes that no PersistentVolume names and nobody has attached."""
    singles = {name: fact.value for name, fact in observation.disks.items() if fact.value}
    for name, disk in sorted({**observation.census, **singles}.items()):
        made_for = disk.tags.get(CREATED_FOR_VOLUME)
        if (
            not made_for
            or disk.owners
            or name in observation.volumes_of_disk
            or made_for in observation.volumes
        ):
            continue
        price = monthly_price(disk, policy)
        cost = f", about {price:.2f} a month" if price is not None else ""
        age = f", {(now - disk.created_at).days} days old" if disk.created_at else ""
        message = (
            f"Report: made for PersistentVolume {made_for}, which this cluster does not have; attached to "
            f"nothing{age}; {disk.size_gib} GiB {disk.sku}{cost}; delete it if no other cluster needs it"
        )
        yield LeftAlone(subject=f"disk {disk.id.rpartition('/')[2]}", reason="DiskUnclaimed", message=message)


def monthly_price(disk: Disk, policy: DiskReleasePolicy) -> float | None:
    """By the policy's table; None for a SKU it does not have."""
    price = policy.prices_per_gib_month.get(disk.sku)
    return None if price is None else price * disk.size_gib


# Storage classes


def broken_classes(observation: Observation) -> Iterator[LeftAlone]:
    """Classes that can never provide a volume here."""
    for storage_class in sorted(observation.classes.values(), key=lambda found: found.name):
        problem = class_problem(storage_class, observation)
        if problem:
            reason, message = problem
            subject = f"storageclass {storage_class.name}"
            yield LeftAlone(subject=subject, reason=reason, message=f"Report: {message}")


def class_problem(storage_class: StorageClass, observation: Observation) -> tuple[str, str] | None:
    """(reason, sentence) why a class cannot work, or None. Drivers are those that nodes have registered."""
    driver = IN_TREE.get(storage_class.provisioner, storage_class.provisioner)
    registered = {name for node in observation.csi_nodes.values() for name in node.drivers}
    name = storage_class.name
    if driver not in registered and observation.csi_nodes and driver != NO_PROVISIONER:
        return "DriverMissing", f"class {name} needs driver {driver}, which no node has registered"
    zones = {node.zone for node in observation.nodes.values() if node.zone}
    if storage_class.zones and zones and not zones & set(storage_class.zones):
        where = ", ".join(storage_class.zones)
        return "ZoneMissing", f"class {name} is for {where}; nodes stand in {', '.join(sorted(zones))}"
    if driver == DISK_DRIVER:
        return _sku_problem(storage_class, zones)
    return None


def _sku_problem(storage_class: StorageClass, zones: set[str]) -> tuple[str, str] | None:
    parameters = {name.lower(): value for name, value in storage_class.parameters.items()}
    sku = parameters.get("skuname") or parameters.get("storageaccounttype") or "StandardSSD_LRS"
    name = storage_class.name
    if sku.lower() not in {known.lower() for known in DISK_SKUS}:
        return "SkuUnknown", f"class {name} asks for SKU {sku}; there are: {', '.join(sorted(DISK_SKUS))}"
    has_zones = any(re.search(r"-\d+$", zone) for zone in zones)
    if sku.lower() in ("ultrassd_lrs", "premiumv2_lrs") and zones and not has_zones:
        return "SkuNeedsZone", f"class {name}: {sku} exists in zones only, and no node stands in one"
    caching = parameters.get("cachingmode", "").lower()
    if sku.lower() in ("ultrassd_lrs", "premiumv2_lrs") and caching not in ("", "none"):
        return "CachingNotAllowed", f"class {name}: {sku} takes no host cache; set cachingMode: None"
    return None


# Azure Files


def open_shares(observation: Observation) -> Iterator[LeftAlone]:
    """Shares that everybody in a pod may write: the driver's default 0777, which databases refuse to use."""
    for storage_class in sorted(observation.classes.values(), key=lambda found: found.name):
        driver = IN_TREE.get(storage_class.provisioner, storage_class.provisioner)
        protocol = storage_class.parameters.get("protocol", "smb").lower()
        if driver == FILE_DRIVER and protocol != "nfs" and is_world_writable(storage_class.mount_options):
            yield _open(
                f"storageclass {storage_class.name}", "new volumes get these options; old ones keep theirs"
            )
    for volume in sorted(observation.volumes.values(), key=lambda volume: volume.name):
        protocol = volume.attributes.get("protocol", "smb").lower()
        if volume.driver == FILE_DRIVER and protocol != "nfs" and is_world_writable(volume.mount_options):
            yield _open(f"pv {volume.name}", "takes effect when its pods start anew")


def is_world_writable(options: tuple[str, ...]) -> bool:
    """Whether dir_mode or file_mode lets others write; both are 0777 where nothing is said."""
    modes = dict(option.split("=", 1) for option in options if "=" in option)
    asked = [modes.get(name, "0777") for name in ("dir_mode", "file_mode")]
    return any(re.fullmatch(r"[0-7]{3,4}", mode) and int(mode, 8) & 0o002 for mode in asked)


def _open(subject: str, when: str) -> LeftAlone:
    message = (
        "Report: mounted world-writable (0777); set mountOptions dir_mode=0750, file_mode=0640, uid=, gid= "
        f"of the application, mfsymlinks, and for databases on SMB nobrl; {when}"
    )
    return LeftAlone(subject=subject, reason="ShareWorldWritable", message=message)


# Nodes


def shared_luns(observation: Observation) -> Iterator[LeftAlone]:
    """S6: two attachments of a node under one LUN; the driver finds disks by LUN, so two pods share one."""
    for node, attachments in sorted(observation.attachments_of_node.items()):
        by_lun: dict[int, list[str]] = {}
        for attachment in attachments:
            if attachment.lun is not None and attachment.attached and attachment.driver == DISK_DRIVER:
                by_lun.setdefault(attachment.lun, []).append(attachment.name)
        for lun, names in sorted(by_lun.items()):
            if len(names) > 1:
                message = (
                    f"Report (S6): VolumeAttachments {', '.join(sorted(names))} of node {node} both say LUN "
                    f"{lun}; one mount is stale: kubectl cordon {node}, drain it, delete the stale one last"
                )
                yield LeftAlone(subject=f"node {node}", reason="LunShared", message=message)


def full_nodes(observation: Observation) -> Iterator[LeftAlone]:
    """S15: nodes whose slots are all taken, with what takes them for nothing."""
    for machine in sorted(observation.machines):
        found = observation.machines[machine].value
        node = observation.node_of_machine.get(machine)
        csi = observation.csi_nodes.get(node.name) if node else None
        limit = csi.drivers.get(DISK_DRIVER) if csi else None
        if found is None or node is None or limit is None or len(found.data_disks) < limit:
            continue
        known = {
            key(observation.volumes[a.volume].handle)
            for a in observation.attachments_of_node.get(node.name, ())
            if a.volume in observation.volumes
        }
        idle = [entry.disk.rpartition("/")[2] for entry in found.data_disks if entry.key not in known]
        wasted = f"; of no use to Kubernetes: {', '.join(idle)}" if idle else ""
        message = f"Report (S15): {len(found.data_disks)} of {limit} slots for disks are taken{wasted}"
        yield LeftAlone(subject=f"node {node.name}", reason="SlotsFull", message=message)
