"""Which kinds of objects the stand-in serves, and what is peculiar to each.

A kind is a row of the table at the end. What is not there is 404, as on a cluster without that API.
"""

from __future__ import annotations

from dataclasses import dataclass

METADATA_FIELDS = ("metadata.name", "metadata.namespace")


@dataclass(frozen=True, eq=False)
class Kind:
    """One resource of the API: a row of the table, equal to itself alone, as it is the key of everything."""

    group: str
    version: str
    plural: str
    kind: str
    is_namespaced: bool = True
    short_names: tuple[str, ...] = ()
    has_status: bool = False
    """`/status` is a path of its own, and the only one that changes the status."""
    has_generation: bool = False
    """Changes of the spec are counted."""
    returns_deleted: bool = False
    """DELETE answers with the object as it was; for other kinds, with a Status."""
    needs_version: bool = False
    """PUT without a resourceVersion is refused."""
    fields: tuple[str, ...] = ()
    """Field selectors beyond name and namespace."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Where the group's version begins in the URL."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"

    @property
    def resource(self) -> str:
        """`plural.group`, as error messages say it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def qualified(self) -> str:
        """`Kind.group`, as error messages about the content say it."""
        return f"{self.kind}.{self.group}" if self.group else self.kind

    @property
    def selectable(self) -> tuple[str, ...]:
        return METADATA_FIELDS + self.fields

    def path(self, namespace: str, name: str) -> str:
        """The URL of one object."""
        middle = f"/namespaces/{namespace}" if self.is_namespaced else ""
        return f"{self.root}{middle}/{self.plural}/{name}"


POD_FIELDS = (
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.nominatedNodeName",
)
EVENT_FIELDS = (
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
)


def _kind(api_version: str, plural: str, kind: str, flags: str = "", *, fields: tuple[str, ...] = ()) -> Kind:
    """A row: of the words in `flags`, `cluster`, `status`... are properties and the rest short names."""
    group, _, version = api_version.rpartition("/")
    words = set(flags.split())
    return Kind(
        group,
        version,
        plural,
        kind,
        is_namespaced="cluster" not in words,
        short_names=tuple(sorted(words - _FLAGS)),
        has_status="status" in words,
        has_generation="generation" in words,
        returns_deleted="returned" in words,
        needs_version="versioned" in words,
        fields=fields,
    )


_FLAGS = {"cluster", "status", "generation", "returned", "versioned"}
_RBAC, _STORAGE = "rbac.authorization.k8s.io", "storage.k8s.io"

KINDS = (
    _kind("v1", "namespaces", "Namespace", "ns cluster status returned", fields=("status.phase",)),
    _kind("v1", "nodes", "Node", "no cluster status", fields=("spec.unschedulable",)),
    _kind("v1", "pods", "Pod", "po status generation returned", fields=POD_FIELDS),
    _kind("v1", "events", "Event", "ev", fields=EVENT_FIELDS),
    _kind("v1", "configmaps", "ConfigMap", "cm"),
    _kind("v1", "secrets", "Secret", fields=("type",)),
    _kind("v1", "services", "Service", "svc status returned", fields=("spec.type", "spec.clusterIP")),
    _kind("v1", "endpoints", "Endpoints", "ep"),
    _kind("v1", "serviceaccounts", "ServiceAccount", "sa returned"),
    _kind("v1", "persistentvolumes", "PersistentVolume", "pv cluster status returned"),
    _kind("v1", "persistentvolumeclaims", "PersistentVolumeClaim", "pvc status returned"),
    _kind("v1", "replicationcontrollers", "ReplicationController", "rc status generation"),
    _kind("v1", "resourcequotas", "ResourceQuota", "quota status returned"),
    _kind("v1", "limitranges", "LimitRange", "limits"),
    _kind("apps/v1", "deployments", "Deployment", "deploy status generation"),
    _kind("apps/v1", "replicasets", "ReplicaSet", "rs status generation", fields=("status.replicas",)),
    _kind("apps/v1", "statefulsets", "StatefulSet", "sts status generation"),
    _kind("apps/v1", "daemonsets", "DaemonSet", "ds status generation"),
    _kind("apps/v1", "controllerrevisions", "ControllerRevision"),
    _kind("batch/v1", "jobs", "Job", "status generation", fields=("status.successful",)),
    _kind("batch/v1", "cronjobs", "CronJob", "cj status generation"),
    _kind("autoscaling/v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", "hpa status"),
    _kind("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", "pdb status generation"),
    _kind("coordination.k8s.io/v1", "leases", "Lease", "versioned"),
    _kind("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", "generation"),
    _kind("networking.k8s.io/v1", "ingresses", "Ingress", "ing status generation"),
    _kind("networking.k8s.io/v1", "ingressclasses", "IngressClass", "cluster generation"),
    _kind(f"{_STORAGE}/v1", "storageclasses", "StorageClass", "sc cluster returned"),
    _kind(f"{_STORAGE}/v1", "csidrivers", "CSIDriver", "cluster returned"),
    _kind(f"{_STORAGE}/v1", "csinodes", "CSINode", "cluster returned"),
    _kind(f"{_STORAGE}/v1", "volumeattachments", "VolumeAttachment", "cluster status returned versioned"),
    _kind("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass", "pc cluster generation"),
    _kind(f"{_RBAC}/v1", "roles", "Role"),
    _kind(f"{_RBAC}/v1", "rolebindings", "RoleBinding"),
    _kind(f"{_RBAC}/v1", "clusterroles", "ClusterRole", "cluster"),
    _kind(f"{_RBAC}/v1", "clusterrolebindings", "ClusterRoleBinding", "cluster"),
    _kind("metrics.k8s.io/v1beta1", "nodes", "NodeMetrics", "cluster"),
    _kind("metrics.k8s.io/v1beta1", "pods", "PodMetrics"),
)

BY_PATH = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}


def named(plural: str, group: str = "") -> Kind:
    """A kind of the table; KeyError when there is none."""
    return next(kind for kind in KINDS if (kind.plural, kind.group) == (plural, group))


NAMESPACES, NODES, PODS, EVENTS = (named(name) for name in ("namespaces", "nodes", "pods", "events"))
SERVICE_ACCOUNTS = named("serviceaccounts")
BUDGETS = named("poddisruptionbudgets", "policy")
ATTACHMENTS = named("volumeattachments", _STORAGE)
