"""Generated clusters for the planner and the real scheduler alike: seeded, every predicate mixed.

`generate(seed)` gives a `Case` whose documents are also what an API server takes, but for times and owners.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from random import Random
from typing import Any

from planning import LOCATION, Case, stamp

DISK_ZONE = "topology.disk.csi.azure.com/zone"
ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
DRIVER = "disk.csi.azure.com"
FPGA = "example.com/fpga"
NAMESPACES = {"default": {}, "team-a": {"team": "a", "kind": "prod"}, "team-b": {"team": "b", "kind": "prod"}}
PRIORITIES = {"high": 1000, "medium": 100, "low": -5}
RUNTIME = "heavy"
OVERHEAD = {"cpu": "50m", "memory": "32Mi"}
APPS = ("web", "db", "cache", "batch")
DAEMON = {"cpu": "100m", "memory": "64Mi"}
WITH_MORE = 1_001
"""From this seed on some pods that wait are gated, and some that run are being deleted."""
WITH_NOMINATED = 2_001
"""From this seed on some of those give way to a pod for which the scheduler has chosen their node."""
Document = dict[str, Any]


def generate(seed: int) -> Case:
    """The cluster of that seed: 1 to 60 nodes of 2 to 4 pools, 1 to 200 pending pods."""
    return _Generator(seed).case()


class _Generator:
    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, Random(seed)
        self._claims, self._has_more = 0, seed >= WITH_MORE
        self._has_nominated = seed >= WITH_NOMINATED
        self.made = Case()
        self.made.policy["scaleUp"] = {"strategy": ["least-waste"]}
        if self.random.random() < 0.25:
            self.made.policy["scaleUp"]["minPriority"] = 0

    def case(self) -> Case:
        """Pools with nodes, pods that run, pods that wait."""
        self.made.more = {
            "namespaces": [{"metadata": {"name": k, "labels": v}} for k, v in NAMESPACES.items()],
            "storageclasses": self._classes(),
            "persistentvolumes": [],
            "persistentvolumeclaims": [],
            "csinodes": [],
            "daemonsets": self._daemon_sets(),
        }
        for number in range(self.random.randint(2, 4)):
            self._pool(f"p{number}")
        if not self.made.nodes:
            self._node("p0", self.made.pools["p0"])
            self.made.sets[0]["sku"]["capacity"] += 1
        names = [node["metadata"]["name"] for node in self.made.nodes]
        for node in self.made.nodes:
            self._daemons_of(node)
        for name in names:
            for number in range(self.random.randint(0, 6 if self._has_nominated else 2)):
                self._running(name, number)
        self._pending()
        for name in names if self._has_nominated else ():
            for number in range(self.random.choice((0, 0, 1, 2))):
                self._nominated(name, number)
        return self.made

    # Nodes

    def _pool(self, name: str) -> None:
        pick, cpu = self.random, self.random.choice((2, 4, 8))
        allocatable = {
            "cpu": f"{cpu * 1000 - 140}m",
            "memory": f"{cpu * pick.choice((2, 4))}Gi",
            "ephemeral-storage": "50Gi",
            "pods": str(pick.choice((5, 12, 30))),
        }
        if pick.random() < 0.3:
            allocatable[FPGA] = str(pick.randint(1, 4))
        taints = (
            ({"key": "dedicated", "value": name, "effect": "NoSchedule"},) if pick.random() < 0.25 else ()
        )
        nodes = min(15, int(pick.expovariate(0.25)))
        self.made.pool(
            name,
            allocatable,
            capacity=nodes + (pick.randint(1, 2) if pick.random() < 0.15 else 0),
            max=nodes + pick.choice((1, 3, 10, 50)),
            zones=pick.choice(((), ("1",), ("1", "2"), ("1", "2", "3"))),
            labels={"pool": name, "tier": pick.choice(("gold", "silver")), "rank": str(pick.randint(1, 9))},
            taints=taints,
        )
        for _ in range(nodes):
            self._node(name, self.made.pools[name])

    def _node(self, pool: str, about: Document) -> None:
        unschedulable = {"unschedulable": True} if self.random.random() < 0.03 else {}
        name = self.made.node(pool, f"c{self.seed}-{pool}-{len(self.made.nodes)}", **unschedulable)
        document = self.made.nodes[-1]
        zone = document["metadata"]["labels"][ZONE]
        document["metadata"]["labels"][DISK_ZONE] = zone if about["zones"] else ""
        if unschedulable:
            document["spec"]["taints"].append(
                {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
            )
        self.made.more["csinodes"].append(csi_node(name, {DRIVER: 2}))

    def _daemon_sets(self) -> list[Document]:
        """Up to two, on all nodes or on those of one tier, with or without taints."""
        pick = self.random
        found = []
        for number in range(pick.choice((0, 0, 0, 1, 2))):
            name = f"c{self.seed}-daemon-{number}"
            pod = self._pod(name, "default")
            pod["metadata"]["labels"] = {"daemon": name}
            pod["spec"]["containers"][0]["resources"] = {"requests": DAEMON}
            pod["spec"]["nodeSelector"] = pick.choice(({}, {}, {"tier": "gold"}))
            pod["spec"]["tolerations"] = pick.choice(([], [{"operator": "Exists"}]))
            template = {"metadata": {"labels": {"daemon": name}}, "spec": pod["spec"]}
            spec = {"selector": {"matchLabels": {"daemon": name}}, "template": template}
            spec["updateStrategy"] = {"type": "OnDelete"}
            found.append({"metadata": {"name": name, "namespace": "default"}, "spec": spec})
        return found

    def _daemons_of(self, node: Document) -> None:
        labels = node["metadata"]["labels"]
        for daemon in self.made.more["daemonsets"]:
            name, template = daemon["metadata"]["name"], daemon["spec"]["template"]
            spec = template["spec"]
            keys = {taint["key"] for taint in node["spec"]["taints"]}
            is_kept_away = keys - {"node.kubernetes.io/unschedulable"} and not spec["tolerations"]
            if is_kept_away or any(labels.get(k) != v for k, v in spec["nodeSelector"].items()):
                continue
            pod = self._pod(f"{name}-{node['metadata']['name']}", "default")
            pod["metadata"] |= {"labels": template["metadata"]["labels"]}
            owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": name, "uid": name}
            pod["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
            pod["spec"] = {**spec, "nodeName": node["metadata"]["name"]}
            pod["status"] = {"phase": "Running"}
            self.made.pods.append(pod)

    # Pods

    def _running(self, node: str, number: int) -> None:
        document = self._pod(f"run-{node}-{number}", self.random.choice(list(NAMESPACES)))
        document["metadata"]["labels"] = self._labels()
        resources = {"cpu": self.random.choice(("100m", "400m", "900m")), "memory": "200Mi"}
        document["spec"]["containers"][0]["resources"] = {"requests": resources}
        if self.random.random() < 0.1:
            document["spec"]["affinity"] = {"podAntiAffinity": _required(self._term(document, HOST))}
        if self.random.random() < 0.1:
            document["spec"]["containers"][0]["ports"] = [self._port()]
        if self._has_more and self.random.random() < (0.5 if self._has_nominated else 0.15):
            document["metadata"]["deletionTimestamp"] = stamp(timedelta(seconds=-20))
        document["spec"]["nodeName"] = node
        document["status"] = {"phase": "Running"}
        self.made.pods.append(document)

    def _nominated(self, node: str, number: int) -> None:
        """A pod that may go to that node alone, for which the scheduler has chosen it; the first of all."""
        document = self._pod(f"first-{node}-{number}", self.random.choice(list(NAMESPACES)))
        document["metadata"]["labels"] = self._labels()
        cpu = self.random.choice(("250m", "700m", "1500m"))
        document["spec"]["containers"][0]["resources"] = {"requests": {"cpu": cpu, "memory": "200Mi"}}
        document["spec"] |= {"priorityClassName": "high", "priority": PRIORITIES["high"]}
        for feature in self.random.sample([self._far, self._spread, self._host_port, self._sidecar], 1):
            feature(document)
        self._node_terms(document, [_only(node)])
        document["status"] = {"phase": "Pending", "nominatedNodeName": node}
        self.made.pods.append(document)

    def _labels(self) -> dict[str, str]:
        return {"app": self.random.choice(APPS), "rev": self.random.choice(("blue", "green"))}

    def _pending(self) -> None:
        left = min(200, 1 + int(self.random.expovariate(1 / 30)))
        group = 0
        while left > 0:
            count = min(left, self.random.choice((1, 1, 2, 4, 8, 20)))
            self._group(group, count)
            left -= count
            group += 1

    def _group(self, group: int, count: int) -> None:
        """Pods of one workload: alike, but for their claims."""
        model = self._pod("model", self.random.choice(list(NAMESPACES)))
        model["metadata"]["labels"] = self._labels() | {"group": str(group)}
        self._requests(model)
        if self.random.random() < 0.25:
            model["spec"]["priorityClassName"] = self.random.choice(list(PRIORITIES))
            model["spec"]["priority"] = PRIORITIES[model["spec"]["priorityClassName"]]
        for feature in self.random.sample(self._features(), self.random.choice((0, 1, 1, 2, 3))):
            feature(model)
        claim = self.random.choice(("", "", "", "", "", "bound", "waits", "waits-zone"))
        shared = self._shared_claim(model, claim) if claim and self.random.random() < 0.3 else ""
        for number in range(count):
            spec = dict(model["spec"])
            meta = {**model["metadata"], "name": f"g{group}-{number}", "uid": f"g{group}-{number}"}
            if claim:
                name = shared or self._claim(meta["namespace"], claim)
                spec["volumes"] = _using(name)
            if self._has_more and self.random.random() < 0.1:
                spec["schedulingGates"] = [{"name": "example.com/quota"}]
            self.made.pods.append({"metadata": meta, "spec": spec, "status": {"phase": "Pending"}})

    def _pod(self, name: str, namespace: str) -> Document:
        return {
            "metadata": {"name": name, "namespace": namespace, "uid": name, "creationTimestamp": stamp()},
            "spec": {"containers": [{"name": "main", "image": "example.org/main"}]},
        }

    def _requests(self, pod: Document) -> None:
        pick, requests = self.random, {"cpu": self.random.choice(("100m", "250m", "700m", "1500m", "3"))}
        requests["memory"] = pick.choice(("64Mi", "500Mi", "2Gi", "5Gi"))
        if pick.random() < 0.15:
            requests["ephemeral-storage"] = pick.choice(("5Gi", "20Gi"))
        limits = {FPGA: "1"} if pick.random() < 0.1 else {}
        resources = {"requests": requests | limits, **({"limits": limits} if limits else {})}
        pod["spec"]["containers"][0]["resources"] = resources

    def _features(self) -> list[Callable[[Document], None]]:
        return [
            *(self._init, self._sidecar, self._overhead, self._node_selector, self._node_affinity),
            *(self._tolerates, self._tolerates, self._near, self._far, self._far, self._spread, self._spread),
            *(self._host_port, self._named),
        ]

    def _init(self, pod: Document) -> None:
        cpu = self.random.choice(("50m", "1800m"))
        pod["spec"].setdefault("initContainers", []).append(_container("init", cpu))

    def _sidecar(self, pod: Document) -> None:
        sidecar = _container("sidecar", self.random.choice(("50m", "300m")))
        pod["spec"].setdefault("initContainers", []).insert(0, {**sidecar, "restartPolicy": "Always"})

    def _overhead(self, pod: Document) -> None:
        pod["spec"] |= {"runtimeClassName": RUNTIME, "overhead": OVERHEAD}

    def _node_selector(self, pod: Document) -> None:
        pod["spec"]["nodeSelector"] = self.random.choice(
            ({"tier": "gold"}, {"pool": "p0"}, {"tier": "silver"})
        )

    def _node_affinity(self, pod: Document) -> None:
        pick = self.random
        choices: tuple[Document, ...] = (
            {"key": "pool", "operator": "In", "values": ["p0", "p1"]},
            {"key": "pool", "operator": "NotIn", "values": ["p0"]},
            {"key": "tier", "operator": "Exists"},
            {"key": "absent", "operator": "DoesNotExist"},
            {"key": "rank", "operator": "Gt", "values": ["4"]},
            {"key": "rank", "operator": "Lt", "values": ["6"]},
            {"key": ZONE, "operator": "In", "values": [f"{LOCATION}-1", "0"]},
        )
        terms = [
            {"matchExpressions": pick.sample(choices, pick.randint(1, 2))} for _ in range(pick.randint(1, 2))
        ]
        self._node_terms(pod, terms)

    def _named(self, pod: Document) -> None:
        name = self.random.choice(self.made.nodes)["metadata"]["name"]
        field = {"key": "metadata.name", "operator": self.random.choice(("In", "NotIn")), "values": [name]}
        self._node_terms(pod, [{"matchFields": [field]}])

    def _node_terms(self, pod: Document, terms: list[Document]) -> None:
        affinity = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
        pod["spec"].setdefault("affinity", {})["nodeAffinity"] = affinity

    def _tolerates(self, pod: Document) -> None:
        pod["spec"]["tolerations"] = [
            self.random.choice(
                (
                    {"operator": "Exists"},
                    {"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"},
                    {"key": "dedicated", "operator": "Equal", "value": "p1", "effect": "NoSchedule"},
                )
            )
        ]

    def _term(self, pod: Document, key: str) -> Document:
        """Whom it minds: its own workload or another, in its namespace or in others."""
        pick, labels = self.random, _without_revision(pod["metadata"]["labels"])
        chosen = labels if pick.random() < 0.6 else {"app": pick.choice(APPS)}
        term: Document = {"topologyKey": key, "labelSelector": {"matchLabels": dict(chosen)}}
        where = pick.random()
        if where < 0.15:
            term["namespaces"] = pick.sample(list(NAMESPACES), 2)
        elif where < 0.3:
            term["namespaceSelector"] = pick.choice(({}, {"matchLabels": {"kind": "prod"}}))
        if pick.random() < 0.25:
            term[pick.choice(("matchLabelKeys", "mismatchLabelKeys"))] = ["rev"]
        return term

    def _near(self, pod: Document) -> None:
        term = self._term(pod, self.random.choice((ZONE, ZONE, HOST)))
        pod["spec"].setdefault("affinity", {})["podAffinity"] = _required(term)

    def _far(self, pod: Document) -> None:
        term = self._term(pod, self.random.choice((HOST, HOST, ZONE)))
        pod["spec"].setdefault("affinity", {})["podAntiAffinity"] = _required(term)

    def _spread(self, pod: Document) -> None:
        pick = self.random
        own = {"matchLabels": _without_revision(pod["metadata"]["labels"])}
        other = {"matchLabels": {"app": pod["metadata"]["labels"]["app"]}}
        spreads = pod["spec"].setdefault("topologySpreadConstraints", [])
        spread: Document = {
            "topologyKey": pick.choice((ZONE, HOST)),
            "maxSkew": pick.randint(1, 3),
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": pick.choice((own, own, other)),
        }
        if pick.random() < 0.2:
            spread["minDomains"] = pick.randint(1, 4)
        if pick.random() < 0.3:
            spread["nodeTaintsPolicy"] = "Honor"
        if pick.random() < 0.2:
            spread["nodeAffinityPolicy"] = "Ignore"
        if pick.random() < 0.25:
            spread["matchLabelKeys"] = ["rev"]
        pod["spec"]["topologySpreadConstraints"] = [
            *(one for one in spreads if one["topologyKey"] != spread["topologyKey"]),
            spread,
        ]

    def _host_port(self, pod: Document) -> None:
        pod["spec"]["containers"][0]["ports"] = [self._port()]

    def _port(self) -> Document:
        port = self.random.choice((8080, 9090))
        address = self.random.choice(({}, {}, {"hostIP": "10.0.0.9"}))
        protocol = self.random.choice(("TCP", "TCP", "UDP"))
        return {"containerPort": port, "hostPort": port, "protocol": protocol, **address}

    # Volumes

    def _classes(self) -> list[Document]:
        terms = [
            {"matchLabelExpressions": [{"key": DISK_ZONE, "values": [f"{LOCATION}-1", f"{LOCATION}-2"]}]}
        ]
        return [
            _storage_class("waits"),
            {**_storage_class("waits-zone"), "allowedTopologies": terms},
        ]

    def _shared_claim(self, model: Document, kind: str) -> str:
        """One claim for all pods of a workload; of those that are bound, some are in use already."""
        name = self._claim(model["metadata"]["namespace"], kind)
        if kind == "bound" and self.random.random() < 0.5:
            user = self._pod(f"uses-{name}", model["metadata"]["namespace"])
            user["metadata"]["labels"] = self._labels()
            user["spec"] |= {
                "volumes": _using(name),
                "nodeName": self.random.choice(self.made.nodes)["metadata"]["name"],
            }
            user["status"] = {"phase": "Running"}
            self.made.pods.append(user)
        return name

    def _claim(self, namespace: str, kind: str) -> str:
        name = f"c{self.seed}-data-{self._claims}"
        self._claims += 1
        claim: Document = {
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }
        if kind == "bound":
            zones = [f"{LOCATION}-{self.random.randint(1, 3)}"] if self.random.random() < 0.7 else []
            self.made.more["persistentvolumes"].append(volume(f"pv-{name}", namespace, name, zones))
            claim["spec"] |= {"volumeName": f"pv-{name}", "storageClassName": ""}
            claim["metadata"]["annotations"] = {"pv.kubernetes.io/bind-completed": "yes"}
        else:
            claim["spec"]["storageClassName"] = kind
        self.made.more["persistentvolumeclaims"].append(claim)
        return name


def _only(node: str) -> Document:
    return {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}


def _using(claim: str) -> list[Document]:
    return [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]


def _without_revision(labels: Document) -> Document:
    """What selectors name: the API server refuses a key both there and in matchLabelKeys."""
    return {key: value for key, value in labels.items() if key != "rev"}


def csi_node(name: str, limits: dict[str, int]) -> Document:
    """A CSINode with so many volumes per driver."""
    drivers = [
        {"name": driver, "nodeID": name, "topologyKeys": [DISK_ZONE], "allocatable": {"count": count}}
        for driver, count in limits.items()
    ]
    return {"metadata": {"name": name}, "spec": {"drivers": drivers}}


def volume(name: str, namespace: str, claim: str, zones: list[str]) -> Document:
    """A disk for that claim; without zones it can be used anywhere."""
    spec: Document = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "claimRef": {"kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim},
        "csi": {"driver": DRIVER, "volumeHandle": name},
    }
    if zones:
        expression = {"key": DISK_ZONE, "operator": "In", "values": zones}
        terms = [{"matchExpressions": [expression]}]
        spec["nodeAffinity"] = {"required": {"nodeSelectorTerms": terms}}
    return {"metadata": {"name": name}, "spec": spec}


def _container(name: str, cpu: str) -> Document:
    resources = {"requests": {"cpu": cpu, "memory": "32Mi"}}
    return {"name": name, "image": "example.org/main", "resources": resources}


def _required(*terms: Document) -> Document:
    return {"requiredDuringSchedulingIgnoredDuringExecution": list(terms)}


def _storage_class(name: str) -> Document:
    return {"metadata": {"name": name}, "provisioner": DRIVER, "volumeBindingMode": "WaitForFirstConsumer"}
