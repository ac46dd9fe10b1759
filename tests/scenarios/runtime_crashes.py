"""Runs one job again and again, crashing after its first, second, ... I/O call; prints what was left.

A process of its own, because it forks: each attempt is a child that ends by `os._exit` right after call k
has been answered (call 0: before the first leaves). Then the lease of the dead is ended, as time would, and
the message is delivered again as the platform would. The job is a nudge or an operation; see
`runtime_world`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent)]

import runtime_world as world  # noqa: E402

from shared.bootstrap import Clients  # noqa: E402
from shared.clients.queue import Message  # noqa: E402
from shared.errors import ApiError, ConflictError  # noqa: E402
from shared.operations import dispatch  # noqa: E402
from shared.operations.dispatch import submit  # noqa: E402
from shared.runtime.message import Nudge  # noqa: E402
from shared.runtime.nudge import send_nudge  # noqa: E402

CRASHED, FINISHED = 99, 7


def main(kind: str) -> None:
    world.install_probe()
    _warm_up()
    step = 0
    while True:
        cluster = f"{kind}-{step:03d}"
        clients = Clients()
        _ask(clients, kind, cluster)
        (message,) = clients.queue(_queue(kind)).receive(timedelta(seconds=60), 1)
        code = _in_child(lambda: _deliver_and_crash(kind, message, step))  # noqa: B023
        crashed = code == CRASHED
        if crashed:
            _recover(clients, kind, cluster, message)
        _report(clients, kind, cluster, step, crashed=crashed)
        if not crashed:
            assert code == FINISHED, f"step {step}: exit code {code}"
            return
        step += 1


def _ask(clients: Clients, kind: str, cluster: str) -> None:
    if kind == "nudge":
        world.wish(clients, cluster, "first")
        send_nudge(clients, Nudge(cluster=cluster, automation=world.AUTOMATION, reason="Test"))
    else:
        submit(clients, "backup", cluster, {}, operation_id=f"operation-{cluster}")


def _queue(kind: str) -> str:
    return world.AUTOMATION if kind == "nudge" else dispatch.QUEUE


def _deliver_and_crash(kind: str, message: Message, step: int) -> int:
    """Exit code 7 when the message was done before call number `step` could crash the process."""
    clients = Clients()
    _crash_after(step)
    world.handle(clients, _queue(kind), message)
    clients.queue(_queue(kind)).delete(message)
    return FINISHED


def _recover(clients: Clients, kind: str, cluster: str, message: Message) -> None:
    clients.queue(_queue(kind)).put_back(message)  # what its invisibility would do
    store = clients.blobs("kubekeeper")
    with suppress(ApiError, ConflictError):
        store.break_lease(f"{cluster}/{world.AUTOMATION}.lease")  # what 15 seconds would do
    code = _in_child(lambda: _deliver_again(kind))
    assert code == FINISHED, f"{cluster}: the second delivery ended with {code}"


def _deliver_again(kind: str) -> int:
    clients, queue = Clients(), _queue(kind)
    deadline = time.monotonic() + 60
    while clients.queue(queue).count():
        assert time.monotonic() < deadline, "the message is never done"
        world.deliver(clients, queue)
        time.sleep(0.1)
    return FINISHED


def _report(clients: Clients, kind: str, cluster: str, step: int, *, crashed: bool) -> None:
    operation = clients.operations.read(f"operation-{cluster}")
    with clients.claims.acquire(cluster, world.AUTOMATION):
        pass  # whatever the crashed run left open is settled by the next holder at the latest
    state = clients.claims.state(cluster, world.AUTOMATION)
    entries = clients.journal.entries([(cluster, world.AUTOMATION)])
    line = {
        "step": step,
        "crashed": crashed,
        "effects": world.effects(clients, cluster),
        "journalled": sorted(entry.target for entry in entries if entry.kind in ("Outcome", "Settled")),
        "openIntents": len(state.intents),
        "ended": state.ended,
        "operation": operation and str(operation.state),
        "left": clients.queue(_queue(kind)).count(),
    }
    print(json.dumps(line), flush=True)


def _in_child(run: Callable[[], int]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = run()
        except BaseException as error:  # noqa: BLE001 - a child must never return into the parent's code
            traceback.print_exception(error)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _crash_after(step: int) -> None:
    """End this process when HTTP request number `step` has been answered (0: before the first is sent)."""
    from azure.core.pipeline.transport import RequestsTransport

    send, count = RequestsTransport.send, [0]

    def crashing(self: Any, request: Any, **options: Any) -> Any:
        if step == 0:
            os._exit(CRASHED)
        answer = send(self, request, **options)
        count[0] += 1
        if count[0] == step:
            os._exit(CRASHED)
        return answer

    RequestsTransport.send = crashing  # type: ignore[method-assign]


def _warm_up() -> None:
    """Import the SDKs before forking: most of what an attempt would cost."""
    import azure.core.pipeline.transport
    import azure.data.tables
    import azure.storage.blob
    import azure.storage.queue  # noqa: F401

    clients = Clients()
    clients.settings()
    clients.blobs(world.EFFECTS).ensure()
    clients.blobs("kubekeeper").ensure()
    clients.queue(world.AUTOMATION).ensure()
    clients.queue(dispatch.QUEUE).ensure()


if __name__ == "__main__":
    main(sys.argv[1])
