"""How requests become rights; that the deployed roles are exactly these is checked after a whole test run."""

from __future__ import annotations

import pytest
from rights import arm_right, kube_right

GROUP = "https://management.azure.com/subscriptions/s/resourceGroups/g/providers"
SUBSCRIPTION = "https://management.azure.com/subscriptions/s/providers"


@pytest.mark.parametrize(
    ("method", "path", "right"),
    [
        ("GET", "/api/v1/pods", "- pods list"),
        ("GET", "/api/v1/pods?watch=1", "- pods watch"),
        ("GET", "/api/v1/namespaces/shop/pods/web", "- pods get"),
        ("GET", "/api/v1/namespaces", "- namespaces list"),
        ("GET", "/api/v1/namespaces/shop", "- namespaces get"),
        ("POST", "/api/v1/namespaces/shop/pods/web/eviction", "- pods/eviction create"),
        ("PATCH", "/api/v1/nodes/a", "- nodes patch"),
        (
            "PUT",
            "/apis/networking.k8s.io/v1/namespaces/s/ingresses/i/status",
            "networking.k8s.io ingresses/status update",
        ),
        ("DELETE", "/apis/storage.k8s.io/v1/volumeattachments/v", "storage.k8s.io volumeattachments delete"),
        ("GET", "/version", None),
    ],
)
def test_a_request_to_kubernetes_takes_a_verb_on_a_resource(
    method: str, path: str, right: str | None
) -> None:
    assert kube_right(method, path) == right


@pytest.mark.parametrize(
    ("method", "url", "right"),
    [
        (
            "GET",
            f"{GROUP}/Microsoft.Compute/virtualMachines/v",
            ("group", "Microsoft.Compute/virtualMachines/read"),
        ),
        (
            "GET",
            f"{GROUP}/Microsoft.Compute/virtualMachines",
            ("group", "Microsoft.Compute/virtualMachines/read"),
        ),
        (
            "GET",
            f"{GROUP}/Microsoft.Compute/virtualMachines/v/instanceView?api-version=1",
            ("group", "Microsoft.Compute/virtualMachines/instanceView/read"),
        ),
        (
            "POST",
            f"{GROUP}/Microsoft.Compute/virtualMachineScaleSets/s/virtualMachines/1/powerOff",
            ("group", "Microsoft.Compute/virtualMachineScaleSets/virtualMachines/powerOff/action"),
        ),
        (
            "PATCH",
            f"{GROUP}/Microsoft.Compute/virtualMachines/v",
            ("group", "Microsoft.Compute/virtualMachines/write"),
        ),
        (
            "DELETE",
            f"{GROUP}/Microsoft.Network/networkInterfaces/n",
            ("group", "Microsoft.Network/networkInterfaces/delete"),
        ),
        ("GET", f"{SUBSCRIPTION}/Microsoft.Compute/skus", ("subscription", "Microsoft.Compute/skus/read")),
        (
            "GET",
            f"{SUBSCRIPTION}/Microsoft.Compute/locations/westeurope/operations/1",
            ("subscription", "Microsoft.Compute/locations/operations/read"),
        ),
    ],
)
def test_a_request_to_azure_takes_an_action_at_a_scope(method: str, url: str, right: tuple[str, str]) -> None:
    assert arm_right(method, url) == right
