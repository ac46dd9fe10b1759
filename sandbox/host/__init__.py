"""The local Azure Functions host: runs this app's own triggers as the platform does, on Azurite, without
.NET.

What it keeps of the platform (Azure/azure-webjobs-sdk, azure-webjobs-sdk-extensions, azure-functions-host),
because the app's design leans on it: timers with a schedule monitor and one holder, queues with dequeue
counts, invisibility and poison queues, Event Grid's handshake and its all-or-nothing batches, keys, the admin
API, and a worker process that a function timeout ends with everything in it. What it does not have: scale-out
decisions, retry policies, identity connections, proxies, bindings other than the triggers this app uses.

`python -m sandbox host` runs it; tests start it with `sandbox.host.process.HostProcess`.
"""

from __future__ import annotations


def main(arguments: list[str]) -> int:
    from sandbox.host.run import main as run

    return run(arguments)
