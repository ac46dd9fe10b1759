"""Claims are bound to volumes, and volumes attached to the nodes of the pods that mount them.

The attach/detach controller: VolumeAttachments come when a pod is bound to a node and go when the last such
pod has gone and the node no longer reports the volume in use; after 6 minutes also without that, if the node
is not ready; at once, if the node is out of service. Who acts on the attachments is `sandbox.attacher`, or
`sandbox.kube.kubelets` in simulated time; who makes volumes is `sandbox.disk_provisioner`. Not modelled:
in-tree drivers, resizing, protection of claims and volumes in use by finalizers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction

from sandbox.kube import kinds
from sandbox.kube.controllers import Dirty
from sandbox.kube.lifecycle import OUT_OF_SERVICE, node_taints
from sandbox.kube.objects import Objects, is_going, is_over, is_true, key_of
from sandbox.kube.quantities import quantity
from sandbox.kube.scheduler import claims_of
from sandbox.kube.store import Document, Key
from sandbox.node_agent import CONTROLLER_ATTACHES, volume_name

CLAIMS, VOLUMES = kinds.named("persistentvolumeclaims"), kinds.named("persistentvolumes")
DRIVERS = kinds.named("csidrivers", "storage.k8s.io")
UNMOUNT_TIMEOUT = timedelta(minutes=6)
"""How long an unready node's word that it uses a volume is respected."""
_BY = "attachdetach-controller"
_SHARED_MODES = {"ReadWriteMany", "ReadOnlyMany"}


class VolumeBinder:
    """Binds claims to volumes that exist, and lets volumes go whose claim has gone."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def sync(self, dirty: Dirty) -> None:
        if not dirty.get(CLAIMS) and not dirty.get(VOLUMES):
            return
        for claim in self._objects.all(CLAIMS):
            if claim["status"].get("phase") != "Bound" and not is_going(claim):
                self._bind(claim)
        for volume in self._objects.all(VOLUMES):
            self._follow(volume)

    def _bind(self, claim: Document) -> None:
        volume = self._match(claim)
        if volume is None:
            return
        namespace, name = key_of(claim)
        reference = {"kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": namespace}
        reference |= {"name": name, "uid": claim["metadata"]["uid"]}
        volume = self._objects.change(VOLUMES, volume, spec={**volume["spec"], "claimRef": reference})
        self._objects.change_status(VOLUMES, volume, phase="Bound")
        spec = {**claim["spec"], "volumeName": volume["metadata"]["name"]}
        claim = self._objects.change(CLAIMS, claim, spec=spec)
        modes, capacity = volume["spec"].get("accessModes"), volume["spec"].get("capacity")
        self._objects.change_status(CLAIMS, claim, phase="Bound", accessModes=modes, capacity=capacity)

    def _match(self, claim: Document) -> Document | None:
        wanted = claim["spec"].get("volumeName")
        found = [self._objects.get(VOLUMES, wanted)] if wanted else self._objects.all(VOLUMES)
        fitting = [volume for volume in found if volume is not None and _fits(claim, volume)]
        return min(fitting, key=_size, default=None)

    def _follow(self, volume: Document) -> None:
        reference, phase = volume["spec"].get("claimRef"), volume["status"].get("phase")
        if reference is None or not reference.get("uid"):
            if phase == "Pending":
                self._objects.change_status(VOLUMES, volume, phase="Available")
            return
        claim = self._objects.get(CLAIMS, reference["name"], reference["namespace"])
        is_there = claim is not None and claim["metadata"]["uid"] == reference["uid"]
        if not is_there and phase != "Released":
            self._objects.change_status(VOLUMES, volume, phase="Released")


def _size(volume: Document) -> Fraction:
    return quantity(str((volume["spec"].get("capacity") or {}).get("storage", "0")))


def _fits(claim: Document, volume: Document) -> bool:
    spec, wanted = volume["spec"], claim["spec"]
    reference = spec.get("claimRef")
    if reference is not None:
        uid = claim["metadata"]["uid"]
        if (reference["namespace"], reference["name"]) != key_of(claim) or reference.get("uid", uid) != uid:
            return False
    elif wanted.get("storageClassName", "") != spec.get("storageClassName", ""):
        return False
    asked = quantity(str(((wanted.get("resources") or {}).get("requests") or {}).get("storage", "0")))
    have = quantity(str((spec.get("capacity") or {}).get("storage", "0")))
    modes = set(wanted.get("accessModes") or ())
    return asked <= have and modes <= set(spec.get("accessModes") or ()) and not is_going(volume)


@dataclass
class _Use:
    """A volume that pods of one node want."""

    volume: Document
    node: str
    pods: list[Document] = field(default_factory=list)


def attachment_name(driver: str, handle: str, node: str) -> str:
    return "csi-" + hashlib.sha256(f"{handle}{driver}{node}".encode()).hexdigest()


def volumes_to_attach(objects: Objects, pod: Document) -> Iterator[Document]:
    """The volumes a pod mounts that have to be attached to its node first."""
    for name in claims_of(pod):
        claim = objects.get(CLAIMS, name, pod["metadata"]["namespace"])
        if claim is None or claim["status"].get("phase") != "Bound":
            continue
        volume = objects.get(VOLUMES, claim["spec"]["volumeName"])
        if volume is None or not volume["spec"].get("csi"):
            continue
        driver = objects.get(DRIVERS, volume["spec"]["csi"]["driver"])
        if driver is None or (driver.get("spec") or {}).get("attachRequired", True):
            yield volume


def unique_name(volume: Document) -> str:
    """How a node's status names a volume."""
    csi = volume["spec"]["csi"]
    return volume_name(csi["driver"], csi["volumeHandle"])


class AttachDetach:
    """Brings VolumeAttachments and the nodes' `volumesAttached` in line with where pods are."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._mounting: dict[Key, Document] = {}
        """The pods that have claims."""
        self._in_use: dict[str, set[str]] = {}
        """What each node has said last that it uses; kept of nodes that are gone, as nobody takes it back."""
        self._asked: dict[str, datetime] = {}
        """Since when attachments are to go, by their names."""
        self._told: set[tuple[str, str]] = set()

    def sync(self, dirty: Dirty) -> None:
        others = (kinds.NODES, kinds.ATTACHMENTS, CLAIMS, VOLUMES, DRIVERS)
        if not self._note_pods(dirty) and not any(dirty.get(kind) for kind in others):
            return
        for _, name in sorted(dirty.get(kinds.NODES, ())):
            node = self._objects.get(kinds.NODES, name)
            if node is not None:
                self._in_use[name] = set(node["status"].get("volumesInUse") or ())
        self._reconcile()

    def _note_pods(self, dirty: Dirty) -> bool:
        """Whether any that has claims has come, gone or changed."""
        is_any = False
        for key in dirty.get(kinds.PODS, ()):
            pod = self._objects.get(kinds.PODS, key[1], key[0])
            if pod is not None and claims_of(pod):
                self._mounting[key] = pod
                is_any = True
            elif self._mounting.pop(key, None) is not None:
                is_any = True
        return is_any

    def _reconcile(self) -> None:
        uses = self._uses()
        attachments = {a["metadata"]["name"]: a for a in self._objects.all(kinds.ATTACHMENTS)}
        for name, attachment in attachments.items():
            if name in uses:
                self._asked.pop(name, None)
            elif name.startswith("csi-"):
                self._detach(attachment)
        for gone in set(self._asked) - set(attachments):
            del self._asked[gone]
        for name, use in uses.items():
            if name not in attachments:
                self._attach(name, use, uses)
            else:
                self._tell(attachments[name], use)
        self._report(uses)

    def _uses(self) -> dict[str, _Use]:
        uses: dict[str, _Use] = {}
        for _, pod in sorted(self._mounting.items(), key=lambda item: item[0]):
            node = self._objects.get(kinds.NODES, pod["spec"].get("nodeName") or "")
            if node is None or is_over(pod) or not _is_left_to_us(node):
                continue
            for volume in volumes_to_attach(self._objects, pod):
                csi, name = volume["spec"]["csi"], node["metadata"]["name"]
                title = attachment_name(csi["driver"], csi["volumeHandle"], name)
                uses.setdefault(title, _Use(volume, name)).pods.append(pod)
        return uses

    # Attaching

    def _attach(self, name: str, use: _Use, uses: dict[str, _Use]) -> None:
        volume = use.volume["metadata"]["name"]
        if all(is_going(pod) for pod in use.pods):
            return
        elsewhere = [a for a in self._objects.all(kinds.ATTACHMENTS) if _volume(a) == volume]
        if elsewhere and not _SHARED_MODES & set(use.volume["spec"].get("accessModes") or ()):
            others = [u for u in uses.values() if u.node != use.node and u.volume is use.volume]
            self._tell_waiting(use, others)
            return
        document = {
            "metadata": {"name": name},
            "spec": {
                "attacher": use.volume["spec"]["csi"]["driver"],
                "nodeName": use.node,
                "source": {"persistentVolumeName": volume},
            },
        }
        self._objects.create(kinds.ATTACHMENTS, document)

    def _tell_waiting(self, use: _Use, others: list[_Use]) -> None:
        volume = use.volume["metadata"]["name"]
        pods = [pod for other in others for pod in other.pods]
        for pod in use.pods:
            if self._is_told(pod, f"wait {volume}"):
                continue
            names = [key_of(other)[1] for other in pods if key_of(other)[0] == key_of(pod)[0]]
            why = f"Volume is already used by pod(s) {', '.join(names)}"
            if not names:
                why = (
                    "Volume is already exclusively attached to one node, waiting on detach before it can be "
                    "attached to another node"
                )
            message = f'Waiting for detach for volume "{volume}" {why}'
            self._objects.tell(kinds.PODS, pod, "FailedAttachVolume", message, by=_BY, is_warning=True)

    def _tell(self, attachment: Document, use: _Use) -> None:
        volume, status = use.volume["metadata"]["name"], attachment["status"]
        trouble = (status.get("attachError") or {}).get("message", "")
        for pod in use.pods:
            if status.get("attached"):
                if not self._is_told(pod, f"attached {volume}"):
                    message = f'AttachVolume.Attach succeeded for volume "{volume}" '
                    self._objects.tell(kinds.PODS, pod, "SuccessfulAttachVolume", message, by=_BY)
            elif trouble and not self._is_told(pod, f"failed {volume} {trouble}"):
                message = f'AttachVolume.Attach failed for volume "{volume}" : {trouble}'
                self._objects.tell(kinds.PODS, pod, "FailedAttachVolume", message, by=_BY, is_warning=True)

    def _is_told(self, pod: Document, what: str) -> bool:
        """Whether it has been said before; from now on it has."""
        saying = (pod["metadata"]["uid"], what)
        was_told = saying in self._told
        self._told.add(saying)
        return was_told

    # Detaching

    def _detach(self, attachment: Document) -> None:
        name = attachment["metadata"]["name"]
        now = self._objects.now()
        if name not in self._asked:
            self._asked[name] = now
            self._objects.later(UNMOUNT_TIMEOUT.total_seconds() + 1, self._reconcile)
        if is_going(attachment) or not self._may_detach(attachment, now - self._asked[name]):
            return
        node = self._objects.get(kinds.NODES, attachment["spec"]["nodeName"])
        unique = self._unique(attachment)
        if node is not None and unique:
            self._set_attached(node, [v for v in _attached(node) if v["name"] != unique])
        self._objects.delete(kinds.ATTACHMENTS, attachment)

    def _may_detach(self, attachment: Document, waited: timedelta) -> bool:
        name = attachment["spec"]["nodeName"]
        if self._unique(attachment) not in self._in_use.get(name, ()):
            return True
        node = self._objects.get(kinds.NODES, name)
        if node is not None and any(taint["key"] == OUT_OF_SERVICE for taint in node_taints(node)):
            return True
        is_healthy = node is not None and is_true(node, "Ready")
        return not is_healthy and waited > UNMOUNT_TIMEOUT

    def _unique(self, attachment: Document) -> str:
        volume = self._objects.get(VOLUMES, _volume(attachment))
        return unique_name(volume) if volume is not None and volume["spec"].get("csi") else ""

    # What nodes are told

    def _report(self, uses: dict[str, _Use]) -> None:
        for name, use in uses.items():
            attachment = self._objects.get(kinds.ATTACHMENTS, name)
            node = self._objects.get(kinds.NODES, use.node)
            if node is None or attachment is None or is_going(attachment):
                continue
            unique = self._unique(attachment)
            attached = _attached(node)
            if attachment["status"].get("attached") and unique not in [v["name"] for v in attached]:
                self._set_attached(node, [*attached, {"name": unique, "devicePath": ""}])

    def _set_attached(self, node: Document, attached: list[Document]) -> None:
        if attached != _attached(node):
            self._objects.change_status(kinds.NODES, node, volumesAttached=attached or None)


def _attached(node: Document) -> list[Document]:
    return list(node["status"].get("volumesAttached") or ())


def _volume(attachment: Document) -> str:
    return str(attachment["spec"]["source"].get("persistentVolumeName", ""))


def _is_left_to_us(node: Document) -> bool:
    """Whether the kubelet leaves attaching to the controller."""
    annotations = node["metadata"].get("annotations") or {}
    return CONTROLLER_ATTACHES.items() <= annotations.items()
