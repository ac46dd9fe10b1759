"""Kubelets and CSI drivers in simulated time: as `sandbox.node_agent` and `sandbox.attacher`.

    kubernetes = LocalKubernetes(Clock(start))
    kubernetes.run_controllers()
    kubelets = kubernetes.run_kubelets()
    kubelets.join("a", zone="zone-1")
    kubernetes.clock.advance(60)

They act while the clock is advanced, in the order of the nodes' and pods' names.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec

from sandbox.kube import kinds
from sandbox.kube.controllers import Dirty, every
from sandbox.kube.objects import Objects, is_going, is_true, key_of
from sandbox.kube.store import Document, Key
from sandbox.kube.volumes import VOLUMES, unique_name, volumes_to_attach
from sandbox.node_agent import HEARTBEAT, Pod, new_node, node_conditions, pod_conditions, running_status

LEASES = kinds.named("leases", "coordination.k8s.io")
RETRY_SECONDS, RETRY_AT_MOST_SECONDS = 1.0, 300.0
"""Of the external-attacher, doubled each time."""
MOUNT_RETRY_SECONDS, MOUNT_RETRY_AT_MOST_SECONDS = 0.5, 122.0
"""Of the kubelet."""
_LEASE_SPACE = "kube-node-lease"

Act = Callable[[str, str], Mapping[str, str] | None]
"""Called with (volume handle, node name); raises to refuse, or `NotYet`. What attaching returns is what the
kubelet is told about it.
"""


class NotYet(Exception):  # noqa: N818 - nothing is wrong
    """The driver is still at it; to be asked again after `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"not finished, {seconds:g} s to go")
        self.seconds = seconds


def nothing(_: str, __: str) -> None:
    """No one cares what is mounted."""


@dataclass
class _Kubelet:
    name: str
    uid: str
    address: str
    is_silent: bool = False
    volumes: dict[Key, set[str]] = field(default_factory=dict)
    """What it uses, by pod: unique names, from before they are attached until the pod has gone."""


class Kubelets:
    """The kubelets of the nodes that joined. `start_delay` and `stop_delay` are their containers'.

    `mount` and `unmount` are called as pods start to use volumes and have stopped to, on kubelets that live;
    a mount that is refused is tried again, and the pod waits.
    """

    def __init__(
        self,
        objects: Objects,
        *,
        heartbeat: timedelta = HEARTBEAT,
        start_delay: timedelta = timedelta(0),
        stop_delay: timedelta = timedelta(0),
        mount: Act = nothing,
        unmount: Act = nothing,
    ) -> None:
        self._objects = objects
        self._mount = mount
        self._unmount = unmount
        self._retrying: set[str] = set()
        self._mount_retries: Counter[str] = Counter()
        """By pod uid."""
        self._holders: dict[Key, set[str]] = {}
        """Which kubelets have volumes for a pod of that name."""
        self._start_delay = start_delay.total_seconds()
        self._stop_delay = stop_delay.total_seconds()
        self._nodes: dict[str, _Kubelet] = {}
        self._addresses = itertools.count(1)
        every(objects, heartbeat, self._send_heartbeats)

    # For tests

    def join(
        self,
        name: str,
        *,
        zone: str = "",
        labels: Mapping[str, str] | None = None,
        capacity: Mapping[str, str] | None = None,
        taints: Sequence[Document] = (),
        provider_id: str = "",
        allocatable: Mapping[str, str] | None = None,
    ) -> None:
        """Registers a node that is Ready; 4 CPUs, 16 GiB and 110 pods, unless `capacity` says otherwise; all
        of it for pods, unless `allocatable` does.
        """
        options = {"zone": zone, "provider_id": provider_id}
        with self._objects.lock:
            now, address = self._objects.now(), self._address()
            document = new_node(
                name,
                now=now,
                address=address,
                labels=labels,
                capacity=capacity,
                taints=taints,
                **options,
            )
            document["status"]["allocatable"] = {**document["status"]["capacity"], **(allocatable or {})}
            created = self._objects.create(kinds.NODES, document)
            if created is None:
                raise ValueError(f"there is a node {name} already: wake it, or delete it first")
            kubelet = self._nodes[name] = _Kubelet(name, created["metadata"]["uid"], address)
            self._renew(kubelet)

    def has(self, name: str) -> bool:
        """Whether a kubelet of that name has joined and not left, silent or not."""
        return name in self._nodes

    def adopt(self, name: str) -> None:
        """A new kubelet takes over the Node that another one has left behind, and is `wake`d as that one."""
        with self._objects.lock:
            node = self._objects.get(kinds.NODES, name)
            assert node is not None, f"there is no node {name} to adopt"
            address = node["status"]["addresses"][0]["address"]
            self._nodes[name] = _Kubelet(name, node["metadata"]["uid"], address, is_silent=True)

    def leave(self, name: str) -> None:
        """The kubelet is gone for good; its Node stays, as it does when a VM is deleted."""
        del self._nodes[name]

    def silence(self, name: str) -> None:
        """It dies or is cut off: nothing is heard of it, nothing starts or ends on its node."""
        self._nodes[name].is_silent = True

    def wake(self, name: str) -> None:
        """It is back, Ready, and catches up with its pods."""
        kubelet = self._nodes[name]
        kubelet.is_silent = False
        with self._objects.lock:
            self._renew(kubelet)
            node = self._objects.get(kinds.NODES, name)
            if node is None:
                return
            self._say_ready(node)
            self._report_volumes(kubelet)
            for pod in self._objects.pods_on(name):
                self._handle(kubelet, pod)
                if pod["status"].get("phase") == "Running" and not is_going(pod):
                    self._recover(kubelet, key_of(pod), pod["metadata"]["uid"])

    def set_ready(self, namespace: str, name: str, *, ready: bool) -> None:
        """Whether the pod's readiness probe succeeds."""
        with self._objects.lock:
            pod = self._objects.get(kinds.PODS, name, namespace)
            if pod is None or is_true(pod, "Ready") == ready:
                return
            new = {c["type"]: c for c in pod_conditions(self._objects.now(), ready=ready)}
            kept = [c for c in pod["status"].get("conditions") or () if c["type"] not in new]
            self._objects.change_status(kinds.PODS, pod, conditions=[*kept, *new.values()])

    def in_use(self, name: str) -> set[str]:
        """The volumes that the node's pods use, whether or not it can still say so."""
        return set().union(*self._nodes[name].volumes.values())

    # How

    def _send_heartbeats(self) -> None:
        for kubelet in self._nodes.values():
            if kubelet.is_silent:
                continue
            self._renew(kubelet)
            node = self._objects.get(kinds.NODES, kubelet.name)
            if node is not None and not is_true(node, "Ready"):  # somebody else has said so
                self._say_ready(node)

    def _say_ready(self, node: Document) -> None:
        fresh = {condition["type"]: condition for condition in node_conditions(self._objects.now())}
        others = [c for c in node["status"].get("conditions") or () if c["type"] not in fresh]
        self._objects.change_status(kinds.NODES, node, conditions=[*fresh.values(), *others])

    def _renew(self, kubelet: _Kubelet) -> None:
        renewed = self._objects.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": kubelet.name, "leaseDurationSeconds": 40, "renewTime": renewed}
        lease = self._objects.get(LEASES, kubelet.name, _LEASE_SPACE)
        if lease is not None:
            self._objects.change(LEASES, lease, spec=spec)
        elif self._objects.get(kinds.NODES, kubelet.name) is not None:
            owner = {"apiVersion": "v1", "kind": "Node", "name": kubelet.name, "uid": kubelet.uid}
            metadata = {"name": kubelet.name, "ownerReferences": [owner]}
            self._objects.create(LEASES, {"metadata": metadata, "spec": spec}, _LEASE_SPACE)

    def sync(self, dirty: Dirty) -> None:
        for namespace, name in sorted(dirty.get(kinds.PODS, ())):
            pod = self._objects.get(kinds.PODS, name, namespace)
            node = (pod["spec"].get("nodeName") or "") if pod is not None else ""
            self._release((namespace, name), node)
            if pod is not None and (kubelet := self._nodes.get(node)):
                self._handle(kubelet, pod)
        for _, name in sorted(dirty.get(kinds.NODES, ())):
            if (kubelet := self._nodes.get(name)) and kubelet.volumes:
                for pod in self._objects.pods_on(name):
                    self._handle(kubelet, pod)

    def _handle(self, kubelet: _Kubelet, pod: Document) -> None:
        if kubelet.is_silent:
            return
        uid = pod["metadata"]["uid"]
        if is_going(pod):
            grace = pod["metadata"].get("deletionGracePeriodSeconds") or 0
            delay = min(self._stop_delay, grace)
            self._in(delay, lambda: self._finish(kubelet, key_of(pod), uid))
        elif pod["status"].get("phase") == "Pending" and self._has_volumes(kubelet, pod):
            self._in(self._start_delay, lambda: self._start(kubelet, key_of(pod), uid))

    def _in(self, seconds: float, work: Callable[[], None]) -> None:
        if seconds <= 0:
            work()
        else:
            self._objects.later(seconds, work)

    def _current(self, kubelet: _Kubelet, key: Key, uid: str) -> Document | None:
        pod = self._objects.get(kinds.PODS, key[1], key[0])
        is_same = pod is not None and pod["metadata"]["uid"] == uid
        return pod if is_same and not kubelet.is_silent and kubelet.name in self._nodes else None

    def _start(self, kubelet: _Kubelet, key: Key, uid: str) -> None:
        pod = self._current(kubelet, key, uid)
        if pod is None or is_going(pod) or pod["status"].get("phase") != "Pending":
            return
        if not self._mount_all(kubelet, pod):
            self._mount_later(uid, lambda: self._start_again(kubelet, key, uid))
            return
        self._mount_retries.pop(uid, None)
        now = self._objects.now()
        read = msgspec.convert(pod, Pod)
        status = running_status(read, now, host=kubelet.address, address=self._address())
        new = {condition["type"] for condition in status["conditions"]}
        kept = [c for c in pod["status"].get("conditions") or () if c["type"] not in new]
        status["conditions"] = [*kept, *status["conditions"]]
        self._objects.change_status(kinds.PODS, pod, **status)

    def _recover(self, kubelet: _Kubelet, key: Key, uid: str) -> None:
        """After a reboot nothing is mounted; mounting once more does no harm."""
        self._retrying.discard(uid)
        pod = self._current(kubelet, key, uid)
        if pod is None or is_going(pod):
            return
        is_usable = not self._wants_volumes(kubelet, pod) or self._mount_all(kubelet, pod)
        self.set_ready(*key, ready=is_usable)
        if is_usable:
            self._mount_retries.pop(uid, None)
        else:
            self._mount_later(uid, lambda: self._recover(kubelet, key, uid))

    def _mount_later(self, uid: str, work: Callable[[], None]) -> None:
        if uid not in self._retrying:
            self._retrying.add(uid)
            seconds = MOUNT_RETRY_SECONDS * 2.0 ** self._mount_retries[uid]
            self._mount_retries[uid] += 1
            self._objects.later(min(MOUNT_RETRY_AT_MOST_SECONDS, seconds), work)

    def _start_again(self, kubelet: _Kubelet, key: Key, uid: str) -> None:
        self._retrying.discard(uid)
        pod = self._current(kubelet, key, uid)
        if pod is not None and self._has_volumes(kubelet, pod):
            self._start(kubelet, key, uid)

    def _finish(self, kubelet: _Kubelet, key: Key, uid: str) -> None:
        pod = self._current(kubelet, key, uid)
        if pod is not None and is_going(pod):
            self._objects.delete(kinds.PODS, pod, 0)

    # Volumes

    def _has_volumes(self, kubelet: _Kubelet, pod: Document) -> bool:
        wanted = self._wants_volumes(kubelet, pod)
        if not wanted:
            return True
        node = self._objects.get(kinds.NODES, kubelet.name)
        attached = (node or {"status": {}})["status"].get("volumesAttached") or ()
        return wanted <= {volume["name"] for volume in attached}

    def _wants_volumes(self, kubelet: _Kubelet, pod: Document) -> set[str]:
        """Unique names; noted and reported as in use."""
        wanted = {unique_name(volume) for volume in volumes_to_attach(self._objects, pod)}
        if wanted and key_of(pod) not in kubelet.volumes:
            kubelet.volumes[key_of(pod)] = wanted
            self._holders.setdefault(key_of(pod), set()).add(kubelet.name)
            self._report_volumes(kubelet)
        return wanted

    def _mount_all(self, kubelet: _Kubelet, pod: Document) -> bool:
        """False when one of the pod's volumes cannot be mounted, which an event tells."""
        for volume in volumes_to_attach(self._objects, pod):
            try:
                self._mount(volume["spec"]["csi"]["volumeHandle"], kubelet.name)
            except Exception as error:  # noqa: BLE001 - whatever mounting fails with is told by the event
                name = volume["metadata"]["name"]
                message = f'MountVolume.MountDevice failed for volume "{name}" : {error}'
                by = "kubelet"
                self._objects.tell(kinds.PODS, pod, "FailedMount", message, by=by, is_warning=True)
                return False
        return True

    def _release(self, key: Key, now_on: str) -> None:
        """The pod has gone from where it was; another one of its name may be there already."""
        for name in sorted(self._holders.get(key, set()) - {now_on}):
            kubelet = self._nodes.get(name)
            if kubelet is not None and key in kubelet.volumes and not kubelet.is_silent:
                self._forget(kubelet, key)
                self._report_volumes(kubelet)

    def _forget(self, kubelet: _Kubelet, key: Key) -> None:
        """The pod has gone: what no other pod here uses is unmounted."""
        gone = kubelet.volumes.pop(key)
        self._holders[key].discard(kubelet.name)
        for name in sorted(gone - self.in_use(kubelet.name)):
            self._unmount(name.partition("^")[2], kubelet.name)

    def _report_volumes(self, kubelet: _Kubelet) -> None:
        """What is used by pods that are still there; a kubelet that was away unmounts the rest first."""
        for key in list(kubelet.volumes):
            pod = self._objects.get(kinds.PODS, key[1], key[0])
            if pod is None or pod["spec"].get("nodeName") != kubelet.name:
                self._forget(kubelet, key)
        node = self._objects.get(kinds.NODES, kubelet.name)
        if node is not None:
            used = sorted(self.in_use(kubelet.name))
            self._objects.change_status(kinds.NODES, node, volumesInUse=used or None)

    def _address(self) -> str:
        number = next(self._addresses)
        return f"10.{1 + (number >> 16) % 250}.{(number >> 8) & 255}.{number & 255}"


class Driver:
    """The attacher of a CSI driver: calls `attach` and `detach`, and tries again when they refuse, later and
    later; at once when somebody touches the object.
    """

    def __init__(self, objects: Objects, name: str, *, attach: Act, detach: Act) -> None:
        self._objects = objects
        self._name = name
        self._attach = attach
        self._detach = detach
        self._waiting: dict[str, Document] = {}
        """What is to be tried again, as it was then."""
        self._failures: Counter[str] = Counter()
        self._finalizer = "external-attacher/" + name.replace(".", "-")

    def sync(self, dirty: Dirty) -> None:
        for _, name in sorted(dirty.get(kinds.ATTACHMENTS, ())):
            if name not in self._waiting or self._is_touched(name):
                self._handle(name)

    def _is_touched(self, name: str) -> bool:
        """By anyone but us: what we write besides the status are finalizers."""
        found = self._objects.get(kinds.ATTACHMENTS, name)
        return found is None or _essence(found) != self._waiting[name]

    def _handle(self, name: str) -> None:
        attachment = self._objects.get(kinds.ATTACHMENTS, name)
        if attachment is None or attachment["spec"]["attacher"] != self._name:
            return
        if is_going(attachment):
            self._let_go(attachment)
        elif not attachment["status"].get("attached"):
            self._take(attachment)

    def _take(self, attachment: Document) -> None:
        metadata = attachment["metadata"]
        finalizers = metadata.get("finalizers") or []
        if self._finalizer not in finalizers:
            changed = {**metadata, "finalizers": [*finalizers, self._finalizer]}
            attachment = self._objects.change(kinds.ATTACHMENTS, attachment, metadata=changed)
        try:
            metadata, error = self._try(self._attach, attachment)
        except NotYet:
            return
        status: Document = {"attached": error is None, "attachError": error}
        status |= {"attachmentMetadata": dict(metadata)} if metadata else {}
        self._objects.change_status(kinds.ATTACHMENTS, attachment, **status)

    def _let_go(self, attachment: Document) -> None:
        metadata = attachment["metadata"]
        if self._finalizer not in (metadata.get("finalizers") or ()):
            return
        try:
            _, error = self._try(self._detach, attachment)
        except NotYet:
            return
        if error is not None:
            self._objects.change_status(kinds.ATTACHMENTS, attachment, detachError=error)
            return
        kept = [name for name in metadata["finalizers"] if name != self._finalizer]
        self._objects.change(kinds.ATTACHMENTS, attachment, metadata={**metadata, "finalizers": kept})

    def _try(self, act: Act, attachment: Document) -> tuple[Mapping[str, str] | None, Document | None]:
        """What was returned, and what went wrong as the object's status says it; `NotYet` passes."""
        name, spec = attachment["metadata"]["name"], attachment["spec"]
        try:
            done = act(self._handle_of(spec["source"]["persistentVolumeName"]), spec["nodeName"])
        except NotYet as later:
            self._later(name, later.seconds)
            raise
        except Exception as error:  # noqa: BLE001 - whatever the driver says no with is shown on the object
            self._later(name, min(RETRY_AT_MOST_SECONDS, RETRY_SECONDS * 2.0 ** self._failures[name]))
            self._failures[name] += 1
            at = self._objects.now().strftime("%Y-%m-%dT%H:%M:%SZ")
            return None, {"message": str(error), "time": at}
        self._failures.pop(name, None)
        return done, None

    def _later(self, name: str, seconds: float) -> None:
        found = self._objects.get(kinds.ATTACHMENTS, name)
        essence = self._waiting[name] = _essence(found) if found is not None else {}
        self._objects.later(seconds, lambda: self._again(name, essence))

    def _handle_of(self, volume: str) -> str:
        found = self._objects.get(VOLUMES, volume)
        if found is None:
            raise LookupError(f"persistentvolume {volume} not found")
        return str(found["spec"]["csi"]["volumeHandle"])

    def _again(self, name: str, essence: Document) -> None:
        if self._waiting.get(name) is essence:  # nobody has been here meanwhile
            del self._waiting[name]
            self._handle(name)


def _essence(attachment: Document) -> Document:
    """All but what the attacher itself writes, and versions."""
    ours = ("resourceVersion", "finalizers", "managedFields")
    metadata = {name: value for name, value in attachment["metadata"].items() if name not in ours}
    return {"metadata": metadata, "spec": attachment["spec"]}
