"""Microsoft.Storage: accounts, the blob service, containers with legal holds and immutability, lifecycle
policies.

The rules are those of the REST reference and of "Store business-critical blob data with immutable storage":
what can be set only at creation, what needs what, what can never be undone. Blobs themselves are not here
(Azurite has them).
"""

from __future__ import annotations

import re
from typing import Any

from sandbox.arm.core import (
    Answer,
    ArmError,
    Call,
    Core,
    ResourceType,
    invalid,
    merged,
    method_not_allowed,
    page,
)
from sandbox.arm.state import Document, Operation, Resource, State
from shared.model.resource_id import ResourceId, parse_resource_id

ACCOUNTS = "Microsoft.Storage/storageAccounts"
API_VERSIONS = frozenset(
    {
        *("2019-06-01", "2021-01-01", "2021-02-01", "2021-04-01", "2021-06-01", "2021-08-01", "2021-09-01"),
        *("2022-05-01", "2022-09-01", "2023-01-01", "2023-04-01", "2023-05-01", "2024-01-01", "2025-01-01"),
        *("2025-06-01", "2025-08-01", "2026-09-01"),
    }
)
KINDS = frozenset({"Storage", "StorageV2", "BlobStorage", "FileStorage", "BlockBlobStorage"})
TLS_VERSIONS = frozenset({"TLS1_0", "TLS1_1", "TLS1_2", "TLS1_3"})
CREATION_ONLY = frozenset({"immutableStorageWithVersioning", "isHnsEnabled", "dnsEndpointType"})
CONTAINER_NAME = re.compile(r"\$root|\$web|[a-z0-9](?!.*--)[a-z0-9-]{1,61}[a-z0-9]")
LEGAL_HOLD_TAG = re.compile(r"[a-zA-Z0-9]{3,23}")
TIERS = frozenset(
    {"tierToCool", "tierToCold", "tierToArchive", "tierToHot", "delete", "enableAutoTierToHotFromCool"}
)
MAX_EXTENSIONS = 5  # of a locked container policy, over its life


def types() -> list[ResourceType]:
    """What Microsoft.Storage adds to the core."""
    return [Accounts(), BlobServices(), Containers(), ImmutabilityPolicies(), ManagementPolicies()]


def add_account(core: Core, subscription: str, group: str, name: str, properties: dict[str, Any]) -> str:
    """Put an account into the state without a request."""
    resource_id = ResourceId(subscription, group, "Microsoft.Storage", ("storageAccounts",), (name,))
    body = {
        "location": "westeurope",
        "kind": "StorageV2",
        "sku": {"name": "Standard_LRS"},
        "properties": properties,
    }
    created = core.clock.now().isoformat()
    return core.state.store(resource_id, _account(name, body, created, "Succeeded")).id


class Accounts(ResourceType):
    """Storage accounts. Creation and nothing else is a long-running operation."""

    name = ACCOUNTS
    api_versions = API_VERSIONS
    tracked = True

    def put(self, call: Call) -> Answer:
        document, existing = call.document, call.state.find(call.id)
        if not re.fullmatch(r"[a-z0-9]{3,24}", call.id.name):
            raise invalid(f"{call.id.name} is not a valid storage account name.", "AccountNameInvalid")
        if document.get("kind") not in KINDS or "name" not in (document.get("sku") or {}):
            raise invalid("kind and sku.name are required", "InvalidRequestContent")
        _check_account(call.properties)
        if existing:
            if existing.body["properties"]["provisioningState"] != "Succeeded":
                message = "An operation that requires exclusive access is running on this account."
                raise ArmError(409, "StorageAccountOperationInProgress", message)
            for name in CREATION_ONLY & call.properties.keys():
                if call.properties[name] != existing.body["properties"].get(name):
                    raise _unchangeable(name)
            body = merged(existing.body, {"tags": document.get("tags", {}), "properties": call.properties})
            resource = call.state.store(call.id, body)
            return Answer(200, self.render(resource))
        self._check_free(call)
        location = document.get("location", "")
        if not location:
            raise ArmError(400, "LocationRequired", "The location property is required for this definition.")
        body = _account(call.id.name, document, call.now.isoformat(), "Creating")
        call.state.store(call.id, body)
        effect = {"merge": {"properties": {"provisioningState": "Succeeded"}}}
        _, headers = call.core.begin(call, effect, location=location)
        call.core.settle()
        headers.pop("Azure-AsyncOperation")  # this provider answers with Location alone
        return Answer(202, None, headers)

    def patch(self, call: Call) -> Answer:
        existing, changes = call.existing(), call.document
        _check_account(call.properties)
        for name in CREATION_ONLY & call.properties.keys():
            raise _unchangeable(name)
        kept = {
            name: changes[name] for name in ("properties", "sku", "identity", "kind") if changes.get(name)
        }
        body = merged(existing.body, kept)
        if "tags" in changes:
            body["tags"] = changes["tags"]
        return Answer(200, self.render(call.state.store(call.id, body)))

    def delete(self, call: Call) -> Answer:
        if call.state.find(call.id) is None:
            return Answer(204)
        for container in call.state.of_type(Containers.name, str(call.id)):
            if _protected(container):
                raise ArmError(
                    409, "StorageAccountCannotBeDeleted", f"{container.id} has a policy or a legal hold."
                )
        call.state.remove(call.id)
        return Answer(200)

    def _check_free(self, call: Call) -> None:
        for other in call.state.of_type(self.name):
            if parse_resource_id(other.id).name == call.id.name:
                message = f"The storage account named {call.id.name} is already taken."
                raise ArmError(409, "StorageAccountAlreadyTaken", message)


class BlobServices(ResourceType):
    """`blobServices/default`: there with every account, written as a whole: what a PUT leaves out is off
    again.
    """

    name = f"{ACCOUNTS}/blobServices"
    api_versions = API_VERSIONS
    always_exists = True

    def get(self, call: Call) -> Answer:
        return Answer(200, self.render(self._resource(call)))

    def put(self, call: Call) -> Answer:
        properties = call.properties
        for name in ("deleteRetentionPolicy", "containerDeleteRetentionPolicy"):
            _check_retention(name, properties.get(name) or {})
        if properties.get("isVersioningEnabled") and _account_of(call).body["properties"].get("isHnsEnabled"):
            raise ArmError(
                409, "FeatureNotSupportedForAccount", "Versioning is not supported for the account."
            )
        if not properties.get("isVersioningEnabled") and self._needs_versioning(call):
            raise ArmError(
                409,
                "BlobVersioningRequired",
                "Versioning cannot be disabled while version-level immutability support is enabled.",
            )
        self._check_restore(properties)
        body = {"properties": merged(_blob_service_defaults(), properties)}
        call.state.store(call.id, body)
        return self.get(call)

    def list(self, call: Call, scope: str) -> Answer:
        return page(call, [self.render(_blob_service(call.state, parse_resource_id(scope)))])

    def render(self, resource: Resource) -> Document:
        return {**super().render(resource), "sku": {"name": "Standard_LRS", "tier": "Standard"}}

    def _resource(self, call: Call) -> Resource:
        account = call.id.parent
        assert account is not None
        if call.id.name.lower() != "default":
            raise self.not_found(call.id)
        return _blob_service(call.state, account)

    def _needs_versioning(self, call: Call) -> bool:
        containers = call.state.of_type(Containers.name, str(call.id.parent))
        return any(_is_version_level(container) for container in containers)

    def _check_restore(self, properties: Document) -> None:
        if not (properties.get("restorePolicy") or {}).get("enabled"):
            return
        needs = ("isVersioningEnabled", "changeFeed", "deleteRetentionPolicy")
        on = [
            bool(properties.get(needs[0])),
            *((properties.get(name) or {}).get("enabled") for name in needs[1:]),
        ]
        if not all(on) or properties["restorePolicy"]["days"] >= properties["deleteRetentionPolicy"]["days"]:
            raise invalid(
                "Point in time restore needs versioning, change feed and a longer soft delete.",
                "InvalidRequestContent",
            )


class Containers(ResourceType):
    """Blob containers."""

    name = f"{ACCOUNTS}/blobServices/containers"
    api_versions = API_VERSIONS

    def __init__(self) -> None:
        super().__init__()
        self.actions = {
            "setlegalhold": self.set_legal_hold,
            "clearlegalhold": self.clear_legal_hold,
            "migrate": self.migrate,
        }

    def get(self, call: Call) -> Answer:
        return super().get(self._living(call))

    def put(self, call: Call) -> Answer:
        if not CONTAINER_NAME.fullmatch(call.id.name):
            raise invalid(
                f"The specified container name '{call.id.name}' is invalid.", "ContainerInvalidName"
            )
        existing = call.state.find(call.id)
        if existing and not existing.body["properties"]["deleted"]:
            return self._update(call, existing, 200)
        wanted = call.properties
        self._check(call, wanted)
        version_level = (wanted.get("immutableStorageWithVersioning") or {}).get("enabled", False)
        account = _account_of(call).body["properties"]
        version_level = version_level or (account.get("immutableStorageWithVersioning") or {}).get(
            "enabled", False
        )
        if version_level and not _versioning(call):
            raise ArmError(
                409, "BlobVersioningRequired", "Version-level immutability needs versioning on the account."
            )
        properties = _container_defaults(call)
        properties |= {name: wanted[name] for name in ("publicAccess", "metadata") if wanted.get(name)}
        if version_level:
            properties["immutableStorageWithVersioning"] = {
                "enabled": True,
                "timeStamp": call.now.isoformat(),
            }
        resource = call.state.store(call.id, {"properties": properties})
        return Answer(201, self.render(resource), {"ETag": resource.etag})

    def patch(self, call: Call) -> Answer:
        return self._update(call, self._living(call).existing(), 200)

    def delete(self, call: Call) -> Answer:
        resource = call.state.find(call.id)
        if resource is None or resource.body["properties"]["deleted"]:
            return Answer(204)
        if _protected(resource):
            raise ArmError(
                409, "ContainerOperationFailure", "The container has a legal hold or a retention policy."
            )
        account = call.id.parent.parent if call.id.parent else None
        assert account is not None
        retention = _blob_service(call.state, account).body["properties"]["containerDeleteRetentionPolicy"]
        if not retention.get("enabled"):
            call.state.remove(call.id)
            return Answer(200)
        gone = {
            "deleted": True,
            "deletedTime": call.now.isoformat(),
            "remainingRetentionDays": retention["days"],
        }
        call.state.store(call.id, merged(resource.body, {"properties": gone}))
        return Answer(200)

    def list(self, call: Call, scope: str) -> Answer:
        deleted_too = call.query.get("$include", "").lower() == "deleted"
        found = [
            self.render(resource)
            for resource in call.state.of_type(self.name, scope)
            if deleted_too or not resource.body["properties"]["deleted"]
        ]
        return page(call, found)

    def render(self, resource: Resource) -> Document:
        document = super().render(resource)
        properties = dict(document["properties"])
        policy = resource.hidden.get("policy")
        tags = resource.hidden.get("tags", [])
        properties["hasImmutabilityPolicy"] = policy is not None
        properties["hasLegalHold"] = bool(tags)
        properties["legalHold"] = {"hasLegalHold": bool(tags), "tags": tags}
        if policy:
            properties["immutabilityPolicy"] = {"etag": policy["etag"], "properties": policy["properties"]}
        return {**document, "etag": resource.etag, "properties": properties}

    def not_found(self, resource_id: ResourceId) -> ArmError:
        return ArmError(404, "ContainerNotFound", "The specified container does not exist.")

    def set_legal_hold(self, call: Call) -> Answer:
        return self._legal_hold(call, add=True)

    def clear_legal_hold(self, call: Call) -> Answer:
        return self._legal_hold(call, add=False)

    def migrate(self, call: Call) -> Answer:
        """To version-level immutability: needs a policy, versioning and no legal hold; cannot be undone."""
        resource = self._living(call).existing()
        if not resource.hidden.get("policy") or resource.hidden.get("tags") or not _versioning(call):
            raise ArmError(
                409,
                "ContainerImmutableStorageWithVersioningMigrationFailure",
                "Migration needs versioning, a time-based retention policy and no legal hold.",
            )
        progress = {"enabled": False, "migrationState": "InProgress"}
        call.state.store(
            call.id, merged(resource.body, {"properties": {"immutableStorageWithVersioning": progress}})
        )
        _, headers = call.core.begin(call, {"migrated": True}, location="westeurope")
        call.core.settle()
        headers.pop("Azure-AsyncOperation")
        return Answer(202, None, headers)

    def finish(self, core: Core, operation: Operation) -> None:
        resource = core.state.find(operation.resource)
        if resource is not None:
            done = {"enabled": True, "migrationState": "Completed", "timeStamp": core.state.at}
            body = merged(resource.body, {"properties": {"immutableStorageWithVersioning": done}})
            core.state.store(parse_resource_id(operation.resource), body)

    def _living(self, call: Call) -> Call:
        if call.existing().body["properties"]["deleted"]:
            raise self.not_found(call.id)
        return call

    def _update(self, call: Call, existing: Resource, status: int) -> Answer:
        wanted = call.properties
        self._check(call, wanted)
        version_level = wanted.get("immutableStorageWithVersioning")
        if version_level is not None and bool(version_level.get("enabled")) != _is_version_level(existing):
            raise _unchangeable("immutableStorageWithVersioning")
        changes: Document = {name: wanted[name] for name in ("publicAccess", "metadata") if name in wanted}
        changes["lastModifiedTime"] = call.now.isoformat()
        resource = call.state.store(call.id, merged(existing.body, {"properties": changes}))
        return Answer(status, self.render(resource), {"ETag": resource.etag})

    def _check(self, call: Call, wanted: Document) -> None:
        access = wanted.get("publicAccess") or "None"
        if access not in ("None", "Blob", "Container"):
            raise invalid(f"publicAccess '{access}' is not None, Blob or Container")
        if access != "None" and not _account_of(call).body["properties"].get("allowBlobPublicAccess"):
            raise ArmError(
                409, "PublicAccessNotPermitted", "Public access is not permitted on this storage account."
            )

    def _legal_hold(self, call: Call, *, add: bool) -> Answer:
        resource = self._living(call).existing()
        asked = call.document.get("tags") or []
        if not asked or not all(LEGAL_HOLD_TAG.fullmatch(tag) for tag in asked):
            raise invalid("tags need 3 to 23 letters and digits each", "InvalidRequestPropertyValue")
        names = {tag.lower() for tag in asked}
        held = [tag for tag in resource.hidden.get("tags", []) if tag["tag"] not in names]
        if add:
            held += [{"tag": tag, "timestamp": call.now.isoformat()} for tag in sorted(names)]
        resource.hidden = {**resource.hidden, "tags": held}
        return Answer(200, {"hasLegalHold": bool(held), "tags": [tag["tag"] for tag in held]})


class ImmutabilityPolicies(ResourceType):
    """`immutabilityPolicies/default` of a container: unlocked it may change; locked it may only be
    extended.
    """

    name = f"{ACCOUNTS}/blobServices/containers/immutabilityPolicies"
    api_versions = API_VERSIONS

    def __init__(self) -> None:
        super().__init__()
        self.actions = {"lock": self.lock, "extend": self.extend}

    def get(self, call: Call) -> Answer:
        policy = self._policy(call)
        if policy is None:
            # The service answers for a container without a policy as if it had an unlocked one of zero days.
            policy = {
                "etag": '""',
                "properties": {"immutabilityPeriodSinceCreationInDays": 0, "state": "Unlocked"},
            }
        return self._answer(call, policy)

    def put(self, call: Call) -> Answer:
        policy, days = self._policy(call), self._days(call)
        if policy is not None:
            self._match(call, policy)
            if policy["properties"]["state"] == "Locked":
                raise self._refused("A locked policy cannot be changed; it can only be extended.")
        properties = {
            "immutabilityPeriodSinceCreationInDays": days,
            "state": "Unlocked",
            "allowProtectedAppendWrites": bool(call.properties.get("allowProtectedAppendWrites")),
        }
        return self._keep(call, properties, extensions=0)

    def lock(self, call: Call) -> Answer:
        policy = self._needed(call)
        return self._keep(call, {**policy["properties"], "state": "Locked"}, extensions=0)

    def extend(self, call: Call) -> Answer:
        policy, days = self._needed(call), self._days(call)
        if policy["properties"]["state"] != "Locked":
            raise self._refused("Only a locked policy is extended.")
        if days <= policy["properties"]["immutabilityPeriodSinceCreationInDays"]:
            raise self._refused("The retention period of a locked policy can only grow.")
        if policy["extensions"] >= MAX_EXTENSIONS:
            raise self._refused(f"A locked policy can be extended {MAX_EXTENSIONS} times.")
        properties = {**policy["properties"], "immutabilityPeriodSinceCreationInDays": days}
        return self._keep(call, properties, extensions=policy["extensions"] + 1)

    def delete(self, call: Call) -> Answer:
        policy = self._needed(call)
        if policy["properties"]["state"] == "Locked":
            raise self._refused("A locked policy cannot be deleted.")
        container = self._container(call)
        container.hidden = {name: value for name, value in container.hidden.items() if name != "policy"}
        none = {"immutabilityPeriodSinceCreationInDays": 0, "state": "Unlocked"}
        return self._answer(call, {"etag": '""', "properties": none})

    def _container(self, call: Call) -> Resource:
        assert call.id.parent is not None
        container = call.state.find(call.id.parent)
        if container is None or container.body["properties"]["deleted"]:
            raise Containers().not_found(call.id.parent)
        return container

    def _policy(self, call: Call) -> Document | None:
        policy: Document | None = self._container(call).hidden.get("policy")
        return policy

    def _needed(self, call: Call) -> Document:
        policy = self._policy(call)
        if policy is None:
            raise ArmError(
                404, "ContainerImmutabilityPolicyNotFound", "The container has no immutability policy."
            )
        self._match(call, policy)
        return policy

    def _match(self, call: Call, policy: Document) -> None:
        expected = call.headers.get("if-match", "")
        if expected.strip('"') != policy["etag"].strip('"') and expected != "*":
            raise ArmError(
                412,
                "ContainerImmutabilityPolicyFailure",
                "The condition specified in the ETag is not satisfied.",
            )

    def _days(self, call: Call) -> int:
        days = call.properties.get("immutabilityPeriodSinceCreationInDays")
        if not isinstance(days, int) or not 1 <= days <= 146_000:
            raise invalid(
                "immutabilityPeriodSinceCreationInDays must be 1 to 146000", "InvalidRequestPropertyValue"
            )
        return days

    def _keep(self, call: Call, properties: Document, *, extensions: int) -> Answer:
        policy = {"etag": call.state.new_etag(), "properties": properties, "extensions": extensions}
        container = self._container(call)
        container.hidden = {**container.hidden, "policy": policy}
        return self._answer(call, policy)

    def _answer(self, call: Call, policy: Document) -> Answer:
        document = {"id": str(call.id), "name": call.id.name, "type": self.name}
        document |= {"etag": policy["etag"], "properties": policy["properties"]}
        return Answer(200, document, {"ETag": policy["etag"]})

    def _refused(self, message: str) -> ArmError:
        return ArmError(409, "ContainerImmutabilityPolicyFailure", message)


class ManagementPolicies(ResourceType):
    """`managementPolicies/default`: the lifecycle rules of the account, one document."""

    name = f"{ACCOUNTS}/managementPolicies"
    api_versions = API_VERSIONS

    def put(self, call: Call) -> Answer:
        rules = (call.properties.get("policy") or {}).get("rules")
        if not isinstance(rules, list) or not 1 <= len(rules) <= 100:
            raise invalid("A management policy has 1 to 100 rules.", "InvalidRequestPropertyValue")
        names = [rule.get("name") for rule in rules]
        if len(set(names)) != len(names):
            raise invalid("The names of rules must differ.", "InvalidRequestPropertyValue")
        for rule in rules:
            _check_rule(rule)
        body = {"properties": {"policy": {"rules": rules}, "lastModifiedTime": call.now.isoformat()}}
        return Answer(200, self.render(call.state.store(call.id, body)))

    def delete(self, call: Call) -> Answer:
        existed = call.state.find(call.id) is not None
        call.state.remove(call.id)
        return Answer(200 if existed else 204)

    def list(self, call: Call, scope: str) -> Answer:
        raise method_not_allowed(call)

    def not_found(self, resource_id: ResourceId) -> ArmError:
        return ArmError(
            404, "ManagementPolicyNotFound", "No ManagementPolicy found for account " + resource_id.names[0]
        )


def _account(name: str, document: Document, created: str, provisioning: str) -> Document:
    """A new account: what was asked, and the service's defaults. `allowSharedKeyAccess` stays unset
    (meaning true).
    """
    location = document["location"]
    services = ("blob", "dfs", "file", "queue", "table", "web")
    defaults = {
        "minimumTlsVersion": "TLS1_0",
        "allowBlobPublicAccess": False,
        "supportsHttpsTrafficOnly": True,
        "accessTier": "Hot",
        "networkAcls": {
            "bypass": "AzureServices",
            "defaultAction": "Allow",
            "ipRules": [],
            "virtualNetworkRules": [],
        },
    }
    fixed = {
        "provisioningState": provisioning,
        "creationTime": created,
        "primaryLocation": location,
        "statusOfPrimary": "available",
        "primaryEndpoints": {service: f"https://{name}.{service}.core.windows.net/" for service in services},
    }
    return {
        "location": location,
        "kind": document["kind"],
        "sku": {"tier": document["sku"]["name"].split("_")[0], **document["sku"]},
        "tags": document.get("tags") or {},
        "properties": {**defaults, **(document.get("properties") or {}), **fixed},
    }


def _check_account(properties: Document) -> None:
    tls = properties.get("minimumTlsVersion")
    if tls is not None and tls not in TLS_VERSIONS:
        raise invalid(f"minimumTlsVersion '{tls}' is not known", "InvalidRequestPropertyValue")
    for name in ("allowBlobPublicAccess", "allowSharedKeyAccess", "supportsHttpsTrafficOnly", "isHnsEnabled"):
        if properties.get(name) not in (None, True, False):
            raise invalid(f"{name} must be true or false", "InvalidRequestPropertyValue")


def _check_retention(name: str, policy: Document) -> None:
    days = policy.get("days")
    if policy.get("enabled") and not (isinstance(days, int) and 1 <= days <= 365):
        raise invalid(f"{name} needs days from 1 to 365", "InvalidRequestPropertyValue")


def _check_rule(rule: Document) -> None:
    definition = rule.get("definition") or {}
    actions, filters = definition.get("actions") or {}, definition.get("filters") or {}
    if not re.fullmatch(r"[a-zA-Z0-9-]{1,256}", rule.get("name") or "") or rule.get("type") != "Lifecycle":
        raise invalid("A rule needs a name of letters, digits and dashes and the type Lifecycle.")
    if not actions or not actions.keys() <= {"baseBlob", "snapshot", "version"}:
        raise invalid(f"The rule {rule['name']} needs actions on baseBlob, snapshot or version.")
    if any(not work or not work.keys() <= TIERS for work in actions.values()):
        raise invalid(f"The rule {rule['name']} has an unknown or empty action.")
    if not filters.get("blobTypes") or len(filters.get("prefixMatch") or []) > 10:
        raise invalid(f"The rule {rule['name']} needs blobTypes and at most 10 prefixes.")


def _blob_service_defaults() -> Document:
    return {
        "cors": {"corsRules": []},
        "deleteRetentionPolicy": {"enabled": False, "allowPermanentDelete": False},
        "containerDeleteRetentionPolicy": {"enabled": False},
    }


def _blob_service(state: State, account: ResourceId) -> Resource:
    resource_id = account.child("blobServices", "default")
    written = state.find(resource_id)
    return written or Resource(
        id=str(resource_id), body={"properties": _blob_service_defaults()}, etag='"default"'
    )


def _account_of(call: Call) -> Resource:
    top = call.id
    while top.parent is not None:
        top = top.parent
    account = call.state.find(top)
    assert account is not None, "the core has checked the parents"
    return account


def _versioning(call: Call) -> bool:
    account = parse_resource_id(_account_of(call).id)
    return bool(_blob_service(call.state, account).body["properties"].get("isVersioningEnabled"))


def _container_defaults(call: Call) -> Document:
    return {
        "deleted": False,
        "remainingRetentionDays": 0,
        "defaultEncryptionScope": "$account-encryption-key",
        "denyEncryptionScopeOverride": False,
        "publicAccess": "None",
        "leaseStatus": "Unlocked",
        "leaseState": "Available",
        "lastModifiedTime": call.now.isoformat(),
    }


def _is_version_level(container: Resource) -> bool:
    return bool((container.body["properties"].get("immutableStorageWithVersioning") or {}).get("enabled"))


def _protected(container: Resource) -> bool:
    return bool(container.hidden.get("policy") or container.hidden.get("tags"))


def _unchangeable(name: str) -> ArmError:
    return ArmError(
        409,
        "PropertyIsImmutable",
        f"The property '{name}' was specified in the input, but it cannot be updated.",
    )
