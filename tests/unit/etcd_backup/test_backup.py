"""Manifests, verdicts, names, and what one LIST says about a container."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from captured import NOON

from shared.errors import IntegrityError
from shared.model.backup import (
    ArchiveSummary,
    DatabaseSummary,
    Kind,
    Manifest,
    ParentRef,
    Revisions,
    Section,
    Source,
    Timings,
    Verdict,
    VerdictState,
    Witness,
    bump_revision_advice,
    data_name,
    is_data_name,
    key_index_name,
    manifest_name,
    parse_manifest_name,
    read_listing,
    verdict_name,
)

SHA = "0" * 64


def manifest(run: str = "aa01", revision: int = 4711, **changes: object) -> Manifest:
    section = Section(offset=0, length=0, sha256=SHA)
    values: dict[str, object] = {
        "kubekeeper_version": "0.1.0",
        "cluster": "prod",
        "run": run,
        "kind": Kind.FULL,
        "data": data_name("prod", NOON, run),
        "database": DatabaseSummary(size_bytes=8192, page_size=4096, page_count=2, sha256=SHA),
        "revisions": Revisions(
            revision=revision, last_row_revision=revision, compact_revision=7, scheduled_compact_revision=7
        ),
        "archive": ArchiveSummary(
            stored_bytes=100,
            frame_pages=64,
            frame_count=1,
            stored_pages=2,
            codec="zstd-1",
            digest_seed=5,
            index=section,
            page_table=section,
        ),
        "source": Source(
            member_id="8e9e05c52164694d",
            member_name="m1",
            endpoint="https://10.0.0.4:2379",
            etcd_version="3.5.16",
            is_learner=False,
        ),
        "timings": Timings(
            started_at=NOON,
            committed_at=NOON + timedelta(seconds=9),
            first_byte_seconds=0.25,
            stream_seconds=8.125,
            upload_seconds=8.5,
        ),
        "bump_revision": 1_000_000_000,
    }
    return Manifest(**(values | changes))


@dataclass
class Blob:
    name: str
    metadata: dict[str, str] = field(default_factory=dict)
    size: int = 1
    last_modified: datetime = NOON
    immutable_until: datetime | None = None


def blobs_of(one: Manifest, *verdicts: Verdict, **changes: object) -> list[Blob]:
    found = [Blob(one.name, one.metadata(), **changes), Blob(one.data)]
    return found + [Blob(verdict_name(v.backup, v.at), v.metadata()) for v in verdicts]


def verdict(one: Manifest, state: VerdictState, minutes: int = 0) -> Verdict:
    return Verdict(
        backup=one.name,
        manifest_digest=one.digest(),
        state=state,
        reason="MembersAgree",
        message="m",
        at=NOON + timedelta(minutes=minutes),
        witnesses=(
            Witness(member_id="1", endpoint="e", revision=5, hash=9, compact_revision=7, agrees=True),
        ),
    )


def test_a_manifest_reads_back_as_it_was() -> None:
    one = manifest()

    assert Manifest.from_json(one.to_json(), one.name) == one
    assert msgspec.json.decode(one.to_json())["digest"] == one.digest()


def test_the_manifests_name_says_the_exact_revision_and_kind() -> None:
    assert manifest().name == "prod/2026/11/23/4711-full-aa01.json"
    assert manifest().data == "prod/2026/11/23/120000-aa01.pages"


def test_names_are_in_utc_wherever_the_clock_stood() -> None:
    early = datetime(2026, 11, 24, 1, tzinfo=timezone(timedelta(hours=2)))

    assert data_name("prod", early, "r") == "prod/2026/11/23/230000-r.pages"
    with pytest.raises(ValueError, match="zone"):
        data_name("prod", datetime(2026, 11, 24), "r")  # noqa: DTZ001


def test_any_changed_byte_of_a_manifest_is_caught() -> None:
    data = manifest().to_json()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        with pytest.raises(IntegrityError) as caught:
            Manifest.from_json(bytes(changed), manifest().name)
        assert caught.value.place == f"manifest {manifest().name}"


def test_a_manifest_under_a_wrong_name_is_caught() -> None:
    with pytest.raises(IntegrityError, match="wrong name"):
        Manifest.from_json(manifest().to_json(), manifest(revision=4712).name)


def test_a_manifest_of_another_format_and_one_that_contradicts_itself_are_refused() -> None:
    other = manifest(kubekeeper="backup/v9")
    with pytest.raises(IntegrityError, match="backup/v9"):
        Manifest.from_json(other.to_json(), other.name)
    orphan = manifest(kind=Kind.DELTA)
    with pytest.raises(IntegrityError, match="delta has a parent"):
        Manifest.from_json(orphan.to_json(), orphan.name)


def test_documents_that_are_none_are_refused() -> None:
    for data in (b"", b"[]", b"{}", b"null", b'{"digest":1}', b"\xff\xfe", b"{" * 1000):
        with pytest.raises(IntegrityError):
            Manifest.from_json(data, manifest().name)
        with pytest.raises(IntegrityError):
            Verdict.from_json(data, "v")


def test_a_verdict_reads_back_and_is_sealed() -> None:
    one = verdict(manifest(), VerdictState.VERIFIED)

    assert Verdict.from_json(one.to_json(), "v") == one
    with pytest.raises(IntegrityError):
        Verdict.from_json(one.to_json().replace(b'"verified"', b'"bad"'), "v")


def test_names_are_parsed_and_foreign_ones_are_not() -> None:
    name = manifest_name("prod", NOON, 12, Kind.DELTA, "ab12")
    parts = parse_manifest_name(name)

    assert parts is not None
    assert (parts.cluster, parts.revision, parts.kind, parts.run) == ("prod", 12, Kind.DELTA, "ab12")
    assert parse_manifest_name(verdict_name(name, NOON)) is None
    assert parse_manifest_name(key_index_name(name)) is None
    assert parse_manifest_name("prod/2026/11/23/x.json") is None
    assert is_data_name(data_name("prod", NOON, "ab12"))
    assert not is_data_name(name)


def test_a_listing_has_all_that_deciding_needs() -> None:
    one = manifest()
    child = manifest("bb02", 5000, kind=Kind.DELTA, parent=ParentRef(name=one.name, digest=one.digest()))
    listing = read_listing([*blobs_of(child), *blobs_of(one, verdict(one, VerdictState.VERIFIED))])
    first, second = listing.records

    assert listing.orphans == ()
    assert (first.name, first.revision, first.kind, first.parent) == (one.name, 4711, Kind.FULL, None)
    assert (first.verdict, first.verdict_at, first.started_at) == (VerdictState.VERIFIED, NOON, NOON)
    assert (second.parent, second.kind, second.verdict) == (one.name, Kind.DELTA, None)
    assert (first.database_bytes, first.stored_bytes, first.digest) == (8192, 100, one.digest())
    assert not first.encrypted
    assert first.data_present


def test_the_newest_verdict_counts() -> None:
    one = manifest()
    verdicts = [verdict(one, VerdictState.BAD, 5), verdict(one, VerdictState.VERIFIED, 1)]

    assert read_listing(blobs_of(one, *verdicts)).records[0].verdict is VerdictState.BAD


def test_a_data_blob_without_manifest_is_an_orphan() -> None:
    one = manifest()
    stray = data_name("prod", NOON, "cc03")
    listing = read_listing([*blobs_of(one), Blob(stray)])

    assert listing.orphans == (stray,)


def test_a_manifest_without_its_data_says_so() -> None:
    listing = read_listing(blobs_of(manifest())[:1])

    assert not listing.records[0].data_present


def test_a_manifest_with_lost_metadata_is_seen_and_never_built_upon() -> None:
    one = manifest()
    listing = read_listing([Blob(one.name), Blob(one.data)])

    assert listing.records[0].verdict is VerdictState.BAD
    assert listing.records[0].verdict_reason == "UnreadableMetadata"
    assert listing.records[0].data == one.data
    assert listing.orphans == ()


def test_the_longer_immutability_counts() -> None:
    one, until = manifest(), NOON + timedelta(days=30)
    blobs = blobs_of(one)
    blobs[1].immutable_until = until
    blobs[0].immutable_until = NOON

    assert read_listing(blobs).records[0].immutable_until == until


def test_a_backup_is_deleted_manifest_first_and_data_last() -> None:
    one = manifest()
    blobs = [*blobs_of(one, verdict(one, VerdictState.VERIFIED)), Blob(key_index_name(one.name))]
    names = read_listing(blobs).records[0].blob_names

    assert names[0] == one.name
    assert names[-1] == one.data
    assert set(names) == {blob.name for blob in blobs}


def test_the_bump_exceeds_what_any_client_may_have_seen() -> None:
    assert bump_revision_advice(5) == 1_000_000_000
    assert bump_revision_advice(10**12) == 2 * 10**11


def test_metadata_is_plain_ascii_with_plain_names() -> None:
    found = manifest().metadata() | verdict(manifest(), VerdictState.BAD).metadata()

    assert all(key.isidentifier() and key.islower() and value.isascii() for key, value in found.items())
    assert datetime.strptime(found["started"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) == NOON
