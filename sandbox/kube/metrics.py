"""Plays metrics-server: what nodes and pods use, as metrics.k8s.io tells it, every 15 seconds.

    metrics = world.run_metrics()
    metrics.usage["web"] = Usage(cpu="900m", memory="1Gi")   # each pod of that app, or of that name

Pods nobody says anything of use what they request. A node uses what its pods do and a little more. Silent
nodes and their pods are left out, as metrics-server cannot ask them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sandbox.kube import kinds, rules
from sandbox.kube.controllers import Dirty, every
from sandbox.kube.objects import Objects, is_true
from sandbox.kube.quantities import NANO, amounts, requested
from sandbox.kube.store import Document

RESOLUTION = timedelta(seconds=15)
"""--metric-resolution of metrics-server."""
NODE_METRICS, POD_METRICS = (kinds.named(name, "metrics.k8s.io") for name in ("nodes", "pods"))


@dataclass(frozen=True)
class Usage:
    """Of one pod, or of a node besides its pods; quantities."""

    cpu: str = "0"
    memory: str = "0"


class MetricsServer:
    """A controller that only looks now and then; `usage` may be changed at any time."""

    def __init__(self, objects: Objects, put: Callable[[kinds.Kind, Document], Any]) -> None:
        self.usage: dict[str, Usage] = {}
        """By a pod's name, or the value of its label `app`."""
        self.node_usage = Usage("100m", "512Mi")
        self.enabled = True
        """False: nothing is updated, and what was said gets old."""
        self._objects = objects
        self._put = put
        every(objects, RESOLUTION, self._scrape)

    def sync(self, dirty: Dirty) -> None:
        """What is gone is not told of any longer."""
        for kind, told in ((kinds.NODES, NODE_METRICS), (kinds.PODS, POD_METRICS)):
            for namespace, name in dirty.get(kind, ()):
                if self._objects.get(kind, name, namespace) is None:
                    self._drop(told, name, namespace)

    def _scrape(self) -> None:
        if not self.enabled:
            return
        used: dict[str, list[dict[str, int]]] = {}
        for node in self._objects.all(kinds.NODES):
            if is_true(node, "Ready"):
                used[node["metadata"]["name"]] = [amounts(vars(self.node_usage))]
            else:
                self._drop(NODE_METRICS, node["metadata"]["name"])
        for pod in self._objects.all(kinds.PODS):
            where, metadata = pod["spec"].get("nodeName") or "", pod["metadata"]
            if where in used and pod["status"].get("phase") == "Running":
                used[where].append(self._tell_pod(pod))
            else:
                self._drop(POD_METRICS, metadata["name"], metadata["namespace"])
        for name, parts in used.items():
            total = {what: sum(part.get(what, 0) for part in parts) for what in ("cpu", "memory")}
            self._say(NODE_METRICS, {"name": name}, {"usage": _shown(total)})

    def _tell_pod(self, pod: Document) -> dict[str, int]:
        metadata = pod["metadata"]
        said = self.usage.get(metadata["name"]) or self.usage.get(
            (metadata.get("labels") or {}).get("app", "")
        )
        found = amounts(vars(said)) if said is not None else requested(pod)
        names = [container["name"] for container in pod["spec"].get("containers") or ()]
        share = {what: found.get(what, 0) // max(1, len(names)) for what in ("cpu", "memory")}
        containers = [{"name": name, "usage": _shown(share)} for name in names]
        about = {name: metadata[name] for name in ("name", "namespace", "labels") if metadata.get(name)}
        self._say(POD_METRICS, about, {"containers": containers})
        return found

    def _say(self, kind: kinds.Kind, metadata: Document, content: Document) -> None:
        now = rules.timestamp(self._objects.now())
        self._put(kind, {"metadata": dict(metadata), "timestamp": now, "window": "15s", **content})

    def _drop(self, kind: kinds.Kind, name: str, namespace: str = "") -> None:
        found = self._objects.get(kind, name, namespace)
        if found is not None:
            self._objects.delete(kind, found)


def _shown(amount: dict[str, int]) -> Document:
    """As metrics-server writes it: nanocores and kibibytes."""
    return {"cpu": f"{amount.get('cpu', 0)}n", "memory": f"{amount.get('memory', 0) // NANO // 1024}Ki"}
