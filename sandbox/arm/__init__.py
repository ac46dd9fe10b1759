"""A local Azure Resource Manager over real HTTP, for the unmodified azure-mgmt SDKs.

    with LocalArm() as arm:
        account = arm.add_storage_account("backups")
        client = StorageManagementClient(arm.credential(), arm.subscription, base_url=arm.url, ...)

`core` is what all providers share, `storage` is Microsoft.Storage. What is and is not modelled stands in
docs/reference/local-azure.md.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from starlette.applications import Starlette
from starlette.routing import Route

from sandbox.arm import storage
from sandbox.arm.core import Core
from sandbox.arm.state import State
from sandbox.asgi import Fault, Recorder, Server
from sandbox.clock import Clock
from sandbox.identity import Credential, Directory

SUBSCRIPTION = "30000000-0000-4000-8000-000000000003"
GROUP = "kubekeeper"
METHODS = ["GET", "HEAD", "PUT", "PATCH", "POST", "DELETE"]


class LocalArm:
    """A running service with one subscription and resource group; `core.state` may be read and changed."""

    subscription = SUBSCRIPTION
    group = GROUP

    def __init__(self, clock: Clock | None = None, directory: Directory | None = None) -> None:
        self.directory = directory or Directory()
        self.core = Core(clock or Clock(), self.directory, storage.types())
        self.core.add_group(SUBSCRIPTION, GROUP)
        self.recorder = Recorder(
            Starlette(routes=[Route("/{path:path}", self.core.__call__, methods=METHODS)])
        )
        self._server = Server(self.recorder)

    @property
    def url(self) -> str:
        return self._server.url

    def credential(self) -> Credential:
        return self.directory.credential()

    def fault(self, fault: Fault) -> None:
        """Something to go wrong with requests to come; see `sandbox.asgi.Fault`."""
        self.recorder.faults.append(fault)

    def add_storage_account(self, name: str, **properties: object) -> str:
        """An account as `az storage account create` leaves it, with these properties besides; returns its
        id.
        """
        return storage.add_account(self.core, SUBSCRIPTION, GROUP, name, properties)

    def reset(self) -> None:
        """As new, no resources but the group, no faults, nothing recorded, nothing denied; time goes on."""
        with self.core.lock:
            self.core.reset()
            self.core.add_group(SUBSCRIPTION, GROUP)
            self.recorder.requests.clear()
            self.recorder.faults.clear()

    def dump(self) -> bytes:
        return self.core.state.dump()

    def load(self, data: bytes) -> None:
        self.core.state = State.load(data)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
