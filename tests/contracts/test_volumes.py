"""The life of a VolumeAttachment: attach, detach, and what frees a disk from a node that is gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contracts.target import PODS, Target, eventually, phases, pod, taints

from sandbox.attacher import ATTACHMENTS, DRIVER, Attacher
from sandbox.kube_client import Document
from sandbox.node_agent import volume_name

SELECTED_NODE = "volume.kubernetes.io/selected-node"
OUT_OF_SERVICE = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}


class Disks:
    """What the driver did: which disk is on which node."""

    def __init__(self) -> None:
        self.attached: dict[str, str] = {}

    def attach(self, disk: str, node: str) -> None:
        if self.attached.get(disk, node) != node:
            raise RuntimeError(f"disk {disk} is attached to {self.attached[disk]}")
        self.attached[disk] = node

    def detach(self, disk: str, node: str) -> None:
        if self.attached.get(disk) == node:
            del self.attached[disk]


@pytest.fixture
def disks(target: Target) -> Iterator[Disks]:
    driver = {"metadata": {"name": DRIVER}, "spec": {"attachRequired": True}}
    path = "/apis/storage.k8s.io/v1/csidrivers"
    if target.client.find(f"{path}/{DRIVER}") is None:
        target.client.create(path, driver)
    disks = Disks()
    with Attacher(target.client, attach=disks.attach, detach=disks.detach):
        yield disks


def disk_pod(target: Target, namespace: str, unique: str, *names: str, **spec: object) -> str:
    """Pods of those names that want the same disk; the disk's handle."""
    handle = f"/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/disks/{unique}"
    shared = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    claim = {"namespace": namespace, "name": "data"}
    source = {"csi": {"driver": DRIVER, "volumeHandle": handle}, "claimRef": claim}
    volume: Document = {"metadata": {"name": unique}, "spec": shared | source}
    target.client.create("/api/v1/persistentvolumes", volume)
    wanted = {"requests": shared.pop("capacity")}
    target.client.create(
        f"/api/v1/namespaces/{namespace}/persistentvolumeclaims",
        {"metadata": {"name": "data"}, "spec": {**shared, "resources": wanted, "volumeName": unique}},
    )
    for name in names:
        add_pod(target, namespace, name, **spec)
    return handle


def add_pod(target: Target, namespace: str, name: str, **spec: object) -> None:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    target.client.create(PODS.format(namespace), pod(name, volumes=volumes, **spec))


def attachments(target: Target, volume: str) -> list[Document]:
    items = target.client.get(ATTACHMENTS)["items"]
    return [item for item in items if item["spec"]["source"]["persistentVolumeName"] == volume]


def test_a_pods_disk_is_attached_before_it_runs_and_detached_after(
    target: Target, namespace: str, unique: str, nodes, disks: Disks
) -> None:
    (node,) = nodes(1)
    handle = disk_pod(target, namespace, unique, "a", nodeSelector={"pool": unique})
    eventually(lambda: phases(target, namespace) == ["Running"])
    assert disks.attached == {handle: node}
    (attachment,) = attachments(target, unique)
    assert attachment["metadata"]["name"].startswith("csi-") and len(attachment["metadata"]["name"]) == 68
    assert attachment["metadata"]["finalizers"] == ["external-attacher/disk-csi-azure-com"]
    assert attachment["spec"] == {
        "attacher": DRIVER,
        "nodeName": node,
        "source": {"persistentVolumeName": unique},
    }
    assert attachment["status"]["attached"] is True
    name = volume_name(DRIVER, handle)
    status = target.client.get(f"/api/v1/nodes/{node}")["status"]
    assert status["volumesAttached"] == [{"name": name, "devicePath": ""}]
    assert status["volumesInUse"] == [name]

    target.client.delete(f"{PODS.format(namespace)}/a")
    eventually(lambda: attachments(target, unique) == [])
    assert disks.attached == {}
    eventually(lambda: not target.client.get(f"/api/v1/nodes/{node}")["status"].get("volumesAttached"))


def test_a_disk_in_use_on_a_silent_node_is_not_detached_but_waited_for(
    target: Target, namespace: str, unique: str, nodes, disks: Disks
) -> None:
    first, second = nodes(2)
    handle = disk_pod(target, namespace, unique, "a", nodeSelector={"kubernetes.io/hostname": first})
    eventually(lambda: phases(target, namespace) == ["Running"])
    target.agent.silence(first)
    target.client.delete(f"{PODS.format(namespace)}/a")
    add_pod(target, namespace, "b", nodeSelector={"kubernetes.io/hostname": second})
    events = f"/api/v1/namespaces/{namespace}/events"
    (event,) = eventually(
        lambda: target.client.get(events, fieldSelector="reason=FailedAttachVolume")["items"]
    )
    assert event["type"] == "Warning"
    assert event["message"] == (
        # Up to 1.35 it began with "Multi-Attach error": read the reason, not the words.
        f'Waiting for detach for volume "{unique}" Volume is already used by pod(s) a'
    )
    assert disks.attached == {handle: first}
    target.client.delete(f"{PODS.format(namespace)}/a", {"gracePeriodSeconds": 0})
    assert disks.attached == {handle: first}
    target.agent.wake(first)
    # The node reports that it no longer uses the disk, and everything follows from that.
    eventually(lambda: disks.attached == {handle: second}, seconds=60)
    eventually(lambda: phases(target, namespace) == ["Running"])


def test_out_of_service_frees_the_disk_of_a_dead_node(
    target: Target, namespace: str, unique: str, nodes, disks: Disks
) -> None:
    first, second = nodes(2)
    handle = disk_pod(target, namespace, unique, "a", nodeSelector={"kubernetes.io/hostname": first})
    eventually(lambda: phases(target, namespace) == ["Running"])
    target.agent.silence(first)
    eventually(lambda: len(taints(target, first)) == 2)
    target.client.delete(f"{PODS.format(namespace)}/a")
    add_pod(target, namespace, "b", nodeSelector={"kubernetes.io/hostname": second})
    current = target.client.get(f"/api/v1/nodes/{first}")["spec"]["taints"]
    target.client.patch(f"/api/v1/nodes/{first}", {"spec": {"taints": [*current, OUT_OF_SERVICE]}})
    eventually(lambda: disks.attached == {handle: second}, seconds=60)
    eventually(lambda: phases(target, namespace) == ["Running"])


def test_a_node_takes_only_so_many_volumes(target: Target, namespace: str, unique: str, nodes) -> None:
    (node,) = nodes(1)
    driver = f"{unique}.example.org"
    limited = {"name": driver, "nodeID": node, "topologyKeys": [], "allocatable": {"count": 1}}
    uid = target.client.get(f"/api/v1/nodes/{node}")["metadata"]["uid"]
    owner = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    metadata = {"name": node, "ownerReferences": [owner]}
    document = {"metadata": metadata, "spec": {"drivers": [limited]}}
    target.client.create("/apis/storage.k8s.io/v1/csinodes", document)
    target.client.create(
        "/apis/storage.k8s.io/v1/csidrivers",
        {"metadata": {"name": driver}, "spec": {"attachRequired": False}},
    )
    for name in "ab":
        spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
        csi = {"driver": driver, "volumeHandle": f"{unique}-{name}"}
        claim = {"namespace": namespace, "name": name}
        volume = {**spec, "capacity": {"storage": "1Gi"}, "csi": csi, "claimRef": claim}
        path = "/api/v1/persistentvolumes"
        target.client.create(path, {"metadata": {"name": f"{unique}-{name}"}, "spec": volume})
        wanted = {**spec, "resources": {"requests": {"storage": "1Gi"}}, "volumeName": f"{unique}-{name}"}
        claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
        target.client.create(claims, {"metadata": {"name": name}, "spec": wanted})
        volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]
        target.client.create(
            PODS.format(namespace), pod(name, volumes=volumes, nodeSelector={"pool": unique})
        )
        path = f"{PODS.format(namespace)}/{name}"
        eventually(lambda path=path: target.client.get(path)["status"].get("conditions"))
    waiting = f"{PODS.format(namespace)}/b"

    def said() -> str:
        conditions = target.client.get(waiting)["status"].get("conditions") or [{}]
        return conditions[0].get("message", "")

    # First of all, it waits for its claim to be bound.
    eventually(lambda: "1 node(s) exceed max volume count" in said())
    assert target.client.get(f"{PODS.format(namespace)}/a")["spec"]["nodeName"] == node


def test_a_volume_may_be_made_for_the_node_that_was_chosen(
    target: Target, namespace: str, unique: str, nodes
) -> None:
    """What the scheduler and a provisioner say to each other."""
    (node,) = nodes(1)
    driver = f"{unique}.example.org"
    storage = "/apis/storage.k8s.io/v1"
    late = {"metadata": {"name": unique}, "provisioner": driver, "volumeBindingMode": "WaitForFirstConsumer"}
    target.client.create(f"{storage}/storageclasses", late)
    target.client.create(
        f"{storage}/csidrivers", {"metadata": {"name": driver}, "spec": {"attachRequired": False}}
    )
    shared = {"accessModes": ["ReadWriteOnce"], "storageClassName": unique}
    claims = f"/api/v1/namespaces/{namespace}/persistentvolumeclaims"
    wanted = {**shared, "resources": {"requests": {"storage": "1Gi"}}}
    target.client.create(claims, {"metadata": {"name": "data"}, "spec": wanted})
    add_pod(target, namespace, "a", nodeSelector={"pool": unique})
    chosen = eventually(
        lambda: target.client.get(f"{claims}/data")["metadata"].get("annotations", {}).get(SELECTED_NODE)
    )
    assert chosen == node
    assert "nodeName" not in target.client.get(f"{PODS.format(namespace)}/a")["spec"]
    term = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    volume = {**shared, "capacity": {"storage": "1Gi"}, "csi": {"driver": driver, "volumeHandle": unique}}
    volume |= {"claimRef": {"namespace": namespace, "name": "data"}}
    volume |= {"nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}
    target.client.create("/api/v1/persistentvolumes", {"metadata": {"name": unique}, "spec": volume})
    eventually(lambda: phases(target, namespace) == ["Running"])
    assert target.client.get(f"{PODS.format(namespace)}/a")["spec"]["nodeName"] == node
