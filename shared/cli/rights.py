"""What each automation may not do, asked of Azure and Kubernetes themselves; for `keeper doctor`.

What is needed stands in infra/actions.json and infra/kubernetes/roles, which the tests derive from the
requests that the code makes. Azure lists the caller's permissions in a resource group; Kubernetes answers one
question for each right. Both answer for whoever runs `keeper`: run it with the app's own identity.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from shared.cli.findings import Finding, ok, problem, warning
from shared.clients.arm import API_VERSIONS
from shared.model.wording import counted

if TYPE_CHECKING:
    from shared.clients.arm import Arm
    from shared.clients.kube import KubeClient
    from shared.settings import Cluster

INFRA = Path(__file__).resolve().parents[2] / "infra"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
READS = "autoscaling-reads"
"""What autoscaling looks at where AKS changes the machines; as in infra/modules/roles.bicep."""
PROVIDERS = {
    "autoscaling": "Microsoft.Compute",
    "autoscaling-aks": "Microsoft.ContainerService",
    READS: "Microsoft.Compute",
    "disk-release": "Microsoft.Compute",
    "ingress-sync": "Microsoft.Network",
}
"""Whose API each role is about."""
GROUPS = {
    "autoscaling": ("apps/v1", "policy/v1", "storage.k8s.io/v1"),
    "disk-release": ("coordination.k8s.io/v1", "storage.k8s.io/v1"),
    "ingress-sync": ("discovery.k8s.io/v1", "networking.k8s.io/v1"),
}
"""API groups of Kubernetes that each automation cannot do without."""
SHOWN = 3
"""Missing rights that are named; the role has them all."""


class Permission(msgspec.Struct, frozen=True, rename="camel"):
    """One of the caller's permissions, as Azure lists them; patterns, where * is any text."""

    actions: tuple[str, ...] = ()
    not_actions: tuple[str, ...] = ()

    def allows(self, action: str) -> bool:
        """Whether it covers the action; an exception takes away only what this very permission gives."""
        return _covers(self.actions, action) and not _covers(self.not_actions, action)


class _Permissions(msgspec.Struct, frozen=True):
    value: tuple[Permission, ...] = ()


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    api_versions: tuple[str, ...] = ()


class _Provider(msgspec.Struct, frozen=True, rename="camel"):
    registration_state: str = ""
    resource_types: tuple[_Kind, ...] = ()


def in_azure(cluster: Cluster, arm: Arm) -> Iterator[Finding]:
    """One finding for each of the cluster's automations that works in Azure."""
    roles = _roles()
    if roles is None:
        yield _no_checkout(f"{cluster.name} azure")
        return
    known: dict[str, tuple[Permission, ...]] = {}
    for role, groups in _wanted(cluster):
        for group in groups:
            if group not in known:
                known[group] = _permissions(arm, group)
        given = [permission for group in groups for permission in known[group]]
        missing = [
            action
            for action in roles[role]["group"]
            if not any(permission.allows(action) for permission in given)
        ]
        yield _azure_finding(cluster, role, groups, missing)


def in_kubernetes(cluster: Cluster, kube: KubeClient) -> Iterator[Finding]:
    """One finding for each of the cluster's automations that works in Kubernetes."""
    for automation, _ in _automations(cluster):
        subject = f"{cluster.name} {automation} in kubernetes"
        path = INFRA / "kubernetes" / "roles" / f"{automation}.yaml"
        if not path.exists():
            yield _no_checkout(subject)
            continue
        wanted = list(_rights(path))
        missing = [right for right in wanted if not _may(kube, *right)]
        if not missing:
            yield ok(subject, f"may do all it needs ({counted(len(wanted), 'right')})")
            continue
        said = [f"{verb} {resource}{'.' + group if group else ''}" for group, resource, verb in missing]
        yield problem(
            subject,
            f"may not {_few(said)}; bind the role: kubectl apply -f {path.relative_to(INFRA.parent)}, and "
            f"ClusterRole kubekeeper-{automation} to this identity (infra/kubernetes)",
        )


def providers(cluster: Cluster, arm: Arm) -> Iterator[Finding]:
    """One finding for each resource provider that the cluster's automations use: registered, and the versions
    of its API that are asked for are offered.
    """
    scope = cluster.azure
    if scope is None:
        return
    for name in sorted({PROVIDERS[role] for role, _ in _wanted(cluster)}):
        subject = f"{cluster.name} azure provider {name}"
        path = f"/subscriptions/{scope.subscription}/providers/{name}"
        found = msgspec.convert(arm.get(path).document, _Provider)
        offered = {version for kind in found.resource_types for version in kind.api_versions}
        asked = {version for kind, version in API_VERSIONS.items() if kind.partition("/")[0] == name.lower()}
        if found.registration_state != "Registered":
            yield problem(
                subject,
                f"is {found.registration_state} in this subscription; "
                f"az provider register --namespace {name}",
            )
        elif asked - offered:
            missing = ", ".join(sorted(asked - offered))
            yield problem(subject, f"this cloud does not offer API version {missing}; use a release for it")
        else:
            yield ok(subject, "registered, with the API versions that are used")


def missing_groups(cluster: Cluster, kube: KubeClient) -> list[str]:
    """API groups and versions that the cluster's automations use and the API server does not serve."""
    served = {
        version["groupVersion"] for group in kube.read("/apis")["groups"] for version in group["versions"]
    }
    return sorted({group for name, _ in _automations(cluster) for group in GROUPS[name]} - served)


def _azure_finding(cluster: Cluster, role: str, groups: tuple[str, ...], missing: list[str]) -> Finding:
    subject = f"{cluster.name} {role} in azure"
    places = " or ".join(group.rpartition("/")[2] for group in groups)
    if not missing:
        return ok(subject, f"may do all it needs in {places}")
    return problem(
        subject,
        f"may not {_few(missing)} in {places}; name '{role}' for it under 'scopes' of the parameters and "
        f"deploy infra/main.bicep again. Where that made the role already: az role assignment create "
        f"--assignee CLIENT-ID --scope {groups[0]} --role {_deployed(role, groups[0])}",
    )


def _deployed(role: str, group: str) -> str:
    """A word of the shell that is the id of a role; its name ends in what only the deployment knows."""
    named = f"[?starts_with(roleName, 'Kubekeeper {role} (')].name"
    return f'"$(az role definition list --scope {group} --query "{named}" --output tsv)"'


def _wanted(cluster: Cluster) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Roles of infra/actions.json, and the resource groups in any of which each has to be given."""
    scope = cluster.azure
    if scope is None:
        return
    groups = tuple(f"/subscriptions/{scope.subscription}/resourceGroups/{g}" for g in scope.resource_groups)
    for automation, place in _automations(cluster):
        if automation == "autoscaling" and scope.managed_cluster:
            yield "autoscaling-aks", (_group_of(scope.managed_cluster),)
            yield READS, groups
        else:
            yield automation, (_group_of(place),) if place else groups


def _automations(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Those that work in Azure and Kubernetes, and the resource one works on, or "" for the groups."""
    if cluster.autoscaling is not None and cluster.autoscaling.enabled:
        yield "autoscaling", ""
    if cluster.disk_release is not None and cluster.disk_release.enabled:
        yield "disk-release", ""
    if cluster.ingress_sync is not None and cluster.ingress_sync.enabled:
        yield "ingress-sync", cluster.ingress_sync.gateway


def _group_of(resource_id: str) -> str:
    return "/".join(resource_id.split("/")[:5])


def _permissions(arm: Arm, group: str) -> tuple[Permission, ...]:
    pages = arm.pages(f"{group}/providers/Microsoft.Authorization/permissions")
    return tuple(one for page in pages for one in msgspec.json.decode(page, type=_Permissions).value)


def _covers(patterns: Iterable[str], action: str) -> bool:
    return any(fnmatch.fnmatchcase(action.lower(), pattern.lower()) for pattern in patterns)


def _may(kube: KubeClient, group: str, resource: str, verb: str) -> bool:
    """Whether the API server says that this identity may, in every namespace."""
    plural, _, below = resource.partition("/")
    wanted = {"group": group, "resource": plural, "verb": verb, **({"subresource": below} if below else {})}
    answer = kube.create(REVIEWS, {"spec": {"resourceAttributes": wanted}})
    return bool((answer.get("status") or {}).get("allowed"))


def _roles() -> dict[str, dict[str, list[str]]] | None:
    path = INFRA / "actions.json"
    if not path.exists():
        return None
    roles: dict[str, dict[str, list[str]]] = msgspec.json.decode(path.read_bytes())
    reads = [action for action in roles["autoscaling"]["group"] if action.endswith("/read")]
    return roles | {READS: {"group": reads}}


def _rights(path: Path) -> Iterator[tuple[str, str, str]]:
    """(API group, resource, verb) of a ClusterRole's rules."""
    import yaml

    role: dict[str, Any] = yaml.safe_load(path.read_text())
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield group, resource, verb


def _no_checkout(subject: str) -> Finding:
    return warning(subject, "its rights were not looked at; run keeper in a checkout, which has infra/")


def _few(missing: list[str]) -> str:
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return ", ".join(missing[:SHOWN]) + more
