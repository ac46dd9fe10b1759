"""A world for the scenarios of etcd backups: a real etcd, a real Azurite, the real pass of the automation.

`World.reconcile()` runs one pass as the queue function would, at a time the test chooses. Run as a program
it runs passes that die after each of their writes.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import traceback
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402

from shared.bootstrap import Clients  # noqa: E402
from shared.clients.blob import BlobStore  # noqa: E402
from shared.etcd_backup import reconcile as story  # noqa: E402
from shared.etcd_backup.policy import EtcdBackupPolicy  # noqa: E402
from shared.model.backup import BackupRecord, read_listing  # noqa: E402
from shared.model.plan import ActionKind, Outcome  # noqa: E402
from shared.runtime.claim import Claim  # noqa: E402
from shared.settings import Cluster, EtcdConnection  # noqa: E402

AUTOMATION = "etcd-backup"


class World:
    """One cluster `prod` of the fleet, with a container of its own."""

    def __init__(
        self,
        storage: str,
        connection: EtcdConnection,
        environ: dict[str, str] | None = None,
        policy: EtcdBackupPolicy | None = None,
        names: tuple[str, str] | None = None,
    ) -> None:
        mark = uuid.uuid4().hex[:10]
        self.name, self.container = names or (f"prod-{mark}", f"backups-{mark}")
        self.environ = {"AzureWebJobsStorage": storage, **(environ or {})}
        self.connection = connection
        self.policy = msgspec.structs.replace(
            policy or EtcdBackupPolicy(schedule="* * * * *", objective="10m"), container=self.container
        )
        self.clients = Clock(self.environ)

    def encode(self) -> str:
        """What another process needs to work on the same world."""
        return msgspec.json.encode(
            {
                "environ": self.environ,
                "connection": self.connection,
                "policy": self.policy,
                "names": (self.name, self.container),
            }
        ).decode()

    @staticmethod
    def decode(text: str) -> World:
        """The world that `encode` described."""
        body = msgspec.json.decode(text)
        environ = dict(body["environ"])
        return World(
            environ.pop("AzureWebJobsStorage"),
            msgspec.convert(body["connection"], EtcdConnection),
            environ,
            msgspec.convert(body["policy"], EtcdBackupPolicy),
            tuple(body["names"]),
        )

    @property
    def cluster(self) -> Cluster:
        return Cluster(name=self.name, etcd=self.connection, etcd_backup=self.policy)

    @property
    def store(self) -> BlobStore:
        return self.clients.blobs(self.container)

    def reconcile(self, after: timedelta = timedelta()) -> list[Outcome]:
        """One pass under the claim, `after` later than the last one; raises what the pass raises."""
        self.clients.forward(after)
        with self.claim() as claim:
            return story.reconcile(self.cluster, self.clients, claim, self.clients.now())

    def claim(self) -> Claim:
        claim = self.clients.claims.acquire(self.name, AUTOMATION)
        assert claim is not None, "somebody holds the claim"
        return claim

    def operate(self, handler: Callable[..., list[Outcome]], parameters: Any, run: str = "") -> list[Outcome]:
        """One operation under the claim, as the dispatcher would."""
        with self.claim() as claim:
            if run:
                claim.run_id = run
            return handler(self.cluster, parameters, self.clients, claim, self.clients.now())

    def records(self) -> tuple[BackupRecord, ...]:
        return read_listing(self.store.list(f"{self.name}/")).records

    def blob_names(self) -> list[str]:
        return [blob.name for blob in self.store.list(f"{self.name}/")]

    def corrupt(self, name: str, offset: int = -1, mask: int = 0x10) -> None:
        """Flip a bit of a stored blob, as rot would: same name, size and metadata."""
        blob = self.store.read(name)
        data = bytearray(blob.data)
        data[offset] ^= mask
        self.store.replace(name, bytes(data), blob.etag, blob.metadata)


class Clock(Clients):
    """Clients whose clock the test moves."""

    offset = timedelta()

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def forward(self, step: timedelta) -> None:
        self.offset += step


def only(outcomes: list[Outcome], kind: ActionKind) -> Outcome:
    """The one outcome of that kind."""
    found = [outcome for outcome in outcomes if outcome.action.kind is kind]
    assert len(found) == 1, [(o.action.kind, o.status, o.message) for o in outcomes]
    return found[0]


def statuses(outcomes: list[Outcome]) -> list[tuple[str, str]]:
    return [(outcome.action.kind.value, outcome.status.value) for outcome in outcomes]


DIED = 43
"""Exit code of a worker that died at its step."""

WRITES = ("stage_block", "commit_blocks", "create", "replace", "delete", "acquire_lease", "release_lease")


def die_after(step: int) -> None:
    """Let this process end, without any clean-up, right after its n-th write to the store; prints which."""
    lock, count = threading.Lock(), 0

    def counting(name: str) -> Callable[..., Any]:
        write = getattr(BlobStore, name)

        def counted(self: BlobStore, *arguments: Any, **options: Any) -> Any:
            nonlocal count
            result = write(self, *arguments, **options)
            with lock:
                count += 1
                if count == step:
                    print(name, flush=True)
                    os._exit(DIED)
            return result

        return counted

    for name in WRITES:
        setattr(BlobStore, name, counting(name))


def main() -> None:
    """One pass of each world on stdin (a line each), which dies after write 1, 2, 3, ...

    Each is a process of its own, forked when all is imported. Prints after which write it died; the first
    pass that comes to its end is the last one, and its line is empty.
    """
    for name in ("azure.storage.blob", "grpc", "shared.clients.etcd", "zstandard"):
        importlib.import_module(name)
    for step, line in enumerate(sys.stdin, 1):
        child = os.fork()
        if child == 0:
            try:
                die_after(step)
                World.decode(line).reconcile()
            except BaseException:  # noqa: BLE001 - a child must never return into the parent's code
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != DIED:
            print(flush=True)
            sys.exit(code)


if __name__ == "__main__":
    main()
