"""Plays the external-provisioner of the Azure disk driver: disks and volumes for claims, and their end.

A claim of a StorageClass of this driver gets a disk in the local Azure, with the tags that real ones have, in
the zone of the node that the scheduler has chosen (`WaitForFirstConsumer`) or of any node (`Immediate`). A
PersistentVolume is set aside for it. A released volume whose policy is Delete goes with its disk, once no
machine has that attached.
"""

from __future__ import annotations

from datetime import timedelta

from sandbox.arm import LOCATION, LocalArm
from sandbox.disk_driver import DRIVER
from sandbox.kube import kinds
from sandbox.kube.controllers import Dirty, every
from sandbox.kube.objects import Objects, is_going
from sandbox.kube.quantities import NANO, amounts
from sandbox.kube.scheduler import SELECTED_NODE
from sandbox.kube.store import Document
from sandbox.kube.volumes import CLAIMS, VOLUMES

CLASSES = kinds.named("storageclasses", "storage.k8s.io")
ZONE_LABEL = "topology.disk.csi.azure.com/zone"
RETRY = timedelta(seconds=5)
BY = f"{DRIVER}_provisioner"
_PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
_GIB = 1 << 30


class DiskProvisioner:
    """One controller of the local Kubernetes (see `LocalKubernetes.add_controller`)."""

    def __init__(self, objects: Objects, arm: LocalArm) -> None:
        self._objects = objects
        self._arm = arm
        every(objects, RETRY, self._delete_released)

    def sync(self, dirty: Dirty) -> None:
        if not dirty.get(CLAIMS) and not dirty.get(CLASSES):
            return
        for claim in self._objects.all(CLAIMS):
            if not claim["spec"].get("volumeName") and not is_going(claim):
                self._provision(claim)

    def _provision(self, claim: Document) -> None:
        found = self._objects.get(CLASSES, claim["spec"].get("storageClassName") or "")
        if found is None or found.get("provisioner") != DRIVER:
            return
        name = f"pvc-{claim['metadata']['uid']}"
        node = self._node_for(claim, found)
        if node is None or self._objects.get(VOLUMES, name) is not None:
            return
        zone = (node["metadata"].get("labels") or {}).get(ZONE_LABEL, "")
        size = amounts(claim["spec"]["resources"]["requests"])["storage"]
        disk = self._arm.add_disk(
            name,
            size_gb=max(1, -(-size // NANO // _GIB)),
            zone=zone.rpartition("-")[2],
            tagged=disk_tags(name, claim["metadata"]["name"], claim["metadata"]["namespace"]),
        )
        self._objects.create(VOLUMES, self._volume(name, disk, claim, found, zone))
        message = f"Successfully provisioned volume {name}"
        self._objects.tell(CLAIMS, claim, "ProvisioningSucceeded", message, by=BY)

    def _node_for(self, claim: Document, found: Document) -> Document | None:
        if found.get("volumeBindingMode") != "WaitForFirstConsumer":
            nodes = self._objects.all(kinds.NODES)
            # Spread by the claim's name, as the real one does with StatefulSets' claims.
            return nodes[sum(map(ord, claim["metadata"]["name"])) % len(nodes)] if nodes else None
        chosen = (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE, "")
        return self._objects.get(kinds.NODES, chosen)

    def _volume(self, name: str, disk: str, claim: Document, found: Document, zone: str) -> Document:
        reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "uid": claim["metadata"]["uid"]}
        reference |= {key: claim["metadata"][key] for key in ("name", "namespace")}
        spec: Document = {
            "accessModes": claim["spec"]["accessModes"],
            "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
            "claimRef": reference,
            "csi": {"driver": DRIVER, "volumeHandle": disk, "fsType": "ext4"},
            "persistentVolumeReclaimPolicy": found.get("reclaimPolicy", "Delete"),
            "storageClassName": found["metadata"]["name"],
        }
        term = {"key": ZONE_LABEL, "operator": "In", "values": [zone]}
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": [{"matchExpressions": [term]}]}}
        return {"metadata": {"name": name, "annotations": {_PROVISIONED_BY: DRIVER}}, "spec": spec}

    def _delete_released(self) -> None:
        for volume in self._objects.all(VOLUMES):
            spec, annotations = volume["spec"], volume["metadata"].get("annotations") or {}
            is_ours = annotations.get(_PROVISIONED_BY) == DRIVER
            is_over = volume["status"].get("phase") == "Released"
            if not is_ours or not is_over or spec.get("persistentVolumeReclaimPolicy") != "Delete":
                continue
            with self._arm.core.lock:
                disk = self._arm.core.state.find(spec["csi"]["volumeHandle"])
                if disk is not None and disk.body.get("managedBy"):
                    continue
                if disk is not None:
                    self._arm.core.do("DELETE", disk.id)
            self._objects.delete(VOLUMES, volume)


def disk_tags(volume: str, claim: str, namespace: str) -> dict[str, str]:
    """What the driver writes on a disk that it makes."""
    return {
        "k8s-azure-created-by": "kubernetes-azure-dd",
        "kubernetes.io-created-for-pv-name": volume,
        "kubernetes.io-created-for-pvc-name": claim,
        "kubernetes.io-created-for-pvc-namespace": namespace,
    }


def storage_class(name: str, *, immediate: bool = False, reclaim: str = "Delete") -> Document:
    """As AKS's `managed-csi`."""
    return {
        "metadata": {"name": name},
        "provisioner": DRIVER,
        "parameters": {"skuName": "Premium_LRS", "location": LOCATION},
        "reclaimPolicy": reclaim,
        "volumeBindingMode": "Immediate" if immediate else "WaitForFirstConsumer",
        "allowVolumeExpansion": True,
    }
