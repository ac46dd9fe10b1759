"""`keeper backup`: list, verify in place, restore, and read single objects straight from the store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.console import print_json, print_line, print_note, print_table, when
from shared.cli.session import ClusterOption, JsonOption, Session, session
from shared.errors import IntegrityError, NotFoundError, SettingsError
from shared.model.wording import byte_size

if TYPE_CHECKING:
    from shared.clients.blob import BlobStore
    from shared.etcd_backup.archive import Chain
    from shared.etcd_backup.key_index import Entry
    from shared.etcd_backup.policy import EtcdBackupPolicy
    from shared.model.backup import BackupRecord, Verdict
    from shared.settings import Cluster

app = typer.Typer(help="List, verify, restore and read etcd backups.", no_args_is_help=True)

SHORT_RUN = 8  # enough of a run to tell backups apart, and short enough for a table

BackupArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="BACKUP", help="Name as 'list' prints it, its run, or a revision; default: the newest."
    ),
]


@app.command("list")
def list_backups(context: typer.Context, cluster: ClusterOption = None, as_json: JsonOption = False) -> None:
    """Every backup of a cluster, or of all, oldest first."""
    here = session(context)
    records = [
        record for one in here.clusters(cluster) if one.etcd_backup for record in records_of(here, one)
    ]
    if as_json:
        print_json({"backups": records})
        return
    if not records:
        print_note("no backups yet; take one with: keeper run backup --wait")
        return
    last = ""
    for one in sorted({record.cluster for record in records}):
        print_line(f"{last}{one}")
        last = "\n"
        _print_records([record for record in records if record.cluster == one])


def _print_records(records: list[BackupRecord]) -> None:
    print_table(
        ("started (UTC)", "revision", "kind", "stored", "database", "run", "verdict"),
        (
            (
                when(record.started_at)[:16],
                record.revision,
                record.kind,
                byte_size(record.stored_bytes),
                byte_size(record.database_bytes),
                record.run[:SHORT_RUN],
                record.verdict or "not verified",
            )
            for record in records
        ),
        right=("revision", "stored", "database"),
    )


def records_of(here: Session, cluster: Cluster) -> tuple[BackupRecord, ...]:
    """The cluster's backups, oldest first; none while the container does not exist."""
    from shared.model.backup import read_listing

    store = here.clients.blobs(policy_of(cluster).container)
    try:
        return read_listing(store.list(f"{cluster.name}/")).records
    except NotFoundError as error:
        if error.code == "ContainerNotFound":
            return ()
        raise


def policy_of(cluster: Cluster) -> EtcdBackupPolicy:
    """The cluster's backup policy; SettingsError when it has none."""
    if cluster.etcd_backup is None:
        raise SettingsError(f"cluster '{cluster.name}' has no 'etcdBackup' in the configuration; add it")
    return cluster.etcd_backup


def find_backup(
    here: Session, cluster: str | None, wanted: str | None
) -> tuple[Cluster, BlobStore, BackupRecord]:
    """Cluster, store and backup meant by `[CLUSTER/]BACKUP`: a manifest, run, revision, `latest` or None.

    NotFoundError when there is none, SettingsError when several are meant or it is not clear which cluster.
    """
    first, _, rest = (wanted or "").partition("/")
    if rest and not cluster and any(first == known.name for known in here.settings.clusters):
        cluster, wanted = first, rest
    one = here.cluster(cluster)
    records = records_of(here, one)
    store = here.clients.blobs(policy_of(one).container)
    if not records:
        raise NotFoundError(
            f"container '{store.name}' has no backup of '{one.name}'; take one with: keeper run backup --wait"
        )
    if wanted is None or wanted == "latest":
        return one, store, records[-1]
    found = [record for record in records if wanted in _names(record)]
    if not found and len(wanted) >= SHORT_RUN:
        found = [record for record in records if record.run.startswith(wanted)]
    if not found:
        raise NotFoundError(
            f"'{one.name}' has no backup '{wanted}'; list them with: keeper backup list --cluster {one.name}"
        )
    if len(found) > 1:
        runs = ", ".join(record.run for record in found)
        raise SettingsError(f"'{wanted}' means {len(found)} backups; name one by its run: {runs}")
    return one, store, found[0]


def _names(record: BackupRecord) -> tuple[str, ...]:
    full, bare = record.name, record.name.removeprefix(f"{record.cluster}/")
    short = (full.removesuffix(".json"), bare.removesuffix(".json"))
    return (full, bare, *short, record.run, str(record.revision))


@app.command("verify")
def verify(
    context: typer.Context,
    backup: BackupArgument = None,
    cluster: ClusterOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not ask etcd's members for their HashKV.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Read a backup back from the store and prove it; exit code 0 only when it is verified.

    Writes nothing. To have the verdict stored beside the backup: keeper run verify-backup --set backup=NAME.
    """
    here = session(context)
    one, store, record = find_backup(here, cluster, backup)
    print_note(f"reading back {record.name}, {byte_size(record.database_bytes)} of database")
    verdict = _verify(here, one, store, record.name, offline=offline)
    if as_json:
        print_json(verdict)
    else:
        _print_verdict(verdict)
    return 0 if verdict.state == "verified" else 1


def _verify(here: Session, cluster: Cluster, store: BlobStore, name: str, *, offline: bool) -> Verdict:
    from shared.clients.etcd import EtcdClient
    from shared.etcd_backup.verify import verify_stored

    encryption, now = policy_of(cluster).encryption, here.clients.now()
    if offline or cluster.etcd is None:
        return verify_stored(store, name, None, now, encryption=encryption, environ=here.environ).verdict
    with EtcdClient(cluster.etcd, here.environ) as etcd:
        return verify_stored(store, name, etcd, now, encryption=encryption, environ=here.environ).verdict


def _print_verdict(verdict: Verdict) -> None:
    print_line(f"{verdict.state}: {verdict.message} ({verdict.reason})")
    facts = {
        "place": verdict.place,
        "sha256": verdict.sha256,
        "status hash": f"{verdict.status_hash:x}" if verdict.status_hash is not None else None,
        "rows": verdict.total_rows,
        "HashKV": verdict.hash_kv,
        "read": f"{byte_size(verdict.read_bytes)} in {verdict.seconds:.1f} s" if verdict.read_bytes else None,
    }
    for name, value in facts.items():
        if value is not None:
            print_line(f"  {name:<12} {value}")
    for witness in verdict.witnesses:
        said = {True: "agrees", False: "DIFFERS", None: "cannot be compared"}[witness.agrees]
        print_line(f"  {'witness':<12} {witness.endpoint} {witness.error or said}")


@app.command("restore")
def restore(  # noqa: PLR0917  typer reads the options from the signature
    context: typer.Context,
    backup: BackupArgument = None,
    cluster: ClusterOption = None,
    file: Annotated[Path | None, typer.Option("--file", help="Write etcd's own snapshot file here.")] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option("--data-dir", help="Make a data directory here; with --member, one for each below it."),
    ] = None,
    members: Annotated[
        list[str] | None,
        typer.Option(
            "--member", metavar="NAME=PEER-URL", help="A member of the new cluster; repeat for each."
        ),
    ] = None,
    bump: Annotated[
        bool,
        typer.Option("--bump/--no-bump", help="Raise revisions, which Kubernetes needs after a restore."),
    ] = True,
    as_json: JsonOption = False,
) -> int:
    """Bring a backup back: a snapshot file, or data directories for the members of a new etcd.

    Nothing existing is overwritten, and nothing reaches a running etcd. Data directories are made by etcdutl;
    where it is missing or too old, the commands to run elsewhere are printed and the exit code is 1.
    """
    from shared.cli.restore import restore_here

    if file is None and data_dir is None:
        raise SettingsError("say what to write: --file PATH, --data-dir DIR or both")
    here = session(context)
    one, store, record = find_backup(here, cluster, backup)
    chain = open_chain_of(here, one, store, record)
    restored = restore_here(chain, file, data_dir, members or [], bump=bump, environ=here.environ)
    if as_json:
        print_json(restored)
    else:
        restored.print()
    return 0 if restored.is_done else 1


@app.command("get")
def get(  # noqa: PLR0917  typer reads the options from the signature
    context: typer.Context,
    backup: Annotated[
        str, typer.Argument(metavar="[CLUSTER/]BACKUP", help="As 'list' prints it, or 'latest'.")
    ],
    key: Annotated[
        str, typer.Argument(metavar="KEY|PREFIX", help="Such as /registry/configmaps/default/.")
    ] = "",
    cluster: ClusterOption = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write the object's bytes to stdout as they are.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """List keys, or print one object, straight from the store without downloading the backup."""
    import sys

    from shared.cli.objects import describe, readable
    from shared.etcd_backup.key_index import read_object

    here = session(context)
    one, store, record = find_backup(here, cluster, backup)
    chain = open_chain_of(here, one, store, record)
    entries = _entries(store, record, chain, key)
    exact = next((entry for entry in entries if entry.key == key.encode()), None)
    if exact is None:
        _print_keys(record, entries, key, raw=raw, as_json=as_json)
        return
    found = read_object(chain.image(), exact)
    if raw:
        sys.stdout.buffer.write(found.value)
    elif as_json:
        revisions = {
            "createRevision": found.create_revision,
            "modRevision": found.mod_revision,
            "version": found.version,
            "lease": found.lease,
        }
        print_json({"backup": record.name, "key": key, **revisions, **describe(found.value)})
    else:
        print_line(readable(found.value), whole=True)


def open_chain_of(here: Session, cluster: Cluster, store: BlobStore, record: BackupRecord) -> Chain:
    """The stored backup, its data key unwrapped; errors as in `shared.etcd_backup.chain.open_chain`."""
    from shared.etcd_backup.chain import open_chain

    return open_chain(store, record.name, policy_of(cluster).encryption, here.environ)


def _entries(store: BlobStore, record: BackupRecord, chain: Chain, prefix: str) -> list[Entry]:
    """The live keys that begin with `prefix`: from the index that verifying left, or from a whole scan."""
    from shared.etcd_backup.chain import open_key_index
    from shared.etcd_backup.key_index import collect

    wanted = prefix.encode()
    try:
        if index := open_key_index(store, chain.archives):
            return list(index.entries(wanted))
        why = "no key index (not verified yet, or too many keys)"
    except IntegrityError as error:
        why = str(error)
    print_note(f"{why}; reading all of the backup instead, {byte_size(record.database_bytes)}")
    collector, report = collect(chain)
    return [entry for entry in collector.live(report) if entry.key.startswith(wanted)]


def _print_keys(record: BackupRecord, entries: list[Entry], prefix: str, *, raw: bool, as_json: bool) -> None:
    if not entries and prefix:
        raise NotFoundError(f"no key of {record.name} begins with '{prefix}'")
    if raw:
        raise SettingsError(f"'{prefix}' is no key but the beginning of {len(entries)}; --raw takes one key")
    if as_json:
        keys = [
            {"key": entry.key.decode(errors="replace"), "modRevision": entry.main, "bytes": entry.row_bytes}
            for entry in entries
        ]
        print_json({"backup": record.name, "prefix": prefix, "keys": keys})
        return
    for entry in entries:
        print_line(entry.key.decode(errors="backslashreplace"), whole=True)


@app.command("prepare")
def prepare(context: typer.Context, as_json: JsonOption = False) -> None:
    """Make the storage account safe for backups, as far as that needs no decision of yours.

    Needs 'storageAccount' in the configuration. Creates the containers, turns on versioning, soft delete
    and TLS 1.2, closes public access and adds lifecycle rules; never loosens, shortens or locks anything.
    """
    from shared.clients.storage_account import storage_account

    here = session(context)
    settings = here.settings
    if not settings.storage_account:
        raise SettingsError("set 'storageAccount' in the configuration to the account's resource id first")
    account = storage_account(settings.storage_account, here.environ)
    containers = sorted({one.etcd_backup.container for one in settings.clusters if one.etcd_backup})
    prepared = {container: account.prepare(container) for container in containers}
    if as_json:
        print_json({"containers": prepared})
        return
    for container, done in prepared.items():
        for line in done.done:
            print_line(f"{container}: {line}")
        for finding in done.left:
            print_line(f"{container}: left to you: {finding.message}; {finding.remedy}")
