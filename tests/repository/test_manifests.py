"""The Kubernetes manifests under infra/: complete, consistent with the code, and kustomize builds them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from manifests import FORWARDER, KUBERNETES, OVERLAYS, Document, build, documents, edited, kubectl

from sandbox.forwarder_image import DOCKERFILE
from sandbox.tools import CHECKOUT
from shared import __version__

CUSTOMIZATIONS = sorted([*FORWARDER.rglob("kustomization.yaml"), *KUBERNETES.rglob("kustomization.yaml")])
PAGE = (CHECKOUT / "docs/forwarder.md").read_text()
needs_kubectl = pytest.mark.skipif(kubectl() is None, reason="no kubectl")


def name(path: Path) -> str:
    return str(path.relative_to(CHECKOUT / "infra"))


def read(path: Path) -> Document:
    (found,) = documents(path.read_text())
    return found


def deployment() -> Document:
    return read(FORWARDER / "base/deployment.yaml")


@pytest.mark.parametrize("path", CUSTOMIZATIONS, ids=name)
def test_what_a_kustomization_names_is_there_and_nothing_is_left_over(path: Path) -> None:
    named = [*read(path).get("resources", ()), *read(path).get("components", ())]
    assert [one for one in named if not (path.parent / one).exists()] == []
    files = {file.name for file in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == {one for one in named if one.endswith(".yaml")}


def test_every_folder_is_part_of_what_is_applied() -> None:
    used = set(OVERLAYS)
    for path in CUSTOMIZATIONS:
        for one in re.findall(r"\.\./[a-z-]+", path.read_text()):
            used.add((path.parent / one).resolve())
    assert {path.parent for path in CUSTOMIZATIONS} == used


@pytest.mark.parametrize("overlay", [path for path in OVERLAYS if path.parent == FORWARDER], ids=name)
def test_settings_and_words_to_replace_are_on_the_forwarders_page(overlay: Path) -> None:
    text = (overlay / "kustomization.yaml").read_text()
    (settings,) = read(overlay / "kustomization.yaml")["configMapGenerator"]
    for literal in settings["literals"]:
        assert f"| `{literal.partition('=')[0]}` |" in PAGE
    for word in re.findall(r"\b[A-Z]+(?:-[A-Z]+)+\b", text):
        assert f"`{word}`" in PAGE, word
    assert read(overlay / "kustomization.yaml")["images"][0]["newTag"] == __version__


def test_the_deployment_asks_for_what_the_process_serves() -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    (port,) = container["ports"]
    code = (CHECKOUT / "shared/forwarder/settings.py").read_text()
    assert f'"KUBEKEEPER_PORT", "{port["containerPort"]}"' in code
    assert f"EXPOSE {port['containerPort']}" in DOCKERFILE.read_text()
    pages = set(re.findall(r'"(/\w+)": self\.', (CHECKOUT / "shared/forwarder/run.py").read_text()))
    probed = {probe: container[probe]["httpGet"] for probe in container if probe.endswith("Probe")}
    assert set(probed) == {"livenessProbe", "readinessProbe", "startupProbe"}
    assert {one["path"] for one in probed.values()} < pages
    assert {one["port"] for one in probed.values()} == {port["name"]}


def test_the_process_has_no_more_power_than_it_needs() -> None:
    spec = deployment()["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert f"USER {spec['securityContext']['runAsUser']}:" in DOCKERFILE.read_text()
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert (
        {"cpu", "memory"} == set(container["resources"]["limits"]) == set(container["resources"]["requests"])
    )
    namespaces = [read(FORWARDER / "base/namespace.yaml")]
    namespaces += [
        one
        for one in documents((KUBERNETES / "service-account/account.yaml").read_text())
        if one["kind"] == "Namespace"
    ]
    # Both are applied to one namespace: what one left out, kubectl would take away from the other.
    assert namespaces[0] == namespaces[1]


@needs_kubectl
@pytest.mark.parametrize("tls_secrets", [False, True], ids=["", "tls-secrets"])
@pytest.mark.parametrize("overlay", [path for path in OVERLAYS if path.parent == FORWARDER], ids=name)
def test_kustomize_builds_a_forwarder(overlay: Path, tls_secrets: bool, tmp_path: Path) -> None:
    built = build(edited(overlay, tmp_path, {}, tls_secrets=tls_secrets))
    kinds = {(one["kind"], one["metadata"]["name"].rpartition("kubekeeper-forwarder")[2]) for one in built}
    assert (("ClusterRole", "-secrets") in kinds) == tls_secrets
    (one,) = [one for one in built if one["kind"] == "Deployment"]
    pod = one["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    variables = {variable["name"] for variable in container.get("env", ())}
    assert ("KUBEKEEPER_SECRET_NAMESPACES" in variables) == tls_secrets
    has_identity = overlay.name != "event-grid-key"
    assert ("AZURE_TOKEN_CREDENTIALS" in variables) == has_identity
    assert (pod["metadata"]["labels"].get("azure.workload.identity/use") == "true") == has_identity
    (account,) = [one for one in built if one["kind"] == "ServiceAccount"]
    assert bool(account["metadata"].get("annotations")) == has_identity
    assert ({"secretRef": {"name": "kubekeeper-forwarder"}} in container["envFrom"]) != has_identity
    (settings,) = [one for one in built if one["kind"] == "ConfigMap"]
    assert {"configMapRef": {"name": settings["metadata"]["name"]}} in container["envFrom"]
    assert container["image"] == f"REGISTRY.azurecr.io/kubekeeper-forwarder:{__version__}"


@needs_kubectl
@pytest.mark.parametrize("overlay", [path for path in OVERLAYS if path.parent == KUBERNETES], ids=name)
def test_kustomize_builds_the_rights_of_the_app(overlay: Path) -> None:
    built = build(overlay)
    roles = {one["metadata"]["name"] for one in built if one["kind"] == "ClusterRole"}
    bound = {one["roleRef"]["name"] for one in built if one["kind"] == "ClusterRoleBinding"}
    files = {f"kubekeeper-{path.stem}" for path in (KUBERNETES / "roles").glob("*.yaml")}
    assert roles == bound == files - {"kubekeeper-kustomization"}
