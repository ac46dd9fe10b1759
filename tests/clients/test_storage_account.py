"""Checking and preparing the backup store, with the official SDK against the local Resource Manager."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from azure.mgmt.storage import StorageManagementClient
from azure.mgmt.storage import models as m
from bicep import Deployment, Scope

from sandbox.arm import LocalArm
from sandbox.asgi import Fault, on
from sandbox.identity import ManagedIdentity
from shared.clients.arm import arm_endpoint
from shared.clients.azure import bearer_token_policy
from shared.clients.storage_account import StorageAccount, storage_account
from shared.errors import (
    ConflictError,
    ForbiddenError,
    NotFoundError,
    SettingsError,
    ThrottledError,
    UnavailableError,
)

CONTAINER = "etcd-backups"


@pytest.fixture(scope="module")
def running() -> Iterator[LocalArm]:
    with LocalArm() as arm:
        yield arm


@pytest.fixture
def arm(running: LocalArm) -> LocalArm:
    running.reset()
    return running


def account(arm: LocalArm, name: str = "backups", **properties: object) -> StorageAccount:
    return connect(arm, arm.add_storage_account(name, **properties))


def connect(arm: LocalArm, account_id: str) -> StorageAccount:
    return storage_account(account_id, {"KUBEKEEPER_ARM_ENDPOINT": arm.url}, arm.credential())


def codes(store: StorageAccount) -> set[str]:
    return {finding.code for finding in store.check(CONTAINER)}


def sdk(arm: LocalArm) -> StorageManagementClient:
    policy = bearer_token_policy(arm.credential(), "https://management.azure.com/.default")
    return StorageManagementClient(
        arm.credential(), arm.subscription, base_url=arm.url, authentication_policy=policy
    )


def writes(arm: LocalArm) -> list[str]:
    return [f"{r.method} {r.path.rsplit('/', 1)[-1]}" for r in arm.recorder.of("write")]


def test_checking_writes_nothing(arm: LocalArm) -> None:
    found = codes(account(arm))
    assert found == {
        "WeakTls",
        "SharedKeyAllowed",
        "OpenToAllNetworks",
        "NoVersioning",
        "ShortBlobSoftDelete",
        "ShortContainerSoftDelete",
        "NoContainer",
        "VersionsKeptForEver",
        "NoTiering",
    }
    assert writes(arm) == []


def test_preparing_a_new_account_leaves_only_what_people_must_decide(arm: LocalArm) -> None:
    store = account(arm)
    prepared = store.prepare(CONTAINER)
    assert prepared.done == (
        "TLS 1.2 is required",
        "versioning is on",
        "deleted blobs can be recovered for 14 days",
        "deleted containers can be recovered for 14 days",
        "the container 'etcd-backups' is created, ready for immutable backups",
        "the lifecycle rule 'kubekeeper-etcd-backups' is added",
    )
    left = {finding.code for finding in prepared.left}
    assert left == {"SharedKeyAllowed", "OpenToAllNetworks", "NoImmutabilityPolicy"}
    assert not any(finding.prepared for finding in prepared.left)
    assert writes(arm) == ["PATCH backups", "PUT default", "PUT etcd-backups", "PUT default"]


def test_preparing_twice_changes_nothing_more(arm: LocalArm) -> None:
    store = account(arm)
    store.prepare(CONTAINER)
    arm.recorder.requests.clear()
    assert store.prepare(CONTAINER).done == ()
    assert writes(arm) == []


def test_an_open_account_is_closed(arm: LocalArm) -> None:
    store = account(arm, supportsHttpsTrafficOnly=False, allowBlobPublicAccess=True)
    with sdk(arm) as client:
        client.blob_containers.create(arm.group, "backups", CONTAINER, m.BlobContainer(public_access="Blob"))
    assert {"InsecureTransfer", "PublicAccessAllowed", "PublicContainer"} <= codes(store)
    done = store.prepare(CONTAINER).done
    assert {"secure transfer is required", "public containers are forbidden"} <= set(done)
    assert not {"InsecureTransfer", "PublicAccessAllowed", "PublicContainer"} & codes(store)


def test_absent_means_allowed_for_old_accounts(arm: LocalArm) -> None:
    store = account(arm, allowBlobPublicAccess=None, minimumTlsVersion=None)
    assert {"PublicAccessAllowed", "WeakTls", "SharedKeyAllowed"} <= codes(store)


def test_a_container_that_is_public_on_purpose_stays_so(arm: LocalArm) -> None:
    store = account(arm, allowBlobPublicAccess=True)
    with sdk(arm) as client:
        client.blob_containers.create(arm.group, "backups", "www", m.BlobContainer(public_access="Blob"))
        assert "PublicAccessAllowed" in {f.code for f in store.prepare(CONTAINER).left}
        assert client.blob_containers.get(arm.group, "backups", "www").public_access == "Blob"


def test_what_others_have_set_survives(arm: LocalArm) -> None:
    store = account(arm, minimumTlsVersion="TLS1_3")
    service = m.BlobServiceProperties(
        delete_retention_policy=m.DeleteRetentionPolicy(enabled=True, days=90),
        change_feed=m.ChangeFeed(enabled=True, retention_in_days=30),
        last_access_time_tracking_policy=m.LastAccessTimeTrackingPolicy(enable=True),
        cors=m.CorsRules(
            cors_rules=[
                m.CorsRule(
                    allowed_origins=["https://example.com"],
                    allowed_methods=["GET"],
                    max_age_in_seconds=60,
                    exposed_headers=[],
                    allowed_headers=[],
                )
            ]
        ),
    )
    theirs = m.ManagementPolicyRule(
        name="theirs",
        type="Lifecycle",
        enabled=False,
        definition=m.ManagementPolicyDefinition(
            actions=m.ManagementPolicyAction(
                snapshot=m.ManagementPolicySnapShot(
                    delete=m.DateAfterCreation(days_after_creation_greater_than=9)
                )
            ),
            filters=m.ManagementPolicyFilter(
                blob_types=["blockBlob"], blob_index_match=[m.TagFilter(name="a", op="==", value="b")]
            ),
        ),
    )
    with sdk(arm) as client:
        client.blob_services.set_service_properties(arm.group, "backups", service)
        policy = m.ManagementPolicy(policy=m.ManagementPolicySchema(rules=[theirs]))
        before = client.management_policies.create_or_update(arm.group, "backups", "default", policy)
        store.prepare(CONTAINER)
        after = client.blob_services.get_service_properties(arm.group, "backups")
        assert after.is_versioning_enabled
        assert after.delete_retention_policy.days == 90
        assert after.change_feed.retention_in_days == 30
        assert after.last_access_time_tracking_policy.enable
        assert after.cors.cors_rules[0].allowed_origins == ["https://example.com"]
        rules = client.management_policies.get(arm.group, "backups", "default").policy.rules
        assert rules[0].as_dict() == before.policy.rules[0].as_dict()
        assert [rule.name for rule in rules] == ["theirs", "kubekeeper-etcd-backups"]
        assert client.storage_accounts.get_properties(arm.group, "backups").minimum_tls_version == "TLS1_3"


def test_the_lifecycle_rule_tiers_backups_and_deletes_their_old_versions(arm: LocalArm) -> None:
    store = account(arm)
    store.prepare(CONTAINER)
    with sdk(arm) as client:
        (rule,) = client.management_policies.get(arm.group, "backups", "default").policy.rules
    assert rule.definition.filters.prefix_match == ["etcd-backups/"]
    actions = rule.definition.actions
    assert actions.base_blob.tier_to_cool.days_after_modification_greater_than == 30
    assert actions.base_blob.tier_to_cold.days_after_modification_greater_than == 90
    assert actions.base_blob.tier_to_archive is None
    assert actions.base_blob.delete is None
    assert actions.version.delete.days_after_creation_greater_than == 14


def test_versions_of_our_own_state_are_deleted_too(arm: LocalArm) -> None:
    store = account(arm)
    with sdk(arm) as client:
        client.blob_containers.create(arm.group, "backups", "kubekeeper", m.BlobContainer())
        store.prepare(CONTAINER)
        rules = client.management_policies.get(arm.group, "backups", "default").policy.rules
    state = next(rule for rule in rules if rule.name == "kubekeeper-state")
    assert state.definition.filters.prefix_match == ["kubekeeper/"]
    assert state.definition.actions.base_blob is None


def test_an_existing_container_is_not_migrated_but_the_way_is_shown(arm: LocalArm) -> None:
    store = account(arm)
    with sdk(arm) as client:
        client.blob_containers.create(arm.group, "backups", CONTAINER, m.BlobContainer())
    left = {f.code: f for f in store.prepare(CONTAINER).left}
    assert "az storage container-rm migrate-vlw" in left["NoVersionLevelImmutability"].remedy
    assert arm.recorder.count("POST") == 0


def test_an_immutable_container_is_recognised(arm: LocalArm) -> None:
    store = account(arm)
    store.prepare(CONTAINER)
    with sdk(arm) as client:
        client.blob_containers.create_or_update_immutability_policy(
            arm.group,
            "backups",
            CONTAINER,
            m.ImmutabilityPolicy(immutability_period_since_creation_in_days=30),
        )
    assert "NoImmutabilityPolicy" not in codes(store)


@pytest.mark.parametrize("lost", range(4))
def test_preparing_again_after_any_lost_answer_ends_the_same(arm: LocalArm, lost: int) -> None:
    store = account(arm)
    arm.fault(Fault(on("write"), lose_answer=True, skip=lost, times=4))
    with pytest.raises(UnavailableError, match="no answer from Azure Resource Manager"):
        store.prepare(CONTAINER)
    arm.recorder.faults.clear()
    store.prepare(CONTAINER)
    assert codes(store) == {"SharedKeyAllowed", "OpenToAllNetworks", "NoImmutabilityPolicy"}


ERROR: dict[str, Any] = {"error": {"code": "Busy", "message": "later"}}


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        (Fault(on("GET"), status=403, body=ERROR, times=9), ForbiddenError, "'Reader' \\(to check\\)"),
        (Fault(on("GET"), status=409, body=ERROR, times=9), ConflictError, "Busy \\(409\\), later"),
        (
            Fault(on("GET"), status=429, body=ERROR, headers={"Retry-After": "0"}, times=9),
            ThrottledError,
            "tried again",
        ),
        (Fault(on("GET"), status=503, body=ERROR, times=9), UnavailableError, "in trouble"),
        (Fault(on("GET"), lose_answer=True, times=9), UnavailableError, "check its address"),
    ],
)
def test_troubles_are_one_line_with_a_remedy(
    arm: LocalArm, fault: Fault, error: type[Exception], text: str
) -> None:
    store = account(arm)
    arm.fault(fault)
    with pytest.raises(error, match=text) as caught:
        store.check(CONTAINER)
    assert "\n" not in str(caught.value)


def test_a_wrong_account_names_the_setting(arm: LocalArm) -> None:
    made = arm.add_storage_account("backups")
    with pytest.raises(NotFoundError, match="check 'storageAccount' in the configuration"):
        connect(arm, made.replace("/backups", "/backupz")).check(CONTAINER)


def test_a_reader_can_check_but_not_prepare(arm: LocalArm) -> None:
    store = account(arm)
    arm.core.denied.append("Microsoft.Storage/storageAccounts/write")
    assert "WeakTls" in codes(store)
    with pytest.raises(ForbiddenError, match="Storage Account Contributor"):
        store.prepare(CONTAINER)


def test_the_apps_own_identity_is_used(arm: LocalArm, monkeypatch: pytest.MonkeyPatch) -> None:
    account_id = arm.add_storage_account("backups")
    with ManagedIdentity(arm.directory) as identity:
        for name, value in identity.environ.items():
            monkeypatch.setenv(name, value)
        environ = {"KUBEKEEPER_ARM_ENDPOINT": arm.url, "AzureWebJobsStorage__credential": "managedidentity"}
        assert storage_account(account_id, environ).check(CONTAINER)
        assert identity.recorder.requests[0].query["resource"] == "https://management.azure.com"


@pytest.mark.parametrize(
    "endpoint", ["https://example.com", "http://management.azure.com", "ftp://127.0.0.1"]
)
def test_our_token_goes_to_resource_managers_only(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="not a Resource Manager of Azure"):
        arm_endpoint({"KUBEKEEPER_ARM_ENDPOINT": endpoint})


@pytest.mark.parametrize(
    "account_id",
    [
        "backups",
        "/subscriptions/x/resourceGroups/g",
        "/subscriptions/x/resourceGroups/g/providers/M.Web/sites/s",
    ],
)
def test_something_else_than_an_account_is_refused(account_id: str) -> None:
    with pytest.raises(SettingsError):
        storage_account(account_id, {})


def test_the_account_that_the_templates_make_has_nothing_to_mend(arm: LocalArm) -> None:
    """What infra/main.bicep asks for is put into the local Resource Manager, and looked at as doctor does."""
    parameters = {
        "environmentName": "prod",
        "location": "westeurope",
        "subnetId": "/the/subnet",
        "privateEndpointSubnetId": "/the/other",
        "immutableDays": 30,
        "resourceGroupName": arm.group,
    }
    main = Path(__file__).parents[2] / "infra/main.bicep"
    token = arm.credential().get_token("https://management.azure.com/.default").token
    kinds = ("blobServices", "containers", "immutabilityPolicies", "managementPolicies", "storageAccounts")
    made = [
        one
        for one in Deployment(main, parameters, Scope(arm.subscription)).resources
        if one.type.startswith("Microsoft.Storage/") and one.type.rpartition("/")[2] in kinds
    ]
    for one in made:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        url = f"{arm.url}{one.id}?api-version={one.api_version}"
        urlopen(Request(url, json.dumps(one.body).encode(), headers, method="PUT"), timeout=10).close()
    assert {one.type.rpartition("/")[2] for one in made} == set(kinds)
    assert codes(connect(arm, made[0].id)) == set()
