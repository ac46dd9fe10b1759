"""Deployments, ReplicaSets, StatefulSets and DaemonSets, as far as they make, replace and count pods.

And what belongs to somebody who has gone: it is deleted, in the background, as the garbage collector does.
Not modelled: histories and roll-backs, pausing by progress deadlines, orphaning, rolling updates of daemon
and stateful sets (their pods follow the template when they are replaced), claims of volume claim templates
being provisioned.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import msgspec

from sandbox.kube import kinds
from sandbox.kube.controllers import Dirty
from sandbox.kube.kinds import Kind
from sandbox.kube.lifecycle import node_taints, tolerates
from sandbox.kube.objects import Objects, controller_of, is_going, is_over, is_true, key_of
from sandbox.kube.scheduler import selects
from sandbox.kube.store import Document, Key

DEPLOYMENTS, REPLICA_SETS, STATEFUL_SETS, DAEMON_SETS = (
    kinds.named(name, "apps") for name in ("deployments", "replicasets", "statefulsets", "daemonsets")
)
_CLAIMS = kinds.named("persistentvolumeclaims")
_HASH = "pod-template-hash"
_TOLERATED_BY_DAEMONS = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)
_ENCODE = msgspec.json.Encoder(order="deterministic").encode


def owned_by(kind: Kind, owner: Document) -> Document:
    """The reference that makes the owner an object's controller."""
    metadata = owner["metadata"]
    head = {"apiVersion": kind.api_version, "kind": kind.kind}
    names = {"name": metadata["name"], "uid": metadata["uid"]}
    return {**head, **names, "controller": True, "blockOwnerDeletion": True}


def template_hash(template: Document) -> str:
    """Names a version of a pod template."""
    digits = int.from_bytes(hashlib.sha256(_ENCODE(template)).digest()[:5], "big")
    return f"{digits:x}".zfill(10)[-10:]


class _Workload:
    """What the four controllers share: their own objects, found when these or their pods change."""

    kind: Kind
    watched: tuple[Kind, ...] = (kinds.PODS,)

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def sync(self, dirty: Dirty) -> None:
        keys = set(dirty.get(self.kind, ()))
        if any(dirty.get(kind) for kind in self.watched):
            keys |= self._touched(dirty)
        for namespace, name in sorted(keys):
            found = self._objects.get(self.kind, name, namespace)
            if found is not None and not is_going(found):
                self.reconcile(found)

    def _touched(self, dirty: Dirty) -> set[Key]:
        """The objects of those namespaces in which something changed."""
        namespaces = {namespace for kind in self.watched for namespace, _ in dirty.get(kind, ())}
        if "" in namespaces:
            namespaces = {""}
        return {
            key_of(found) for space in sorted(namespaces) for found in self._objects.all(self.kind, space)
        }

    def reconcile(self, found: Document) -> None:
        raise NotImplementedError

    def owned(self, kind: Kind, owner: Document) -> list[Document]:
        uid, namespace = owner["metadata"]["uid"], owner["metadata"]["namespace"]
        return [
            found
            for found in self._objects.all(kind, namespace)
            if (controller_of(found) or {}).get("uid") == uid
        ]

    def make_pod(self, owner: Document, name: str = "", **spec: object) -> None:
        """A pod of the owner's template."""
        template = owner["spec"]["template"]
        metadata = dict(template.get("metadata") or {})
        metadata |= {"name": name} if name else {"generateName": f"{owner['metadata']['name']}-"}
        metadata["ownerReferences"] = [owned_by(self.kind, owner)]
        document = {"metadata": metadata, "spec": {**template["spec"], **spec}}
        made = self._objects.create(kinds.PODS, document, owner["metadata"]["namespace"])
        if made is not None:
            message = f"Created pod: {made['metadata']['name']}"
            by = f"{self.kind.kind.lower()}-controller"
            self._objects.tell(self.kind, owner, "SuccessfulCreate", message, by=by)

    def report(self, owner: Document, **counts: int) -> None:
        """Counts in the status; those that the API leaves out at zero go."""
        kept = {name: value or None for name, value in counts.items()}
        kept |= {name: counts[name] for name in ("replicas", *_DAEMON_COUNTS) if name in counts}
        current = self._objects.get(self.kind, owner["metadata"]["name"], owner["metadata"]["namespace"])
        if current is not None:
            generation = current["metadata"]["generation"]
            self._objects.change_status(self.kind, current, observedGeneration=generation, **kept)


_DAEMON_COUNTS = ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady")


class ReplicaSets(_Workload):
    """Keeps so many pods."""

    kind = REPLICA_SETS

    def reconcile(self, found: Document) -> None:
        pods = [pod for pod in self.owned(kinds.PODS, found) if not is_going(pod) and not is_over(pod)]
        wanted = found["spec"].get("replicas", 1)
        for _ in range(len(pods), wanted):
            self.make_pod(found)
        for pod in sorted(pods, key=_dispensable)[: max(0, len(pods) - wanted)]:
            self._objects.delete(kinds.PODS, pod)
        ready = sum(1 for pod in pods if is_true(pod, "Ready"))
        current = min(len(pods), wanted) if len(pods) > wanted else wanted
        self.report(
            found,
            replicas=current,
            fullyLabeledReplicas=current,
            readyReplicas=min(ready, current),
            availableReplicas=min(ready, current),
        )


def _dispensable(pod: Document) -> tuple[Any, ...]:
    """Whom to take away first: who has no node, does not run, is not ready, is young."""
    phases = {"Pending": 0, "Unknown": 1, "Running": 2}
    age = pod["metadata"]["creationTimestamp"]
    is_bound = bool(pod["spec"].get("nodeName"))
    rank = phases.get(pod["status"].get("phase"), 0)
    return is_bound, rank, is_true(pod, "Ready"), tuple(-ord(letter) for letter in age)


class Deployments(_Workload):
    """One ReplicaSet for each version of the template; rolls from the old ones to the newest."""

    kind = DEPLOYMENTS
    watched = (REPLICA_SETS,)

    def reconcile(self, found: Document) -> None:
        sets = self.owned(REPLICA_SETS, found)
        name = template_hash(found["spec"]["template"])
        newest = next((s for s in sets if (s["metadata"].get("labels") or {}).get(_HASH) == name), None)
        if newest is None:
            self._make_set(found, name, 0 if sets else found["spec"]["replicas"])
            return
        older = [s for s in sets if s is not newest]
        self._roll(found, newest, older)
        sets = self.owned(REPLICA_SETS, found)
        totals = {
            field: sum((s.get("status") or {}).get(field, 0) for s in sets)
            for field in ("replicas", "readyReplicas", "availableReplicas")
        }
        updated = (newest.get("status") or {}).get("replicas", 0)
        missing = max(0, found["spec"]["replicas"] - totals["availableReplicas"])
        self.report(found, **totals, updatedReplicas=updated, unavailableReplicas=missing)
        self._say_available(found, missing)

    def _say_available(self, found: Document, missing: int) -> None:
        current = self._objects.get(self.kind, found["metadata"]["name"], found["metadata"]["namespace"])
        if current is None:
            return
        enough = missing <= self._margins(found)[1]
        reason = "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable"
        has = "has" if enough else "does not have"
        more = {"reason": reason, "message": f"Deployment {has} minimum availability."}
        status = "True" if enough else "False"
        self._objects.set_condition(self.kind, current, "Available", status, **more)

    def _make_set(self, found: Document, name: str, replicas: int) -> None:
        spec, metadata = found["spec"], found["metadata"]
        template = spec["template"]
        labels = {**((template.get("metadata") or {}).get("labels") or {}), _HASH: name}
        selector = spec["selector"]
        document = {
            "metadata": {
                "name": f"{metadata['name']}-{name}",
                "labels": labels,
                "ownerReferences": [owned_by(self.kind, found)],
            },
            "spec": {
                "replicas": replicas,
                "selector": {
                    **selector,
                    "matchLabels": {**(selector.get("matchLabels") or {}), _HASH: name},
                },
                "template": {
                    **template,
                    "metadata": {**(template.get("metadata") or {}), "labels": labels},
                },
            },
        }
        self._objects.create(REPLICA_SETS, document, metadata["namespace"])

    @staticmethod
    def _margins(found: Document) -> tuple[int, int]:
        """How many pods there may be too many, and too few."""
        strategy = found["spec"].get("strategy") or {}
        replicas = found["spec"]["replicas"]
        if strategy.get("type") == "Recreate":
            return 0, replicas
        rolling = strategy.get("rollingUpdate") or {}
        surge = _share(rolling.get("maxSurge", "25%"), replicas, math.ceil)
        missing = _share(rolling.get("maxUnavailable", "25%"), replicas, math.floor)
        return surge, missing if surge or missing else 1

    def _roll(self, found: Document, newest: Document, older: list[Document]) -> None:
        replicas = found["spec"]["replicas"]
        surge, missing = self._margins(found)
        old = sum(s["spec"]["replicas"] for s in older)
        is_recreating = (found["spec"].get("strategy") or {}).get("type") == "Recreate"
        if is_recreating and any((s.get("status") or {}).get("replicas") for s in older):
            target = newest["spec"]["replicas"]
        else:
            target = min(replicas, max(newest["spec"]["replicas"], replicas + surge - old))
        self._scale(newest, target)
        available = sum((s.get("status") or {}).get("availableReplicas", 0) for s in (newest, *older))
        for each in older:
            unready = each["spec"]["replicas"] - (each.get("status") or {}).get("availableReplicas", 0)
            spare = max(0, available - (replicas - missing))
            down = min(each["spec"]["replicas"], max(0, unready) + spare)
            available -= max(0, down - max(0, unready))
            self._scale(each, each["spec"]["replicas"] - down)

    def _scale(self, each: Document, replicas: int) -> None:
        if each["spec"]["replicas"] != replicas:
            self._objects.change(REPLICA_SETS, each, spec={**each["spec"], "replicas": replicas})


def _share(value: int | str, whole: int, rounded: Any) -> int:
    return value if isinstance(value, int) else int(rounded(int(value.rstrip("%")) * whole / 100))


class StatefulSets(_Workload):
    """Pods with numbers: one after the other, each ready before the next, and gone before it is made anew."""

    kind = STATEFUL_SETS

    def reconcile(self, found: Document) -> None:
        pods = {pod["metadata"]["name"]: pod for pod in self.owned(kinds.PODS, found)}
        name, wanted = found["metadata"]["name"], found["spec"].get("replicas", 1)
        in_parallel = found["spec"].get("podManagementPolicy") == "Parallel"
        for number in range(wanted):
            pod = pods.get(f"{name}-{number}")
            if pod is None:
                self._make(found, number)
            elif is_over(pod) and not is_going(pod):
                self._objects.delete(kinds.PODS, pod)
            if (pod is None or is_going(pod) or not is_true(pod, "Ready")) and not in_parallel:
                break
        else:
            self._shrink(pods, name, wanted)
        present = [pod for pod in pods.values() if not is_going(pod)]
        ready = sum(1 for pod in present if is_true(pod, "Ready"))
        counts = {"currentReplicas": len(present), "updatedReplicas": len(present)}
        self.report(found, replicas=len(pods), readyReplicas=ready, availableReplicas=ready, **counts)

    def _shrink(self, pods: dict[str, Document], name: str, wanted: int) -> None:
        numbers = [int(n.removeprefix(f"{name}-")) for n in pods]
        too_many = sorted((number for number in numbers if number >= wanted), reverse=True)
        for number in too_many[:1]:
            pod = pods[f"{name}-{number}"]
            if not is_going(pod):
                self._objects.delete(kinds.PODS, pod)

    def _make(self, found: Document, number: int) -> None:
        name, namespace = found["metadata"]["name"], found["metadata"]["namespace"]
        volumes = list(found["spec"]["template"]["spec"].get("volumes") or ())
        for template in found["spec"].get("volumeClaimTemplates") or ():
            title = template["metadata"]["name"]
            claim = f"{title}-{name}-{number}"
            document = {"metadata": {**template["metadata"], "name": claim}, "spec": template["spec"]}
            self._objects.create(_CLAIMS, document, namespace)
            volumes = [volume for volume in volumes if volume["name"] != title]
            volumes.append({"name": title, "persistentVolumeClaim": {"claimName": claim}})
        self.make_pod(found, f"{name}-{number}", hostname=f"{name}-{number}", volumes=volumes)


class DaemonSets(_Workload):
    """One pod for each node that it may run on."""

    kind = DAEMON_SETS
    watched = (kinds.PODS, kinds.NODES)

    def reconcile(self, found: Document) -> None:
        pods: dict[str, list[Document]] = {}
        for pod in self.owned(kinds.PODS, found):
            pods.setdefault(_destination(pod), []).append(pod)
        like = _daemon(found["spec"]["template"])
        wanted = set()
        for node in self._objects.all(kinds.NODES):
            name = node["metadata"]["name"]
            if not selects(like, node) or not _may(like, node, "NoSchedule", "NoExecute"):
                continue
            wanted.add(name)
            for pod in pods.get(name, ()):
                if is_over(pod) and not is_going(pod):
                    self._objects.delete(kinds.PODS, pod)
            if not pods.get(name):
                self.make_pod(found, **_pinned(like["spec"], name))
        for name, there in pods.items():
            node_found = self._objects.get(kinds.NODES, name)
            may_stay = (
                node_found is not None and selects(like, node_found) and _may(like, node_found, "NoExecute")
            )
            for pod in there:
                if name not in wanted and not may_stay and not is_going(pod):
                    self._objects.delete(kinds.PODS, pod)
        running = [pod for name in wanted for pod in pods.get(name, ())]
        ready = sum(1 for pod in running if is_true(pod, "Ready"))
        counts = {"currentNumberScheduled": len(running), "desiredNumberScheduled": len(wanted)}
        counts |= {"numberReady": ready, "numberMisscheduled": 0, "numberAvailable": ready}
        self.report(found, **counts)


def _daemon(template: Document) -> Document:
    """A pod of the template, with what daemons tolerate."""
    added = [{"key": key, "operator": "Exists", "effect": effect} for key, effect in _TOLERATED_BY_DAEMONS]
    tolerations = [*(template["spec"].get("tolerations") or ()), *added]
    return {"metadata": {}, "spec": {**template["spec"], "tolerations": tolerations}}


def _may(pod: Document, node: Document, *effects: str) -> bool:
    return all(tolerates(pod, taint) for taint in node_taints(node) if taint["effect"] in effects)


def _pinned(spec: Document, node: str) -> Document:
    """Affinity to one node by its name, in place of what the template requires of nodes."""
    field = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    affinity = dict(spec.get("affinity") or {})
    affinity["nodeAffinity"] = {
        **(affinity.get("nodeAffinity") or {}),
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [field]},
    }
    return {"affinity": affinity, "tolerations": spec["tolerations"]}


def _destination(pod: Document) -> str:
    if pod["spec"].get("nodeName"):
        return str(pod["spec"]["nodeName"])
    affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    return str(affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"][0])


class Heirs:
    """Deletes what is owned by nobody any more."""

    _KINDS = (kinds.PODS, REPLICA_SETS, kinds.named("controllerrevisions", "apps"))
    _OWNERS = (DEPLOYMENTS, REPLICA_SETS, STATEFUL_SETS, DAEMON_SETS, kinds.named("jobs", "batch"))
    _KINDS_TOO = (
        kinds.named("endpointslices", "discovery.k8s.io"),
        kinds.named("leases", "coordination.k8s.io"),
    )

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._by_kind = {(kind.api_version, kind.kind): kind for kind in kinds.KINDS}

    def sync(self, dirty: Dirty) -> None:
        owners = (*self._OWNERS, kinds.NODES, kinds.named("services"))
        is_bereaved = any(
            self._objects.get(kind, name, namespace) is None
            for kind in owners
            for namespace, name in dirty.get(kind, ())
        )
        for kind in (*self._KINDS, *self._KINDS_TOO):
            found = self._objects.all(kind) if is_bereaved else self._named(kind, dirty.get(kind, ()))
            for each in found:
                owners_of = each["metadata"].get("ownerReferences") or ()
                if owners_of and not is_going(each) and not any(self._lives(each, o) for o in owners_of):
                    self._objects.delete(kind, each)

    def _named(self, kind: Kind, keys: Iterable[Key]) -> list[Document]:
        found = (self._objects.get(kind, name, namespace) for namespace, name in sorted(keys))
        return [each for each in found if each is not None]

    def _lives(self, each: Document, owner: Document) -> bool:
        kind = self._by_kind.get((owner["apiVersion"], owner["kind"]))
        if kind is None:
            return True  # of a kind that is not served here: leave it alone
        namespace = each["metadata"].get("namespace", "") if kind.is_namespaced else ""
        found = self._objects.get(kind, owner["name"], namespace)
        return found is not None and found["metadata"]["uid"] == owner["uid"]
