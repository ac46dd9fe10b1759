"""A restore drill: the backup comes back into a real, throw-away etcd, and the time that takes is recorded.

Where no etcd binary is at hand the drill is the structural proof alone, and says so. Everything happens in a
temporary directory and on loopback, and is gone afterwards. Called by the operation `restore-drill`, and by
`reconcile` when the drill's schedule has come.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from shared.clients.etcd import EtcdClient, prefix_end
from shared.errors import ApiError, AutomationError, IntegrityError, LostLeaseError
from shared.etcd_backup.act import Place
from shared.etcd_backup.archive import Chain
from shared.etcd_backup.chain import open_chain
from shared.etcd_backup.key_index import KeyCollector, count_kinds, kind_of
from shared.etcd_backup.restore import (
    MemberSpec,
    RestoreTool,
    find_tool,
    free_bytes,
    restore_data_dirs,
    restore_file,
)
from shared.etcd_backup.schedule import is_due
from shared.etcd_backup.verify import newest_of, read_back
from shared.model.backup import BackupRecord
from shared.model.etcd_snapshot import SnapshotReport
from shared.model.plan import Action, ActionKind, Outcome, Status
from shared.model.wording import byte_size
from shared.settings import EtcdConnection

START_SECONDS = 120.0
"""For etcd to serve a restored database; it reads all keys first."""
_STATE = "drill"
_PAGE_KEYS = 5000
_QUOTA = 16 << 30  # whatever the source's was: a drill must not end in NOSPACE
_ROOM = 2.2  # the snapshot file and the data directory, with etcd's log beside them


class Measured(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a drill has shown. `recovery_seconds` is read, restore and start together; `how` is `etcd` or
    `structure` (no binary).
    """

    backup: str
    how: str
    why: str
    recovery_seconds: float
    read_seconds: float
    restore_seconds: float = 0.0
    start_seconds: float = 0.0
    etcd_version: str = ""
    hash_kv: int | None = None
    live_keys: int = 0
    kinds: dict[str, int] = {}


def drill(place: Place, record: BackupRecord, now: datetime) -> list[Outcome]:
    """Restore `record` and compare; the measured recovery time is kept in the automation's state."""
    action = Action(
        kind=ActionKind.RESTORE_DRILL,
        target=record.name,
        reason="RestoreDrill",
        message=f"restore {record.name} into a throw-away etcd and compare",
        parameters={"backup": record.name},
    )
    try:
        chain = open_chain(place.store, record.name, place.policy.encryption, place.environ)
        measured = measure(chain, place.connection, place.environ, progress=place.claim.progress)
    except LostLeaseError:
        raise
    except AutomationError as error:
        _remember(place, now, {"backup": record.name, "failed": str(error)})
        data: dict[str, Any] = {"event": "DrillFailed", "final": isinstance(error, IntegrityError)}
        return [Outcome(action=action, status=Status.FAILED, message=str(error), data=data)]
    facts: dict[str, Any] = msgspec.to_builtins(measured)
    _remember(place, now, facts)
    proof = f"etcd {measured.etcd_version} serves the same" if measured.how == "etcd" else measured.why
    message = (
        f"{record.name} came back in {measured.recovery_seconds:.1f} s, "
        f"{measured.live_keys} keys of {len(measured.kinds)} kinds; {proof}"
    )
    return [Outcome(action=action, status=Status.SUCCEEDED, message=message, data=facts)]


def is_drill_due(schedule: str | None, state: Mapping[str, Any], now: datetime) -> bool:
    """Whether the drill's schedule has come since the last one; never without a schedule."""
    last = state.get(_STATE, {}).get("at")
    return schedule is not None and is_due(schedule, msgspec.convert(last, datetime | None), now)


def measure(
    chain: Chain,
    connection: EtcdConnection | None,
    environ: Mapping[str, str] = os.environ,
    *,
    progress: Callable[[str], None] = lambda _line: None,
) -> Measured:
    """Bring the database of `chain` back and compare it; `connection` has user and password, where needed.

    IntegrityError when the backup is damaged or the restored etcd holds something else, AutomationError when
    etcd or its tools fail.
    """
    tool, binary = find_tool(environ), shutil.which("etcd", path=environ.get("PATH"))
    directory = Path(tempfile.mkdtemp(prefix="kubekeeper-drill-"))
    try:
        needed = chain.manifest.database.size_bytes * _ROOM
        if tool is None or binary is None:
            return _structural(chain, "no etcd binary is at hand, so only bytes and structure are proven")
        if free_bytes(directory) < needed:
            return _structural(
                chain, f"only bytes and structure are proven: {byte_size(needed)} of disk needed"
            )
        return _real(chain, _Tools(tool, Path(binary)), directory, connection, progress)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True)
class _Tools:
    restore: RestoreTool
    etcd: Path


def _structural(chain: Chain, why: str) -> Measured:
    began = time.monotonic()
    collector = KeyCollector()
    report = read_back(chain, on_rows=collector)
    if report.problems:
        first = report.problems[0]
        raise IntegrityError(f"{chain.manifest.name} is damaged: {first}", place=first.place)
    kinds = count_kinds(collector.live(report))
    seconds = round(time.monotonic() - began, 3)
    return Measured(
        backup=chain.manifest.name,
        how="structure",
        why=why,
        recovery_seconds=seconds,
        read_seconds=seconds,
        hash_kv=report.hash_kv(report.revisions.compact_revision),
        live_keys=sum(kinds.values()),
        kinds=kinds,
    )


def _real(
    chain: Chain,
    tools: _Tools,
    directory: Path,
    connection: EtcdConnection | None,
    progress: Callable[[str], None],
) -> Measured:
    began = time.monotonic()
    progress(f"reading {chain.manifest.name} back")
    collector = KeyCollector()
    written = restore_file(chain, directory / "snapshot.db", collector=collector, newest=newest_of(chain))
    read_at = time.monotonic()
    progress("restoring it into a data directory")
    client_port, peer_port = _free_ports(2)
    peer = f"http://127.0.0.1:{peer_port}"
    member = MemberSpec("drill", peer, directory / "data")
    # Without raising revisions: the hashes are to be compared.
    restore_data_dirs(written.path, chain.manifest, [member], tool=tools.restore, bump=False)
    written.path.unlink()
    restored_at = time.monotonic()
    progress("starting etcd on it")
    endpoint = f"http://127.0.0.1:{client_port}"
    with _etcd(tools.etcd, member, endpoint, directory), _client(endpoint, connection) as etcd:
        version = _wait_ready(etcd, endpoint, directory)
        started_at = time.monotonic()
        progress("comparing hashes and key counts")
        hash_kv = _compare_hash(etcd, endpoint, written.report)
        kinds = count_kinds(collector.live(written.report))
        _compare_kinds(etcd, kinds)
    return Measured(
        backup=chain.manifest.name,
        how="etcd",
        why="",
        recovery_seconds=round(started_at - began, 3),
        read_seconds=round(read_at - began, 3),
        restore_seconds=round(restored_at - read_at, 3),
        start_seconds=round(started_at - restored_at, 3),
        etcd_version=version,
        hash_kv=hash_kv,
        live_keys=sum(kinds.values()),
        kinds=kinds,
    )


def _compare_hash(etcd: EtcdClient, endpoint: str, report: SnapshotReport) -> int:
    served = etcd.hash_kv(endpoint)
    expected = report.hash_kv(served.compact_revision)
    if served.revision != report.revisions.revision:
        raise _differs(f"it is at revision {served.revision}, the backup at {report.revisions.revision}")
    if served.hash != expected:
        raise _differs(f"its HashKV is {served.hash}, the backup's {expected}")
    return served.hash


def _compare_kinds(etcd: EtcdClient, expected: Mapping[str, int]) -> None:
    found = Counter(kind_of(key) for key in _keys(etcd))
    for kind in sorted({*found, *expected}):
        if found[kind] != expected.get(kind, 0):
            raise _differs(f"it has {found[kind]} {kind}, the backup {expected.get(kind, 0)}")


def _keys(etcd: EtcdClient) -> Iterator[bytes]:
    """Every live key, page by page."""
    start = b"\0"
    while True:
        page = etcd.range(start, prefix_end(b""), limit=_PAGE_KEYS, keys_only=True, serializable=True)
        for item in page.kvs:
            yield item.key
        if len(page.kvs) < _PAGE_KEYS:
            return
        start = page.kvs[-1].key + b"\0"


@contextmanager
def _etcd(binary: Path, member: MemberSpec, endpoint: str, directory: Path) -> Iterator[None]:
    """One etcd on loopback, ended at the end."""
    command = [str(binary), "--name", member.name, "--data-dir", str(member.data_dir)]
    command += ["--listen-client-urls", endpoint, "--advertise-client-urls", endpoint]
    command += ["--listen-peer-urls", member.peer_url, "--initial-advertise-peer-urls", member.peer_url]
    command += ["--initial-cluster", f"{member.name}={member.peer_url}", "--logger", "zap"]
    command += ["--log-level", "error", "--quota-backend-bytes", str(_QUOTA)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ETCD")}
    with (directory / "etcd.log").open("wb") as log:
        process = subprocess.Popen(command, env=kept, stdout=log, stderr=log)  # noqa: S603
    try:
        yield
    finally:
        process.kill()  # nothing in it is worth an orderly end
        process.wait()


@contextmanager
def _client(endpoint: str, connection: EtcdConnection | None) -> Iterator[EtcdClient]:
    user = connection.user if connection else None
    password = connection.password if connection else None
    with EtcdClient(EtcdConnection(endpoints=(endpoint,), user=user, password=password)) as etcd:
        yield etcd


def _wait_ready(etcd: EtcdClient, endpoint: str, directory: Path) -> str:
    """The version, once it leads itself and answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with suppress(ApiError):
            status = etcd.status(endpoint)
            if status.leader:
                return status.version
        time.sleep(0.1)
    tail = (directory / "etcd.log").read_text(errors="replace").strip().splitlines()[-1:]
    raise AutomationError(
        f"the restored etcd does not start within {START_SECONDS:.0f} s: {''.join(tail)[:300]}"
    )


def _differs(what: str) -> IntegrityError:
    return IntegrityError(f"the restored etcd is not the backup: {what}", place="the restored etcd")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _remember(place: Place, now: datetime, facts: dict[str, Any]) -> None:
    place.claim.save(place.claim.state | {_STATE: facts | {"at": f"{now:%Y-%m-%dT%H:%M:%SZ}"}})
