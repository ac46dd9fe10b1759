"""What users see on their own objects: the address in an Ingress' status, an annotation and an Event that say
what to change, and the readiness gate of pods.

Every write is for one object and conditional on its uid, so that a new object of the same name is left alone.
What is to be said is decided elsewhere; called by `act`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from shared.clients.kube import MERGE_PATCH, STRATEGIC_PATCH
from shared.errors import ApiError, ConflictError, NotFoundError
from shared.ingress_sync.compiled import Finding
from shared.ingress_sync.observe import READINESS_GATE
from shared.model.ingress import Ingress, Pod
from shared.runtime.kube_event import ObjectRef, tell

if TYPE_CHECKING:
    from shared.clients.kube import KubeClient

INGRESSES = "/apis/networking.k8s.io/v1/namespaces/{}/ingresses/{}"
ANNOTATION = "kubekeeper.io/ingress-sync"
"""What is wrong with an Ingress, or was compiled otherwise than written; absent when all is well."""


def publish_address(
    kube: KubeClient, namespace: str, name: str, uid: str, load_balancer: Sequence[dict[str, Any]]
) -> bool:
    """Write the status; False when the object has gone, or is another one of that name by now."""
    change = {
        "metadata": {"uid": uid},
        "status": {"loadBalancer": {"ingress": list(load_balancer) or None}},
    }
    return _patched(kube, INGRESSES.format(namespace, name) + "/status", change, MERGE_PATCH)


def publish_note(kube: KubeClient, namespace: str, name: str, uid: str, note: str) -> bool:
    """Write the annotation, or remove it for an empty `note`; False as for `publish_address`."""
    change = {"metadata": {"uid": uid, "annotations": {ANNOTATION: note or None}}}
    return _patched(kube, INGRESSES.format(namespace, name), change, MERGE_PATCH)


def tell_findings(
    kube: KubeClient, findings: Iterable[Finding], ingresses: Iterable[Ingress], now: datetime
) -> list[str]:
    """An Event on each object concerned, once for each thing said; returns what could not be written."""
    by_key = {found.key: found for found in ingresses}
    problems: list[str] = []
    for finding in findings:
        about = by_key.get(finding.owner)
        if about is not None:
            problems += tell(
                kube,
                [_reference(about)],
                reason=finding.reason,
                message=finding.message,
                key=digest_of_finding(finding),
                now=now,
                is_warning=True,
            )
    return problems


def digest_of_finding(finding: Finding) -> str:
    """Tells one thing said from another."""
    return hashlib.sha256(f"{finding.owner}\0{finding.reason}\0{finding.message}".encode()).hexdigest()[:16]


def waiting_for_gateway(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Pods that ask for the readiness gate and do not have it fulfilled."""
    return tuple(pod for pod in pods if has_gate(pod) and not is_fulfilled(pod))


def has_gate(pod: Pod) -> bool:
    """Whether a pod is Ready only when the gateway says so too."""
    return any(gate.condition_type == READINESS_GATE for gate in pod.spec.readiness_gates or ())


def is_fulfilled(pod: Pod) -> bool:
    """Whether the gate's condition is True."""
    found = (one for one in pod.status.conditions or () if one.type == READINESS_GATE)
    return any(one.status == "True" for one in found)


def fulfil(kube: KubeClient, pod: Pod, now: datetime) -> bool:
    """Set the gate's condition: the gateway says that the pod is healthy."""
    metadata = pod.metadata
    condition = {
        "type": READINESS_GATE,
        "status": "True",
        "reason": "Healthy",
        "message": "the Application Gateway's probe succeeds",
        "lastTransitionTime": f"{now:%Y-%m-%dT%H:%M:%SZ}",
    }
    change = {"metadata": {"uid": metadata.uid}, "status": {"conditions": [condition]}}
    path = f"/api/v1/namespaces/{metadata.namespace}/pods/{metadata.name}/status"
    return _patched(kube, path, change, STRATEGIC_PATCH)


def _patched(kube: KubeClient, path: str, change: dict[str, Any], kind: str) -> bool:
    try:
        kube.patch(path, change, kind)
    except (NotFoundError, ConflictError):
        return False
    except ApiError as error:
        if error.status == 422 and "metadata.uid" in str(error):
            return False  # a patch for another uid wants to change an immutable field, says the API server
        raise
    return True


def _reference(ingress: Ingress) -> ObjectRef:
    metadata = ingress.metadata
    return ObjectRef(
        api_version="networking.k8s.io/v1",
        kind="Ingress",
        name=metadata.name,
        uid=metadata.uid,
        namespace=metadata.namespace,
        resource_version=metadata.resource_version,
    )
