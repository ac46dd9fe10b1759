"""Each etcd version at hand, from snapshot to restored server, against its own tools; and the published
table of it.

The rows of docs/reference/etcd-compatibility.md are what this test has seen. A row whose version is at hand
must say what is seen now; WRITE_DOCS=1 writes it. Versions that are not at hand keep their recorded row.
`.ci/etcd/build` brings more versions to hand.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from captured import Captured, scan_with_newest, snapshot

from sandbox.etcd import EtcdCluster
from sandbox.etcd_versions import etcd_versions
from sandbox.tools import CHECKOUT, Etcd
from shared.clients.etcd import EtcdClient
from shared.errors import ApiError
from shared.model.etcd import HashKV
from shared.model.etcd_snapshot import SnapshotReport, read_revisions

pytestmark = [pytest.mark.etcd, pytest.mark.slow]

DOCUMENT = CHECKOUT / "docs" / "reference" / "etcd-compatibility.md"
ROW = re.compile(r"^\| (\d+\.\d+\.\d+) \|.*\|$", re.MULTILINE)
LIVE_KEYS_SINCE = (3, 6)  # from here on `snapshot status` counts live keys, before it counted rows
LEARNER_SNAPSHOT_SINCE = {(3, 4): (3, 4, 28), (3, 5): (3, 5, 0)}
BUMP_SINCE = {(3, 4): (3, 4, 27), (3, 5): (3, 5, 10)}
BUMP = 1_000_000_000
MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Source:
    """A filled etcd of one version: what was captured of it, and what it says of itself."""

    tools: Etcd
    captured: Captured
    file: Path
    report: SnapshotReport
    learner: str
    live_keys: int


def parameters() -> list[object]:
    versions = etcd_versions()
    if not versions:
        return [pytest.param(None, marks=pytest.mark.skip(reason="no etcd at hand: run `make setup`"))]
    return [pytest.param(tools, id=tools.version_text) for tools in versions]


@pytest.fixture(scope="module", params=parameters())
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Kubernetes-shaped data with superseded rows, deleted keys, a compaction behind it and writes after
    it.
    """
    tools: Etcd = request.param
    file = tmp_path_factory.mktemp("etcd") / f"{tools.version_text}.db"
    with EtcdCluster.start(tools=tools) as cluster, cluster.client(timeout=MINUTE) as client:
        endpoint = cluster.endpoints[0]
        loaded = cluster.seed(3_000_000)
        loaded = cluster.churn(loaded, 10)
        client.compact(client.put(b"/registry/compacted", b"here"))
        cluster.churn(loaded, 10, generation=2)
        client.delete(b"/registry/compacted")
        data = snapshot(client, endpoint)
        file.write_bytes(data)
        hash_kv = client.hash_kv(endpoint)
        live_keys = client.range(b"\0", b"\0", count_only=True).count
        captured = Captured(tools.version_text, data, hash_kv, status(tools, file))
        learner = learner_snapshot(cluster, client)
    return Source(tools, captured, file, scan_with_newest(captured), learner, live_keys)


def status(tools: Etcd, file: Path) -> dict[str, int]:
    answer: dict[str, int] = json.loads(run(tools, "status", str(file), "--write-out", "json"))
    return answer


def run(tools: Etcd, command: str, *arguments: str) -> str:
    """`snapshot COMMAND` of that version's own tool: etcdutl, before 3.5 etcdctl."""
    done = subprocess.run(
        [str(tools.etcdutl or tools.etcdctl), "snapshot", command, *arguments],
        env=dict(EtcdCluster.etcdctl_environ()),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def learner_snapshot(cluster: EtcdCluster, client: EtcdClient) -> str:
    """`yes` when a learner streams the same data, `no` when it refuses to."""
    index = cluster.add_learner()
    deadline = time.monotonic() + 60
    with EtcdClient(cluster.connection(), cluster.environ, timeout=MINUTE) as every:
        while True:
            try:
                data = snapshot(every, cluster.endpoints[index])
            except ApiError as error:
                assert "learner" in str(error)
                return "no"
            captured = Captured("learner", data, client.hash_kv(cluster.endpoints[0]), {})
            report = scan_with_newest(captured)
            assert report.is_sound
            if report.hash_kv(captured.hash_kv.compact_revision) == captured.hash_kv.hash:
                return "yes"
            # A new learner gets the history first and compacts it in the background.
            assert time.monotonic() < deadline, "the learner never caught up with the voter's compaction"
            time.sleep(0.2)


def supports_bump(tools: Etcd) -> bool:
    return "--bump-revision" in run(tools, "restore", "--help")


def restored(source: Source, directory: Path, *flags: str) -> EtcdCluster:
    """A server of that version on the data its own tool restored."""
    run(
        source.tools,
        "restore",
        str(source.file),
        "--data-dir",
        str(directory),
        "--name",
        "m0",
        *INITIAL,
        *flags,
    )
    return EtcdCluster.start(tools=source.tools, data_dirs=[directory])


PEER = (
    "http://127.0.0.1:2380"  # never listened on: a restored single member takes its addresses from its flags
)
INITIAL = ("--initial-cluster", f"m0={PEER}", "--initial-advertise-peer-urls", PEER)


def test_the_snapshot_is_sound_and_carries_etcds_own_sha256(source: Source) -> None:
    assert source.report.problems == []
    assert source.report.trailer_matches


def test_the_revision_in_the_file_is_the_servers(source: Source) -> None:
    revisions = read_revisions(source.captured.image)
    assert revisions == source.report.revisions
    assert revisions.revision == source.captured.hash_kv.revision
    assert revisions.last_row_revision == source.captured.status["revision"]


def test_hash_and_keys_are_those_its_own_tool_prints(source: Source) -> None:
    assert source.captured.status["hash"] == source.report.status_hash
    assert source.captured.status["totalSize"] == source.report.size_bytes
    if source.tools.version < LIVE_KEYS_SINCE:
        assert source.captured.status["totalKey"] == source.report.total_rows
    else:
        assert source.captured.status["totalKey"] == source.live_keys


def test_hash_kv_from_the_file_is_the_servers(source: Source) -> None:
    hash_kv = source.captured.hash_kv
    assert hash_kv.compact_revision > 0
    assert source.report.hash_kv(hash_kv.compact_revision) == hash_kv.hash


def test_the_file_restores_to_the_same_hash_kv(source: Source, tmp_path: Path) -> None:
    with restored(source, tmp_path / "data") as cluster, cluster.client(timeout=MINUTE) as client:
        now = client.hash_kv(cluster.endpoints[0], source.captured.hash_kv.revision)
        assert client.range(b"\0", b"\0", count_only=True).count == source.live_keys
    assert without_member(now) == without_member(source.captured.hash_kv)


def test_a_bumped_restore_is_ahead_of_everything_informers_have_seen(source: Source, tmp_path: Path) -> None:
    if not supports_bump(source.tools):
        pytest.skip(f"etcd {source.tools.version_text} cannot bump revisions")
    flags = ("--bump-revision", str(BUMP), "--mark-compacted")
    with restored(source, tmp_path / "data", *flags) as cluster, cluster.client(timeout=MINUTE) as client:
        assert client.status(cluster.endpoints[0]).revision >= source.captured.hash_kv.revision + BUMP
        assert client.range(b"\0", b"\0", count_only=True).count == source.live_keys
        with pytest.raises(ApiError, match="ompacted"):
            client.range(b"\0", b"\0", revision=source.captured.hash_kv.revision)


def test_capabilities_came_with_the_versions_the_documentation_names(source: Source) -> None:
    version, line = source.tools.version, source.tools.version[:2]
    assert source.learner == ("yes" if version >= LEARNER_SNAPSHOT_SINCE.get(line, line) else "no")
    assert supports_bump(source.tools) == (version >= BUMP_SINCE.get(line, line))


def test_the_published_table_says_what_is_seen(source: Source) -> None:
    text = DOCUMENT.read_text()
    seen, version = row(source, datetime.now(UTC).date()), source.tools.version_text
    if os.environ.get("WRITE_DOCS"):
        DOCUMENT.write_text(with_row(text, version, seen))
        return
    published = rows(text).get(version)
    if published is None:
        pytest.skip(f"etcd {version} is at hand but has no row; WRITE_DOCS=1 would add it")
    assert without_date(published) == without_date(seen), "run this test with WRITE_DOCS=1"


def test_the_published_table_covers_every_supported_line() -> None:
    published = {tuple(version.split(".")[:2]) for version in rows(DOCUMENT.read_text())}
    assert {("3", "4"), ("3", "5"), ("3", "6")} <= published


def without_member(answer: HashKV) -> tuple[int, int, int]:
    return answer.revision, answer.compact_revision, answer.hash


def row(source: Source, today: date) -> str:
    """What this version does. The other tests assert each `yes`; here they are recomputed to be written
    down.
    """
    report, captured, version = source.report, source.captured, source.tools.version
    counts = "live keys" if version >= LIVE_KEYS_SINCE else "rows"
    counted = source.live_keys if version >= LIVE_KEYS_SINCE else report.total_rows
    same_status = (captured.status["hash"], captured.status["totalKey"]) == (report.status_hash, counted)
    cells = [
        source.tools.version_text,
        "yes" if report.is_sound and report.trailer_matches else "NO",
        "yes" if report.revisions.revision == captured.hash_kv.revision else "NO",
        f"yes ({counts})" if same_status else "NO",
        "yes" if report.hash_kv(captured.hash_kv.compact_revision) == captured.hash_kv.hash else "NO",
        source.learner,
        "etcdutl" if source.tools.etcdutl else "etcdctl",
        "yes" if supports_bump(source.tools) else "no",
        today.isoformat(),
    ]
    return f"| {' | '.join(cells)} |"


def rows(text: str) -> dict[str, str]:
    return {match[1]: match[0] for match in ROW.finditer(text)}


def without_date(line: str) -> str:
    return line.rsplit("|", 2)[0]


def with_row(text: str, version: str, line: str) -> str:
    """The document with this row in its place among the others."""
    known = rows(text)
    if version in known and without_date(known[version]) == without_date(line):
        return text
    known[version] = line
    ordered = sorted(known, key=lambda v: tuple(int(part) for part in v.split(".")))
    table = "\n".join(known[v] for v in ordered)
    head, _, rest = text.partition("| --- |")
    divider, _, rest = rest.partition("\n")
    after = ROW.sub("", rest).lstrip("\n")
    return f"{head}| --- |{divider}\n{table}\n\n{after}"
