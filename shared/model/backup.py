"""What one backup is: its manifest, its verdicts, its names in the container, and the line a listing shows of
it.

Pure values. `transfer` builds manifests, `verify` builds verdicts, `decide` and `retention` read
`BackupRecord`s. The documents are specified in docs/reference/backup-format.md, well enough to restore
without Kubekeeper.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from shared.errors import IntegrityError
from shared.model.plan import canonical_json

FORMAT = "backup/v1"
SHA256_HEX = r"^[0-9a-f]{64}$"
Sha256 = Annotated[str, msgspec.Meta(pattern=SHA256_HEX)]
_T = TypeVar("_T")
Unsigned = Annotated[int, msgspec.Meta(ge=0)]

MINIMUM_BUMP = 1_000_000_000
"""etcd's own disaster recovery guide advises one billion: a week at 1,500 writes a second."""


class Kind(enum.StrEnum):
    """A full backup stands alone; a delta needs its parent."""

    FULL = "full"
    DELTA = "delta"


class VerdictState(enum.StrEnum):
    """What reading a backup back has shown."""

    VERIFIED = "verified"  # bytes, structure and HashKV of at least one voter agree
    UNVERIFIED = "unverified"  # nothing wrong was found, but not everything could be proven
    BAD = "bad"  # do not restore from it, do not build on it


class _Document(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of everything stored as JSON; unknown fields of newer versions are ignored when reading."""


class ParentRef(_Document, frozen=True, kw_only=True):
    """The backup a delta builds on: manifest blob name and that manifest's digest."""

    name: str
    digest: Sha256


class Section(_Document, frozen=True, kw_only=True):
    """A byte range of the data blob, with the sha256 of the bytes as stored."""

    offset: Unsigned
    length: Unsigned
    sha256: Sha256


class ArchiveSummary(_Document, frozen=True, kw_only=True):
    """What is needed to read the data blob: where its index and page table are, and how frames are coded.

    `stored_pages` pages are stored in ascending page order, `frame_pages` to a frame (the last may be
    shorter).
    """

    stored_bytes: Unsigned
    frame_pages: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    frame_count: Unsigned
    stored_pages: Unsigned
    codec: str
    digest_seed: Unsigned
    index: Section
    page_table: Section


class DatabaseSummary(_Document, frozen=True, kw_only=True):
    """The bbolt file as etcd sent it. `sha256` is over the `size_bytes` database bytes, equal to etcd's
    trailer.
    """

    size_bytes: Unsigned
    page_size: Annotated[int, msgspec.Meta(ge=512, le=65536)]
    page_count: Unsigned
    sha256: Sha256


class Revisions(_Document, frozen=True, kw_only=True):
    """Read from the file, not asked for: the stream carries no revision and asking separately is a race.

    `revision` is what etcd opens the file with; `compact_revision` is the finished compaction,
    `scheduled_compact_revision` one that may still be under way (equal or higher); 0 is none.
    """

    revision: Unsigned
    last_row_revision: Unsigned
    compact_revision: Unsigned
    scheduled_compact_revision: Unsigned


class Source(_Document, frozen=True, kw_only=True):
    """The etcd member that sent the snapshot. `member_id` is 16 hex digits, as etcdctl prints it."""

    member_id: str
    member_name: str
    endpoint: str
    etcd_version: str
    is_learner: bool
    raft_applied_index: Unsigned = 0
    storage_version: str | None = None
    chosen_because: str = ""


class WrappedKey(_Document, frozen=True, kw_only=True):
    """The data key, wrapped. `key_id` says which key unwraps it; `wrapped` is base64. Without it the data is
    lost.
    """

    algorithm: str
    key_id: str
    wrapped: str


class EncryptionSummary(_Document, frozen=True, kw_only=True):
    """How frames and page table are encrypted."""

    algorithm: str
    key: WrappedKey


class Timings(_Document, frozen=True, kw_only=True):
    """Seconds. `stream_seconds` is how long etcd's read transaction was held: from request to the end of
    stream.
    """

    started_at: datetime
    committed_at: datetime
    first_byte_seconds: float
    stream_seconds: float
    upload_seconds: float


class Manifest(_Document, frozen=True, kw_only=True):
    """The committed description of one backup. A data blob without it is not a backup.

    `data` is the data blob's name, `chain_length` the number of deltas since the full (0 for a full).
    """

    kubekeeper: str = FORMAT
    kubekeeper_version: str
    cluster: str
    run: str
    kind: Kind
    data: str
    database: DatabaseSummary
    revisions: Revisions
    archive: ArchiveSummary
    source: Source
    timings: Timings
    bump_revision: Unsigned
    chain_length: Unsigned = 0
    parent: ParentRef | None = None
    encryption: EncryptionSummary | None = None

    @property
    def name(self) -> str:
        """The manifest's blob name."""
        return manifest_name(
            self.cluster, self.timings.started_at, self.revisions.revision, self.kind, self.run
        )

    def digest(self) -> str:
        """sha256 (hex) over the canonical JSON of the manifest; what children and verdicts refer to."""
        return hashlib.sha256(canonical_json(self)).hexdigest()

    def to_json(self) -> bytes:
        """The document to store: the fields, and `digest` over them."""
        return canonical_json(msgspec.to_builtins(self) | {"digest": self.digest()})

    @staticmethod
    def from_json(data: bytes, name: str) -> Manifest:
        """Parse a stored manifest and check its digest, format and name; IntegrityError names the blob."""
        manifest = _parse_sealed(data, Manifest, name, "manifest")
        if manifest.kubekeeper != FORMAT:
            raise _bad(name, f"its format is '{manifest.kubekeeper}', this version reads '{FORMAT}'")
        if manifest.name != name:
            raise _bad(name, f"it describes '{manifest.name}'; it was stored or copied under a wrong name")
        if (manifest.kind is Kind.DELTA) != (manifest.parent is not None):
            raise _bad(name, "a delta has a parent and a full has none, and this is neither")
        return manifest

    def metadata(self) -> dict[str, str]:
        """The blob metadata that lets one LIST describe every backup; read back by `read_listing`."""
        return {
            "format": self.kubekeeper,
            "started": _stamp(self.timings.started_at),
            "data": self.data,
            "digest": self.digest(),
            "parent": self.parent.name if self.parent else "",
            "chain": str(self.chain_length),
            "member": self.source.member_id,
            "dbbytes": str(self.database.size_bytes),
            "storedbytes": str(self.archive.stored_bytes),
            # Not "encrypted": the SDK's listings have an attribute of that name and lose the metadata.
            "encryption": self.encryption.algorithm if self.encryption else "none",
        }


class Witness(_Document, frozen=True, kw_only=True):
    """One member's answer to HashKV at the backup's revision; `error` is set instead when it gave none.

    `agrees` compares its hash with the one computed from the file at the same compact revision; None when
    that could not be compared.
    """

    member_id: str
    endpoint: str
    revision: Unsigned
    hash: Unsigned | None = None
    compact_revision: Unsigned | None = None
    agrees: bool | None = None
    error: str | None = None


class Verdict(_Document, frozen=True, kw_only=True):
    """What reading a backup back has shown, once. Several may exist for one backup; the newest counts.

    `reason` is CamelCase, `message` one line; `place` names where the damage is when there is any.
    `total_rows` is the key count `etcdutl snapshot status` of etcd 3.5 prints, `live_keys` that of 3.6.
    """

    kubekeeper: str = FORMAT
    backup: str
    manifest_digest: str
    state: VerdictState
    reason: str
    message: str
    at: datetime
    place: str | None = None
    sha256: str | None = None
    status_hash: Unsigned | None = None
    total_rows: Unsigned | None = None
    live_keys: Unsigned | None = None
    hash_kv: Unsigned | None = None
    hash_kv_compact_revision: Unsigned | None = None
    witnesses: tuple[Witness, ...] = ()
    members_diverged: bool = False
    kinds: dict[str, int] | None = None
    seconds: float = 0.0
    read_bytes: Unsigned = 0

    def to_json(self) -> bytes:
        """The document to store: the fields, and `digest` over them."""
        body = msgspec.to_builtins(self)
        return canonical_json(body | {"digest": hashlib.sha256(canonical_json(body)).hexdigest()})

    @staticmethod
    def from_json(data: bytes, name: str) -> Verdict:
        """Parse a stored verdict and check its digest; IntegrityError names the blob."""
        return _parse_sealed(data, Verdict, name, "verdict")

    def metadata(self) -> dict[str, str]:
        """The blob metadata read back by `read_listing`."""
        return {
            "format": self.kubekeeper,
            "state": self.state.value,
            "reason": self.reason,
            "at": _stamp(self.at),
        }


class BackupRecord(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One backup as one LIST of the container shows it: enough to decide, nothing more.

    `name` is the manifest's blob name and `parent` that of the parent (None for a full). `verdict` is None
    when it was never read back. `immutable_until` covers the manifest and the data blob, whichever lasts
    longer. `member_id` is the source's: pages of one member's file do not match another's.
    """

    name: str
    cluster: str
    kind: Kind
    run: str
    revision: int
    started_at: datetime
    data: str
    digest: str
    parent: str | None = None
    member_id: str = ""
    chain_length: int = 0
    database_bytes: int = 0
    stored_bytes: int = 0
    encrypted: bool = False
    data_present: bool = True
    verdict: VerdictState | None = None
    verdict_at: datetime | None = None
    verdict_reason: str | None = None
    verdict_names: tuple[str, ...] = ()
    key_index: str | None = None
    immutable_until: datetime | None = None

    @property
    def blob_names(self) -> tuple[str, ...]:
        """Every blob of this backup in the order to delete them: manifest first, so that no half backup looks
        whole.
        """
        extra = (self.key_index,) if self.key_index else ()
        return (self.name, *self.verdict_names, *extra, self.data)


class ListedBlob(Protocol):
    """What a LIST must yield for each blob (shared.clients.blob.BlobInfo does)."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def last_modified(self) -> datetime: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def immutable_until(self) -> datetime | None: ...


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A container read once: backups oldest first, and blobs that belong to none (crashed runs, broken
    names).
    """

    records: tuple[BackupRecord, ...]
    orphans: tuple[str, ...]


_DAY = r"(?P<cluster>[a-z0-9-]+)/(?P<day>\d{4}/\d\d/\d\d)"
_MANIFEST = re.compile(rf"^{_DAY}/(?P<revision>\d+)-(?P<kind>full|delta)-(?P<run>[0-9a-z]+)\.json$")
_DATA = re.compile(rf"^{_DAY}/(?P<time>\d{{6}})-(?P<run>[0-9a-z]+)\.pages$")
_VERDICT = re.compile(r"^(?P<base>.+)\.verdict-(?P<at>\d{8}T\d{6}Z)\.json$")
_KEYS = re.compile(r"^(?P<base>.+)\.keys$")


class ManifestName(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a manifest's blob name."""

    cluster: str
    day: str
    revision: int
    kind: Kind
    run: str


def manifest_name(cluster: str, started_at: datetime, revision: int, kind: Kind, run: str) -> str:
    """`prod/2026/11/23/4711-full-<run>.json`: the exact revision stands in the name."""
    return f"{cluster}/{_utc(started_at):%Y/%m/%d}/{revision}-{kind.value}-{run}.json"


def data_name(cluster: str, started_at: datetime, run: str) -> str:
    """`prod/2026/11/23/100000-<run>.pages`: chosen before the revision can be known."""
    return f"{cluster}/{_utc(started_at):%Y/%m/%d/%H%M%S}-{run}.pages"


def verdict_name(manifest: str, at: datetime) -> str:
    """The name of a verdict on the manifest `manifest`, given at `at`; a later one sorts later."""
    return f"{manifest.removesuffix('.json')}.verdict-{_stamp(at)}.json"


def key_index_name(manifest: str) -> str:
    """The name of the key index that goes with `manifest`."""
    return f"{manifest.removesuffix('.json')}.keys"


def parse_manifest_name(name: str) -> ManifestName | None:
    """The parts of a manifest name, or None when `name` is something else (a verdict, a data blob)."""
    match = _MANIFEST.match(name)
    if not match:
        return None
    return ManifestName(
        cluster=match["cluster"],
        day=match["day"],
        revision=int(match["revision"]),
        kind=Kind(match["kind"]),
        run=match["run"],
    )


def is_data_name(name: str) -> bool:
    """Whether `name` is that of a data blob."""
    return _DATA.match(name) is not None


def orphan_time(name: str) -> datetime | None:
    """The latest time a blob named as a part of a backup can have been begun; None for a foreign name."""
    if match := _DATA.match(name):
        return _parse_stamp(f"{match['day'].replace('/', '')}T{match['time']}Z")
    base = _VERDICT.match(name) or _KEYS.match(name)
    parts = parse_manifest_name(base["base"] + ".json") if base else None
    return _parse_stamp(f"{parts.day.replace('/', '')}T235959Z") if parts else None


def read_listing(blobs: Iterable[ListedBlob]) -> Listing:
    """Backups and orphans of one LIST with metadata; verdicts and key indexes are joined to their manifests.

    A manifest whose metadata cannot be read is still a backup as far as its name tells, with the verdict
    `bad`: it must neither vanish from sight nor be built upon.
    """
    by_name = {blob.name: blob for blob in blobs}
    verdicts: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    for name in by_name:
        if match := _VERDICT.match(name):
            verdicts.setdefault(match["base"] + ".json", []).append(name)
        elif match := _KEYS.match(name):
            keys[match["base"] + ".json"] = name
    records = []
    claimed: set[str] = set()
    for name in by_name:
        if parts := parse_manifest_name(name):
            record = _record(name, parts, by_name, sorted(verdicts.get(name, ())), keys.get(name))
            claimed.update(record.blob_names)
            records.append(record)
    records.sort(key=lambda record: (record.started_at, record.revision, record.name))
    return Listing(records=tuple(records), orphans=tuple(sorted(set(by_name) - claimed)))


def bump_revision_advice(revision: int) -> int:
    """How far to raise the revision at restore so that no client has seen a higher one: 20 %, at least a
    billion.

    Without it every informer stays silently stale (etcd-io/etcd#16028, kubernetes/kubernetes#118501).
    """
    return max(MINIMUM_BUMP, revision // 5)


def _record(
    name: str, parts: ManifestName, blobs: Mapping[str, ListedBlob], verdicts: list[str], keys: str | None
) -> BackupRecord:
    blob = blobs[name]
    meta = {key.lower(): value for key, value in (blob.metadata or {}).items()}
    started = _parse_stamp(meta.get("started", "")) or datetime.strptime(parts.day, "%Y/%m/%d").replace(
        tzinfo=UTC
    )
    readable = meta.get("format") == FORMAT and meta.get("data", "") != ""
    data = blobs.get(meta.get("data", ""))
    verdict = _newest_verdict(blobs, verdicts) if readable else None
    state = verdict[0] if verdict else None if readable else VerdictState.BAD
    return BackupRecord(
        name=name,
        cluster=parts.cluster,
        kind=parts.kind,
        run=parts.run,
        revision=parts.revision,
        started_at=started,
        data=meta.get("data") or _data_of_run(blobs, parts),
        digest=meta.get("digest", ""),
        parent=meta.get("parent") or None,
        member_id=meta.get("member", ""),
        chain_length=_number(meta.get("chain")),
        database_bytes=_number(meta.get("dbbytes")),
        stored_bytes=_number(meta.get("storedbytes")),
        encrypted=meta.get("encryption", "none") != "none",
        data_present=data is not None,
        verdict=state,
        verdict_at=verdict[1] if verdict else None,
        verdict_reason=verdict[2] if verdict else None if readable else "UnreadableMetadata",
        verdict_names=tuple(verdicts),
        key_index=keys,
        immutable_until=_latest(blob.immutable_until, data.immutable_until if data else None),
    )


def _newest_verdict(
    blobs: Mapping[str, ListedBlob], verdicts: list[str]
) -> tuple[VerdictState, datetime | None, str] | None:
    if not verdicts:
        return None
    name = verdicts[-1]
    meta = {key.lower(): value for key, value in (blobs[name].metadata or {}).items()}
    match = _VERDICT.match(name)
    at = _parse_stamp(match["at"] if match else "")
    try:
        return VerdictState(meta.get("state", "")), at, meta.get("reason", "")
    except ValueError:
        return VerdictState.UNVERIFIED, at, "UnreadableVerdict"


def _data_of_run(blobs: Mapping[str, ListedBlob], parts: ManifestName) -> str:
    prefix = f"{parts.cluster}/{parts.day}/"
    found = [name for name in blobs if name.startswith(prefix) and name.endswith(f"-{parts.run}.pages")]
    return found[0] if found else f"{prefix}unknown-{parts.run}.pages"


def _latest(*times: datetime | None) -> datetime | None:
    return max((time for time in times if time is not None), default=None)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0


def _utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("a time without a zone cannot be placed; pass an aware datetime")
    return value.astimezone(UTC)


def _stamp(value: datetime) -> str:
    return f"{_utc(value):%Y%m%dT%H%M%SZ}"


def _parse_stamp(text: str) -> datetime | None:
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None


_UNREADABLE = (msgspec.MsgspecError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
"""All that decoding damaged JSON, and finding no digest in it, can raise."""


def _parse_sealed(data: bytes, kind: type[_T], name: str, what: str) -> _T:
    """Decode a JSON document whose `digest` covers the canonical JSON of all its other fields."""
    try:
        body: Any = msgspec.json.decode(data)
        digest = body.pop("digest")
        actual = hashlib.sha256(canonical_json(body)).hexdigest()
        if digest != actual:
            raise _bad(name, f"its digest is {actual[:12]}…, it says {str(digest)[:12]}…", what)
        return msgspec.convert(body, kind)
    except _UNREADABLE as error:
        raise _bad(name, f"it cannot be read ({error})", what) from error


def _bad(name: str, problem: str, what: str = "manifest") -> IntegrityError:
    return IntegrityError(f"{what} '{name}': {problem}; use another backup", place=f"{what} {name}")
