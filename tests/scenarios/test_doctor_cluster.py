"""`keeper doctor` on a cluster and its place in Azure: real calls, and every refusal said plainly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.arm import LOCATION, LocalArm
from sandbox.asgi import Fault, on
from sandbox.kube import LocalKubernetes
from shared.cli.doctor import examine
from shared.cli.findings import Finding
from shared.cli.session import Session

CONFIGURATION = """\
clusters:
  - name: prod
    kubernetes: {{kubeconfig: "file:{kubeconfig}"}}
    azure:
      subscription: {subscription}
      resourceGroups: [{group}]
      location: {location}
    diskRelease: {{}}
    ingressSync:
      gateway: {gateway}
"""


@pytest.fixture
def azure() -> Iterator[LocalArm]:
    with LocalArm() as running:
        yield running


@pytest.fixture(scope="module")
def kubernetes() -> Iterator[LocalKubernetes]:
    with LocalKubernetes() as running:
        yield running


def findings(
    azure: LocalArm, kubeconfig: Path, storage: str, tmp_path: Path, *, location: str = LOCATION
) -> dict[str, Finding]:
    path = tmp_path / "kubekeeper.yaml"
    values = {"kubeconfig": kubeconfig, "subscription": azure.subscription, "group": azure.group}
    values["gateway"] = azure.id_of("Microsoft.Network/applicationGateways", "gw")
    path.write_text(CONFIGURATION.format(**values, location=location))
    here = Session(
        {"AzureWebJobsStorage": storage, "KUBEKEEPER_CONFIG": str(path), "KUBEKEEPER_ARM_ENDPOINT": azure.url}
    )
    here.clients.credential = azure.credential()
    return {finding.subject: finding for finding in examine(here, "prod")}


def test_a_cluster_that_can_be_worked_with(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    found = findings(azure, kubernetes.kubeconfig(), storage, tmp_path)
    assert found["prod kubernetes"].level == "ok"
    assert found[f"prod azure {azure.group}"] == Finding(
        level="ok", subject=f"prod azure {azure.group}", message=f"can be read, in {LOCATION}"
    )


def test_an_identity_without_roles_is_told_so_on_both_sides(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    refused = {"error": {"code": "AuthorizationFailed", "message": "The client does not have authorization."}}
    azure.fault(Fault(on("GET", "resourceGroups"), status=403, body=refused))
    found = findings(azure, kubernetes.kubeconfig("nobody", ()), storage, tmp_path)
    assert "Forbidden (403)" in found["prod kubernetes"].message
    assert "bind the role" in found["prod kubernetes"].message
    assert "AuthorizationFailed (403)" in found[f"prod azure {azure.group}"].message


def test_rights_that_an_automation_lacks_are_named_with_the_command_that_gives_them(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    azure.core.denied = ["Microsoft.Compute/virtualMachines/powerOff"]
    found = findings(azure, kubernetes.kubeconfig("nobody", ()), storage, tmp_path)
    lacks = found["prod disk-release in azure"]
    assert lacks.level == "problem"
    assert "may not Microsoft.Compute/virtualMachines/powerOff/action in" in lacks.message
    assert "az role assignment create" in lacks.message
    assert found["prod ingress-sync in azure"].level == "ok"
    inside = found["prod disk-release in kubernetes"]
    assert inside.level == "problem"
    assert "kubectl apply -f infra/kubernetes/roles/disk-release.yaml" in inside.message


def test_an_administrator_may_do_all_that_the_automations_need(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    found = findings(azure, kubernetes.kubeconfig(), storage, tmp_path)
    rights = [one for subject, one in found.items() if subject.endswith((" in azure", " in kubernetes"))]
    assert [one.level for one in rights] == ["ok"] * 4


def test_another_region_is_a_warning(
    azure: LocalArm, kubernetes: LocalKubernetes, storage: str, tmp_path: Path
) -> None:
    found = findings(azure, kubernetes.kubeconfig(), storage, tmp_path, location="northeurope")
    assert found[f"prod azure {azure.group}"].level == "warning"
    assert "azure.location" in found[f"prod azure {azure.group}"].message
