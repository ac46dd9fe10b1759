"""Whether a storage account is a safe place for backups: facts in, findings out. Pure.

A backup holds every Secret of the cluster and is the last thing left when all else is lost: nobody may read
it over a weak or open connection, and no single mistake may delete it. `shared.clients.storage_account`
reads the facts and makes the changes that `changes` allows; `keeper doctor` shows the findings.
"""

from __future__ import annotations

import shlex
from typing import Literal

import msgspec

from shared.model.resource_id import ResourceId
from shared.model.wording import counted

SOFT_DELETE_DAYS = 14
"""What is set where soft delete is off or shorter than a week; a longer one is left."""
SOFT_DELETE_AT_LEAST = 7
COOL_AFTER_DAYS = 30
COLD_AFTER_DAYS = 90
VERSIONS_DELETED_AFTER_DAYS = 14
"""With versioning, a pruned backup lives on as a previous version, and is paid for until a rule deletes it.
"""

REWRITTEN = ("kubekeeper", "azure-webjobs-hosts", "azure-webjobs-secrets")
"""Containers of the app and of its host; see `StoreFacts.rewritten_containers`."""

Severity = Literal["problem", "advice"]


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One enabled lifecycle rule: the prefixes it covers (none: all) and after how many days it does what."""

    name: str
    prefixes: tuple[str, ...] = ()
    tiers: bool = False
    archives: bool = False
    deletes: bool = False
    deletes_versions: bool = False

    def covers(self, container: str) -> bool:
        """Whether it may touch any blob in the container."""
        inside = f"{container}/"
        return not self.prefixes or any(p.startswith(inside) or inside.startswith(p) for p in self.prefixes)

    def covers_all_of(self, container: str) -> bool:
        """Whether it reaches every blob in the container."""
        return not self.prefixes or any(f"{container}/".startswith(prefix) for prefix in self.prefixes)


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """The container as Resource Manager knows it."""

    public: bool = False
    version_level_immutability: bool = False
    immutability_days: int = 0
    """The default policy of new blobs (or of the container); 0 for none."""
    immutability_locked: bool = False


class StoreFacts(msgspec.Struct, frozen=True, kw_only=True):
    """All that the findings rest on. `container` is None when it does not exist yet."""

    account: ResourceId
    container_name: str
    kind: str = "StorageV2"
    hierarchical: bool = False
    minimum_tls: str | None = None
    https_only: bool = True
    public_blobs_allowed: bool = False
    shared_key_allowed: bool = True
    open_to_all_networks: bool = True
    versioning: bool = False
    blob_soft_delete_days: int = 0
    container_soft_delete_days: int = 0
    container: Container | None = None
    other_public_containers: tuple[str, ...] = ()
    rewritten_containers: tuple[str, ...] = ()
    """Containers in this account that the function app rewrites all the time: its state and its host's."""
    rules: tuple[Rule, ...] = ()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it should be."""

    code: str
    severity: Severity
    message: str
    """What is, and why it matters; one line."""
    remedy: str
    """The exact command, or what to decide."""
    prepared: bool = False
    """Whether `prepare` puts it right by itself."""


def findings(facts: StoreFacts) -> tuple[Finding, ...]:
    """Problems first, each group in a fixed order; empty when all is well."""
    found = [*_account(facts), *_blob_service(facts), *_container(facts), *_lifecycle(facts)]
    return tuple(sorted(found, key=lambda finding: finding.severity != "problem"))


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What `prepare` may do: each field None or False when there is nothing to change."""

    minimum_tls: str | None = None
    https_only: bool = False
    forbid_public_blobs: bool = False
    versioning: bool = False
    blob_soft_delete_days: int | None = None
    container_soft_delete_days: int | None = None
    create_container: bool = False
    close_container: bool = False
    add_rules: tuple[Rule, ...] = ()


def changes(facts: StoreFacts) -> Changes:
    """The missing settings that can be made without harm; never one that loosens, shortens or cannot be
    undone.

    Left to people: migrating a container to version-level immutability and locking a policy (for ever),
    forbidding public blobs while another container is public on purpose, shared keys, networks, and
    lifecycle rules of others.
    """
    return Changes(
        minimum_tls="TLS1_2" if _weak_tls(facts) else None,
        https_only=not facts.https_only,
        forbid_public_blobs=facts.public_blobs_allowed and not facts.other_public_containers,
        versioning=not facts.versioning and not facts.hierarchical,
        blob_soft_delete_days=_days(facts.blob_soft_delete_days),
        container_soft_delete_days=_days(facts.container_soft_delete_days),
        create_container=facts.container is None,
        close_container=facts.container is not None and facts.container.public,
        add_rules=missing_rules(facts),
    )


def missing_rules(facts: StoreFacts) -> tuple[Rule, ...]:
    """The lifecycle rules to add: for the backups, with the parts that no other rule takes care of, and for
    our state.

    The state documents are rewritten all the time; with versioning each write leaves a version behind.
    """
    ours = [rule for rule in facts.rules if rule.covers_all_of(facts.container_name)]
    backups = Rule(
        name=_free_name(facts, f"kubekeeper-{facts.container_name}"),
        prefixes=(f"{facts.container_name}/",),
        tiers=not any(rule.tiers for rule in ours) and facts.kind == "StorageV2",
        deletes_versions=not any(rule.deletes_versions for rule in ours) and not facts.hierarchical,
    )
    rewritten = [
        name
        for name in facts.rewritten_containers
        if not any(rule.deletes_versions and rule.covers_all_of(name) for rule in facts.rules)
    ]
    state = Rule(
        name=_free_name(facts, "kubekeeper-state"),
        prefixes=tuple(f"{name}/" for name in rewritten),
        deletes_versions=bool(rewritten) and not facts.hierarchical,
    )
    return tuple(rule for rule in (backups, state) if rule.tiers or rule.deletes_versions)


def _account(facts: StoreFacts) -> list[Finding]:
    update = f"az storage account update --ids {facts.account}"
    found = []
    if _weak_tls(facts):
        found.append(
            _problem(
                "WeakTls",
                f"clients may connect with {facts.minimum_tls or 'any version of TLS'}; backups hold Secrets",
                f"{update} --min-tls-version TLS1_2",
                prepared=True,
            )
        )
    if not facts.https_only:
        found.append(
            _problem(
                "InsecureTransfer",
                "the account answers over plain http; backups and signatures could be read on the way",
                f"{update} --https-only true",
                prepared=True,
            )
        )
    if facts.public_blobs_allowed:
        others = ", ".join(facts.other_public_containers)
        found.append(
            _problem(
                "PublicAccessAllowed",
                "the account allows public containers; one wrong click publishes every Secret of the cluster"
                + (f" (public now: {others})" if others else ""),
                ("move the public containers elsewhere, then " if others else "")
                + f"{update} --allow-blob-public-access false",
                prepared=not others,
            )
        )
    if facts.shared_key_allowed:
        found.append(
            _advice(
                "SharedKeyAllowed",
                "account keys still work; whoever has one can read and delete everything, untraced",
                "use AzureWebJobsStorage__accountName with a managed identity, then "
                f"{update} --allow-shared-key-access false",
            )
        )
    if facts.open_to_all_networks:
        found.append(
            _advice(
                "OpenToAllNetworks",
                "the account answers requests from every network",
                "add a private endpoint or network rules for the function app, then "
                f"{update} --default-action Deny",
            )
        )
    return found


def _blob_service(facts: StoreFacts) -> list[Finding]:
    update = (
        f"az storage account blob-service-properties update {_scope(facts)} "
        f"--account-name {facts.account.name}"
    )
    found = []
    if facts.hierarchical:
        found.append(
            _problem(
                "HierarchicalNamespace",
                "the account has a hierarchical namespace: no versioning, no version-level immutability",
                "use a general-purpose v2 account without it for backups",
            )
        )
    elif not facts.versioning:
        found.append(
            _problem(
                "NoVersioning",
                "versioning is off; a deleted or overwritten backup is gone, and immutability needs it",
                f"{update} --enable-versioning true",
                prepared=True,
            )
        )
    if facts.blob_soft_delete_days < SOFT_DELETE_AT_LEAST:
        found.append(
            _problem(
                "ShortBlobSoftDelete",
                f"soft delete of blobs is {_length(facts.blob_soft_delete_days)}; "
                f"a mistake can be undone only within it, so have at least {SOFT_DELETE_AT_LEAST} days",
                f"{update} --enable-delete-retention true --delete-retention-days {SOFT_DELETE_DAYS}",
                prepared=True,
            )
        )
    if facts.container_soft_delete_days < SOFT_DELETE_AT_LEAST:
        found.append(
            _problem(
                "ShortContainerSoftDelete",
                f"soft delete of containers is {_length(facts.container_soft_delete_days)}; "
                "deleting the container deletes all backups at once",
                f"{update} --enable-container-delete-retention true "
                f"--container-delete-retention-days {SOFT_DELETE_DAYS}",
                prepared=True,
            )
        )
    return found


def _container(facts: StoreFacts) -> list[Finding]:
    container, name = facts.container, shlex.quote(facts.container_name)
    where = f"{_scope(facts)} --storage-account {facts.account.name} --name {name}"
    if container is None:
        return [
            _problem(
                "NoContainer",
                f"the container '{facts.container_name}' does not exist",
                f"az storage container-rm create {where} --public-access off --enable-vlw true",
                prepared=True,
            )
        ]
    found = []
    if container.public:
        found.append(
            _problem(
                "PublicContainer",
                f"the container '{name}' is public: anyone can read every Secret of the cluster",
                f"az storage container-rm update {where} --public-access off",
                prepared=True,
            )
        )
    if not container.version_level_immutability:
        found.append(
            _advice(
                "NoVersionLevelImmutability",
                "backups cannot be made immutable; whoever can write can also delete them (ransomware does)",
                _migration(facts, container),
            )
        )
    elif not container.immutability_days:
        found.append(
            _advice(
                "NoImmutabilityPolicy",
                "the container supports immutability, but new backups are not immutable by default",
                "decide how long backups must survive everybody, then "
                f"az storage container immutability-policy create {_scope(facts)} "
                f"--account-name {facts.account.name} --container-name {name} --period DAYS",
            )
        )
    return found


def _migration(facts: StoreFacts, container: Container) -> str:
    """A new container gets it at creation; an existing one is migrated for ever and needs a policy first."""
    name, account = shlex.quote(facts.container_name), facts.account.name
    scope = _scope(facts)
    create = (
        f"az storage container immutability-policy create {scope} --account-name {account} "
        f"--container-name {name} --period 1 && "
    )
    migrate = f"az storage container-rm migrate-vlw {scope} --storage-account {account} --name {name}"
    return f"cannot be undone: {'' if container.immutability_days else create}{migrate}"


def _lifecycle(facts: StoreFacts) -> list[Finding]:
    found = []
    show = f"az storage account management-policy show {_scope(facts)} --account-name {facts.account.name}"
    for rule in (rule for rule in facts.rules if rule.covers(facts.container_name)):
        if rule.deletes:
            found.append(
                _problem(
                    "LifecycleDeletesBackups",
                    f"the lifecycle rule '{rule.name}' deletes backups by age, also needed parents",
                    f"take '{facts.container_name}/' out of the rule; retention is Kubekeeper's: {show}",
                )
            )
        if rule.archives:
            found.append(
                _problem(
                    "LifecycleArchivesBackups",
                    f"the lifecycle rule '{rule.name}' archives backups; reading one back then takes hours",
                    f"take '{facts.container_name}/' out of the rule or use the cold tier: {show}",
                )
            )
    missing = missing_rules(facts)
    update = (
        f"az storage account management-policy create {_scope(facts)} "
        f"--account-name {facts.account.name} "
        "--policy FILE (existing rules and the ones in docs/reference/storage-account.md)"
    )
    if kept := [prefix for rule in missing if rule.deletes_versions for prefix in rule.prefixes]:
        found.append(
            _problem(
                "VersionsKeptForEver",
                f"no lifecycle rule deletes previous versions in {', '.join(kept)}; "
                "with versioning, whatever is pruned or rewritten is paid for as long as the account lives",
                update,
                prepared=True,
            )
        )
    if any(rule.tiers for rule in missing):
        found.append(
            _advice(
                "NoTiering",
                f"no lifecycle rule moves backups older than {COOL_AFTER_DAYS} days to a cheaper tier",
                update,
                prepared=True,
            )
        )
    return found


def _problem(code: str, message: str, remedy: str, *, prepared: bool = False) -> Finding:
    return Finding(code=code, severity="problem", message=message, remedy=remedy, prepared=prepared)


def _advice(code: str, message: str, remedy: str, *, prepared: bool = False) -> Finding:
    return Finding(code=code, severity="advice", message=message, remedy=remedy, prepared=prepared)


def _weak_tls(facts: StoreFacts) -> bool:
    return facts.minimum_tls in (None, "TLS1_0", "TLS1_1")


def _days(now: int) -> int | None:
    return SOFT_DELETE_DAYS if now < SOFT_DELETE_AT_LEAST else None


def _length(days: int) -> str:
    return counted(days, "day") if days else "off"


def _scope(facts: StoreFacts) -> str:
    return f"--subscription {facts.account.subscription} --resource-group {shlex.quote(facts.account.group)}"


def _free_name(facts: StoreFacts, base: str) -> str:
    """Free among the names taken: a rule of ours that somebody narrowed is left as it is."""
    taken = {rule.name for rule in facts.rules}
    return next(name for n in range(1000) if (name := f"{base}-{n}" if n else base) not in taken)
