"""What the API server does to an object before it is stored: defaults, versions, what may not change.

Plain functions of the kind, the objects and the time; each raises `RefusalError` in the real server's words.
The stand-in fills in and checks what the automations and kubectl rely on; it is
no validator of whole objects.
"""

from __future__ import annotations

import random
import uuid
from datetime import datetime, timedelta
from typing import Any

from sandbox.kube import kinds
from sandbox.kube.errors import bad_request, conflict, invalid, modified
from sandbox.kube.kinds import Kind
from sandbox.kube.store import Document

# In generated names, as the real server draws them: no vowels, nothing that looks like another.
_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
_DEFAULT_TOLERATIONS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_KEPT_METADATA = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink")
_POD_MAY_CHANGE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")
_GRACE_SECONDS = 30


def timestamp(moment: datetime) -> str:
    """As metadata carries it: whole seconds, UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def created(kind: Kind, document: Document, namespace: str, now: datetime) -> Document:
    """The object as it is stored first."""
    metadata = dict(document.get("metadata") or {})
    if namespace and metadata.get("namespace", namespace) != namespace:
        raise bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    if not metadata.get("name"):
        if not metadata.get("generateName"):
            why = "Required value: name or generateName is required"
            raise invalid(kind, "", "metadata.name", why, reason="FieldValueRequired")
        metadata["name"] = metadata["generateName"] + "".join(random.choices(_LETTERS, k=5))
    if kind.is_namespaced:
        metadata["namespace"] = namespace
    metadata |= {"uid": str(uuid.uuid4()), "creationTimestamp": timestamp(now)}
    for name in ("deletionTimestamp", "deletionGracePeriodSeconds", "resourceVersion", "managedFields"):
        metadata.pop(name, None)
    if kind.has_generation:
        metadata["generation"] = 1
    result = {**document, "metadata": metadata}
    _fill_in(kind, result)
    return result


def _fill_in(kind: Kind, document: Document) -> None:
    if kind is kinds.PODS:
        _fill_in_pod(document)
    elif kind is kinds.NODES:
        document.setdefault("spec", {})
        document.setdefault("status", {})
    elif kind is kinds.NAMESPACES:
        name = document["metadata"]["name"]
        document["metadata"]["labels"] = {
            "kubernetes.io/metadata.name": name,
            **(document["metadata"].get("labels") or {}),
        }
        document |= {"spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}
    elif kind is kinds.ATTACHMENTS:
        document["status"] = {"attached": False}
    elif kind.plural == "persistentvolumeclaims":
        document["status"] = {"phase": "Pending"}
    elif kind.plural == "persistentvolumes":
        document["status"] = {"phase": "Pending"}
        spec = document["spec"] = dict(document.get("spec") or {})
        spec.setdefault("persistentVolumeReclaimPolicy", "Retain")
        spec.setdefault("volumeMode", "Filesystem")
    elif kind.plural in ("deployments", "replicasets", "statefulsets"):
        document["spec"] = {"replicas": 1, **(document.get("spec") or {})}
        document["status"] = {}
    elif kind.has_status:
        document["status"] = {}


def _fill_in_pod(document: Document) -> None:
    spec = dict(document.get("spec") or {})
    tolerations = list(spec.get("tolerations") or ())
    for key in _DEFAULT_TOLERATIONS:
        if not any(
            t.get("key", "") in ("", key) and t.get("effect", "") in ("", "NoExecute") for t in tolerations
        ):
            tolerations.append(
                {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
            )
    defaults: Document = {
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "schedulerName": "default-scheduler",
    }
    document["spec"] = {**defaults, **spec, "tolerations": tolerations}
    document["status"] = {"phase": "Pending", "qosClass": _quality(spec)}


def _quality(spec: Document) -> str:
    resources = [container.get("resources") or {} for container in spec.get("containers") or ()]
    if not any(r.get("requests") or r.get("limits") for r in resources):
        return "BestEffort"
    both = all(
        {"cpu", "memory"} <= set(r.get("limits") or ()) and (r.get("requests") or r["limits"]) == r["limits"]
        for r in resources
    )
    return "Guaranteed" if both else "Burstable"


def updated(kind: Kind, old: Document, new: Document, subresource: str, *, is_patch: bool) -> Document:
    """The object as it is stored next; equal to `old` when nothing has changed."""
    name = old["metadata"]["name"]
    metadata = dict(new.get("metadata") or {})
    _check_identity(kind, old, metadata, is_patch=is_patch)
    for field in _KEPT_METADATA:
        metadata.pop(field, None)
        if field in old["metadata"]:
            metadata[field] = old["metadata"][field]
    metadata |= {"name": name, "resourceVersion": old["metadata"]["resourceVersion"]}
    if kind.is_namespaced:
        metadata["namespace"] = old["metadata"]["namespace"]
    for empty in ("labels", "annotations", "finalizers", "ownerReferences", "managedFields"):
        if not metadata.get(empty) or empty == "managedFields":
            metadata.pop(empty, None)
    _check_finalizers(kind, old, metadata)

    result = {**new, "metadata": metadata}
    if subresource == "status":
        kept = old["metadata"] if kind is not kinds.NODES else {**metadata, "ownerReferences": None}
        kept = {field: value for field, value in kept.items() if value is not None}
        result = {**old, "metadata": kept, "status": new.get("status") or {}}
    elif kind.has_status:
        result["status"] = old.get("status") or {}
    if kind.has_generation:
        is_changed = result.get("spec") != old.get("spec")
        result["metadata"]["generation"] = old["metadata"].get("generation", 1) + is_changed
    if not subresource:
        _check_fixed(kind, old, result)
    return result


def _check_identity(kind: Kind, old: Document, metadata: Document, *, is_patch: bool) -> None:
    name, uid = old["metadata"]["name"], old["metadata"]["uid"]
    if metadata.get("name", name) != name:
        raise bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
        )
    version = metadata.get("resourceVersion") or ""
    if not version and kind.needs_version and not is_patch:
        raise invalid(
            kind, name, "metadata.resourceVersion", "Invalid value: 0: must be specified for an update"
        )
    if version and version != old["metadata"]["resourceVersion"]:
        raise modified(kind, name)
    if metadata.get("uid") and metadata["uid"] != uid:
        if is_patch:
            why = f'Invalid value: "{metadata["uid"]}": field is immutable'
            raise invalid(kind, name, "metadata.uid", why)
        raise conflict(
            kind,
            name,
            f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {uid}",
        )


def _check_finalizers(kind: Kind, old: Document, metadata: Document) -> None:
    added = set(metadata.get("finalizers") or ()) - set(old["metadata"].get("finalizers") or ())
    if added and old["metadata"].get("deletionTimestamp"):
        why = (
            "Forbidden: no new finalizers can be added if the object is being deleted, found new "
            f"finalizers {sorted(added)!r}"
        )
        name = old["metadata"]["name"]
        raise invalid(kind, name, "metadata.finalizers", why, reason="FieldValueForbidden")


def _check_fixed(kind: Kind, old: Document, new: Document) -> None:
    name = old["metadata"]["name"]
    if kind is kinds.ATTACHMENTS and old.get("spec") != new.get("spec"):
        raise invalid(kind, name, "spec", "Invalid value: field is immutable")
    if kind is kinds.PODS and _fixed_part(old) != _fixed_part(new):
        why = (
            "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
            "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
            "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to "
            "1 if it was previously negative)"
        )
        raise invalid(kind, name, "spec", why, reason="FieldValueForbidden")


def _fixed_part(pod: Document) -> Document:
    spec = {field: value for field, value in pod["spec"].items() if field not in _POD_MAY_CHANGE}
    for field in ("containers", "initContainers"):
        spec[field] = [{**container, "image": ""} for container in spec.get(field) or ()]
    return spec


def check_preconditions(kind: Kind, old: Document, options: Document) -> None:
    """Of DeleteOptions."""
    wanted = options.get("preconditions") or {}
    metadata = old["metadata"]
    for field, label, since in (
        ("uid", "UID", "deleted and then recreated"),
        ("resourceVersion", "ResourceVersion", "modified"),
    ):
        if wanted.get(field) and wanted[field] != metadata[field]:
            why = (
                f"the {label} in the precondition ({wanted[field]}) does not match the {label} in record "
                f"({metadata[field]}). The object might have been {since}"
            )
            raise conflict(kind, metadata["name"], why, subject=kind.qualified)


def marked_for_deletion(kind: Kind, old: Document, options: Document, now: datetime) -> tuple[Document, bool]:
    """The object as a DELETE leaves it, and whether it goes at once."""
    finalizers = old["metadata"].get("finalizers")
    if kind is not kinds.PODS:
        if not finalizers:
            return old, True
        return _marked(old, now, 0), False
    grace = _grace_seconds(old, options)
    marked = _marked(old, now, grace)
    return marked, grace == 0 and not finalizers


def _grace_seconds(pod: Document, options: Document) -> int:
    if not pod["spec"].get("nodeName") or pod["status"].get("phase") in ("Succeeded", "Failed"):
        return 0
    asked = options.get("gracePeriodSeconds")
    return int(pod["spec"].get("terminationGracePeriodSeconds", _GRACE_SECONDS) if asked is None else asked)


def _marked(old: Document, now: datetime, grace: int) -> Document:
    metadata = dict(old["metadata"])
    earlier = metadata.get("deletionGracePeriodSeconds")
    if metadata.get("deletionTimestamp") and earlier is not None:
        if grace >= earlier:
            return old  # it can be shortened, never extended
        began = datetime.fromisoformat(metadata["deletionTimestamp"]) - timedelta(seconds=earlier)
        metadata["deletionTimestamp"] = timestamp(max(began + timedelta(seconds=grace), began))
    else:
        metadata["deletionTimestamp"] = timestamp(now + timedelta(seconds=grace))
        if "generation" in metadata:
            metadata["generation"] += 1
    metadata["deletionGracePeriodSeconds"] = grace
    return {**old, "metadata": metadata}


def bound(kind: Kind, old: Document, node: str, now: datetime) -> Document:
    """A pod as its binding leaves it."""
    name = old["metadata"]["name"]
    if old["metadata"].get("deletionTimestamp"):
        raise conflict(
            kind, name, f"pod {name} is being deleted, cannot be assigned to a host", subject="pods/binding"
        )
    if old["spec"].get("nodeName"):
        why = f'pod {name} is already assigned to node "{old["spec"]["nodeName"]}"'
        raise conflict(kind, name, why, subject="pods/binding")
    return with_condition({**old, "spec": {**old["spec"], "nodeName": node}}, "PodScheduled", "True", now)


def with_condition(document: Document, kind: str, status: str, now: datetime, **more: str) -> Document:
    """The object with that condition in its status."""
    new = {"type": kind, "status": status, "lastTransitionTime": timestamp(now), **more}
    old = document.get("status") or {}
    conditions = [condition for condition in old.get("conditions") or () if condition["type"] != kind]
    return {**document, "status": {**old, "conditions": [*conditions, new]}}


def condition(document: Document, kind: str) -> dict[str, Any] | None:
    """That condition of the object's status."""
    found = ((document.get("status") or {}).get("conditions")) or ()
    return next((condition for condition in found if condition["type"] == kind), None)


def generated_suffix(length: int = 5) -> str:
    """As in generated names."""
    return "".join(random.choices(_LETTERS, k=length))
