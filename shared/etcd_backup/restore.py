"""Brings a stored backup back: a plain snapshot file, or data directories for the members of a new cluster.

The file is proven while it is written, and appears under its name only when it is whole. Data directories are
made by etcd's own tool; where that is missing or too old for a safe restore, the commands to run elsewhere
are returned instead. Called by the CLI and the drill; writes to local disk only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.errors import AutomationError, IntegrityError, SettingsError
from shared.etcd_backup.archive import Chain
from shared.etcd_backup.key_index import KeyCollector
from shared.etcd_backup.verify import difference
from shared.model.backup import Manifest
from shared.model.etcd_snapshot import NewestRows, SnapshotReport, SnapshotScan
from shared.model.wording import byte_size

CLUSTER_TOKEN = "kubekeeper-restore"  # noqa: S105 - no secret
"""A token of its own keeps restored members from talking to the old cluster's."""

ADVICE = (
    "stop every kube-apiserver before the new etcd starts, and start them again after it: caches are stale",
    "restart controllers, schedulers, kubelets and operators: anything that watches may be stale",
    "run the disk checks: restored VolumeAttachments can claim a LUN that another disk holds by now",
)
NO_BUMP = (
    "revisions were not raised: clients that saw newer ones stay silently stale "
    "(etcd-io/etcd#16028); use etcdutl 3.5.10 or newer where you can"
)

Progress = Callable[[int, int], None]
"""Told bytes written so far, and bytes in all."""


@dataclass(frozen=True)
class MemberSpec:
    """A member of the cluster to be: its name, the URL its peers will reach it at, and where its data go."""

    name: str
    peer_url: str
    data_dir: Path


@dataclass(frozen=True)
class RestoreTool:
    """etcdutl, or etcdctl before 3.5; `can_bump` from 3.4.27, 3.5.10 and 3.6 on."""

    path: Path
    can_bump: bool


@dataclass(frozen=True)
class WrittenFile:
    """A snapshot file as etcd had sent it, and what reading it showed."""

    path: Path
    report: SnapshotReport
    seconds: float


@dataclass(frozen=True)
class DataDirs:
    """What became of the members' data directories; `commands` are yours to run where `is_done` is false."""

    is_done: bool
    commands: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...]

    def lines(self) -> list[str]:
        """The commands as a shell takes them."""
        return [shlex.join(command) for command in self.commands]


def restore_file(
    chain: Chain,
    path: Path,
    *,
    progress: Progress = lambda _done, _all: None,
    collector: KeyCollector | None = None,
    newest: NewestRows | None = None,
) -> WrittenFile:
    """Write the newest database of `chain` to `path`, with etcd's trailer, as `etcdctl snapshot save` would.

    SettingsError when `path` exists or its directory does not, IntegrityError when the backup is damaged,
    AutomationError when the disk is full; nothing is left behind then.
    """
    began = time.monotonic()
    path = path.absolute()
    size = chain.manifest.database.size_bytes + 32
    _check_target(path, size)
    scan = SnapshotScan(newest=newest, on_rows=collector)
    with _partial(path, size) as (partial, write):
        done = 0
        for piece in chain.stream():
            write(piece)
            scan.feed(piece)
            done += len(piece)
            progress(done, size)
        report = scan.finish()
        _check_report(chain.manifest, report)
        _publish(partial, path)
    return WrittenFile(path=path, report=report, seconds=time.monotonic() - began)


def restore_data_dirs(
    snapshot: Path,
    manifest: Manifest,
    members: Sequence[MemberSpec],
    *,
    tool: RestoreTool | None,
    bump: bool = True,
    token: str = CLUSTER_TOKEN,
) -> DataDirs:
    """One data directory for each member, by etcd's own tool, from the snapshot file.

    With `bump`, revisions are raised by the manifest's advice and history is marked compacted, which
    Kubernetes needs; a tool that cannot do that is not used, and the commands are returned. SettingsError
    when a directory exists or a name is used twice; AutomationError with the tool's own words when it fails,
    and then no directory is left.
    """
    _check_members(members)
    name = tool.path if tool else Path("etcdutl")
    commands = tuple(
        _command(name, snapshot, member, members, bump=manifest.bump_revision if bump else 0, token=token)
        for member in members
    )
    if tool is None or (bump and not tool.can_bump):
        why = "there is no etcdutl on PATH" if tool is None else f"{tool.path} cannot raise revisions"
        return DataDirs(False, commands, (f"{why}; run the commands with etcdutl 3.5.10 or newer", *ADVICE))
    try:
        for command in commands:
            _run(command)
    except BaseException:
        for member in members:
            shutil.rmtree(member.data_dir, ignore_errors=True)
        raise
    return DataDirs(True, commands, ADVICE if bump else (NO_BUMP, *ADVICE))


def find_tool(environ: Mapping[str, str] = os.environ) -> RestoreTool | None:
    """etcdutl on PATH, else an etcdctl that still restores (3.4, 3.5); None when there is neither."""
    for name in ("etcdutl", "etcdctl"):
        found = shutil.which(name, path=environ.get("PATH"))
        if found:
            help_text = _help(Path(found))
            if "--data-dir" in help_text:
                return RestoreTool(Path(found), "--bump-revision" in help_text)
    return None


def free_bytes(directory: Path) -> int:
    """Bytes that may still be written in `directory`."""
    return shutil.disk_usage(directory).free


# Files


def _check_target(path: Path, size: int) -> None:
    if path.exists():
        raise SettingsError(f"'{path}' exists; move it away or choose another name")
    if not path.parent.is_dir():
        raise SettingsError(f"directory '{path.parent}' does not exist; create it or choose another")
    if free_bytes(path.parent) < size:
        raise _disk_full(path, size)


@contextlib.contextmanager
def _partial(path: Path, size: int) -> Iterator[tuple[Path, Callable[[bytes], object]]]:
    """A file beside `path` to write to; removed unless it was renamed by the end."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("xb", buffering=0) as file:
            os.fchmod(file.fileno(), 0o600)  # it holds every secret of the cluster
            yield partial, _writer(file.fileno())
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise _disk_full(path, size) from error
        raise SettingsError(f"cannot write '{path}': {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _writer(descriptor: int) -> Callable[[bytes], object]:
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    return write


def _publish(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _disk_full(path: Path, size: int) -> AutomationError:
    free = free_bytes(path.parent)
    return AutomationError(
        f"no space for '{path}': it needs {byte_size(size)} and {byte_size(free)} are free; "
        "free some or choose another directory (nothing was left behind)"
    )


def _check_report(manifest: Manifest, report: SnapshotReport) -> None:
    if report.problems:
        first = report.problems[0]
        raise IntegrityError(f"{manifest.name} is damaged: {first}; use another backup", place=first.place)
    if found := difference(manifest, report):
        raise IntegrityError(
            f"{manifest.name}: {found}; use another backup", place=f"manifest {manifest.name}"
        )


# Data directories


def _check_members(members: Sequence[MemberSpec]) -> None:
    if not members:
        raise SettingsError("name at least one member, like m0=https://10.0.0.4:2380")
    for what in ("name", "peer_url", "data_dir"):
        values = [getattr(member, what) for member in members]
        if len(set(values)) < len(values):
            raise SettingsError(f"two members have the same {what.replace('_', ' ')}; each needs its own")
    for member in members:
        if member.data_dir.exists():
            raise SettingsError(f"'{member.data_dir}' exists; move it away, a restore never overwrites")


def _command(
    tool: Path, snapshot: Path, member: MemberSpec, members: Sequence[MemberSpec], *, bump: int, token: str
) -> tuple[str, ...]:
    cluster = ",".join(f"{one.name}={one.peer_url}" for one in members)
    command = [str(tool), "snapshot", "restore", str(snapshot), "--name", member.name]
    command += ["--initial-cluster", cluster, "--initial-cluster-token", token]
    command += ["--initial-advertise-peer-urls", member.peer_url, "--data-dir", str(member.data_dir)]
    if bump:
        command += ["--bump-revision", str(bump), "--mark-compacted"]
    return tuple(command)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(  # noqa: S603 - the tool the operator installed
        command, env=_tool_environ(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise AutomationError(
            f"{command[0]} snapshot restore failed: {said[-1] if said else 'no reason given'}"
        )


def _help(path: Path) -> str:
    done = subprocess.run(  # noqa: S603
        [str(path), "snapshot", "restore", "--help"],
        env=_tool_environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def _tool_environ() -> dict[str, str]:
    """Without the caller's ETCD_* and ETCDCTL_* settings, which the tools would take as flags."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ETCD_", "ETCDCTL_", "ETCDUTL_"))}
    return kept | {"ETCDCTL_API": "3"}
