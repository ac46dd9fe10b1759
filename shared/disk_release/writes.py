"""The smallest write for each kind of action, conditional on the versions that were seen; decides nothing.

What Kubernetes is asked carries uid and resourceVersion, so that an object that changed or was replaced since
is a ConflictError. What Azure is asked names single disks and never a whole list of them, which would undo
what others do meanwhile. Called by `act`, which has checked, and stored intent and proof before.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from shared.errors import UnsafePlanError
from shared.model.disk import ATTACHER_FINALIZER, OUT_OF_SERVICE, OWNER_ANNOTATION, is_uniform_instance

if TYPE_CHECKING:
    from shared.clients.arm import Begun

Document = dict[str, Any]

TAINT_VALUE = "nodeshutdown"
"""As the Kubernetes documentation and the cloud provider write it."""
ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"


class Kube(Protocol):
    """What is needed of `shared.clients.kube.KubeClient`."""

    def patch(self, path: str, change: object) -> Document: ...
    def delete(self, path: str, *, uid: str = ..., resource_version: str = ...) -> None: ...


class Azure(Protocol):
    """What is needed of `shared.clients.arm.Arm`."""

    def post(self, resource_id: str, action: str, body: Document | None = None, **query: str) -> Begun: ...


# Kubernetes


def taint_node(kube: Kube, node: Document, owner: str, now: datetime) -> None:
    """Add the out-of-service taint to the node as it was read, marked as ours by the id of its evidence."""
    ours = {
        "key": OUT_OF_SERVICE,
        "value": TAINT_VALUE,
        "effect": "NoExecute",
        "timeAdded": f"{now:%Y-%m-%dT%H:%M:%SZ}",
    }
    _set_taints(kube, node, [*_other_taints(node), ours], owner)


def untaint_node(kube: Kube, node: Document) -> None:
    """Take our taint from the node as it was read, and the mark with it."""
    _set_taints(kube, node, _other_taints(node), None)


def _other_taints(node: Document) -> list[Document]:
    taints = (node.get("spec") or {}).get("taints") or ()
    return [taint for taint in taints if taint.get("key") != OUT_OF_SERVICE]


def _set_taints(kube: Kube, node: Document, taints: Sequence[Document], owner: str | None) -> None:
    # One write for both: a taint without its mark would be nobody's and stay for ever.
    change = {
        "metadata": {**_version(node), "annotations": {OWNER_ANNOTATION: owner}},
        "spec": {"taints": list(taints) or None},
    }
    kube.patch(f"/api/v1/nodes/{node['metadata']['name']}", change)


def delete_attachment(kube: Kube, name: str, uid: str) -> None:
    """Begin the deletion of exactly this VolumeAttachment; its finalizer is left to the attacher."""
    kube.delete(f"{ATTACHMENTS}/{name}", uid=uid)


def remove_finalizer(kube: Kube, attachment: Document) -> None:
    """Let a deleted VolumeAttachment go, as it was read, though its attacher never said that it detached."""
    finalizers = attachment["metadata"].get("finalizers") or []
    kept = [name for name in finalizers if name != ATTACHER_FINALIZER]
    change = {"metadata": {**_version(attachment), "finalizers": kept or None}}
    kube.patch(f"{ATTACHMENTS}/{attachment['metadata']['name']}", change)


def _version(document: Document) -> Document:
    metadata = document["metadata"]
    return {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}


# Azure


def power_off(azure: Azure, vm: str, *, deallocate: bool) -> Begun:
    """Stop the machine as if its plug were pulled; what runs on it gets no chance to go on writing."""
    if deallocate:
        return azure.post(vm, "deallocate")
    return azure.post(vm, "powerOff", skipShutdown="true")


def detach_disks(azure: Azure, vm: str, disks: Sequence[str], *, force: bool) -> Begun:
    """Detach these disks, and no others, in one call; what the machine has besides is not mentioned."""
    option = {"detachOption": "ForceDetach"} if force else {}
    body = {"dataDisksToDetach": [{"diskId": disk, **option} for disk in disks]}
    return azure.post(vm, "attachDetachDataDisks", body)


def reapply(azure: Azure, vm: str) -> Begun:
    """Let Azure bring a machine in failed state in line with its model; nothing of the model changes."""
    if is_uniform_instance(vm):
        raise UnsafePlanError(
            f"'{vm}' is an instance of a uniform scale set, which Azure cannot reapply alone; "
            "reapply the set, or have the instance replaced"
        )
    return azure.post(vm, "reapply")
