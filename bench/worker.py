"""One measured job in a process of its own, so that its memory is its own: `python -m bench.worker JOB ...`.

Prints one JSON object. Times begin after imports and first connections, as in a warm worker of the app;
memory is the high-water mark of the whole process, imports included.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def backup(connection: str, endpoint: str, container: str, parent: str = "") -> dict[str, Any]:
    """What the Backup action does: stream, compress, upload, commit, read back, compare with the member."""
    from shared.clients.blob import BlobStore, blob_service
    from shared.clients.etcd import EtcdClient
    from shared.etcd_backup.backup import Order, Taker
    from shared.etcd_backup.policy import EtcdBackupPolicy
    from shared.etcd_backup.verify import store_index, store_verdict, verify
    from shared.model.backup import Source
    from shared.runtime.claim import Claims
    from shared.settings import EtcdConnection

    service = blob_service({"AzureWebJobsStorage": connection})

    def blobs(name: str) -> BlobStore:
        return BlobStore(service.get_container_client(name))

    store = blobs(container)
    store.ensure()
    claim = Claims(blobs).acquire(f"bench-{secrets.token_hex(4)}", "etcd-backup")
    assert claim is not None
    with claim, EtcdClient(EtcdConnection(endpoints=(endpoint,)), {}) as etcd:
        status = etcd.status(endpoint)
        _warm()
        source = Source(
            member_id=f"{status.member_id:x}",
            member_name="bench",
            endpoint=endpoint,
            etcd_version=status.version,
            is_learner=False,
        )
        imported = peak_bytes()
        began = time.monotonic()
        taker = Taker(store, etcd, claim, policy=EtcdBackupPolicy())
        taken = taker.take(Order("bench", secrets.token_hex(8), source, parent or None))
        stored = time.monotonic()
        at_backup = peak_bytes()
        verdict = verify(taken.chain, taken.asked, datetime.now(UTC)).verdict
        store_verdict(claim, store, verdict)
        ended = time.monotonic()
        at_verdict = peak_bytes()
        indexed = store_index(claim, store, taken.chain, verdict)
        index_seconds = time.monotonic() - ended
    manifest = taken.manifest
    return {
        "seconds": ended - began,
        "backupSeconds": stored - began,
        "verifySeconds": ended - stored,
        "indexSeconds": index_seconds if indexed else 0.0,
        "manifest": manifest.name,
        "storedBytes": manifest.archive.stored_bytes,
        # Data, manifest, verdict and key index: every blob of a backup carries its run.
        "uploadedBytes": sum(blob.size for blob in store.list("bench/") if manifest.run in blob.name),
        "databaseBytes": manifest.database.size_bytes,
        "heldSeconds": manifest.timings.stream_seconds,
        "waitedSeconds": taken.reader_waited.total_seconds(),
        "state": verdict.state.value,
        "reason": verdict.reason,
        "importBytes": imported,
        "backupPeakBytes": at_backup,
        "verdictPeakBytes": at_verdict,
        "peakBytes": peak_bytes(),
        "cpuSeconds": time.process_time(),
    }


def null(endpoint: str) -> dict[str, Any]:
    """The whole pipeline, compressing included, into a store that keeps nothing."""
    from datetime import timedelta

    from shared.clients.etcd import EtcdClient
    from shared.etcd_backup.archive import ArchiveWriter
    from shared.etcd_backup.transfer import stage
    from shared.settings import EtcdConnection

    with EtcdClient(EtcdConnection(endpoints=(endpoint,)), {}) as etcd:
        etcd.status(endpoint)
        _warm()
        began = time.monotonic()
        minutes = timedelta(minutes=1)
        stream = etcd.snapshot(endpoint, stall_timeout=minutes, total_timeout=60 * minutes)
        staged = stage(stream, ArchiveWriter("bench"), _Nowhere(), "nowhere", "bench")
        seconds = time.monotonic() - began
    return {"seconds": seconds, "heldSeconds": staged.stream_seconds, "peakBytes": peak_bytes()}


def upload(connection: str, path: str, container: str) -> dict[str, Any]:
    """What a script does with the SDK: the file as one blob, eight blocks of 4 MiB at a time."""
    from contextlib import suppress

    from azure.core.exceptions import ResourceExistsError
    from azure.storage.blob import BlobServiceClient

    service = BlobServiceClient.from_connection_string(connection)
    blob = service.get_blob_client(container, f"script-{secrets.token_hex(4)}.db")
    with suppress(ResourceExistsError):
        service.create_container(container)
    began = time.monotonic()
    with Path(path).open("rb") as file:
        blob.upload_blob(file, max_concurrency=8)
    return {"seconds": time.monotonic() - began, "peakBytes": peak_bytes()}


def peak_bytes() -> int:
    """The most memory this process ever had resident."""
    # Not getrusage: across fork and exec it inherits the parent's.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError("the peak of resident memory is read from /proc, which this system has not")
    return int(found[1]) * 1024


class _Nowhere:
    def stage_block(self, name: str, block_id: str, data: bytes) -> None:
        """Keeps nothing."""


def _warm() -> None:
    """What a warm worker has imported long ago."""
    import google_crc32c  # noqa: F401
    import xxhash  # noqa: F401
    import zstandard  # noqa: F401


JOBS = {"backup": backup, "null": null, "upload": upload}


def run(job: str, *arguments: str, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Run one job in a fresh process; RuntimeError with its complaint when it fails."""
    import subprocess

    command = [sys.executable, "-m", "bench.worker", job, *arguments]
    done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"bench job {job} failed: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    print(json.dumps(JOBS[sys.argv[1]](*sys.argv[2:])))  # type: ignore[operator]
