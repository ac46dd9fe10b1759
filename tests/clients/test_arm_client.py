"""The product's Resource Manager client against the local one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest

from sandbox.arm import LocalArm
from sandbox.asgi import Fault, on
from sandbox.clock import Clock
from shared.clients.arm import API_VERSIONS, Arm, api_version, arm
from shared.errors import (
    ConflictError,
    ForbiddenError,
    MessageError,
    NotFoundError,
    SettingsError,
    ThrottledError,
    UnavailableError,
)

START = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def azure() -> Iterator[LocalArm]:
    with LocalArm(Clock(START)) as running:
        yield running


@pytest.fixture
def client(azure: LocalArm) -> Arm:
    environ = {"KUBEKEEPER_ARM_ENDPOINT": azure.url}
    return arm(
        environ, credential=azure.credential(), now=azure.clock.now if hasattr(azure, "clock") else None
    )


def test_a_resource_is_read_with_its_etag_and_time(azure: LocalArm, client: Arm) -> None:
    answer = client.get(azure.add_vm("a"))
    assert answer.document["properties"]["provisioningState"] == "Succeeded"
    assert answer.etag
    assert answer.read_at.tzinfo is not None


def test_a_long_operation_is_begun_and_asked_about(azure: LocalArm, client: Arm) -> None:
    azure.core.operation_seconds = 30
    begun = client.post(azure.add_vm("a"), "powerOff", skipShutdown="true")
    assert not begun.is_done
    assert client.poll(begun.status_url).state == "InProgress"
    azure.core.clock.advance(31)
    assert client.poll(begun.status_url).state == "Succeeded"
    assert not azure.truth.is_running(azure.id_of("Microsoft.Compute/virtualMachines", "a"))


def test_an_operation_that_another_preempted_has_failed(azure: LocalArm, client: Arm) -> None:
    azure.core.operation_seconds = 30
    disk = azure.add_disk("d")
    machine = azure.add_vm("a", disks=[disk])
    first = client.post(machine, "attachDetachDataDisks", {"dataDisksToDetach": [{"diskId": disk}]})
    client.post(
        machine,
        "attachDetachDataDisks",
        {"dataDisksToDetach": [{"diskId": disk, "detachOption": "ForceDetach"}]},
    )
    progress = client.poll(first.status_url)
    assert progress.state in ("Failed", "Canceled")
    assert progress.code


def test_a_token_is_never_sent_to_another_host(azure: LocalArm, client: Arm) -> None:
    path = "/subscriptions/30000000-0000-4000-8000-000000000003/providers/x/locations/y/operations/z"
    for url in (
        f"https://evil.example{path}",
        f"http://127.0.0.1:1{path}",
        f"{azure.url}@evil.example{path}",
    ):
        with pytest.raises(MessageError, match="token is not sent"):
            client.poll(url)
    with pytest.raises(MessageError, match="no address of a long-running operation"):
        client.poll(f"{azure.url}/subscriptions/x/resourceGroups")
    assert azure.recorder.requests == []


def test_a_next_link_to_another_host_is_not_followed(azure: LocalArm, client: Arm) -> None:
    path = f"/subscriptions/{azure.subscription}/providers/Microsoft.Compute/virtualMachines"
    page = {"value": [], "nextLink": "https://evil.example/more"}
    azure.fault(Fault(on("GET", "virtualMachines"), status=200, body=page))
    with pytest.raises(MessageError, match="not the configured Resource Manager"):
        list(client.pages(path))


def test_pages_of_a_list_are_followed(azure: LocalArm, client: Arm) -> None:
    azure.core.page_size = 2
    for name in "abcde":
        azure.add_vm(name)
    path = f"/subscriptions/{azure.subscription}/providers/Microsoft.Compute/virtualMachines"
    pages = [msgspec.json.decode(body)["value"] for body in client.pages(path)]
    assert [len(page) for page in pages] == [2, 2, 1]


def test_a_write_over_another_version_is_a_conflict(azure: LocalArm, client: Arm) -> None:
    scale_set = azure.add_scale_set("agents", 1)
    old = client.get(scale_set)
    azure.core.do("PATCH", scale_set, {"tags": {"a": "b"}})
    with pytest.raises(ConflictError):
        client.patch(scale_set, {"sku": {"capacity": 2}}, if_match=old.etag)
    client.patch(scale_set, {"sku": {"capacity": 2}}, if_match=client.get(scale_set).etag)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AuthorizationFailed", ForbiddenError),
        (404, "ResourceNotFound", NotFoundError),
        (409, "OperationNotAllowed", ConflictError),
        (429, "TooManyRequests", ThrottledError),
        (503, "ServiceUnavailable", UnavailableError),
    ],
)
def test_refusals_keep_their_code(
    azure: LocalArm, client: Arm, status: int, code: str, kind: type[Exception]
) -> None:
    machine = azure.add_vm("a")
    body = {"error": {"code": code, "message": "as scripted"}}
    azure.fault(Fault(on("GET", machine), status=status, body=body, times=9, headers={"Retry-After": "7"}))
    with pytest.raises(kind) as refused:
        client.get(machine)
    assert getattr(refused.value, "code", None) == code
    if kind is ThrottledError:
        assert refused.value.retry_after_seconds == 7  # type: ignore[attr-defined]
        assert azure.recorder.count("GET", machine) == 1


def test_a_write_is_sent_once_even_when_its_answer_is_lost(azure: LocalArm, client: Arm) -> None:
    machine = azure.add_vm("a")
    azure.fault(Fault(on("POST", machine), lose_answer=True, times=5))
    with pytest.raises(UnavailableError):
        client.post(machine, "powerOff")
    assert azure.recorder.count("POST", machine) == 1


@pytest.mark.parametrize("path", ["subscriptions/x", "/a?b=c", "/a/../b", "https://evil.example/"])
def test_what_is_no_path_is_refused(client: Arm, path: str) -> None:
    with pytest.raises(SettingsError, match="not a path"):
        client.get(path)


def test_versions_are_chosen_by_the_last_provider() -> None:
    vm = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v"
    assert api_version(vm) == API_VERSIONS["microsoft.compute"]
    assert (
        api_version(f"{vm}/providers/Microsoft.Insights/metrics")
        == API_VERSIONS["microsoft.insights/metrics"]
    )
    assert api_version("/subscriptions/s/resourceGroups/g/resources") == API_VERSIONS["microsoft.resources"]
    with pytest.raises(SettingsError, match="not a resource provider"):
        api_version("/subscriptions/s/resourceGroups/g/providers/Contoso.Odd/things/t")
