"""Facts about a storage account to findings and changes: tables, and the promise that nothing is ever
loosened.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.model.backup_store import (
    SOFT_DELETE_AT_LEAST,
    Changes,
    Container,
    Rule,
    StoreFacts,
    changes,
    findings,
)
from shared.model.resource_id import parse_resource_id

ACCOUNT = parse_resource_id(
    "/subscriptions/30000000-0000-4000-8000-000000000003/resourceGroups/kubekeeper"
    "/providers/Microsoft.Storage/storageAccounts/backups"
)
GOOD = StoreFacts(
    account=ACCOUNT,
    container_name="etcd-backups",
    minimum_tls="TLS1_2",
    shared_key_allowed=False,
    open_to_all_networks=False,
    versioning=True,
    blob_soft_delete_days=14,
    container_soft_delete_days=14,
    container=Container(version_level_immutability=True, immutability_days=7),
    rules=(Rule(name="ours", prefixes=("etcd-backups/",), tiers=True, deletes_versions=True),),
)
OPEN = Container(public=True, version_level_immutability=True, immutability_days=7)


def but(**different: object) -> StoreFacts:
    return msgspec.structs.replace(GOOD, **different)


def rule(**different: object) -> tuple[Rule, ...]:
    return (*GOOD.rules, Rule(name="theirs", **different))


def test_a_well_kept_account_has_no_findings_and_nothing_to_change() -> None:
    assert findings(GOOD) == ()
    assert changes(GOOD) == Changes()


@pytest.mark.parametrize(
    ("facts", "code", "severity", "prepared", "remedy"),
    [
        (but(minimum_tls=None), "WeakTls", "problem", True, "--min-tls-version TLS1_2"),
        (but(minimum_tls="TLS1_0"), "WeakTls", "problem", True, "--min-tls-version TLS1_2"),
        (but(https_only=False), "InsecureTransfer", "problem", True, "--https-only true"),
        (
            but(public_blobs_allowed=True),
            "PublicAccessAllowed",
            "problem",
            True,
            "--allow-blob-public-access false",
        ),
        (
            but(public_blobs_allowed=True, other_public_containers=("www",)),
            "PublicAccessAllowed",
            "problem",
            False,
            "move the public containers elsewhere",
        ),
        (but(shared_key_allowed=True), "SharedKeyAllowed", "advice", False, "managed identity"),
        (but(open_to_all_networks=True), "OpenToAllNetworks", "advice", False, "--default-action Deny"),
        (but(versioning=False), "NoVersioning", "problem", True, "--enable-versioning true"),
        (but(hierarchical=True), "HierarchicalNamespace", "problem", False, "general-purpose v2"),
        (but(blob_soft_delete_days=0), "ShortBlobSoftDelete", "problem", True, "--delete-retention-days 14"),
        (but(blob_soft_delete_days=6), "ShortBlobSoftDelete", "problem", True, "--delete-retention-days 14"),
        (
            but(container_soft_delete_days=0),
            "ShortContainerSoftDelete",
            "problem",
            True,
            "--container-delete-retention-days 14",
        ),
        (but(container=None), "NoContainer", "problem", True, "--public-access off --enable-vlw true"),
        (but(container=OPEN), "PublicContainer", "problem", True, "--public-access off"),
        (
            but(container=Container()),
            "NoVersionLevelImmutability",
            "advice",
            False,
            "immutability-policy create",
        ),
        (
            but(container=Container(version_level_immutability=True)),
            "NoImmutabilityPolicy",
            "advice",
            False,
            "--period DAYS",
        ),
        (but(rules=()), "VersionsKeptForEver", "problem", True, "management-policy create"),
        (
            but(rewritten_containers=("kubekeeper",)),
            "VersionsKeptForEver",
            "problem",
            True,
            "management-policy",
        ),
        (
            but(rules=(Rule(name="ours", prefixes=("etcd-backups/",), deletes_versions=True),)),
            "NoTiering",
            "advice",
            True,
            "management-policy create",
        ),
        (
            but(rules=rule(deletes=True)),
            "LifecycleDeletesBackups",
            "problem",
            False,
            "take 'etcd-backups/' out",
        ),
        (
            but(rules=rule(prefixes=("etcd-backups/prod/",), archives=True)),
            "LifecycleArchivesBackups",
            "problem",
            False,
            "management-policy show",
        ),
    ],
)
def test_each_lapse_is_found_with_its_remedy(
    facts: StoreFacts, code: str, severity: str, prepared: bool, remedy: str
) -> None:
    found = {finding.code: finding for finding in findings(facts)}
    assert code in found
    finding = found[code]
    assert (finding.severity, finding.prepared) == (severity, prepared)
    assert remedy in finding.remedy
    assert "\n" not in finding.message + finding.remedy


def test_a_rule_for_other_containers_is_nobodys_business() -> None:
    assert findings(but(rules=rule(prefixes=("logs/", "etcd-backups-old/"), deletes=True))) == ()


def test_a_longer_retention_is_left_alone() -> None:
    facts = but(blob_soft_delete_days=90, container_soft_delete_days=SOFT_DELETE_AT_LEAST)
    assert changes(facts) == Changes()


def test_public_containers_of_others_stay_public_until_somebody_decides() -> None:
    facts = but(public_blobs_allowed=True, other_public_containers=("www",))
    assert not changes(facts).forbid_public_blobs


def test_a_narrowed_rule_of_ours_is_kept_and_another_added() -> None:
    narrowed = Rule(name="kubekeeper-etcd-backups", prefixes=("etcd-backups/prod/",), tiers=True)
    (added,) = changes(but(rules=(narrowed,))).add_rules
    assert added.name == "kubekeeper-etcd-backups-1"


def test_premium_accounts_have_no_tiers() -> None:
    (added,) = changes(but(kind="BlockBlobStorage", rules=())).add_rules
    assert (added.tiers, added.deletes_versions) == (False, True)


def test_problems_come_before_advice() -> None:
    severities = [f.severity for f in findings(but(shared_key_allowed=True, versioning=False, rules=()))]
    assert severities == sorted(severities, reverse=True)


names = st.sampled_from(["etcd-backups/", "etcd-backups/prod/", "logs/", "etcd", "kubekeeper/"])
some_rules = st.lists(
    st.builds(
        Rule,
        name=st.sampled_from(["a", "b", "kubekeeper-state", "kubekeeper-etcd-backups"]),
        prefixes=st.lists(names, max_size=2).map(tuple),
        tiers=st.booleans(),
        archives=st.booleans(),
        deletes=st.booleans(),
        deletes_versions=st.booleans(),
    ),
    max_size=3,
    unique_by=lambda rule: rule.name,
).map(tuple)
any_facts = st.builds(
    StoreFacts,
    account=st.just(ACCOUNT),
    container_name=st.just("etcd-backups"),
    kind=st.sampled_from(["StorageV2", "BlockBlobStorage"]),
    hierarchical=st.booleans(),
    minimum_tls=st.sampled_from([None, "TLS1_0", "TLS1_1", "TLS1_2", "TLS1_3"]),
    https_only=st.booleans(),
    public_blobs_allowed=st.booleans(),
    shared_key_allowed=st.booleans(),
    open_to_all_networks=st.booleans(),
    versioning=st.booleans(),
    blob_soft_delete_days=st.integers(0, 365),
    container_soft_delete_days=st.integers(0, 365),
    container=st.none()
    | st.builds(
        Container,
        public=st.booleans(),
        version_level_immutability=st.booleans(),
        immutability_days=st.integers(0, 30),
    ),
    other_public_containers=st.sampled_from([(), ("www",)]),
    rewritten_containers=st.sampled_from([(), ("kubekeeper",), ("kubekeeper", "azure-webjobs-hosts")]),
    rules=some_rules,
)


def applied(facts: StoreFacts, wanted: Changes) -> StoreFacts:
    """The account after the changes, as the service would have it."""
    container = facts.container
    if wanted.create_container:
        container = Container(version_level_immutability=facts.versioning or wanted.versioning)
    elif container is not None and wanted.close_container:
        container = msgspec.structs.replace(container, public=False)
    return msgspec.structs.replace(
        facts,
        minimum_tls=wanted.minimum_tls or facts.minimum_tls,
        https_only=facts.https_only or wanted.https_only,
        public_blobs_allowed=facts.public_blobs_allowed and not wanted.forbid_public_blobs,
        versioning=facts.versioning or wanted.versioning,
        blob_soft_delete_days=wanted.blob_soft_delete_days or facts.blob_soft_delete_days,
        container_soft_delete_days=wanted.container_soft_delete_days or facts.container_soft_delete_days,
        container=container,
        rules=(*facts.rules, *wanted.add_rules),
    )


@given(any_facts)
def test_the_changes_settle_everything_they_promise_and_nothing_is_left_to_change(facts: StoreFacts) -> None:
    after = applied(facts, changes(facts))
    assert not [finding.code for finding in findings(after) if finding.prepared]
    assert changes(after) == Changes()


@given(any_facts)
def test_no_change_ever_loosens_shortens_or_takes_away(facts: StoreFacts) -> None:
    after = applied(facts, changes(facts))
    assert (after.minimum_tls or "") >= (facts.minimum_tls or "")
    assert after.https_only >= facts.https_only
    assert after.public_blobs_allowed <= facts.public_blobs_allowed
    assert after.versioning >= facts.versioning
    assert after.blob_soft_delete_days >= facts.blob_soft_delete_days
    assert after.container_soft_delete_days >= facts.container_soft_delete_days
    assert after.rules[: len(facts.rules)] == facts.rules
    added = after.rules[len(facts.rules) :]
    assert not any(rule.deletes or rule.archives for rule in added)
    assert len({rule.name for rule in after.rules}) == len(after.rules)
    others = {finding.code for finding in findings(after)} - {finding.code for finding in findings(facts)}
    assert others <= {"NoVersionLevelImmutability", "NoImmutabilityPolicy"}  # of the new container
