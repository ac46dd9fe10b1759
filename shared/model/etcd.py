"""What etcd says about itself: members, their status, alarms and hashes; frozen values, no I/O.

`shared.clients.etcd` builds them, observations and snapshot files carry them, decisions read them. Ids are
etcd's 64-bit numbers; people see them in hexadecimal (`format_id`), as etcdctl prints them.
"""

from __future__ import annotations

import re

import msgspec

_ALARM = re.compile(r"memberID:(\d+)\s+alarm:([A-Z]+)")


class Member(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One row of the member list; `name` and `client_urls` are empty while the member has never started."""

    id: int
    name: str = ""
    peer_urls: tuple[str, ...] = ()
    client_urls: tuple[str, ...] = ()
    is_learner: bool = False


class MemberStatus(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One member's own view of itself and of the cluster, as its Status call answers.

    Sizes are bytes. `leader` is 0 when the member knows none. `db_size_quota` and `storage_version` are 0
    and empty before etcd 3.6. `errors` are etcd's own lines; alarms of the whole cluster are among them.
    """

    member_id: int
    cluster_id: int
    version: str
    revision: int
    leader: int
    raft_term: int
    raft_index: int
    raft_applied_index: int
    db_size: int
    db_size_in_use: int
    db_size_quota: int = 0
    is_learner: bool = False
    storage_version: str = ""
    errors: tuple[str, ...] = ()

    @property
    def is_leader(self) -> bool:
        """Whether this member believes it leads."""
        return self.leader == self.member_id

    def alarms(self) -> tuple[Alarm, ...]:
        """The alarms etcd repeats in `errors`: read locally, so they need no quorum and write nothing to
        raft.
        """
        found = (_ALARM.search(line) for line in self.errors)
        return tuple(Alarm(member_id=int(m[1]), alarm=m[2]) for m in found if m)


class Alarm(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """An alarm raised for one member: `NOSPACE` or `CORRUPT`."""

    member_id: int
    alarm: str


class HashKV(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A member's CRC32C over its history up to `revision`.

    Two hashes can be compared only when `revision` and `compact_revision` are both equal; the latter is 0
    before the first compaction.
    """

    member_id: int
    revision: int
    hash: int
    compact_revision: int


class KeyValue(msgspec.Struct, frozen=True, kw_only=True):
    """One live key."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


class RangeResult(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of a range read: `count` is of all keys in the range, `more` says that `limit` cut `kvs`
    short.
    """

    revision: int
    kvs: tuple[KeyValue, ...]
    count: int
    more: bool = False


def format_id(value: int) -> str:
    """A member or cluster id as etcdctl prints it."""
    return f"{value:x}"


def parse_id(text: str) -> int | None:
    """The id in hexadecimal `text`, padded or not; None when it is none."""
    return int(text, 16) if re.fullmatch(r"[0-9a-fA-F]{1,16}", text) else None


def supports_learner_snapshot(version: str) -> bool:
    """Whether a learner of this version serves Snapshot: from 3.5.0 (etcd-io/etcd#12890) and 3.4.28
    (#16990).
    """
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])
    return numbers >= (3, 5, 0) or (3, 4, 28) <= numbers < (3, 5, 0)
