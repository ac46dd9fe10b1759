"""The local Resource Manager, driven by the unmodified azure-mgmt-storage: what Azure answers, it answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import local_arm
import pytest
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceResponseError,
)
from azure.mgmt.storage import StorageManagementClient
from azure.mgmt.storage import models as m
from local_arm import SCOPE, code_of, unknown_fields

from sandbox.arm import LocalArm
from sandbox.arm.core import Ending
from sandbox.asgi import Fault, on
from sandbox.clock import Clock
from shared.clients.azure import bearer_token_policy

GROUP = LocalArm.group


@pytest.fixture(scope="module")
def running() -> Iterator[LocalArm]:
    with LocalArm(Clock(datetime(2026, 11, 23, tzinfo=UTC))) as arm:
        yield arm


@pytest.fixture
def arm(running: LocalArm) -> LocalArm:
    running.reset()
    return running


@pytest.fixture
def client(arm: LocalArm) -> Iterator[StorageManagementClient]:
    with connect(arm) as client:
        yield client


def connect(arm: LocalArm, **options: object) -> StorageManagementClient:
    return local_arm.connect(arm, StorageManagementClient, **options)


def new_account(**properties: object) -> m.StorageAccountCreateParameters:
    return m.StorageAccountCreateParameters(
        sku=m.Sku(name="Standard_ZRS"), kind="StorageV2", location="westeurope", tags={"a": "b"}, **properties
    )


def test_an_account_lives_its_life(arm: LocalArm, client: StorageManagementClient) -> None:
    made = client.storage_accounts.begin_create(GROUP, "backups", new_account()).result()
    assert made.provisioning_state == "Succeeded"
    assert made.primary_endpoints.blob == "https://backups.blob.core.windows.net/"
    assert (made.tags, made.sku.tier, made.creation_time.year) == ({"a": "b"}, "Standard", 2026)
    assert made.allow_shared_key_access is None

    changed = client.storage_accounts.update(
        GROUP, "backups", m.StorageAccountUpdateParameters(minimum_tls_version="TLS1_2", tags={"c": "d"})
    )
    assert (changed.minimum_tls_version, changed.tags) == ("TLS1_2", {"c": "d"})
    assert client.storage_accounts.get_properties(GROUP, "BACKUPS").id == made.id

    assert [a.name for a in client.storage_accounts.list()] == ["backups"]
    assert [a.name for a in client.storage_accounts.list_by_resource_group(GROUP)] == ["backups"]
    client.storage_accounts.delete(GROUP, "backups")
    client.storage_accounts.delete(GROUP, "backups")
    with pytest.raises(ResourceNotFoundError) as caught:
        client.storage_accounts.get_properties(GROUP, "backups")
    assert code_of(caught.value) == (404, "ResourceNotFound")


def test_every_answer_has_only_fields_the_sdk_knows(arm: LocalArm, client: StorageManagementClient) -> None:
    arm.add_storage_account("backups")
    service = m.BlobServiceProperties(
        is_versioning_enabled=True, delete_retention_policy=m.DeleteRetentionPolicy(enabled=True, days=7)
    )
    answers = [
        client.storage_accounts.get_properties(GROUP, "backups"),
        client.blob_services.set_service_properties(GROUP, "backups", service),
        client.blob_services.get_service_properties(GROUP, "backups"),
        client.blob_containers.create(GROUP, "backups", "etcd", m.BlobContainer()),
        client.blob_containers.set_legal_hold(GROUP, "backups", "etcd", m.LegalHold(tags=["Audit"])),
        client.blob_containers.create_or_update_immutability_policy(
            GROUP, "backups", "etcd", m.ImmutabilityPolicy(immutability_period_since_creation_in_days=3)
        ),
        client.blob_containers.get_immutability_policy(GROUP, "backups", "etcd"),
        client.blob_containers.get(GROUP, "backups", "etcd"),
        *client.blob_containers.list(GROUP, "backups"),
        client.management_policies.create_or_update(GROUP, "backups", "default", policy(rule("cool"))),
        client.management_policies.get(GROUP, "backups", "default"),
    ]
    assert [problem for answer in answers for problem in unknown_fields(answer, type(answer).__name__)] == []


def test_creation_takes_its_time_and_is_polled(arm: LocalArm, client: StorageManagementClient) -> None:
    arm.core.operation_seconds = 20
    poller = client.storage_accounts.begin_create(GROUP, "backups", new_account())
    assert not poller.done()
    assert client.storage_accounts.get_properties(GROUP, "backups").provisioning_state == "Creating"
    with pytest.raises(HttpResponseError) as caught:
        client.storage_accounts.begin_create(GROUP, "backups", new_account()).result()
    assert code_of(caught.value) == (409, "StorageAccountOperationInProgress")
    arm.core.clock.advance(20)
    assert poller.result().provisioning_state == "Succeeded"


def test_a_continuation_token_resumes_polling_in_another_client(
    arm: LocalArm, client: StorageManagementClient
) -> None:
    arm.core.operation_seconds = 20
    token = client.storage_accounts.begin_create(GROUP, "backups", new_account()).continuation_token()
    arm.core.clock.advance(20)
    with connect(arm) as later:
        poller = later.storage_accounts.begin_create(
            GROUP, "backups", new_account(), continuation_token=token
        )
        assert poller.result().name == "backups"
    assert arm.recorder.count("PUT", "backups") == 1


def test_an_accepted_operation_may_still_fail(arm: LocalArm, client: StorageManagementClient) -> None:
    arm.core.operation_seconds = 5
    arm.core.endings.append(Ending(code="StorageAccountOperationFailed", message="no capacity"))
    poller = client.storage_accounts.begin_create(GROUP, "backups", new_account())
    arm.core.clock.advance(5)
    with pytest.raises(HttpResponseError, match="StorageAccountOperationFailed"):
        poller.result()


@pytest.mark.parametrize(
    ("act", "status", "code"),
    [
        (lambda c: c.storage_accounts.get_properties("nowhere", "backups"), 404, "ResourceGroupNotFound"),
        (lambda c: c.storage_accounts.get_properties(GROUP, "missing"), 404, "ResourceNotFound"),
        (lambda c: c.blob_containers.get(GROUP, "missing", "etcd"), 404, "ResourceNotFound"),
        (
            lambda c: c.blob_containers.create(GROUP, "missing", "etcd", m.BlobContainer()),
            404,
            "ParentResourceNotFound",
        ),
        (lambda c: c.blob_containers.get(GROUP, "backups", "missing"), 404, "ContainerNotFound"),
        (lambda c: c.management_policies.get(GROUP, "backups", "default"), 404, "ManagementPolicyNotFound"),
        (
            lambda c: c.blob_containers.create(GROUP, "backups", "a--b", m.BlobContainer()),
            400,
            "ContainerInvalidName",
        ),
        (
            lambda c: c.storage_accounts.begin_create(GROUP, "Not-A-Name", new_account()),
            400,
            "AccountNameInvalid",
        ),
        (
            lambda c: c.blob_containers.create(
                GROUP, "backups", "etcd", m.BlobContainer(public_access="Blob")
            ),
            409,
            "PublicAccessNotPermitted",
        ),
    ],
)
def test_refusals_carry_azures_codes(
    arm: LocalArm, client: StorageManagementClient, act: object, status: int, code: str
) -> None:
    arm.add_storage_account("backups")
    with pytest.raises(HttpResponseError) as caught:
        act(client)  # type: ignore[operator]
    assert code_of(caught.value) == (status, code)


def test_an_unknown_subscription_and_a_missing_role_differ(arm: LocalArm) -> None:
    other = StorageManagementClient(
        arm.credential(),
        "40000000-0000-4000-8000-000000000004",
        base_url=arm.url,
        authentication_policy=bearer_token_policy(arm.credential(), SCOPE),
    )
    with other, pytest.raises(ResourceNotFoundError) as caught:
        other.storage_accounts.get_properties(GROUP, "backups")
    assert code_of(caught.value) == (404, "SubscriptionNotFound")


def test_without_a_role_it_is_403_whether_or_not_the_thing_exists(
    arm: LocalArm, client: StorageManagementClient
) -> None:
    arm.add_storage_account("backups")
    arm.core.denied.append("Microsoft.Storage/storageAccounts/read")
    for name in ("backups", "missing"):
        with pytest.raises(HttpResponseError) as caught:
            client.storage_accounts.get_properties(GROUP, name)
        assert code_of(caught.value) == (403, "AuthorizationFailed")
    client.blob_services.get_service_properties(GROUP, "backups")


def test_a_token_of_another_service_is_refused(arm: LocalArm) -> None:
    vault_policy = bearer_token_policy(arm.credential(), "https://vault.azure.net/.default")
    client = StorageManagementClient(
        arm.credential(), arm.subscription, base_url=arm.url, authentication_policy=vault_policy
    )
    with client, pytest.raises(ClientAuthenticationError, match="the token is for"):
        client.storage_accounts.get_properties(GROUP, "backups")


def test_api_versions_are_checked(arm: LocalArm) -> None:
    arm.add_storage_account("backups")
    with connect(arm, api_version="2016-01-01") as old, pytest.raises(HttpResponseError) as caught:
        old.storage_accounts.get_properties(GROUP, "backups")
    assert code_of(caught.value) == (400, "NoRegisteredProviderFound")


def test_throttling_says_when_to_come_back_and_the_sdk_obeys(arm: LocalArm) -> None:
    arm.add_storage_account("backups")
    arm.core.limit_requests(reads=(3, 1))
    with connect(arm) as impatient:
        for _ in range(3):
            impatient.storage_accounts.get_properties(GROUP, "backups")
        with pytest.raises(HttpResponseError) as caught:
            impatient.storage_accounts.get_properties(GROUP, "backups")
        assert code_of(caught.value) == (429, "SubscriptionRequestsThrottled")
        assert int(caught.value.response.headers["Retry-After"]) >= 1
        arm.core.clock.advance(1)
        impatient.storage_accounts.get_properties(GROUP, "backups")
    arm.fault(Fault(on("GET"), status=429, headers={"Retry-After": "0"}, body={"error": {"code": "x"}}))
    arm.core.clock.advance(10)
    with connect(arm, retry_total=2) as patient:
        patient.storage_accounts.get_properties(GROUP, "backups")


def test_version_level_immutability_needs_versioning_and_can_only_be_set_at_creation(
    arm: LocalArm, client: StorageManagementClient
) -> None:
    arm.add_storage_account("backups")
    immutable = m.BlobContainer(
        immutable_storage_with_versioning=m.ImmutableStorageWithVersioning(enabled=True)
    )
    with pytest.raises(HttpResponseError) as caught:
        client.blob_containers.create(GROUP, "backups", "etcd", immutable)
    assert code_of(caught.value)[1] == "BlobVersioningRequired"
    client.blob_services.set_service_properties(
        GROUP, "backups", m.BlobServiceProperties(is_versioning_enabled=True)
    )
    made = client.blob_containers.create(GROUP, "backups", "etcd", immutable)
    assert made.immutable_storage_with_versioning.enabled
    client.blob_containers.create(GROUP, "backups", "plain", m.BlobContainer())
    with pytest.raises(HttpResponseError) as caught:
        client.blob_containers.update(GROUP, "backups", "plain", immutable)
    assert code_of(caught.value)[1] == "PropertyIsImmutable"
    with pytest.raises(HttpResponseError) as caught:
        client.blob_services.set_service_properties(
            GROUP, "backups", m.BlobServiceProperties(is_versioning_enabled=False)
        )
    assert code_of(caught.value)[1] == "BlobVersioningRequired"


def test_an_existing_container_migrates_only_with_a_policy_and_that_takes_time(
    arm: LocalArm, client: StorageManagementClient
) -> None:
    arm.add_storage_account("backups")
    client.blob_services.set_service_properties(
        GROUP, "backups", m.BlobServiceProperties(is_versioning_enabled=True)
    )
    client.blob_containers.create(GROUP, "backups", "etcd", m.BlobContainer())
    with pytest.raises(HttpResponseError):
        client.blob_containers.begin_object_level_worm(GROUP, "backups", "etcd").result()
    client.blob_containers.create_or_update_immutability_policy(
        GROUP, "backups", "etcd", m.ImmutabilityPolicy(immutability_period_since_creation_in_days=1)
    )
    arm.core.operation_seconds = 60
    poller = client.blob_containers.begin_object_level_worm(GROUP, "backups", "etcd")
    state = client.blob_containers.get(GROUP, "backups", "etcd").immutable_storage_with_versioning
    assert state.migration_state == "InProgress"
    arm.core.clock.advance(60)
    poller.result()
    state = client.blob_containers.get(GROUP, "backups", "etcd").immutable_storage_with_versioning
    assert (state.enabled, state.migration_state) == (True, "Completed")


def test_a_locked_policy_only_grows(arm: LocalArm, client: StorageManagementClient) -> None:
    arm.add_storage_account("backups")
    containers = client.blob_containers
    containers.create(GROUP, "backups", "etcd", m.BlobContainer())

    def days(number: int) -> m.ImmutabilityPolicy:
        return m.ImmutabilityPolicy(immutability_period_since_creation_in_days=number)

    first = containers.create_or_update_immutability_policy(GROUP, "backups", "etcd", days(7))
    with pytest.raises(HttpResponseError) as caught:
        match = {"etag": '"0xOLD"', "match_condition": m_not_modified()}
        containers.lock_immutability_policy(GROUP, "backups", "etcd", **match)
    assert caught.value.status_code == 412
    match = {"etag": first.etag, "match_condition": m_not_modified()}
    locked = containers.lock_immutability_policy(GROUP, "backups", "etcd", **match)
    assert locked.state == "Locked"
    match["etag"] = locked.etag
    for refused in (
        lambda: containers.extend_immutability_policy(GROUP, "backups", "etcd", days(6), **match),
        lambda: containers.delete_immutability_policy(GROUP, "backups", "etcd", **match),
        lambda: containers.create_or_update_immutability_policy(GROUP, "backups", "etcd", days(1), **match),
    ):
        with pytest.raises(HttpResponseError) as caught:
            refused()
        assert code_of(caught.value) == (409, "ContainerImmutabilityPolicyFailure")
    longer = containers.extend_immutability_policy(GROUP, "backups", "etcd", days(30), **match)
    assert longer.immutability_period_since_creation_in_days == 30
    with pytest.raises(HttpResponseError):
        containers.delete(GROUP, "backups", "etcd")


def m_not_modified() -> object:
    from azure.core import MatchConditions

    return MatchConditions.IfNotModified


def test_a_legal_hold_keeps_the_container(arm: LocalArm, client: StorageManagementClient) -> None:
    arm.add_storage_account("backups")
    client.blob_containers.create(GROUP, "backups", "etcd", m.BlobContainer())
    hold = client.blob_containers.set_legal_hold(
        GROUP, "backups", "etcd", m.LegalHold(tags=["Case7", "audit"])
    )
    assert (hold.has_legal_hold, hold.tags) == (True, ["audit", "case7"])
    with pytest.raises(HttpResponseError):
        client.blob_containers.delete(GROUP, "backups", "etcd")
    with pytest.raises(HttpResponseError):
        client.storage_accounts.delete(GROUP, "backups")
    client.blob_containers.clear_legal_hold(GROUP, "backups", "etcd", m.LegalHold(tags=["case7", "audit"]))
    client.blob_containers.delete(GROUP, "backups", "etcd")


def test_a_soft_deleted_container_is_listed_only_when_asked_for(
    arm: LocalArm, client: StorageManagementClient
) -> None:
    arm.add_storage_account("backups")
    retention = m.DeleteRetentionPolicy(enabled=True, days=7)
    client.blob_services.set_service_properties(
        GROUP, "backups", m.BlobServiceProperties(container_delete_retention_policy=retention)
    )
    client.blob_containers.create(GROUP, "backups", "etcd", m.BlobContainer())
    client.blob_containers.delete(GROUP, "backups", "etcd")
    assert list(client.blob_containers.list(GROUP, "backups")) == []
    (gone,) = client.blob_containers.list(GROUP, "backups", include="deleted")
    assert (gone.deleted, gone.remaining_retention_days) == (True, 7)
    with pytest.raises(ResourceNotFoundError):
        client.blob_containers.get(GROUP, "backups", "etcd")


def test_lists_come_in_pages(arm: LocalArm, client: StorageManagementClient) -> None:
    arm.add_storage_account("backups")
    for number in range(7):
        client.blob_containers.create(GROUP, "backups", f"etcd-{number}", m.BlobContainer())
    listed = client.blob_containers.list(GROUP, "backups", maxpagesize="3")
    assert [len(list(page)) for page in listed.by_page()] == [3, 3, 1]


def rule(name: str, **changes: object) -> m.ManagementPolicyRule:
    base = m.ManagementPolicyBaseBlob(
        tier_to_cool=m.DateAfterModification(days_after_modification_greater_than=30)
    )
    definition = m.ManagementPolicyDefinition(
        actions=m.ManagementPolicyAction(base_blob=base),
        filters=m.ManagementPolicyFilter(blob_types=["blockBlob"], prefix_match=["etcd/"]),
    )
    return m.ManagementPolicyRule(name=name, type="Lifecycle", enabled=True, definition=definition, **changes)


def policy(*rules: m.ManagementPolicyRule) -> m.ManagementPolicy:
    return m.ManagementPolicy(policy=m.ManagementPolicySchema(rules=list(rules)))


def test_lifecycle_rules_are_one_document(arm: LocalArm, client: StorageManagementClient) -> None:
    arm.add_storage_account("backups")
    client.management_policies.create_or_update(GROUP, "backups", "default", policy(rule("a"), rule("b")))
    client.management_policies.create_or_update(GROUP, "backups", "default", policy(rule("c")))
    kept = client.management_policies.get(GROUP, "backups", "default").policy.rules
    assert [r.name for r in kept] == ["c"]
    for wrong in (policy(), policy(rule("a"), rule("a")), policy(rule("not a name"))):
        with pytest.raises(HttpResponseError):
            client.management_policies.create_or_update(GROUP, "backups", "default", wrong)
    client.management_policies.delete(GROUP, "backups", "default")


def test_a_lost_answer_means_the_work_was_done(arm: LocalArm, client: StorageManagementClient) -> None:
    arm.add_storage_account("backups")
    arm.fault(Fault(on("PUT", "containers/etcd"), lose_answer=True))
    with pytest.raises(ServiceResponseError):
        client.blob_containers.create(GROUP, "backups", "etcd", m.BlobContainer())
    assert client.blob_containers.get(GROUP, "backups", "etcd").name == "etcd"
    assert [r.status for r in arm.recorder.of("PUT")] == [0]


def test_the_nth_write_fails(arm: LocalArm, client: StorageManagementClient) -> None:
    arm.add_storage_account("backups")
    broken = {"error": {"code": "InternalServerError", "message": "sorry"}}
    arm.fault(Fault(on("write", "containers"), status=500, body=broken, skip=1))
    outcomes = []
    for name in ("one", "two", "three"):
        try:
            client.blob_containers.create(GROUP, "backups", name, m.BlobContainer())
            outcomes.append("done")
        except HttpResponseError as error:
            outcomes.append(code_of(error)[1])
    assert outcomes == ["done", "InternalServerError", "done"]


def test_the_world_can_change_between_a_read_and_a_write(
    arm: LocalArm, client: StorageManagementClient
) -> None:
    arm.add_storage_account("backups")
    client.blob_containers.create(GROUP, "backups", "etcd", m.BlobContainer())
    ours = client.blob_containers.create_or_update_immutability_policy(
        GROUP, "backups", "etcd", m.ImmutabilityPolicy(immutability_period_since_creation_in_days=3)
    )

    def somebody_else() -> None:
        container = next(arm.core.state.of_type("Microsoft.Storage/storageAccounts/blobServices/containers"))
        container.hidden["policy"]["etag"] = '"0xTHEIRS"'

    arm.fault(Fault(on("POST", "lock"), before=somebody_else))
    with pytest.raises(HttpResponseError) as caught:
        client.blob_containers.lock_immutability_policy(
            GROUP, "backups", "etcd", etag=ours.etag, match_condition=m_not_modified()
        )
    assert caught.value.status_code == 412


def test_the_state_survives_a_dump_and_a_load_in_the_middle_of_an_operation(arm: LocalArm) -> None:
    with connect(arm) as client:
        arm.core.operation_seconds = 30
        token = client.storage_accounts.begin_create(GROUP, "backups", new_account()).continuation_token()
    saved = arm.dump()
    with (
        LocalArm(Clock(arm.core.clock.now()), arm.directory) as other,
        connect(other) as client,
    ):
        other.load(saved)
        assert client.storage_accounts.get_properties(GROUP, "backups").provisioning_state == "Creating"
        other.core.clock.advance(30)
        assert client.storage_accounts.get_properties(GROUP, "backups").provisioning_state == "Succeeded"
        assert other.dump() != saved
    assert token


def test_requests_are_recorded_with_verb_path_version_and_body(
    arm: LocalArm, client: StorageManagementClient
) -> None:
    arm.add_storage_account("backups")
    client.blob_containers.create(GROUP, "backups", "etcd", m.BlobContainer(metadata={"a": "b"}))
    (put,) = arm.recorder.of("PUT")
    assert put.path.endswith("/storageAccounts/backups/blobServices/default/containers/etcd")
    assert put.query["api-version"] == "2026-09-01"
    assert put.json == {"properties": {"metadata": {"a": "b"}}}


def test_slow_answers_run_into_the_clients_own_timeout(arm: LocalArm) -> None:
    arm.add_storage_account("backups")
    arm.fault(Fault(on("GET"), delay_seconds=1.0))
    with connect(arm, read_timeout=0.2) as hasty, pytest.raises(ServiceResponseError):
        hasty.storage_accounts.get_properties(GROUP, "backups")


def test_it_stops_while_a_client_keeps_its_connection_open() -> None:
    with LocalArm() as arm:
        arm.add_storage_account("backups")
        client = connect(arm)
        client.storage_accounts.get_properties(GROUP, "backups")
        began = time.monotonic()
    assert time.monotonic() - began < 30
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == f"asgi {arm.url}"]
