"""Backups of one real etcd on a real Azurite, against what people script today, in alternating rounds.

The usual script: `etcdctl snapshot save` to a disk, `etcdutl snapshot status`, upload with the SDK. It proves
less than a backup here (nothing is read back, the digest is not compared) and stores more (uncompressed).
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import worker
from bench.figure import Figure, at_most, faster, fewer
from sandbox.azurite import Azurite
from sandbox.etcd import EtcdCluster
from sandbox.kubedata import KubeData, Loaded

GIB = 1 << 30
CONTAINER = "bench-backups"
ROUNDS = 3
SMALL_ROUNDS = 5  # below a quarter of a GiB rounds are short and noisy
MIB = 1 << 20
_UNITS = {"KiB": 1 << 10, "MiB": MIB, "GiB": GIB}
MEMORY_LIMIT_MIB = 128
SCRIPT = "etcdctl snapshot save + etcdutl snapshot status + SDK upload"

Emit = Callable[[Figure], None]


def parse_size(text: str) -> int:
    """`256MiB` or `1GiB` in bytes; ValueError says what is expected."""
    match = re.fullmatch(r"(\d+)(KiB|MiB|GiB)", text.strip())
    if not match or int(match[1]) == 0:
        raise ValueError(f"BENCH_SIZE is '{text}'; write it like 256MiB or 1GiB")
    return int(match[1]) * _UNITS[match[2]]


@dataclass
class Scene:
    """A loaded etcd, a storage emulator, and room on disk."""

    etcd: EtcdCluster
    storage: str
    directory: Path
    loaded: Loaded
    note: str = ""
    full: dict[str, Any] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return self.etcd.endpoints[0]

    @property
    def database_bytes(self) -> int:
        return self.etcd.status(0).db_size


def run(wants: Callable[[str], bool], emit: Emit) -> None:
    """Every figure of etcd backups that is wanted; ValueError when BENCH_SIZE is no size."""
    size_bytes = parse_size(os.environ.get("BENCH_SIZE", "1GiB"))
    label = _label(size_bytes)
    large = _label(4 * size_bytes)
    names = [
        "etcd-backup-vs-script",
        "etcd-backup-null-sink",
        "etcd-backup-verify",
        f"etcd-backup-memory-{label}",
        "etcd-backup-delta",
        f"etcd-backup-memory-{large}",
    ]
    if not any(map(wants, names)):
        return
    with scene(size_bytes) as here:
        if any(map(wants, names[:5])):
            for figure in _rounds(here, label):
                if wants(figure.name):
                    emit(figure)
        if wants(names[4]):
            emit(_delta(here))
        if wants(names[5]):
            grow(here, 4 * size_bytes)
            emit(_memory(here, large))


@contextmanager
def scene(size_bytes: int) -> Iterator[Scene]:
    """The database, filled and compacted once, as the API server does every five minutes."""
    with tempfile.TemporaryDirectory(prefix="kubekeeper-bench-") as name:
        directory = Path(name)
        # Writing is not what is measured, so it need not reach the disk.
        extra = ["--unsafe-no-fsync"]
        with (
            EtcdCluster.start(quota_bytes=16 * GIB, directory=directory / "etcd", extra=extra) as etcd,
            Azurite(directory / "azurite") as azurite,
        ):
            here = Scene(etcd, azurite.connection_string, directory, Loaded(0, 0, 0, 0, 0.0))
            grow(here, size_bytes)
            yield here


def grow(here: Scene, size_bytes: int) -> None:
    """Load more objects until the database file has `size_bytes`."""
    data = KubeData()
    with here.etcd.client() as client:
        while here.database_bytes < size_bytes:
            missing = size_bytes - here.database_bytes
            _say(f"filling etcd: {here.database_bytes / 1e6:.0f} of {size_bytes / 1e6:.0f} MB")
            step = max(1 << 20, min(missing, 256 << 20) * 6 // 10)
            more = data.load(client, step, start=here.loaded.count)
            written = here.loaded.written_bytes + more.written_bytes
            here.loaded = Loaded(more.count, more.written_keys, written, more.revision, more.seconds)
        client.compact(here.loaded.revision)


def _rounds(here: Scene, label: str) -> Iterator[Figure]:
    rounds = ROUNDS if here.database_bytes >= GIB // 4 else SMALL_ROUNDS
    script, save, null, ours = [], [], [], []
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}: the usual script")
        saved, total = _script(here)
        save.append(saved)
        script.append(total)
        _say(f"round {number + 1} of {rounds}: the pipeline into nothing")
        null.append(worker.run("null", here.endpoint))
        _say(f"round {number + 1} of {rounds}: backup and proof")
        ours.append(_backup(here))
    here.full = ours[-1]
    database = here.full["databaseBytes"]
    ratio = database / here.full["storedBytes"]
    here.note = f"{database / GIB:.2f} GiB database, compresses {ratio:.1f} times"
    parts = (
        f"backup {_median(ours, 'backupSeconds'):.1f} s and proof {_median(ours, 'verifySeconds'):.1f} s, "
        f"etcd's read transaction held {_median(ours, 'heldSeconds'):.1f} s"
    )
    yield faster(
        "etcd-backup-vs-script",
        [one["seconds"] for one in ours],
        SCRIPT,
        script,
        at_least=2,
        note=f"{here.note}; {parts}",
    )
    yield faster(
        "etcd-backup-null-sink",
        [one["seconds"] for one in null],
        "etcdctl snapshot save",
        save,
        at_least=1,
        note=here.note,
    )
    yield faster(
        "etcd-backup-verify",
        [one["verifySeconds"] for one in ours],
        "stream + compress + upload + commit",
        [one["backupSeconds"] for one in ours],
        at_least=1,
        note=here.note,
    )
    peak = max(one["peakBytes"] for one in ours) / MIB
    yield at_most(f"etcd-backup-memory-{label}", peak, "MiB", MEMORY_LIMIT_MIB, note=_memory_note(here.full))


def _memory(here: Scene, label: str) -> Figure:
    _say("backup and proof of the large database")
    done = _backup(here)
    size = f"{done['databaseBytes'] / GIB:.2f} GiB database in {done['seconds']:.1f} s"
    return at_most(
        f"etcd-backup-memory-{label}",
        done["peakBytes"] / MIB,
        "MiB",
        MEMORY_LIMIT_MIB,
        note=f"{size}; {_memory_note(done)}",
    )


def _memory_note(done: dict[str, Any]) -> str:
    return (
        f"peak of the whole process; {done['importBytes'] / MIB:.0f} MiB of it imports, "
        f"{done['backupPeakBytes'] / MIB:.0f} when the backup was stored, "
        f"{done['verdictPeakBytes'] / MIB:.0f} when it was proven; then "
        + (
            f"its keys indexed in {done['indexSeconds']:.1f} s"
            if done["indexSeconds"]
            else "no key index: too many keys"
        )
    )


def _delta(here: Scene) -> Figure:
    parent = here.full or _backup(here)
    _say("changing 2 % and taking a delta")
    churned = here.etcd.churn(here.loaded, 2)
    delta = _backup(here, parent["manifest"])
    return fewer(
        "etcd-backup-delta",
        delta["uploadedBytes"] / 1e6,
        "MB",
        "a full backup",
        parent["uploadedBytes"] / 1e6,
        at_least=50,
        note=f"{churned.written_bytes / 1e6:.1f} MB of {here.loaded.written_bytes / 1e6:.0f} MB rewritten; "
        f"the database itself has {delta['databaseBytes'] / 1e6:.0f} MB",
    )


def _backup(here: Scene, parent: str = "") -> dict[str, Any]:
    done = worker.run("backup", here.storage, here.endpoint, CONTAINER, *([parent] if parent else []))
    if done["state"] != "verified":
        raise RuntimeError(f"the backup is {done['state']} ({done['reason']}), so its time means nothing")
    return done


def _script(here: Scene) -> tuple[float, float]:
    """Seconds of `etcdctl snapshot save`, and of the whole script."""
    path = here.directory / "script.db"
    path.unlink(missing_ok=True)
    tools = here.etcd.tools
    saved = _timed(here.etcd.etcdctl_command("snapshot", "save", str(path)))
    checked = _timed([str(tools.etcdutl or tools.etcdctl), "snapshot", "status", str(path)])
    uploaded = worker.run("upload", here.storage, str(path), CONTAINER)
    path.unlink()
    return saved, saved + checked + float(uploaded["seconds"])


def _timed(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, env=dict(EtcdCluster.etcdctl_environ()), capture_output=True, check=True)
    return time.monotonic() - began


def _median(runs: list[dict[str, Any]], key: str) -> float:
    return float(statistics.median(one[key] for one in runs))


def _label(size_bytes: int) -> str:
    return f"{size_bytes // GIB}gib" if size_bytes >= GIB else f"{size_bytes // (1 << 20)}mib"


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
