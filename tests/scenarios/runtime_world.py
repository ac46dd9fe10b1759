"""A world for the runtime's scenarios: a configuration, and a probe in place of an automation.

The probe makes the real runtime do real writes: what is wanted is one blob `<cluster>/<generation>-<run>` for
the generation named by blob `<cluster>/wanted` in container `probe-wishes`. Like every automation it looks
first, and writes under a name of its own run. Workers are real processes that run this file.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from shared import work  # noqa: E402
from shared.bootstrap import Clients  # noqa: E402
from shared.clients.queue import Message  # noqa: E402
from shared.errors import LostLeaseError, NotFoundError  # noqa: E402
from shared.model.plan import Action, ActionKind, Outcome, Plan, Status  # noqa: E402
from shared.operations import catalogue, dispatch  # noqa: E402
from shared.record import record  # noqa: E402
from shared.runtime.automation import AUTOMATIONS  # noqa: E402
from shared.runtime.claim import Claim  # noqa: E402
from shared.runtime.message import Received  # noqa: E402
from shared.settings import Cluster  # noqa: E402

AUTOMATION = "etcd-backup"
EFFECTS, WISHES = "probe-effects", "probe-wishes"
LOST = 42
"""Exit code of a worker that noticed that it had lost the claim."""


def environ(storage: str, directory: Path, clusters: list[str], **settings: str) -> dict[str, str]:
    """App settings for these clusters; leases as short as the service allows."""
    path = directory / "kubekeeper.yaml"
    entries = "".join(
        f"- name: {name}\n  etcd:\n    endpoints: ['http://127.0.0.1:9']\n  etcdBackup: {{}}\n"
        for name in clusters
    )
    path.write_text(f"clusters:\n{entries}")
    return {
        "AzureWebJobsStorage": storage,
        "KUBEKEEPER_CONFIG": str(path),
        "KUBEKEEPER_LEASE": "15s",
        "KUBEKEEPER_SETTLE": "3s",
        **settings,
    }


def install_probe() -> Callable[[], None]:
    """Let the automation and operation `backup` run the probe; returns what puts the real ones back."""
    kept = dict(AUTOMATIONS), dict(catalogue.OPERATIONS)
    sys.modules["runtime_world"] = sys.modules[__name__]
    AUTOMATIONS[AUTOMATION] = dataclasses.replace(
        AUTOMATIONS[AUTOMATION], reconcile="runtime_world:reconcile"
    )
    catalogue.OPERATIONS["backup"] = dataclasses.replace(
        catalogue.OPERATIONS["backup"], handler="runtime_world:operate"
    )

    def restore() -> None:
        AUTOMATIONS.update(kept[0])
        catalogue.OPERATIONS.update(kept[1])

    return restore


def reconcile(cluster: Cluster, clients: Clients, claim: Claim, now: datetime) -> list[Outcome]:
    """The probe as an automation: see what is wanted, do what is missing, record."""
    wanted = _wanted(clients, cluster.name)
    _trace(cluster.name, "begin")
    _hold(clients)
    actions, outcomes = [], []
    if wanted and not _effects(clients, f"{cluster.name}/{wanted}-"):
        action = Action(
            kind=ActionKind.BACKUP,
            target=f"{cluster.name}/{wanted}-{claim.run_id}",
            reason="Wanted",
            message="-",
        )
        actions.append(action)
        outcomes.append(_write(clients, claim, action))
    claim.save({"passes": claim.state.get("passes", 0) + 1})
    _trace(cluster.name, "end")
    plan = Plan(automation=AUTOMATION, cluster=cluster.name, now=now, actions=tuple(actions))
    record(clients, plan, outcomes)
    return outcomes


def operate(
    cluster: Cluster, parameters: Any, clients: Clients, claim: Claim, now: datetime
) -> list[Outcome]:
    """The probe as an operation: one blob named by its run, which is the same at every attempt."""
    name = f"{cluster.name}/operation-{claim.run_id}"
    action = Action(kind=ActionKind.BACKUP, target=name, reason="Requested", message="-")
    if _effects(clients, name):
        return [Outcome(action=action, status=Status.SUCCEEDED, message="was already there")]
    action = msgspec.structs.replace(action, target=f"{name}-{uuid.uuid4().hex[:4]}")
    _hold(clients)
    return [_write(clients, claim, action)]


def _write(clients: Clients, claim: Claim, action: Action) -> Outcome:
    store = clients.blobs(EFFECTS)
    try:
        claim.create_blob(store, action.target, b"effect")
    except NotFoundError:
        store.ensure()
        claim.create_blob(store, action.target, b"effect")
    return Outcome(action=action, status=Status.SUCCEEDED, message=f"wrote {action.target}")


def _wanted(clients: Clients, cluster: str) -> str:
    try:
        return clients.blobs(WISHES).read(f"{cluster}/wanted").data.decode()
    except NotFoundError:
        return ""


def wish(clients: Clients, cluster: str, generation: str) -> None:
    """Want an effect of this generation from now on."""
    store = clients.blobs(WISHES)
    store.ensure()
    name = f"{cluster}/wanted"
    try:
        store.replace(name, generation.encode(), store.properties(name).etag)
    except NotFoundError:
        store.create(name, generation.encode())


def _effects(clients: Clients, prefix: str) -> list[str]:
    try:
        return [info.name for info in clients.blobs(EFFECTS).list(prefix)]
    except NotFoundError:
        return []


def effects(clients: Clients, cluster: str) -> list[str]:
    """Names of everything the probe has effectively written for a cluster."""
    return _effects(clients, f"{cluster}/")


def _trace(cluster: str, word: str) -> None:
    path = os.environ.get("PROBE_TRACE")
    if path:
        # One short O_APPEND write is atomic: lines of several processes do not mix.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{time.monotonic()} {os.getpid()} {cluster} {word}\n".encode())
        os.close(descriptor)


def _hold(clients: Clients) -> None:
    path = os.environ.get("PROBE_HOLD")
    while path and Path(path).exists():
        time.sleep(0.02)


def handle(clients: Clients, queue: str, message: Message) -> None:
    """What the queue's function does with a message."""
    received = Received(
        id=message.id,
        body=message.text.encode(),
        dequeue_count=message.dequeue_count,
        inserted_at=message.inserted_at,
    )
    if queue == dispatch.QUEUE:
        dispatch.work_off(clients, received)
    else:
        work.work_off(clients, queue, received)


def deliver(clients: Clients, queue: str, invisible: timedelta = timedelta(seconds=30)) -> int:
    """Take messages off a queue as the host does until none is visible, returning how many succeeded.

    A failing one is left to its invisibility, as when the host is gone.
    """
    done = 0
    source = clients.queue(queue)
    while batch := source.receive(invisible, 8):
        for message in batch:
            handle(clients, queue, message)
            source.delete(message)
            done += 1
    return done


def start_worker(settings: Mapping[str, str], *arguments: str, **more: str) -> subprocess.Popen[bytes]:
    """Another process that runs one of the commands below."""
    return subprocess.Popen(
        [sys.executable, __file__, *arguments], env={**os.environ, **settings, **more}, cwd=ROOT
    )


def _drain() -> int:
    """Work the automation's queue until it holds nothing more, hidden messages included."""
    clients = Clients()
    while clients.queue(AUTOMATION).count():
        if not deliver(clients, AUTOMATION, timedelta(minutes=10)):  # as long as the host hides a message
            time.sleep(0.3)
    return 0


def _once(queue: str) -> int:
    """Work a queue until it is empty."""
    deliver(Clients(), queue)
    return 0


def _stop_at(what: str, cluster: str) -> int:
    """Hold the claim and freeze between the last check and a write; 42 when the write is then refused."""
    clients = Clients()
    store = clients.blobs(EFFECTS)
    claim = clients.claims.acquire(cluster, AUTOMATION)
    assert claim is not None
    if what == "create":
        _freeze_before("PUT", f"/{EFFECTS}/")
        write: Callable[[], Any] = lambda: claim.create_blob(store, f"{cluster}/late", b"late")  # noqa: E731
    elif what == "commit":
        store.stage_block(f"{cluster}/late", "0000", b"late")
        _freeze_before("PUT", "comp=blocklist")
        write = lambda: claim.commit_blocks(store, f"{cluster}/late", ["0000"])  # noqa: E731
    elif what == "delete":
        etag = store.create(f"{cluster}/doomed", b"doomed")
        _freeze_before("DELETE", f"/{EFFECTS}/")
        write = lambda: claim.delete_blobs(store, [(f"{cluster}/doomed", etag)])  # noqa: E731
    elif what == "save":
        _freeze_before("PUT", f"{AUTOMATION}.json")
        write = lambda: claim.save({"late": True})  # noqa: E731
    else:
        _freeze_before("HEAD", f"{AUTOMATION}.json")
        write = claim.ensure
    try:
        write()
    except LostLeaseError:
        return LOST
    return 0


def _freeze_before(method: str, part: str) -> None:
    """SIGSTOP this whole process just before the first request of that kind leaves."""
    from azure.core.pipeline.transport import RequestsTransport

    send = RequestsTransport.send
    armed = [True]

    def freezing(self: Any, request: Any, **options: Any) -> Any:
        if armed[0] and request.method == method and part in request.url:
            armed[0] = False
            os.kill(os.getpid(), signal.SIGSTOP)
        return send(self, request, **options)

    RequestsTransport.send = freezing  # type: ignore[method-assign]


if __name__ == "__main__":
    install_probe()
    sys.exit({"drain": _drain, "once": _once, "stop-at": _stop_at}[sys.argv[1]](*sys.argv[2:]))
