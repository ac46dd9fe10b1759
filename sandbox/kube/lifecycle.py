"""Nodes that fall silent, the taints that follow, who must leave because of them, and what is cleaned up.

The node lifecycle controller, the taint eviction controller and the pod garbage collector of
kube-controller-manager, with their periods and rates. Not modelled: the clean-up of finished pods in clusters
that have thousands of them.
"""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

from sandbox.kube import kinds, rules
from sandbox.kube.controllers import Dirty, every
from sandbox.kube.objects import Objects, is_going, is_over, is_true
from sandbox.kube.store import Document

NODE_GRACE_PERIOD = timedelta(seconds=50)
"""--node-monitor-grace-period, as of Kubernetes 1.32."""
MONITOR_PERIOD = timedelta(seconds=5)
STARTUP_GRACE_PERIOD = timedelta(seconds=60)
GC_PERIOD = timedelta(seconds=20)
QUARANTINE = timedelta(seconds=40)
"""How long a pod's node must have been missing before the pod is collected."""
EVICTION_INTERVAL = timedelta(seconds=10)
"""--node-eviction-rate 0.1: so many nodes of a zone are given a NoExecute taint."""
LARGE_CLUSTER = 50
"""Where most nodes of a zone are silent: larger clusters go on at a tenth of the rate, others not at all."""
UNHEALTHY_SHARE = 0.55

NOT_READY = "node.kubernetes.io/not-ready"
UNREACHABLE = "node.kubernetes.io/unreachable"
UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_PRESSURES = {
    "MemoryPressure": "node.kubernetes.io/memory-pressure",
    "DiskPressure": "node.kubernetes.io/disk-pressure",
    "PIDPressure": "node.kubernetes.io/pid-pressure",
    "NetworkUnavailable": "node.kubernetes.io/network-unavailable",
}
_BY_CONDITIONS = {NOT_READY, UNREACHABLE, UNSCHEDULABLE, *_PRESSURES.values()}
_LEASES = kinds.named("leases", "coordination.k8s.io")
_REPORTED = ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")


def tolerates(pod: Document, taint: Document) -> bool:
    return any(_covers(toleration, taint) for toleration in pod["spec"].get("tolerations") or ())


def _covers(toleration: Document, taint: Document) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", "")


def node_taints(node: Document) -> list[Document]:
    return list((node.get("spec") or {}).get("taints") or ())


class NodeLifecycle:
    """Hears heartbeats, calls silent nodes Unknown, and taints nodes by their conditions."""

    def __init__(
        self,
        objects: Objects,
        grace_period: timedelta = NODE_GRACE_PERIOD,
        eviction_interval: timedelta = EVICTION_INTERVAL,
    ) -> None:
        self._objects = objects
        self._grace = grace_period
        self._interval = eviction_interval
        self._heard: dict[str, datetime] = {}
        self._signs: dict[str, tuple[object, ...]] = {}
        self._next_eviction: dict[str, datetime] = {}
        period = min(MONITOR_PERIOD, grace_period / 4)
        every(objects, period, self._monitor)

    def sync(self, dirty: Dirty) -> None:
        for _, name in sorted(dirty.get(_LEASES, set()) | dirty.get(kinds.NODES, set())):
            node = self._objects.get(kinds.NODES, name)
            if node is None:
                self._heard.pop(name, None)
                self._signs.pop(name, None)
                continue
            self._listen(name, node)
            if ("", name) in dirty.get(kinds.NODES, ()):
                self._taint_by_conditions(node)
                self._untaint(self._objects.get(kinds.NODES, name) or node)

    def _listen(self, name: str, node: Document) -> None:
        lease = self._objects.get(_LEASES, name, "kube-node-lease")
        beats = [
            condition.get("lastHeartbeatTime") for condition in node.get("status", {}).get("conditions") or ()
        ]
        sign = ((lease or {}).get("spec", {}).get("renewTime"), *beats)
        if self._signs.get(name) != sign:
            self._signs[name] = sign
            self._heard[name] = self._objects.now()

    def _monitor(self) -> None:
        now = self._objects.now()
        for node in self._objects.all(kinds.NODES):
            # It may have been heard at this very moment, just before.
            self._listen(node["metadata"]["name"], node)
            heard = self._heard.setdefault(node["metadata"]["name"], now)
            is_new = rules.condition(node, "Ready") is None
            if now - heard > (STARTUP_GRACE_PERIOD if is_new else self._grace):
                self._call_unknown(node)
        self._evict_by_zone()

    def _call_unknown(self, node: Document) -> None:
        was_ready = is_true(node, "Ready")
        moment = rules.timestamp(self._objects.now())
        conditions = {c["type"]: c for c in node["status"].get("conditions") or ()}
        heard_of = [name for name in _REPORTED if conditions.get(name, {}).get("status") != "Unknown"]
        if not heard_of:
            return
        for name in heard_of:
            old = conditions.get(name)
            reason, message = "NodeStatusUnknown", "Kubelet stopped posting node status."
            if old is None:
                reason, message = "NodeStatusNeverUpdated", "Kubelet never posted node status."
            beat = (old or {}).get("lastHeartbeatTime", node["metadata"]["creationTimestamp"])
            conditions[name] = {
                "type": name,
                "status": "Unknown",
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": beat,
                "lastTransitionTime": moment,
            }
        self._objects.change_status(kinds.NODES, node, conditions=list(conditions.values()))
        name = node["metadata"]["name"]
        # What this wrote is no sign of life.
        current = self._objects.get(kinds.NODES, name)
        lease = self._objects.get(_LEASES, name, "kube-node-lease")
        if current is not None:
            beats = [condition.get("lastHeartbeatTime") for condition in current["status"]["conditions"]]
            self._signs[name] = ((lease or {}).get("spec", {}).get("renewTime"), *beats)
        if was_ready:
            message = f"Node {name} status is now: NodeNotReady"
            self._objects.tell(kinds.NODES, node, "NodeNotReady", message, by="node-controller")
            for pod in self._objects.pods_on(name):
                if is_true(pod, "Ready"):
                    self._objects.set_condition(kinds.PODS, pod, "Ready", "False")

    def _taint_by_conditions(self, node: Document) -> None:
        wanted = []
        for condition in (node.get("status") or {}).get("conditions") or ():
            kind, status = condition["type"], condition["status"]
            if kind == "Ready" and status != "True":
                wanted.append(UNREACHABLE if status == "Unknown" else NOT_READY)
            elif kind in _PRESSURES and status == "True":
                wanted.append(_PRESSURES[kind])
        if node["spec"].get("unschedulable"):
            wanted.append(UNSCHEDULABLE)
        old = node_taints(node)
        kept = [
            taint
            for taint in old
            if taint["effect"] != "NoSchedule" or taint["key"] not in _BY_CONDITIONS or taint["key"] in wanted
        ]
        have = {taint["key"] for taint in kept if taint["effect"] == "NoSchedule"}
        self._set_taints(node, [*kept, *(self._taint(k, "NoSchedule") for k in wanted if k not in have)])

    def _untaint(self, node: Document) -> None:
        """A NoExecute taint that the node's condition no longer asks for goes at once."""
        ready = rules.condition(node, "Ready")
        asked = {"False": NOT_READY, "Unknown": UNREACHABLE}.get((ready or {}).get("status", ""))
        self._set_taints(node, [t for t in node_taints(node) if not _evicts(t) or t["key"] == asked])

    def _evict_by_zone(self) -> None:
        zones: dict[str, list[Document]] = defaultdict(list)
        nodes = self._objects.all(kinds.NODES)
        for node in nodes:
            labels = node["metadata"].get("labels") or {}
            zones[labels.get("topology.kubernetes.io/zone", "")].append(node)
        if not any(is_true(node, "Ready") for node in nodes):
            # When no node at all is heard, the fault is here: nobody is evicted.
            for node in nodes:
                self._set_taints(node, [taint for taint in node_taints(node) if not _evicts(taint)])
            return
        for zone, members in sorted(zones.items()):
            interval = self._time_between(members, len(nodes))
            for node in members:
                self._evict(zone, node, interval)

    def _time_between(self, members: list[Document], cluster: int) -> timedelta | None:
        silent = sum(1 for node in members if not is_true(node, "Ready"))
        if silent == len(members) or silent <= 2 or silent / len(members) < UNHEALTHY_SHARE:
            return self._interval
        return self._interval * 10 if cluster > LARGE_CLUSTER else None

    def _evict(self, zone: str, node: Document, interval: timedelta | None) -> None:
        ready = rules.condition(node, "Ready")
        if ready is None or ready["status"] == "True" or interval is None:
            return
        key = UNREACHABLE if ready["status"] == "Unknown" else NOT_READY
        taints = node_taints(node)
        if any(_evicts(taint) and taint["key"] == key for taint in taints):
            return
        now = self._objects.now()
        if self._next_eviction.get(zone, now) > now:
            return
        self._next_eviction[zone] = now + interval
        others = [taint for taint in taints if not _evicts(taint)]
        self._set_taints(node, [*others, self._taint(key, "NoExecute")])

    def _taint(self, key: str, effect: str) -> Document:
        return {"key": key, "effect": effect, "timeAdded": rules.timestamp(self._objects.now())}

    def _set_taints(self, node: Document, taints: list[Document]) -> None:
        if taints != node_taints(node):
            spec = {name: value for name, value in node["spec"].items() if name != "taints"}
            self._objects.change(kinds.NODES, node, spec={**spec, **({"taints": taints} if taints else {})})


def _evicts(taint: Document) -> bool:
    """Whether the lifecycle controller has put it there to empty the node."""
    return taint["effect"] == "NoExecute" and taint["key"] in (NOT_READY, UNREACHABLE)


class TaintEviction:
    """Deletes pods that do not, or no longer, tolerate a NoExecute taint of their node."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._leaving: dict[str, datetime] = {}
        """When a pod has to go, by its uid."""

    def sync(self, dirty: Dirty) -> None:
        for _, name in sorted(dirty.get(kinds.NODES, ())):
            node = self._objects.get(kinds.NODES, name)
            taints = _no_execute(node)
            if taints or self._leaving:
                for pod in self._objects.pods_on(name):
                    self._look_at(pod, taints)
        for namespace, name in sorted(dirty.get(kinds.PODS, ())):
            found = self._objects.get(kinds.PODS, name, namespace)
            if found is not None and found["spec"].get("nodeName"):
                self._look_at(found, _no_execute(self._objects.get(kinds.NODES, found["spec"]["nodeName"])))

    def _look_at(self, pod: Document, taints: list[Document]) -> None:
        uid = pod["metadata"]["uid"]
        if not taints or is_going(pod):
            self._leaving.pop(uid, None)
            return
        seconds = _tolerated_seconds(pod, taints)
        if seconds is None:
            self._leaving.pop(uid, None)
        elif seconds <= 0:
            self._leaving.pop(uid, None)
            self._delete(pod)
        elif uid not in self._leaving:
            when = self._leaving[uid] = self._objects.now() + timedelta(seconds=seconds)
            namespace, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
            self._objects.later(seconds, lambda: self._time_is_up(namespace, name, uid, when))

    def _time_is_up(self, namespace: str, name: str, uid: str, when: datetime) -> None:
        if self._leaving.get(uid) != when:
            return  # called off meanwhile, and perhaps called again
        del self._leaving[uid]
        pod = self._objects.get(kinds.PODS, name, namespace)
        if pod is not None and pod["metadata"]["uid"] == uid and not is_going(pod):
            self._delete(pod)

    def _delete(self, pod: Document) -> None:
        metadata = pod["metadata"]
        message = f"Marking for deletion Pod {metadata['namespace']}/{metadata['name']}"
        by = "taint-eviction-controller"
        self._objects.tell(kinds.PODS, pod, "TaintManagerEviction", message, by=by)
        more = {
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
        }
        pod = self._objects.set_condition(kinds.PODS, pod, "DisruptionTarget", "True", **more)
        self._objects.delete(kinds.PODS, pod)


def _no_execute(node: Document | None) -> list[Document]:
    return [taint for taint in node_taints(node or {}) if taint["effect"] == "NoExecute"]


def _tolerated_seconds(pod: Document, taints: list[Document]) -> float | None:
    """How long all of these taints are tolerated: None for ever, 0 when one of them is not."""
    seconds: list[float] = []
    for taint in taints:
        covering = [t for t in pod["spec"].get("tolerations") or () if _covers(t, taint)]
        if not covering:
            return 0
        seconds += [t["tolerationSeconds"] for t in covering if t.get("tolerationSeconds") is not None]
    return min(seconds, default=None)


class PodGarbageCollector:
    """Every 20 s: pods whose node is gone or out of service, and deleted ones that never had a node."""

    def __init__(self, objects: Objects, period: timedelta = GC_PERIOD) -> None:
        self._objects = objects
        self._missing: dict[str, datetime] = {}
        """Since when a node that pods are bound to has not been there."""
        every(objects, period, self._collect)

    def sync(self, dirty: Dirty) -> None:
        """It only looks now and then."""

    def _collect(self) -> None:
        nodes = {node["metadata"]["name"]: node for node in self._objects.all(kinds.NODES)}
        pods = self._objects.all(kinds.PODS)
        self._look_for(nodes, pods)
        for pod in pods:
            name = pod["spec"].get("nodeName")
            if not name:
                if is_going(pod):
                    self._force(pod)
            elif name not in nodes:
                if self._objects.now() - self._missing[name] >= QUARANTINE:
                    self._force(pod, "PodGC: node no longer exists")
            elif is_going(pod) and _is_out_of_service(nodes[name]):
                self._force(pod)

    def _look_for(self, nodes: dict[str, Document], pods: list[Document]) -> None:
        bound = {pod["spec"]["nodeName"] for pod in pods if pod["spec"].get("nodeName")}
        now = self._objects.now()
        self._missing = {name: self._missing.get(name, now) for name in bound - set(nodes)}

    def _force(self, pod: Document, message: str = "") -> None:
        if not is_over(pod):
            if message:
                more = {"reason": "DeletionByPodGC", "message": message}
                pod = self._objects.set_condition(kinds.PODS, pod, "DisruptionTarget", "True", **more)
            pod = self._objects.change_status(kinds.PODS, pod, phase="Failed")
        self._objects.delete(kinds.PODS, pod, 0)


def _is_out_of_service(node: Document) -> bool:
    has_taint = any(taint["key"] == OUT_OF_SERVICE for taint in node_taints(node))
    return has_taint and not is_true(node, "Ready")
