"""PodDisruptionBudgets: how many disruptions they allow, and what eviction makes of that.

The counting is the disruption controller's, done at once after each change; the refusals are the eviction
path's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sandbox.kube import kinds, rules
from sandbox.kube.errors import RefusalError
from sandbox.kube.selectors import match_labels
from sandbox.kube.store import Document, Selection, Store

_SCALED = {"ReplicaSet": "replicasets", "StatefulSet": "statefulsets", "Deployment": "deployments"}
_TOO_MANY = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
_REFUSED = "Cannot evict pod as it would violate the pod's disruption budget."


def recount(store: Store, namespace: str, now: datetime) -> None:
    """Brings the status of the namespace's budgets up to date."""
    for record in list(store.select(kinds.BUDGETS, Selection(namespace))):
        budget = record.decode()
        status = _counted(store, budget, now)
        if status != budget.get("status"):
            store.write(kinds.BUDGETS, {**budget, "status": status})


def _counted(store: Store, budget: Document, now: datetime) -> Document:
    spec, old = budget["spec"], budget.get("status") or {}
    pods = [
        pod for pod in _selected(store, budget) if pod["status"].get("phase") not in ("Succeeded", "Failed")
    ]
    gone = {
        name: when
        for name, when in (old.get("disruptedPods") or {}).items()
        if any(p["metadata"]["name"] == name and not p["metadata"].get("deletionTimestamp") for p in pods)
    }
    healthy = sum(1 for pod in pods if is_healthy(pod) and pod["metadata"]["name"] not in gone)
    expected, desired = _wanted(store, spec, pods)
    allowed = max(0, healthy - desired) if expected > 0 else 0
    counted: Document = {
        **old,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": expected,
        "disruptionsAllowed": allowed,
        "observedGeneration": budget["metadata"]["generation"],
    }
    counted.pop("disruptedPods", None)
    if gone:
        counted["disruptedPods"] = gone
    reason = "SufficientPods" if allowed else "InsufficientPods"
    known = rules.condition({"status": old}, "DisruptionAllowed")
    if known is None or known["reason"] != reason:
        status = "True" if allowed else "False"
        more = {"reason": reason, "message": "", "observedGeneration": counted["observedGeneration"]}
        document = rules.with_condition({"status": counted}, "DisruptionAllowed", status, now, **more)
        counted = document["status"]
    return counted


def _selected(store: Store, budget: Document) -> list[Document]:
    labels = match_labels(budget["spec"].get("selector"))
    selection = Selection(budget["metadata"]["namespace"], labels)
    return [record.decode() for record in store.select(kinds.PODS, selection)]


def is_healthy(pod: Document) -> bool:
    """Ready and not on its way out."""
    ready = rules.condition(pod, "Ready")
    return bool(ready and ready["status"] == "True") and not pod["metadata"].get("deletionTimestamp")


def _wanted(store: Store, spec: Document, pods: list[Document]) -> tuple[int, int]:
    """How many pods there should be, and how many of them must stay healthy."""
    if spec.get("maxUnavailable") is not None:
        expected = _scale(store, pods)
        return expected, max(0, expected - _share(spec["maxUnavailable"], expected))
    minimum = spec.get("minAvailable", 1)
    if isinstance(minimum, int):
        return len(pods), minimum
    expected = _scale(store, pods)
    return expected, _share(minimum, expected)


def _share(value: int | str, whole: int) -> int:
    """Percentages are rounded up, in favour of the application for the one and of the drain for the other."""
    return value if isinstance(value, int) else math.ceil(int(value.rstrip("%")) * whole / 100)


def _scale(store: Store, pods: Iterable[Document]) -> int:
    """The sum of the replicas that the pods' controllers ask for, each controller once."""
    replicas: dict[str, int] = {}
    for pod in pods:
        owner = _controller(pod)
        namespace = pod["metadata"]["namespace"]
        while owner is not None and owner["kind"] in _SCALED:
            record = store.get(kinds.named(_SCALED[owner["kind"]], "apps"), (namespace, owner["name"]))
            if record is None:
                break
            found = record.decode()
            above = _controller(found)
            if above is None:
                replicas[found["metadata"]["uid"]] = int(found["spec"].get("replicas", 1))
            owner = above
    return sum(replicas.values())


def _controller(document: Document) -> dict[str, Any] | None:
    owners = document["metadata"].get("ownerReferences") or ()
    return next((owner for owner in owners if owner.get("controller")), None)


def spend(store: Store, pod: Document, now: datetime) -> None:
    """Takes one disruption from the pod's budget, if it has one; 429 when there is none left."""
    if pod["metadata"].get("deletionTimestamp"):
        return
    if pod["status"].get("phase") in ("Succeeded", "Failed", "Pending"):
        return
    found = [
        record.decode() for record in store.select(kinds.BUDGETS, Selection(pod["metadata"]["namespace"]))
    ]
    labels = pod["metadata"].get("labels") or {}
    budgets = []
    for budget in found:
        selects = match_labels(budget["spec"].get("selector"))
        if selects is None or selects(labels):
            budgets.append(budget)
    if len(budgets) > 1:
        raise RefusalError(500, "InternalError", _TOO_MANY)
    if budgets and not _needs_no_budget(budgets[0], pod):
        _spend(store, budgets[0], pod["metadata"]["name"], now)


def _needs_no_budget(budget: Document, pod: Document) -> bool:
    ready = rules.condition(pod, "Ready")
    if ready and ready["status"] == "True":
        return False
    status = budget.get("status") or {}
    if budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    return bool(status.get("currentHealthy", 0) >= status.get("desiredHealthy", 0) > 0)


def _spend(store: Store, budget: Document, pod: str, now: datetime) -> None:
    name, status = budget["metadata"]["name"], budget.get("status") or {}
    if status.get("observedGeneration", 0) < budget["metadata"]["generation"]:
        raise _violates(f"The disruption budget {name} is still being processed by the server.", 10)
    if status.get("disruptionsAllowed", 0) <= 0:
        raise _violates(
            f"The disruption budget {name} needs {status['desiredHealthy']} healthy pods and has "
            f"{status['currentHealthy']} currently"
        )
    left = status["disruptionsAllowed"] - 1
    spent = {**(status.get("disruptedPods") or {}), pod: rules.timestamp(now)}
    changed = {**budget, "status": {**status, "disruptionsAllowed": left, "disruptedPods": spent}}
    store.write(kinds.BUDGETS, changed)


def _violates(cause: str, retry_after: int = 0) -> RefusalError:
    details: Document = {"causes": [{"reason": "DisruptionBudget", "message": cause}]}
    if retry_after:
        details["retryAfterSeconds"] = retry_after
    return RefusalError(429, "TooManyRequests", _REFUSED, details)
