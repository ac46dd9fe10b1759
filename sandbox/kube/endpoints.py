"""EndpointSlices: the addresses of a Service's pods, and whether they are ready. One for each Service."""

from __future__ import annotations

from sandbox.kube import kinds
from sandbox.kube.controllers import Dirty
from sandbox.kube.objects import Objects, is_going, is_over, is_true, key_of
from sandbox.kube.selectors import match_labels
from sandbox.kube.store import Document
from sandbox.kube.workloads import owned_by

SERVICES = kinds.named("services")
SLICES = kinds.named("endpointslices", "discovery.k8s.io")
_BY = "endpointslice-controller.k8s.io"


class EndpointSlices:
    """Keeps a slice for each Service that selects pods."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def sync(self, dirty: Dirty) -> None:
        keys = set(dirty.get(SERVICES, ()))
        namespaces = {n for kind in (kinds.PODS, SLICES) for n, _ in dirty.get(kind, ())}
        keys |= {key_of(service) for n in namespaces for service in self._objects.all(SERVICES, n)}
        for namespace, name in sorted(keys):
            service = self._objects.get(SERVICES, name, namespace)
            if service is not None and (service.get("spec") or {}).get("selector"):
                self._reconcile(service)

    def _reconcile(self, service: Document) -> None:
        namespace, name = key_of(service)
        spec = service["spec"]
        pods = self._objects.all(kinds.PODS, namespace, match_labels({"matchLabels": spec["selector"]}))
        endpoints = [self._endpoint(pod) for pod in pods if pod["status"].get("podIP") and not is_over(pod)]
        ports = [_port(port, pods) for port in spec.get("ports") or ()]
        found = self._slice(service)
        if found is not None:
            if found.get("endpoints") != endpoints or found.get("ports") != ports:
                self._objects.change(SLICES, found, endpoints=endpoints, ports=ports)
            return
        labels = {
            **(service["metadata"].get("labels") or {}),
            "kubernetes.io/service-name": name,
            "endpointslice.kubernetes.io/managed-by": _BY,
        }
        metadata = {"generateName": f"{name}-", "labels": labels}
        metadata["ownerReferences"] = [owned_by(SERVICES, service)]
        document = {
            "metadata": metadata,
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        }
        self._objects.create(SLICES, document, namespace)

    def _slice(self, service: Document) -> Document | None:
        namespace, name = key_of(service)
        wanted = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": _BY}
        found = self._objects.all(SLICES, namespace, match_labels({"matchLabels": wanted}))
        return found[0] if found else None

    def _endpoint(self, pod: Document) -> Document:
        node = pod["spec"].get("nodeName", "")
        labels = (self._objects.get(kinds.NODES, node) or {"metadata": {}})["metadata"].get("labels") or {}
        is_serving = is_true(pod, "Ready")
        metadata = pod["metadata"]
        target = {"kind": "Pod", "namespace": metadata["namespace"]}
        target |= {"name": metadata["name"], "uid": metadata["uid"]}
        endpoint = {
            "addresses": [pod["status"]["podIP"]],
            "conditions": {
                "ready": is_serving and not is_going(pod),
                "serving": is_serving,
                "terminating": is_going(pod),
            },
            "nodeName": node,
            "targetRef": target,
        }
        zone = labels.get("topology.kubernetes.io/zone")
        return {**endpoint, "zone": zone} if zone else endpoint


def _port(port: Document, pods: list[Document]) -> Document:
    number = port.get("targetPort", port["port"])
    if isinstance(number, str):
        number = _named_port(number, pods)
    return {"name": port.get("name", ""), "port": number, "protocol": port.get("protocol", "TCP")}


def _named_port(name: str, pods: list[Document]) -> int | None:
    """As the first pod's containers name it."""
    for pod in pods:
        for container in pod["spec"].get("containers") or ():
            for port in container.get("ports") or ():
                if port.get("name") == name:
                    return int(port["containerPort"])
    return None
