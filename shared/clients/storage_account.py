"""The storage account that holds the backups, through Azure Resource Manager: reads its settings and
prepares it.

What is right and wrong is decided in `shared.model.backup_store`; here are only the calls of
azure-mgmt-storage. Checking needs the role *Reader* on the account, preparing *Storage Account
Contributor*. Errors are those of `shared.errors`. Azurite has no Resource Manager, so all this is skipped
where the configuration names no account.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from shared.clients.arm import PUBLIC_ENDPOINT, arm_endpoint
from shared.clients.azure import RETRY, TIMEOUTS, bearer_token_policy, is_loopback, translated
from shared.errors import SettingsError
from shared.model.backup_store import (
    COLD_AFTER_DAYS,
    COOL_AFTER_DAYS,
    REWRITTEN,
    VERSIONS_DELETED_AFTER_DAYS,
    Changes,
    Container,
    Finding,
    Rule,
    StoreFacts,
    changes,
    findings,
)
from shared.model.resource_id import ResourceId, parse_resource_id

if TYPE_CHECKING:
    from azure.core.credentials import TokenCredential
    from azure.mgmt.storage import StorageManagementClient
    from azure.mgmt.storage import models as m

_ROLE = "give the identity 'Reader' (to check) or 'Storage Account Contributor' (to prepare) on the account"
_REMEDIES = {
    "401": "the identity belongs to another tenant than the subscription, or its token was refused",
    "403": _ROLE,
    "ResourceNotFound": "check 'storageAccount' in the configuration",
    "ResourceGroupNotFound": "check 'storageAccount' in the configuration",
    "SubscriptionNotFound": "check 'storageAccount' in the configuration, and the identity's tenant",
}


class Prepared(msgspec.Struct, frozen=True):
    """What `prepare` did, in words, and what is still to be done by people."""

    done: tuple[str, ...]
    left: tuple[Finding, ...]


class StorageAccount:
    """One account. Each method makes a handful of ARM calls."""

    def __init__(self, client: StorageManagementClient, account: ResourceId) -> None:
        self._client = client
        self._account = account
        self._where = (account.group, account.name)

    def facts(self, container: str) -> StoreFacts:
        """How account and container are set up now. NotFoundError when the account does not exist."""
        with self._calling("read the settings of"):
            account = self._client.storage_accounts.get_properties(*self._where)
            service = self._client.blob_services.get_service_properties(*self._where)
            containers = list(self._client.blob_containers.list(*self._where))
        ours = next((item for item in containers if item.name == container), None)
        public = [i.name or "" for i in containers if _is_public(i) and i.name != container]
        network = account.network_rule_set
        return StoreFacts(
            account=self._account,
            container_name=container,
            kind=_text(account.kind) or "",
            hierarchical=bool(account.is_hns_enabled),
            minimum_tls=_text(account.minimum_tls_version),
            https_only=bool(account.enable_https_traffic_only),
            # Both were introduced with "on" as the meaning of absence; new accounts state the first
            # explicitly.
            public_blobs_allowed=account.allow_blob_public_access is not False,
            shared_key_allowed=account.allow_shared_key_access is not False,
            open_to_all_networks=account.public_network_access != "Disabled"
            and (network is None or network.default_action == "Allow"),
            versioning=bool(service.is_versioning_enabled),
            blob_soft_delete_days=_retention_days(service.delete_retention_policy),
            container_soft_delete_days=_retention_days(service.container_delete_retention_policy),
            container=_container(ours) if ours is not None else None,
            other_public_containers=tuple(public),
            rewritten_containers=tuple(i.name for i in containers if i.name in REWRITTEN),
            rules=tuple(_rule(rule) for rule in self._rules() if rule.enabled is not False),
        )

    def check(self, container: str) -> tuple[Finding, ...]:
        """What is not as it should be; empty when all is well."""
        return findings(self.facts(container))

    def prepare(self, container: str) -> Prepared:
        """Make the missing settings that are safe, then look again. Doing it twice changes nothing more.

        Never loosens, shortens or removes anything, and never does what cannot be undone.
        """
        facts = self.facts(container)
        wanted = changes(facts)
        done = [
            *self._tighten_account(wanted),
            *self._protect_blobs(wanted),
            *self._make_container(container, facts, wanted),
            *self._add_rules(wanted),
        ]
        return Prepared(tuple(done), self.check(container) if done else findings(facts))

    def _tighten_account(self, wanted: Changes) -> Iterator[str]:
        from azure.mgmt.storage import models as m

        update = m.StorageAccountUpdateParameters()
        done = []
        if wanted.minimum_tls:
            update.minimum_tls_version = wanted.minimum_tls
            done.append("TLS 1.2 is required")
        if wanted.https_only:
            update.enable_https_traffic_only = True
            done.append("secure transfer is required")
        if wanted.forbid_public_blobs:
            update.allow_blob_public_access = False
            done.append("public containers are forbidden")
        if done:
            with self._calling("tighten"):
                self._client.storage_accounts.update(*self._where, update)
        yield from done

    def _protect_blobs(self, wanted: Changes) -> Iterator[str]:
        from azure.mgmt.storage import models as m

        done = []
        with self._calling("protect the blobs of"):
            # The whole document is read and written back: what a PUT leaves out could be switched off.
            service = self._client.blob_services.get_service_properties(*self._where)
            if wanted.versioning:
                service.is_versioning_enabled = True
                done.append("versioning is on")
            if wanted.blob_soft_delete_days:
                policy = service.delete_retention_policy or m.DeleteRetentionPolicy()
                policy.enabled, policy.days = True, wanted.blob_soft_delete_days
                service.delete_retention_policy = policy
                done.append(f"deleted blobs can be recovered for {policy.days} days")
            if wanted.container_soft_delete_days:
                policy = service.container_delete_retention_policy or m.DeleteRetentionPolicy()
                policy.enabled, policy.days = True, wanted.container_soft_delete_days
                service.container_delete_retention_policy = policy
                done.append(f"deleted containers can be recovered for {policy.days} days")
            if done:
                self._client.blob_services.set_service_properties(*self._where, service)
        yield from done

    def _make_container(self, name: str, facts: StoreFacts, wanted: Changes) -> Iterator[str]:
        from azure.mgmt.storage import models as m

        properties = m.ContainerProperties(public_access="None")
        if wanted.create_container:
            immutable = facts.versioning or wanted.versioning
            if immutable:
                # Only possible now: an existing container has to be migrated, for ever.
                properties.immutable_storage_with_versioning = m.ImmutableStorageWithVersioning(enabled=True)
            with self._calling(f"create the container '{name}' in"):
                self._client.blob_containers.create(
                    *self._where, name, m.BlobContainer(container_properties=properties)
                )
            yield f"the container '{name}' is created{', ready for immutable backups' if immutable else ''}"
        elif wanted.close_container:
            with self._calling(f"close the container '{name}' in"):
                self._client.blob_containers.update(
                    *self._where, name, m.BlobContainer(container_properties=properties)
                )
            yield f"the container '{name}' is no longer public"

    def _add_rules(self, wanted: Changes) -> Iterator[str]:
        from azure.mgmt.storage import models as m

        if not wanted.add_rules:
            return
        rules = [*self._rules(), *(_lifecycle_rule(rule) for rule in wanted.add_rules)]
        policy = m.ManagementPolicyProperties(policy=m.ManagementPolicySchema(rules=rules))
        with self._calling("add lifecycle rules to"):
            self._client.management_policies.create_or_update(
                *self._where, "default", m.ManagementPolicy(properties=policy)
            )
        for rule in wanted.add_rules:
            yield f"the lifecycle rule '{rule.name}' is added"

    def _rules(self) -> list[m.ManagementPolicyRule]:
        from azure.core.exceptions import ResourceNotFoundError

        with self._calling("read the lifecycle rules of"):
            try:
                policy = self._client.management_policies.get(*self._where, "default")
            except ResourceNotFoundError as error:
                if error.error is None or error.error.code != "ManagementPolicyNotFound":
                    raise
                return []
        return list(policy.policy.rules)

    @contextmanager
    def _calling(self, what: str) -> Iterator[None]:
        with translated(
            f"{what} the storage account '{self._account.name}'",
            service="Azure Resource Manager",
            remedies=_REMEDIES,
        ):
            yield


def storage_account(
    account_id: str, environ: Mapping[str, str], credential: TokenCredential | None = None
) -> StorageAccount:
    """The account with this resource id, reached with the app's identity unless a credential is given.

    SettingsError when the id or the endpoint in KUBEKEEPER_ARM_ENDPOINT is wrong.
    """
    from azure.mgmt.storage import StorageManagementClient

    from shared.clients.storage import credential as app_credential

    account = parse_resource_id(account_id)
    if account.type.lower() != "microsoft.storage/storageaccounts":
        raise SettingsError(
            f"'{account_id}' is not a storage account; check 'storageAccount' in the configuration"
        )
    endpoint = arm_endpoint(environ)
    used = credential or app_credential(environ)
    scope = f"{PUBLIC_ENDPOINT if is_loopback(endpoint) else endpoint}/.default"
    client = StorageManagementClient(
        used,
        account.subscription,
        base_url=endpoint,
        authentication_policy=bearer_token_policy(used, scope),
        **RETRY,
        **TIMEOUTS,
    )
    return StorageAccount(client, account)


def _text(value: str | Enum | None) -> str | None:
    """The SDK answers with its enums where it knows the value, with plain text where it does not."""
    return str(value.value) if isinstance(value, Enum) else value


def _retention_days(policy: m.DeleteRetentionPolicy | None) -> int:
    return (policy.days or 0) if policy is not None and policy.enabled else 0


def _is_public(container: m.ListContainerItem) -> bool:
    return container.public_access not in (None, "None")


def _container(item: m.ListContainerItem) -> Container:
    policy = item.immutability_policy
    versions = item.immutable_storage_with_versioning
    return Container(
        public=_is_public(item),
        version_level_immutability=bool(versions and versions.enabled),
        immutability_days=(policy.immutability_period_since_creation_in_days or 0) if policy else 0,
        immutability_locked=bool(policy and policy.state == "Locked"),
    )


def _rule(rule: m.ManagementPolicyRule) -> Rule:
    filters, base = rule.definition.filters, rule.definition.actions.base_blob
    version = rule.definition.actions.version
    filtered_by_tags = bool(filters and filters.blob_index_match)
    tiers = base is not None and bool(base.tier_to_cool or base.tier_to_cold)
    return Rule(
        name=rule.name,
        prefixes=tuple((filters.prefix_match if filters else None) or ()),
        # Our blobs carry no index tags: a rule that asks for some reaches none of them.
        tiers=tiers and not filtered_by_tags,
        archives=base is not None and base.tier_to_archive is not None and not filtered_by_tags,
        deletes=base is not None and base.delete is not None and not filtered_by_tags,
        deletes_versions=version is not None and version.delete is not None and not filtered_by_tags,
    )


def _lifecycle_rule(rule: Rule) -> m.ManagementPolicyRule:
    from azure.mgmt.storage import models as m

    actions = m.ManagementPolicyAction()
    if rule.tiers:
        actions.base_blob = m.ManagementPolicyBaseBlob(
            tier_to_cool=m.DateAfterModification(days_after_modification_greater_than=COOL_AFTER_DAYS),
            tier_to_cold=m.DateAfterModification(days_after_modification_greater_than=COLD_AFTER_DAYS),
        )
    if rule.deletes_versions:
        actions.version = m.ManagementPolicyVersion(
            delete=m.DateAfterCreation(days_after_creation_greater_than=VERSIONS_DELETED_AFTER_DAYS)
        )
    filters = m.ManagementPolicyFilter(blob_types=["blockBlob"], prefix_match=list(rule.prefixes))
    definition = m.ManagementPolicyDefinition(actions=actions, filters=filters)
    return m.ManagementPolicyRule(name=rule.name, type="Lifecycle", enabled=True, definition=definition)
