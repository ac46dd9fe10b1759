"""`keeper doctor`: checks everything the app depends on by real calls; one line per finding, with its remedy.

Every check returns findings and raises nothing an operator can cause, so that one broken part hides no other.
It writes only what proves that it may: a blob, a row, both removed at once.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import typer

from shared.cli import rights
from shared.cli.console import ago, print_json, print_line, styled, wrapped
from shared.cli.findings import Finding, clock_finding, guarded, ok, problem, sign_in_hint, warning
from shared.cli.session import ClusterOption, JsonOption, Session, session
from shared.errors import AutomationError, SettingsError
from shared.model.wording import counted
from shared.runtime.automation import AUTOMATIONS, configured, schedule_setting
from shared.status.attention import is_silent

if TYPE_CHECKING:
    from shared.etcd_backup.observation import EndpointReading, Observation
    from shared.settings import Cluster, Settings

EXPIRY_WARNING = timedelta(days=30)
LEVEL_WIDTH = 8


def register(app: typer.Typer) -> None:
    """Add the command to `keeper`."""
    app.command("doctor")(doctor)


def doctor(
    context: typer.Context,
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
) -> int:
    """Check credentials, roles, reachability, clocks and configuration; one line per finding."""
    here = session(context)
    findings: list[Finding] = []
    for finding in examine(here, cluster):
        findings.append(finding)
        if not as_json:
            _print(finding)
    problems = sum(finding.level == "problem" for finding in findings)
    if as_json:
        print_json({"findings": findings})
    else:
        warnings = sum(finding.level == "warning" for finding in findings)
        found = counted(len(findings), "finding")
        print_line(f"{found}: {counted(problems, 'problem')}, {counted(warnings, 'warning')}")
    return 1 if problems else 0


def _print(finding: Finding) -> None:
    """The level, and all that is said beside it; in one line where that is no terminal."""
    level, said = f"{finding.level:<{LEVEL_WIDTH}} ", f"{finding.subject}: {finding.message}"
    lines = wrapped(said, " " * len(level), first=level) if sys.stdout.isatty() else [level + said]
    print_line(styled(level, finding.level) + lines[0].removeprefix(level), whole=True)
    for line in lines[1:]:
        print_line(line, whole=True)


def examine(here: Session, cluster: str | None) -> Iterator[Finding]:
    """All findings, as they are made."""
    yield from guarded("storage", lambda: _storage(here))
    try:
        settings = here.settings
        clusters = here.clusters(cluster)
    except AutomationError as error:
        yield problem("configuration", str(error))
        return
    names = ", ".join(one.name for one in settings.clusters)
    yield ok("configuration", f"valid; clusters: {names}")
    yield from guarded("storage account", lambda: _account(here, settings))
    yield from guarded("app settings", lambda: _app_settings(here))
    yield from guarded("runtime", lambda: _runtime(here))
    for one in clusters:
        for part, check in (
            ("etcd", _etcd),
            ("encryption", _encryption),
            ("backups", _backups),
            ("kubernetes", _kubernetes),
            ("rights in kubernetes", _kubernetes_rights),
            ("forwarder", _forwarder),
            ("azure", _azure),
            ("rights in azure", _azure_rights),
            ("providers in azure", _azure_providers),
        ):
            yield from guarded(f"{one.name} {part}", partial(check, here, one))


# Storage


def _storage(here: Session) -> Iterator[Finding]:
    """Write, read and delete in each of the three services: a listing alone would not show a missing role."""
    for name, prove in (("blobs", _prove_blobs), ("queues", _prove_queues), ("tables", _prove_tables)):
        subject = f"storage {name}"
        try:
            yield from prove(here, subject)
        except AutomationError as error:
            yield problem(subject, f"{error}{sign_in_hint(error)}")


def _prove_blobs(here: Session, subject: str) -> Iterator[Finding]:
    from shared.runtime.claim import CONTAINER

    store = here.clients.blobs(CONTAINER)
    store.ensure()
    name = f"doctor/{uuid.uuid4()}"
    before = datetime.now(UTC)
    store.create(name, b"written by keeper doctor; may be deleted")
    after = datetime.now(UTC)
    try:
        theirs = store.properties(name).last_modified
    finally:
        store.delete(name)
    yield ok(subject, "can be written, read and deleted")
    # The service tells whole seconds, so anything within one of them counts as equal.
    ahead = theirs - after if theirs > after else theirs + timedelta(seconds=1) - before
    if theirs <= after and theirs + timedelta(seconds=1) >= before:
        ahead = timedelta(0)
    yield clock_finding("clock", "the storage account's", ahead)


def _prove_queues(here: Session, subject: str) -> Iterator[Finding]:
    from shared.operations.dispatch import QUEUE

    queue = here.clients.queue(QUEUE)
    queue.ensure()
    queue.peek(1)
    yield ok(subject, "can be created and read")


def _prove_tables(here: Session, subject: str) -> Iterator[Finding]:
    from shared.runtime.journal import TABLE

    table, row = here.clients.table(TABLE), str(uuid.uuid4())
    table.put({"PartitionKey": "doctor", "RowKey": row})
    table.read("doctor", row)
    table.delete("doctor", row)
    yield ok(subject, "can be written, read and deleted")


# The account behind it, and the app itself


def _account(here: Session, settings: Settings) -> Iterator[Finding]:
    if not settings.storage_account:
        yield warning(
            "storage account",
            "its protection (versioning, soft delete, immutability) was not checked; "
            "set 'storageAccount' in the configuration to its resource id",
        )
        return
    from shared.clients.storage_account import storage_account

    account = storage_account(settings.storage_account, here.environ)
    for container in sorted({one.etcd_backup.container for one in settings.clusters if one.etcd_backup}):
        subject, found = f"container {container}", account.check(container)
        for finding in found:
            level = "problem" if finding.severity == "problem" else "warning"
            byhand = " (or: keeper backup prepare)" if finding.prepared else ""
            yield Finding(
                level=level, subject=subject, message=f"{finding.message}; {finding.remedy}{byhand}"
            )
        if not found:
            yield ok(subject, "protected: versions, soft delete, immutability, no public access, TLS 1.2")


def _runtime(here: Session) -> Iterator[Finding]:
    from shared.runtime import poison

    yield from _timers(here)
    for queue in poison.queues(here.clients):
        count = here.clients.queue(queue + poison.SUFFIX).count()
        if count:
            yield warning(
                "poison",
                f"{counted(count, 'message')} of queue '{queue}' failed for good; see: keeper poison list",
            )


def _timers(here: Session) -> Iterator[Finding]:
    """Of the automations that any cluster uses."""
    now, ticks = here.clients.now(), here.clients.journal.ticks()
    for automation in AUTOMATIONS.values():
        if not configured(automation, here.settings):
            continue
        name, tick = automation.name, ticks.get(automation.name)
        drive = f"or drive it by POST /api/reconcile/CLUSTER/{name}"
        if tick is None:
            yield warning("timers", f"the timer of {name} has never fired; start the app, {drive}")
        elif is_silent(here.environ.get(schedule_setting(name), ""), tick, now):
            minutes = round((now - tick).total_seconds() / 60)
            yield problem(
                "timers",
                f"the timer of {name} has not fired for {minutes} minutes; restart the app, {drive}",
            )
        else:
            yield ok("timers", f"{name} fired {ago(tick, now)} ago")


def _app_settings(here: Session) -> Iterator[Finding]:
    """Without a schedule the host leaves a function out, and says so only in its log."""
    names = [schedule_setting(name) for name in AUTOMATIONS]
    missing = [name for name in names if not here.environ.get(name)]
    if len(missing) == len(names):
        yield ok("app settings", "those of the app are not among ours, so its schedules were not looked at")
    elif missing:
        yield problem(
            "app settings",
            f"{', '.join(missing)} not set, and the host then runs no function at all; set an NCRONTAB "
            "schedule also for automations that no cluster uses, such as 0 */5 * * * *",
        )
    else:
        yield ok("app settings", "every timer has its schedule")


def _forwarder(here: Session, cluster: Cluster) -> Iterator[Finding]:
    """When it was last heard of. It speaks of changes only, so that silence alone proves nothing."""
    if cluster.kubernetes is None:
        return
    subject = f"{cluster.name} forwarder"
    heard = here.clients.journal.last_heard().get(cluster.name)
    if heard is None:
        yield warning(
            subject,
            "no event of it has ever arrived, so changes are only found by timers; deploy it, or look at its "
            "pod and log (docs/forwarder.md)",
        )
        return
    yield ok(
        subject, f"last heard {ago(heard, here.clients.now())} ago; it speaks only when something changes"
    )


# etcd


def _etcd(here: Session, cluster: Cluster) -> Iterator[Finding]:
    subject = f"{cluster.name} etcd"
    if cluster.etcd is None:
        yield ok(subject, "not configured")
        return
    from shared.clients.etcd import EtcdClient
    from shared.etcd_backup.observe import observe_etcd

    yield from _certificates(here, cluster)
    with EtcdClient(cluster.etcd, here.environ) as etcd:
        observation = observe_etcd(cluster, etcd, now=here.clients.now())
        for reading in observation.endpoints:
            yield from _member(f"{cluster.name} {reading.endpoint}", reading, observation)
        if not observation.statuses:
            return
        if observation.members_error:
            yield problem(subject, f"the member list cannot be read: {observation.members_error}")
            return
        yield from _voters(subject, observation)
        yield from _may_take_snapshots(subject, etcd, observation)


def _member(subject: str, reading: EndpointReading, observation: Observation) -> Iterator[Finding]:
    status = reading.status
    if status is None:
        yield problem(subject, reading.error)
        return
    role = "learner" if status.is_learner else "leader" if status.is_leader else "follower"
    yield ok(subject, f"{role}, etcd {status.version}, answered in {reading.latency_ms} ms")
    skew = clock_finding(subject, "its", timedelta(milliseconds=reading.clock_skew_ms or 0))
    if skew.level != "ok":
        yield skew
    for alarm in status.alarms():
        if alarm.member_id == status.member_id:
            yield problem(subject, f"alarm {alarm.alarm}; mend its cause, then: etcdctl alarm disarm")


def _voters(subject: str, observation: Observation) -> Iterator[Finding]:
    known = {status.member_id for status in observation.statuses}
    missing = [m.name or f"{m.id:x}" for m in observation.members if m.id not in known and not m.is_learner]
    if missing:
        yield warning(
            subject,
            f"no endpoint leads to {', '.join(missing)}; add it to etcd.endpoints or remove the member",
        )


def _may_take_snapshots(subject: str, etcd: object, observation: Observation) -> Iterator[Finding]:
    """Open a snapshot stream and close it at the first bytes: the call that needs etcd's admin role."""
    from shared.clients.etcd import EtcdClient

    assert isinstance(etcd, EtcdClient)
    reachable = [reading.endpoint for reading in observation.endpoints if reading.status]
    if not reachable:
        return
    limit = timedelta(seconds=10)
    with etcd.snapshot(reachable[0], stall_timeout=limit, total_timeout=limit) as stream:
        next(stream)
    yield ok(subject, "snapshots may be taken")


def _certificates(here: Session, cluster: Cluster) -> Iterator[Finding]:
    from shared.secret import resolve_secret

    assert cluster.etcd is not None
    tls = cluster.etcd.tls
    if tls is None:
        return
    for what, reference in (("CA certificate", tls.ca), ("client certificate", tls.certificate)):
        if reference:
            pem = resolve_secret(reference, here.environ).encode()
            yield from validity(f"{cluster.name} {what}", pem, here.clients.now())


def validity(subject: str, pem: bytes, now: datetime) -> Iterator[Finding]:
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        yield problem(subject, "is not a PEM certificate; copy it again")
        return
    first = min(certificates, key=lambda certificate: certificate.not_valid_after_utc)
    left, day = first.not_valid_after_utc - now, f"{first.not_valid_after_utc:%Y-%m-%d}"
    if left < timedelta(0):
        yield problem(subject, f"expired on {day}; renew it")
    elif left < EXPIRY_WARNING:
        yield warning(subject, f"expires on {day}, in {left.days} days; renew it")
    else:
        yield ok(subject, f"valid until {day}")


# Backups


def _encryption(here: Session, cluster: Cluster) -> Iterator[Finding]:
    """Wrap and unwrap a data key, as a backup and a restore would."""
    policy = cluster.etcd_backup
    if policy is None or policy.encryption is None:
        return
    from shared.etcd_backup import keys

    data_key, wrapped = keys.new_data_key(policy.encryption, here.environ)
    if keys.unwrap(wrapped, policy.encryption, here.environ) != data_key:
        raise SettingsError("the key does not unwrap what it wrapped; check the key in the configuration")
    yield ok(
        f"{cluster.name} encryption", f"key {wrapped.key_id} wraps and unwraps; losing it loses the backups"
    )


def _backups(here: Session, cluster: Cluster) -> Iterator[Finding]:
    from shared.cli.backup import records_of
    from shared.etcd_backup.lineage import Lineage
    from shared.model.duration import parse_duration

    policy, subject = cluster.etcd_backup, f"{cluster.name} backups"
    if policy is None:
        yield warning(subject, "none are configured; add 'etcdBackup' to the configuration")
        return
    gap = longest_gap(policy.schedule, here.clients.now())
    if parse_duration(policy.objective) < gap:
        yield warning(
            subject,
            f"objective {policy.objective} is shorter than the {_hours(gap)} between two scheduled backups, "
            "so the alarm will be raised again and again; lengthen it or schedule more often",
        )
    now = here.clients.now()
    newest = Lineage(records_of(here, cluster)).newest_proven(now)
    if newest is None:
        yield problem(subject, "there is no verified backup; take one with: keeper run backup --wait")
    elif now - newest.started_at > parse_duration(policy.objective):
        yield problem(
            subject,
            f"the newest verified backup is {_hours(now - newest.started_at)} old, objective "
            f"{policy.objective}; "
            "see: keeper status",
        )
    else:
        yield ok(subject, f"newest verified backup is {_hours(now - newest.started_at)} old ({newest.run})")


# The cluster and its place in Azure


def _kubernetes(here: Session, cluster: Cluster) -> Iterator[Finding]:
    """Reach the API server, and do with it what every automation begins with."""
    subject = f"{cluster.name} kubernetes"
    if cluster.kubernetes is None:
        return
    client = here.clients.kube(cluster)
    version = client.read("/version").get("gitVersion", "of an unknown version")
    missing = rights.missing_groups(cluster, client)
    if missing:
        yield problem(
            subject, f"{version} serves no {', '.join(missing)}; upgrade the cluster to 1.27 or newer"
        )
    nodes = client.read("/api/v1/nodes", limit=1)
    left = nodes["metadata"].get("remainingItemCount") or 0
    yield ok(
        subject, f"{version} at {client.server}, {counted(len(nodes['items']) + left, 'node')} can be listed"
    )


def _azure(here: Session, cluster: Cluster) -> Iterator[Finding]:
    """Read each resource group and the AKS cluster, each by itself: one missing role hides no other."""
    if cluster.azure is None:
        return
    scope = cluster.azure
    groups = [f"/subscriptions/{scope.subscription}/resourceGroups/{name}" for name in scope.resource_groups]
    for path in [*groups, *([scope.managed_cluster] if scope.managed_cluster else [])]:
        subject = f"{cluster.name} azure {path.rpartition('/')[2]}"
        try:
            found = here.clients.arm.get(path).document
        except AutomationError as error:
            yield problem(subject, f"{error}{sign_in_hint(error)}")
            continue
        place = found.get("location", "")
        yield ok(subject, f"can be read, in {place}")
        if path in groups and not scope.managed_cluster and place != scope.location:
            yield warning(
                subject,
                f"it is in {place} and 'azure.location' is {scope.location}; "
                "machines may well be elsewhere than their group, but check it",
            )


def _kubernetes_rights(here: Session, cluster: Cluster) -> Iterator[Finding]:
    if cluster.kubernetes is not None:
        yield from rights.in_kubernetes(cluster, here.clients.kube(cluster))


def _azure_rights(here: Session, cluster: Cluster) -> Iterator[Finding]:
    yield from rights.in_azure(cluster, here.clients.arm)


def _azure_providers(here: Session, cluster: Cluster) -> Iterator[Finding]:
    yield from rights.providers(cluster, here.clients.arm)


def longest_gap(schedule: str, now: datetime) -> timedelta:
    """The longest time between two of the next ticks; a hundred see every weekday of an hourly schedule."""
    from itertools import islice, pairwise

    from cronsim import CronSim

    ticks = list(islice(CronSim(schedule, now), 100))
    return max((after - before for before, after in pairwise(ticks)), default=timedelta(0))


def _hours(value: timedelta) -> str:
    from shared.model.duration import format_duration

    return (
        format_duration(timedelta(minutes=value.total_seconds() // 60))
        if value >= timedelta(minutes=1)
        else "0m"
    )
