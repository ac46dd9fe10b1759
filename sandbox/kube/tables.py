"""The tables that `kubectl get` prints, for the kinds people look at; name and age for the others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sandbox.kube import kinds
from sandbox.kube.kinds import Kind
from sandbox.kube.store import Document, Record

_ROLE = "node-role.kubernetes.io/"
Cells = Callable[[Document], list[Any]]


def table(kind: Kind, records: list[Record], metadata: Document, now: datetime) -> Document:
    """A meta.k8s.io Table of the objects."""
    columns, cells = _PRINTERS.get((kind.group, kind.plural), ((), lambda _: []))
    wide, wide_cells = _WIDE.get((kind.group, kind.plural), ((), lambda _: []))
    names = [("Name", "string"), *columns, ("Age", "string"), *wide]
    rows = []
    for record in records:
        document = record.decode()
        age = _age(now - datetime.fromisoformat(document["metadata"]["creationTimestamp"]))
        row = [document["metadata"]["name"], *cells(document), age, *wide_cells(document)]
        rows.append({"cells": row, "object": metadata_only(record)})
    definitions = [
        {
            "name": name,
            "type": form,
            "format": "name" if name == "Name" else "",
            "description": "",
            "priority": int(number >= len(names) - len(wide)),  # 1: only with `-o wide`
        }
        for number, (name, form) in enumerate(names)
    ]
    head = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
    return {**head, "columnDefinitions": definitions, "rows": rows}


def metadata_only(record: Record) -> Document:
    """The object without spec and status."""
    head = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1"}
    return {**head, "metadata": record.decode()["metadata"]}


def _age(age: Any) -> str:
    seconds = max(0, int(age.total_seconds()))
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def _node(node: Document) -> list[Any]:
    status = node.get("status") or {}
    ready = next((c["status"] for c in status.get("conditions") or () if c["type"] == "Ready"), "Unknown")
    state = "Ready" if ready == "True" else "NotReady"
    if node["spec"].get("unschedulable"):
        state += ",SchedulingDisabled"
    labels = node["metadata"].get("labels") or {}
    roles = sorted(label.removeprefix(_ROLE) for label in labels if label.startswith(_ROLE))
    return [state, ",".join(roles) or "<none>", (status.get("nodeInfo") or {}).get("kubeletVersion", "")]


def _pod(pod: Document) -> list[Any]:
    statuses = pod["status"].get("containerStatuses") or ()
    ready = sum(1 for status in statuses if status.get("ready"))
    phase = "Terminating" if pod["metadata"].get("deletionTimestamp") else pod["status"].get("phase", "")
    restarts = sum(status.get("restartCount", 0) for status in statuses)
    return [f"{ready}/{len(pod['spec'].get('containers') or ())}", phase, restarts]


def _deployment(deployment: Document) -> list[Any]:
    status = deployment.get("status") or {}
    ready = f"{status.get('readyReplicas', 0)}/{deployment['spec'].get('replicas', 1)}"
    return [ready, status.get("updatedReplicas", 0), status.get("availableReplicas", 0)]


def _budget(budget: Document) -> list[Any]:
    spec, status = budget["spec"], budget.get("status") or {}
    minimum, maximum = spec.get("minAvailable", "N/A"), spec.get("maxUnavailable", "N/A")
    return [str(minimum), str(maximum), status.get("disruptionsAllowed", 0)]


def _attachment(attachment: Document) -> list[Any]:
    spec = attachment["spec"]
    attached = (attachment.get("status") or {}).get("attached", False)
    volume = spec["source"].get("persistentVolumeName", "")
    return [spec["attacher"], volume, spec["nodeName"], attached]


def _claim(claim: Document) -> list[Any]:
    spec, status = claim["spec"], claim.get("status") or {}
    capacity = (status.get("capacity") or {}).get("storage", "")
    return [status.get("phase", ""), spec.get("volumeName", ""), capacity, spec.get("storageClassName", "")]


def _volume(volume: Document) -> list[Any]:
    spec, claim = volume["spec"], volume["spec"].get("claimRef") or {}
    bound = f"{claim['namespace']}/{claim['name']}" if claim else ""
    return [(spec.get("capacity") or {}).get("storage", ""), volume["status"].get("phase", ""), bound]


def _stateful_set(found: Document) -> list[Any]:
    return [f"{found['status'].get('readyReplicas', 0)}/{found['spec'].get('replicas', 1)}"]


def _event(event: Document) -> list[Any]:
    about = event.get("involvedObject") or {}
    regarding = f"{about.get('kind', '').lower()}/{about.get('name', '')}"
    return [event.get("type", ""), event.get("reason", ""), regarding, event.get("message", "")]


def _ingress(ingress: Document) -> list[Any]:
    hosts = [rule.get("host", "*") for rule in ingress["spec"].get("rules") or ()]
    points = ((ingress.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    addresses = [point.get("ip") or point.get("hostname", "") for point in points]
    kind = ingress["spec"].get("ingressClassName", "<none>")
    return [kind, ",".join(dict.fromkeys(hosts)) or "*", ",".join(addresses)]


def _pod_wide(pod: Document) -> list[Any]:
    return [pod["status"].get("podIP", "<none>"), pod["spec"].get("nodeName") or "<none>"]


def _node_wide(node: Document) -> list[Any]:
    addresses = {a["type"]: a["address"] for a in (node.get("status") or {}).get("addresses") or ()}
    taints = [f"{t['key']}:{t['effect']}" for t in node["spec"].get("taints") or ()]
    return [addresses.get("InternalIP", "<none>"), ",".join(taints) or "<none>"]


Columns = tuple[tuple[str, str], ...]
_WIDE: dict[tuple[str, str], tuple[Columns, Cells]] = {
    ("", "nodes"): ((("Internal-IP", "string"), ("Taints", "string")), _node_wide),
    ("", "pods"): ((("IP", "string"), ("Node", "string")), _pod_wide),
}
_PRINTERS: dict[tuple[str, str], tuple[Columns, Cells]] = {
    ("", "persistentvolumeclaims"): (
        (("Status", "string"), ("Volume", "string"), ("Capacity", "string"), ("StorageClass", "string")),
        _claim,
    ),
    ("", "persistentvolumes"): (
        (("Capacity", "string"), ("Status", "string"), ("Claim", "string")),
        _volume,
    ),
    ("", "events"): (
        (("Type", "string"), ("Reason", "string"), ("Object", "string"), ("Message", "string")),
        _event,
    ),
    ("apps", "statefulsets"): ((("Ready", "string"),), _stateful_set),
    ("networking.k8s.io", "ingresses"): (
        (("Class", "string"), ("Hosts", "string"), ("Address", "string")),
        _ingress,
    ),
    ("", "nodes"): ((("Status", "string"), ("Roles", "string"), ("Version", "string")), _node),
    ("", "pods"): ((("Ready", "string"), ("Status", "string"), ("Restarts", "integer")), _pod),
    ("apps", "deployments"): (
        (("Ready", "string"), ("Up-to-date", "integer"), ("Available", "integer")),
        _deployment,
    ),
    ("policy", "poddisruptionbudgets"): (
        (("Min Available", "string"), ("Max Unavailable", "string"), ("Allowed Disruptions", "integer")),
        _budget,
    ),
    (kinds.ATTACHMENTS.group, kinds.ATTACHMENTS.plural): (
        (("Attacher", "string"), ("PV", "string"), ("Node", "string"), ("Attached", "boolean")),
        _attachment,
    ),
}
