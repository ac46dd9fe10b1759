"""Nodes and pods by the thousands, as large clusters have them: for figures of time and memory.

    kubernetes.load(kinds.NODES, nodes(5_000))
    kubernetes.load(kinds.PODS, pods(150_000, nodes=5_000))

The same in every run. Pods belong to deployments of 50 each that share a template, lie on the nodes in turn
(the last `pending` on none), and are as long as real ones: over 5 KB, nodes over 8 KB with images. Leave
the controllers out: they look at every object.
"""

from __future__ import annotations

import copy
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from sandbox.kube.store import Document
from sandbox.node_agent import new_node, pod_conditions

START = datetime(2026, 11, 23, 10, 0, tzinfo=UTC)
CREATED = "2026-11-23T10:00:00Z"
REPLICAS = 50
NAMESPACES = 50
IMAGES = 40
ZONES = 3


def nodes(count: int) -> Iterator[Document]:
    """`node-00000` and so on: 16 cores, 64 GiB, in three zones and ten pools."""
    listed = [
        {
            "names": [f"registry.example.org/team-{n % 7}/service-{n}@sha256:{n:064x}", f"registry/{n}:v{n}"],
            "sizeBytes": 50_000_000 + n,
        }
        for n in range(IMAGES)
    ]
    images = msgspec.Raw(msgspec.json.encode(listed))
    capacity = {"cpu": "16", "memory": "64Gi", "pods": "110"}
    for number in range(count):
        node = new_node(
            node_name(number),
            now=START,
            address=f"10.{number // 65536}.{number // 256 % 256}.{number % 256}",
            zone=f"westeurope-{number % ZONES + 1}",
            labels={
                "agentpool": f"pool{number % 10}",
                "node.kubernetes.io/instance-type": "Standard_D16s_v5",
            },
            capacity=capacity,
            provider_id=f"azure:///subscriptions/s/resourceGroups/g/virtualMachines/{number}",
        )
        node["metadata"] |= {"uid": _uid(1, number), "creationTimestamp": CREATED}
        node["status"]["images"] = images
        yield node


def pods(count: int, *, nodes: int, pending: int = 0) -> Iterator[Document]:
    """`app-00000-00` and so on, Running on `node-00000`... in turn; the last `pending` wait."""
    template: Document = {}
    for number in range(count):
        app, replica = divmod(number, REPLICAS)
        if replica == 0:
            template = _template(app)
        pod = dict(template)
        name = f"app-{app:05}-{replica:02}"
        pod["metadata"] = {**template["metadata"], "name": name, "uid": _uid(2, number)}
        if number < count - pending:
            pod["spec"] = {**template["spec"], "nodeName": node_name(number % nodes)}
        else:
            pod["status"] = {"phase": "Pending", "qosClass": "Burstable", "conditions": [_UNSCHEDULABLE]}
        yield pod


def node_name(number: int) -> str:
    return f"node-{number:05}"


def _uid(kind: int, number: int) -> str:
    return str(uuid.UUID(int=(kind << 100) + number))


_UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/5000 nodes are available: 5000 Insufficient cpu.",
    "lastTransitionTime": CREATED,
}


def _template(app: int) -> Document:
    requests = {"cpu": f"{100 + app % 10 * 50}m", "memory": f"{128 << app % 4}Mi"}
    containers = [_container(f"{name}-{app}", requests) for name in ("main", "proxy")]
    mount = {"name": "settings", "configMap": {"name": f"settings-{app}", "defaultMode": 420}}
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"app-{app:05}", "uid": _uid(3, app)}
    labels = {"app": f"app-{app:05}", "team": f"team-{app % 7}", "pod-template-hash": f"{app:010}"}
    statuses = [
        {
            "name": container["name"],
            "image": container["image"],
            "imageID": f"registry.example.org/image@sha256:{app:064x}",
            "containerID": f"containerd://{app:064x}",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": CREATED}},
        }
        for container in containers
    ]
    template: dict[str, Document] = {
        "metadata": {
            "generateName": f"app-{app:05}-",
            "namespace": f"namespace-{app % NAMESPACES:02}",
            "creationTimestamp": CREATED,
            "generation": 1,
            "labels": labels,
            "annotations": {"checksum/config": f"{app:064x}", "prometheus.io/scrape": "true"},
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        },
        "spec": {
            "containers": containers,
            "volumes": [mount, _TOKEN],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": "default",
            "schedulerName": "default-scheduler",
            "priority": 0,
            "enableServiceLinks": True,
            "preemptionPolicy": "PreemptLowerPriority",
            "tolerations": _TOLERATIONS,
        },
        "status": {
            "phase": "Running",
            "qosClass": "Burstable",
            "hostIP": "10.0.0.4",
            "podIP": "10.1.0.4",
            "startTime": CREATED,
            "conditions": pod_conditions(START, ready=True),
            "containerStatuses": statuses,
        },
    }
    # Encoded once for all pods of the deployment.
    for part in ("metadata", "spec", "status"):
        whole = {name: value for name, value in template[part].items() if not isinstance(value, str)}
        template[part] |= {n: msgspec.Raw(msgspec.json.encode(v)) for n, v in whole.items() if n != "labels"}
    return template


def _container(name: str, requests: dict[str, str]) -> Document:
    probe = {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10}
    environment = [
        {"name": f"SETTING_{n:02}", "value": f"https://service-{n}.example.org"} for n in range(10)
    ]
    mounts = [{"name": "settings", "mountPath": "/etc/settings", "readOnly": True}]
    token = {"name": "kube-api-access", "readOnly": True}
    token |= {"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    return {
        "name": name,
        "image": f"registry.example.org/team/{name}:v1.2.3",
        "imagePullPolicy": "IfNotPresent",
        "resources": {"requests": dict(requests), "limits": {"memory": requests["memory"]}},
        "env": copy.copy(environment),
        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
        "livenessProbe": {**probe, "failureThreshold": 3},
        "readinessProbe": {**probe, "failureThreshold": 1},
        "volumeMounts": [*mounts, token],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


_TOKEN: Document = {
    "name": "kube-api-access",
    "projected": {
        "defaultMode": 420,
        "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        ],
    },
}
_TOLERATIONS = [
    {
        "key": f"node.kubernetes.io/{name}",
        "operator": "Exists",
        "effect": "NoExecute",
        "tolerationSeconds": 300,
    }
    for name in ("not-ready", "unreachable")
]
