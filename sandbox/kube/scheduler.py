"""kube-scheduler: which node a pod may go to, which of them is best, and the words when there is none.

The filters stand in the real scheduler's order, since the first that objects to a node gives the reason. Not
modelled: preemption (nobody is evicted for a pod of higher priority), topologies of storage classes, exact
scores: of the nodes that fit, the one wins that spreads best and has most left.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sandbox.kube import kinds, rules
from sandbox.kube.controllers import Dirty
from sandbox.kube.lifecycle import UNSCHEDULABLE, node_taints, tolerates
from sandbox.kube.objects import Objects, controller_of, is_going, is_over
from sandbox.kube.quantities import NANO, amounts, requested
from sandbox.kube.selectors import match_labels
from sandbox.kube.store import Document

NAME = "default-scheduler"
_CLAIMS, _VOLUMES = kinds.named("persistentvolumeclaims"), kinds.named("persistentvolumes")
_CLASSES = kinds.named("storageclasses", "storage.k8s.io")
SELECTED_NODE = "volume.kubernetes.io/selected-node"
_CSI_NODES = kinds.named("csinodes", "storage.k8s.io")
_WAKING = (kinds.NODES, kinds.PODS, _CLAIMS, _VOLUMES, _CSI_NODES)
_NOT_HELPFUL = "Preemption is not helpful for scheduling."
_NO_VICTIMS = "No preemption victims found for incoming pod."
_ZONE = "topology.kubernetes.io/zone"
_AFFINITY = "node(s) didn't match Pod's node affinity/selector"
_SPREAD = "node(s) didn't match pod topology spread constraints"


@dataclass
class Room:
    """A node and what is on it."""

    node: Document
    pods: list[Document] = field(default_factory=list)
    used: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    total: dict[str, int] = field(init=False)
    order: tuple[int, ...] = field(init=False)
    owners: Counter[str] = field(default_factory=Counter)
    """How many pods each controller has here, by its uid."""
    shunning: list[Document] = field(default_factory=list)
    """The pods that will not be together with some others."""
    volumes: set[str] = field(default_factory=set)
    """What these pods use of volumes that attach: driver and handle."""
    limits: dict[str, int] = field(default_factory=dict)
    """How many volumes of each driver may be attached."""

    def __post_init__(self) -> None:
        self.total = amounts((self.node.get("status") or {}).get("allocatable"))
        self.order = _order(self.name)

    @property
    def name(self) -> str:
        return str(self.node["metadata"]["name"])

    @property
    def labels(self) -> dict[str, str]:
        return self.node["metadata"].get("labels") or {}

    def add(self, pod: Document, asked: Mapping[str, int], volumes: Iterable[str]) -> None:
        self.pods.append(pod)
        self.volumes.update(volumes)
        owner = controller_of(pod)
        if owner is not None:
            self.owners[owner["uid"]] += 1
        if "podAntiAffinity" in (pod["spec"].get("affinity") or ()):
            self.shunning.append(pod)
        for name, amount in asked.items():
            self.used[name] += amount


@dataclass(frozen=True)
class Objection:
    """Why a node will not do; `is_lasting` when removing pods from it would not help."""

    reasons: tuple[str, ...]
    is_lasting: bool = True


Filter = Callable[[Document, Room], Objection | None]


class Scheduler:
    """Binds pending pods, the most important first, and says why others wait."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._requests: dict[str, dict[str, int]] = {}
        """What pods ask for, by uid."""

    def sync(self, dirty: Dirty) -> None:
        if not any(dirty.get(kind) for kind in _WAKING):
            return
        waiting = [pod for pod in self._objects.pods_on("") if _is_waiting(pod)]
        if not waiting:
            return
        rooms = self._rooms()
        waiting.sort(key=lambda pod: (-pod["spec"].get("priority", 0), pod["metadata"]["creationTimestamp"]))
        for pod in waiting:
            self._schedule(pod, rooms)

    def _rooms(self) -> dict[str, Room]:
        rooms = {node["metadata"]["name"]: Room(node) for node in self._objects.all(kinds.NODES)}
        for found in self._objects.all(_CSI_NODES):
            if (room := rooms.get(found["metadata"]["name"])) is not None:
                room.limits = _limits(found)
        seen = {}
        for pod in self._objects.all(kinds.PODS):
            name, uid = pod["spec"].get("nodeName"), pod["metadata"]["uid"]
            seen[uid] = self._asked(pod)
            if name in rooms and not is_over(pod):
                rooms[name].add(pod, seen[uid], self._attached_for(pod))
        self._requests = seen
        return rooms

    def _asked(self, pod: Document) -> dict[str, int]:
        return self._requests.get(pod["metadata"]["uid"]) or requested(pod)

    def _attached_for(self, pod: Document) -> list[str]:
        return [_attached_as(volume) for volume in self._volumes_of(pod)[1] if volume["spec"].get("csi")]

    def _schedule(self, pod: Document, rooms: dict[str, Room]) -> None:
        if pod["spec"].get("schedulingGates"):
            more = {
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }
            self._objects.set_condition(kinds.PODS, pod, "PodScheduled", "False", **more)
            return
        if not rooms:
            self._refuse(pod, "no nodes available to schedule pods")
            return
        trouble, pinned = self._volumes_of(pod)
        if trouble:
            self._refuse(pod, f"0/{len(rooms)} nodes are available: {trouble}. {_preemption(rooms, {})}")
            return
        filters = self._filters(pod, rooms, pinned)
        objections: dict[str, Objection] = {}
        fitting = []
        for room in rooms.values():
            objection = next(filter(None, (check(pod, room) for check in filters)), None)
            if objection is None:
                fitting.append(room)
            else:
                objections[room.name] = objection
        if not fitting:
            self._refuse(pod, _said(rooms, objections))
            return
        fitting = self._chosen_before(pod, fitting)
        best = max(fitting, key=_scorer(pod, self._asked(pod), rooms))
        if late := self._late_claims(pod):
            self._choose_place(late, best.name)
            best.add(pod, self._asked(pod), ())
            return
        self._objects.bind(pod, best.name)
        metadata = pod["metadata"]
        message = f"Successfully assigned {metadata['namespace']}/{metadata['name']} to {best.name}"
        self._objects.tell(kinds.PODS, pod, "Scheduled", message, by=NAME)
        best.add(pod, self._asked(pod), self._attached_for(pod))

    def _refuse(self, pod: Document, message: str) -> None:
        known = rules.condition(pod, "PodScheduled")
        if known is not None and known.get("message") == message:
            return
        more = {"reason": "Unschedulable", "message": message}
        pod = self._objects.set_condition(kinds.PODS, pod, "PodScheduled", "False", **more)
        self._objects.tell(kinds.PODS, pod, "FailedScheduling", message, by=NAME, is_warning=True)

    def _volumes_of(self, pod: Document) -> tuple[str, list[Document]]:
        """What is wrong with the pod's claims, or the volumes they are bound to."""
        volumes = []
        for name in claims_of(pod):
            claim = self._objects.get(_CLAIMS, name, pod["metadata"]["namespace"])
            if claim is None:
                return f'persistentvolumeclaim "{name}" not found', []
            if is_going(claim):
                return f'persistentvolumeclaim "{name}" is being deleted', []
            if self._waits_for_consumer(claim):
                continue
            volume = self._objects.get(_VOLUMES, claim["spec"].get("volumeName") or "")
            if volume is None or claim["status"].get("phase") != "Bound":
                return "pod has unbound immediate PersistentVolumeClaims", []
            volumes.append(volume)
        return "", volumes

    def _waits_for_consumer(self, claim: Document) -> bool:
        """Whether its volume is only made when it is known where it is needed."""
        found = self._objects.get(_CLASSES, claim["spec"].get("storageClassName") or "")
        is_late = found is not None and found.get("volumeBindingMode") == "WaitForFirstConsumer"
        return is_late and not claim["spec"].get("volumeName")

    def _late_claims(self, pod: Document) -> list[Document]:
        claims = (self._objects.get(_CLAIMS, name, pod["metadata"]["namespace"]) for name in claims_of(pod))
        return [claim for claim in claims if claim is not None and self._waits_for_consumer(claim)]

    def _choose_place(self, claims: list[Document], node: str) -> None:
        """The provisioner of the claims' class makes their volumes there; the pod is bound when they are."""
        for claim in claims:
            metadata = claim["metadata"]
            annotations = {**(metadata.get("annotations") or {}), SELECTED_NODE: node}
            changed = {**metadata, "annotations": annotations}
            self._objects.change(_CLAIMS, claim, metadata=changed)

    def _chosen_before(self, pod: Document, fitting: list[Room]) -> list[Room]:
        """The node that the pod's volumes were made for, if it will still do."""
        claims = [self._objects.get(_CLAIMS, name, pod["metadata"]["namespace"]) for name in claims_of(pod)]
        chosen = {
            ((c or {"metadata": {}})["metadata"].get("annotations") or {}).get(SELECTED_NODE) for c in claims
        }
        return [room for room in fitting if room.name in chosen] or fitting

    def _filters(self, pod: Document, rooms: dict[str, Room], volumes: list[Document]) -> list[Filter]:
        return [
            _unschedulable,
            _untolerated,
            _unselected,
            _ports_taken,
            partial(_insufficient, self._asked(pod)),
            partial(_volumes_too_many, [volume for volume in volumes if volume["spec"].get("csi")]),
            partial(_volumes_elsewhere, volumes),
            _spread_filter(pod, rooms),
            _company_filter(pod, rooms),
        ]


def claims_of(pod: Document) -> list[str]:
    """Names of the claims that a pod mounts."""
    found = (volume.get("persistentVolumeClaim") for volume in pod["spec"].get("volumes") or ())
    return [claim["claimName"] for claim in found if claim]


def _is_waiting(pod: Document) -> bool:
    is_ours = pod["spec"].get("schedulerName") == NAME
    return is_ours and not pod["spec"].get("nodeName") and not is_going(pod) and not is_over(pod)


# What is said


def _said(rooms: Mapping[str, Room], objections: Mapping[str, Objection]) -> str:
    counts = Counter(reason for objection in objections.values() for reason in objection.reasons)
    reasons = ", ".join(sorted(f"{count} {reason}" for reason, count in counts.items()))
    return f"0/{len(rooms)} nodes are available: {reasons}. {_preemption(rooms, objections)}"


def _preemption(rooms: Mapping[str, Room], objections: Mapping[str, Objection]) -> str:
    could = sum(1 for objection in objections.values() if not objection.is_lasting)
    counts = {_NO_VICTIMS: could, _NOT_HELPFUL: len(rooms) - could}
    reasons = ", ".join(sorted(f"{n} {reason.rstrip('.')}" for reason, n in counts.items() if n))
    return f"no new claims to deallocate, preemption: 0/{len(rooms)} nodes are available: {reasons}."


# Filters, in the order of the real scheduler's


def _unschedulable(pod: Document, room: Room) -> Objection | None:
    taint = {"key": UNSCHEDULABLE, "effect": "NoSchedule"}
    if room.node["spec"].get("unschedulable") and not tolerates(pod, taint):
        return Objection(("node(s) were unschedulable",))
    return None


def _untolerated(pod: Document, room: Room) -> Objection | None:
    for taint in node_taints(room.node):
        if taint["effect"] in ("NoSchedule", "NoExecute") and not tolerates(pod, taint):
            return Objection(("node(s) had untolerated taint(s)",))
    return None


def _unselected(pod: Document, room: Room) -> Objection | None:
    return None if selects(pod, room.node) else Objection((_AFFINITY,))


def selects(pod: Document, node: Document) -> bool:
    """The pod's node selector and required node affinity."""
    labels = node["metadata"].get("labels") or {}
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    return required is None or any(matches_term(term, node) for term in required["nodeSelectorTerms"])


def matches_term(term: Document, node: Document) -> bool:
    """A NodeSelectorTerm; an empty one matches nothing."""
    labels = node["metadata"].get("labels") or {}
    fields = {"metadata.name": node["metadata"]["name"]}
    asked = [(labels, e) for e in term.get("matchExpressions") or ()]
    asked += [(fields, e) for e in term.get("matchFields") or ()]
    return bool(asked) and all(_holds(expression, of) for of, expression in asked)


def _holds(expression: Document, labels: Mapping[str, str]) -> bool:
    key, operator = expression["key"], expression["operator"]
    if operator in ("Gt", "Lt"):
        found, bound = labels.get(key, ""), int(expression["values"][0])
        return found.lstrip("-").isdigit() and (
            int(found) > bound if operator == "Gt" else int(found) < bound
        )
    test = match_labels({"matchExpressions": [expression]})
    return test is None or test(labels)


def _ports_taken(pod: Document, room: Room) -> Objection | None:
    wanted = _host_ports(pod)
    if wanted and any(wanted & _host_ports(other) for other in room.pods):
        why = "node(s) didn't have free ports for the requested pod ports"
        return Objection((why,), is_lasting=False)
    return None


def _host_ports(pod: Document) -> set[tuple[int, str]]:
    ports = (port for c in pod["spec"].get("containers") or () for port in c.get("ports") or ())
    return {(port["hostPort"], port.get("protocol", "TCP")) for port in ports if port.get("hostPort")}


def _insufficient(asked: Mapping[str, int], _: Document, room: Room) -> Objection | None:
    reasons, is_lasting = [], False
    if (len(room.pods) + 1) * NANO > room.total.get("pods", 0):
        reasons.append("Too many pods")
    for name, amount in asked.items():
        have = room.total.get(name, 0)
        if amount and amount > have - room.used.get(name, 0):
            reasons.append(f"Insufficient {name}")
            is_lasting = is_lasting or amount > have
    return Objection(tuple(reasons), is_lasting) if reasons else None


def _volumes_too_many(volumes: list[Document], _: Document, room: Room) -> Objection | None:
    """CSINodes say how many there may be; for drivers that they do not name, there is no limit."""
    for driver in {volume["spec"]["csi"]["driver"] for volume in volumes} & set(room.limits):
        prefix = f"{driver}^"
        wanted = {_attached_as(volume) for volume in volumes if volume["spec"]["csi"]["driver"] == driver}
        used = {volume for volume in room.volumes if volume.startswith(prefix)}
        if len(used | wanted) > room.limits[driver]:
            return Objection(("node(s) exceed max volume count",), is_lasting=False)
    return None


def _attached_as(volume: Document) -> str:
    csi = volume["spec"]["csi"]
    return f"{csi['driver']}^{csi['volumeHandle']}"


def _limits(csi_node: Document) -> dict[str, int]:
    drivers = (csi_node.get("spec") or {}).get("drivers") or ()
    counts = {driver["name"]: (driver.get("allocatable") or {}).get("count") for driver in drivers}
    return {name: count for name, count in counts.items() if count is not None}


def _volumes_elsewhere(volumes: Iterable[Document], _: Document, room: Room) -> Objection | None:
    for volume in volumes:
        required = (volume["spec"].get("nodeAffinity") or {}).get("required")
        if required and not any(matches_term(term, room.node) for term in required["nodeSelectorTerms"]):
            return Objection(("node(s) didn't match PersistentVolume's node affinity",))
    return None


def _spread_filter(pod: Document, rooms: Mapping[str, Room]) -> Filter:
    """The pod's hard spread constraints; the pods are counted once for all nodes."""
    labels = pod["metadata"].get("labels") or {}
    limits: list[tuple[str, Counter[str], int]] = []
    for constraint in pod["spec"].get("topologySpreadConstraints") or ():
        if constraint["whenUnsatisfiable"] != "DoNotSchedule":
            continue
        counts = _spread_counts(rooms.values(), pod, constraint)
        fewest = min(counts.values(), default=0)
        if len(counts) < constraint.get("minDomains", 1):
            fewest = 0
        itself = int(_selector(constraint.get("labelSelector"))(labels))
        limits.append((constraint["topologyKey"], counts, constraint["maxSkew"] + fewest - itself))

    def unspread(_: Document, room: Room) -> Objection | None:
        for key, counts, limit in limits:
            if key not in room.labels:
                return Objection((f"{_SPREAD} (missing required label)",))
            if counts[room.labels[key]] > limit:
                return Objection((_SPREAD,), is_lasting=False)
        return None

    return unspread


def _spread_counts(rooms: Iterable[Room], pod: Document, constraint: Document) -> Counter[str]:
    """How many of the pods are in each domain that this pod could choose."""
    key, test = constraint["topologyKey"], _selector(constraint.get("labelSelector"))
    counts: Counter[str] = Counter()
    for room in rooms:
        if key not in room.labels or not selects(pod, room.node):
            continue
        if constraint.get("nodeTaintsPolicy") == "Honor" and _untolerated(pod, room):
            continue
        counts[room.labels[key]] += sum(
            1
            for other in room.pods
            if other["metadata"]["namespace"] == pod["metadata"]["namespace"]
            and not is_going(other)
            and test(other["metadata"].get("labels") or {})
        )
    return counts


def _selector(selector: Document | None) -> Callable[[Mapping[str, str]], bool]:
    return match_labels(selector) or (lambda _: True)


def _company_filter(pod: Document, rooms: Mapping[str, Room]) -> Filter:
    """Required affinity to and against other pods, and that of the others against this one."""
    wanted = [(term, _domains(term, pod, rooms)) for term in _terms(pod, "podAffinity")]
    shunned = [(term["topologyKey"], _domains(term, pod, rooms)) for term in _terms(pod, "podAntiAffinity")]
    guarded = _guarded(pod, rooms)

    def unwelcome(_: Document, room: Room) -> Objection | None:
        for term, there in wanted:
            value = room.labels.get(term["topologyKey"])
            # The first of a group that wants to be together may go anywhere.
            is_first = not there and _meets(term, pod, pod)
            if value is None or (value not in there and not is_first):
                return Objection(("node(s) didn't match pod affinity rules",))
        if any(room.labels.get(key) in there for key, there in shunned):
            return Objection(("node(s) didn't match pod anti-affinity rules",), is_lasting=False)
        if any(room.labels.get(key) == value for key, value in guarded):
            why = "node(s) didn't satisfy existing pods anti-affinity rules"
            return Objection((why,), is_lasting=False)
        return None

    return unwelcome


def _domains(term: Document, pod: Document, rooms: Mapping[str, Room]) -> set[str]:
    """Where pods are that the term of `pod` is about: values of the term's topology label."""
    key = term["topologyKey"]
    return {
        room.labels[key]
        for room in rooms.values()
        if key in room.labels and any(_meets(term, pod, other) for other in room.pods)
    }


def _guarded(pod: Document, rooms: Mapping[str, Room]) -> set[tuple[str, str]]:
    """Topology labels of nodes whose pods shun this one."""
    return {
        (term["topologyKey"], room.labels[term["topologyKey"]])
        for room in rooms.values()
        for other in room.shunning
        for term in _terms(other, "podAntiAffinity")
        if term["topologyKey"] in room.labels and _meets(term, other, pod)
    }


def _terms(pod: Document, kind: str) -> list[Document]:
    affinity = (pod["spec"].get("affinity") or {}).get(kind) or {}
    return list(affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or ())


def _meets(term: Document, owner: Document, other: Document) -> bool:
    """Whether `other` is one of the pods that the term of `owner` is about."""
    namespaces = term.get("namespaces") or [owner["metadata"]["namespace"]]
    everywhere = term.get("namespaceSelector") == {}
    is_near = everywhere or other["metadata"]["namespace"] in namespaces
    return is_near and _selector(term.get("labelSelector"))(other["metadata"].get("labels") or {})


# Which of those that fit


def _scorer(
    pod: Document, asked: Mapping[str, int], rooms: Mapping[str, Room]
) -> Callable[[Room], tuple[Any, ...]]:
    """Greater is better: what is preferred, then how well it spreads, then how much is left."""
    siblings = {room.name: _siblings(pod, room) for room in rooms.values()}
    by_zone: Counter[str] = Counter()
    for room in rooms.values():
        by_zone[room.labels.get(_ZONE, "")] += siblings[room.name]

    def score(room: Room) -> tuple[Any, ...]:
        discouraged = sum(
            1
            for taint in node_taints(room.node)
            if taint["effect"] == "PreferNoSchedule" and not tolerates(pod, taint)
        )
        crowd = by_zone[room.labels.get(_ZONE, "")]
        spread = (-siblings[room.name], -crowd)
        return (-discouraged, _preference(pod, room), *spread, -_fullness(asked, room), room.order)

    return score


def _order(name: str) -> tuple[int, ...]:
    """Of names that are otherwise equal, the first one is best."""
    return tuple(-ord(letter) for letter in name)


def _preference(pod: Document, room: Room) -> int:
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    return sum(each["weight"] for each in preferred if matches_term(each["preference"], room.node))


def _siblings(pod: Document, room: Room) -> int:
    owner = controller_of(pod)
    if owner is None:
        return 0
    return room.owners[owner["uid"]]


def _fullness(asked: Mapping[str, int], room: Room) -> float:
    """The shares of CPU and memory that would be taken; among equals, how many pods there are."""
    shares = [
        (room.used.get(name, 0) + asked.get(name, 0)) / room.total[name]
        for name in ("cpu", "memory")
        if room.total.get(name)
    ]
    return sum(shares) + len(room.pods) / 10**6
