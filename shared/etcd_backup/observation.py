"""What one look at a cluster's etcd and its backups found, as one frozen value, and as a snapshot file.

`observe` makes it, `decide` and `health` read it; loaded from a file it decides the same plan, byte for
byte. The file is JSON (docs/reference/snapshot-file.md); what is particular to etcd backups lies under
`etcd`:

    {"kubekeeper": "snapshot/v1", "automation": "etcd-backup", "now": "...", "cluster": {...}, "state": {...},
     "etcd": {"endpoints": [...], "members": [...], "backups": [...], "orphans": [...]}}
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import msgspec

from shared.errors import MessageError
from shared.etcd_backup.policy import EtcdBackupPolicy
from shared.model.backup import BackupRecord
from shared.model.etcd import Alarm, Member, MemberStatus
from shared.model.plan import canonical_json, utc

AUTOMATION = "etcd-backup"


class EndpointReading(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """What one configured endpoint answered to Status: `status`, or `error` (one line) and its `reason`.

    `latency_ms` is the whole call as seen from here; `clock_skew_ms` how far the member's clock is ahead of
    ours, None when it does not say.
    """

    endpoint: str
    read_at: datetime
    latency_ms: int = 0
    clock_skew_ms: int | None = None
    status: MemberStatus | None = None
    error: str = ""
    reason: str = ""


class Observation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One cluster, once. `cluster_entry` is its entry of the configuration as plain JSON; it holds no
    secrets.

    `members` is empty when no voter answered (`members_error` says why). `state` is the automation's own
    document; `paused` stands in it while an operator wants rest, `firstSeenAt` tells since when the cluster
    is looked after.
    """

    cluster: str
    now: datetime
    cluster_entry: dict[str, Any] = {}
    endpoints: tuple[EndpointReading, ...] = ()
    members: tuple[Member, ...] = ()
    members_error: str = ""
    backups: tuple[BackupRecord, ...] = ()
    orphans: tuple[str, ...] = ()
    state: dict[str, Any] = {}

    @property
    def policy(self) -> EtcdBackupPolicy:
        """The policy in the cluster's entry of the configuration; defaults where it says nothing."""
        return msgspec.convert(self.cluster_entry.get("etcdBackup") or {}, EtcdBackupPolicy)

    @property
    def statuses(self) -> tuple[MemberStatus, ...]:
        """Of every endpoint that answered, in the order of the configuration."""
        return tuple(reading.status for reading in self.endpoints if reading.status)

    @property
    def highest_index(self) -> int:
        """The highest raft index any member has seen; what lag is measured from."""
        return max((max(s.raft_index, s.raft_applied_index) for s in self.statuses), default=0)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Alarms that any member knows of; a member that is cut off may not know the newest."""
        found = {(a.member_id, a.alarm): a for status in self.statuses for a in status.alarms()}
        return tuple(found[key] for key in sorted(found))

    def name_of(self, member_id: int) -> str:
        """The member's name, or an empty string."""
        return next((member.name for member in self.members if member.id == member_id), "")


class _EtcdPart(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    endpoints: tuple[EndpointReading, ...] = ()
    members: tuple[Member, ...] = ()
    members_error: str = ""
    backups: tuple[BackupRecord, ...] = ()
    orphans: tuple[str, ...] = ()


class _SnapshotFile(msgspec.Struct, frozen=True, kw_only=True):
    kubekeeper: Literal["snapshot/v1"]
    automation: Literal["etcd-backup"]
    now: datetime
    cluster: dict[str, Any]
    state: dict[str, Any] = {}
    etcd: _EtcdPart = _EtcdPart()


def save(observation: Observation) -> bytes:
    """The snapshot file: JSON, sorted keys, indented for reading and editing by hand."""
    etcd = _EtcdPart(
        endpoints=observation.endpoints,
        members=observation.members,
        members_error=observation.members_error,
        backups=observation.backups,
        orphans=observation.orphans,
    )
    document = _SnapshotFile(
        kubekeeper="snapshot/v1",
        automation="etcd-backup",
        now=observation.now,
        cluster=observation.cluster_entry | {"name": observation.cluster},
        state=observation.state,
        etcd=etcd,
    )
    return msgspec.json.format(canonical_json(document), indent=2) + b"\n"


def load(data: bytes, source: str) -> Observation:
    """The observation in a snapshot file; MessageError names `source`, the key and what is expected there."""
    try:
        document = msgspec.json.decode(data, type=_SnapshotFile)
        name = msgspec.convert(document.cluster.get("name"), str)
        observation = Observation(
            cluster=name,
            now=utc(document.now),
            cluster_entry=document.cluster,
            endpoints=document.etcd.endpoints,
            members=document.etcd.members,
            members_error=document.etcd.members_error,
            backups=document.etcd.backups,
            orphans=document.etcd.orphans,
            state=document.state,
        )
        observation.policy  # noqa: B018  a wrong policy is refused here, with the file's name
    except (msgspec.MsgspecError, ValueError) as error:
        raise MessageError(f"{source}: {error}; see docs/reference/snapshot-file.md") from error
    return observation
