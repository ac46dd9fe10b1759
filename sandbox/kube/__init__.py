"""A local Kubernetes: the API of kube-apiserver over objects in memory, on a clock that tests can move.

    with LocalKubernetes() as kubernetes:
        kubernetes.client().create("/api/v1/nodes", {"metadata": {"name": "a"}})
        subprocess.run(["kubectl", "--kubeconfig", kubernetes.kubeconfig(), "get", "nodes"])

Laid out as: `kinds` the table of what is served, `store` the objects and their history, `rules` what writes
do to them, `api` the HTTP side, `access` users and RBAC, `disruption` budgets and eviction, `discovery` and
`tables` what kubectl needs besides. What it must do like the real one is said by tests/contracts. Not
modelled: admission beyond defaults, validation of whole objects, field ownership, service account tokens,
conversion between versions, logs and exec.

`run_controllers` adds what lives in a cluster: see `controllers`, and `kubelets` for nodes in simulated time.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Self

import msgspec
import uvicorn

from sandbox.asgi import Fault, QuickServer, Recorded, on
from sandbox.certificates import Authority
from sandbox.clock import Clock
from sandbox.controlplane import kubeconfig_document
from sandbox.kube import access, kinds, rules
from sandbox.kube.api import KubeApi
from sandbox.kube.controllers import Background, Controller, Controllers
from sandbox.kube.endpoints import EndpointSlices
from sandbox.kube.kinds import Kind
from sandbox.kube.kubelets import Act, Driver, Kubelets, nothing
from sandbox.kube.lifecycle import (
    EVICTION_INTERVAL,
    GC_PERIOD,
    NODE_GRACE_PERIOD,
    NodeLifecycle,
    PodGarbageCollector,
    TaintEviction,
)
from sandbox.kube.objects import Objects
from sandbox.kube.scheduler import Scheduler
from sandbox.kube.store import Document, Record, Selection, Store
from sandbox.kube.volumes import DRIVERS, AttachDetach, VolumeBinder
from sandbox.kube.workloads import DaemonSets, Deployments, Heirs, ReplicaSets, StatefulSets
from sandbox.kube_client import KubeClient

START_SECONDS = 15
FIRST_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")


class LocalKubernetes:
    """A running stand-in, served over TLS on a free port; a context manager."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.store = Store()
        self.api = KubeApi(self.store, self.clock)
        self.directory = Path(tempfile.mkdtemp(prefix="kubekeeper-kube-"))
        # Also when nobody stops it, at the latest as the process ends.
        self._remove = weakref.finalize(self, shutil.rmtree, self.directory, ignore_errors=True)
        # asyncio switches Nagle off only for sockets that say they are TCP; else each answer takes 40 ms.
        self._socket = socket.socket(proto=socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.server = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self._clients: list[KubeClient] = []
        self._objects = Objects(self.api)
        self._controllers: Controllers | None = None
        self._background: Background | None = None
        self._uvicorn = QuickServer(self._configuration())
        self._thread = threading.Thread(target=self._serve, name=f"kubernetes {self.server}", daemon=True)
        for namespace in FIRST_NAMESPACES:
            self.put(kinds.NAMESPACES, {"metadata": {"name": namespace}})
            self.put(kinds.SERVICE_ACCOUNTS, {"metadata": {"name": "default", "namespace": namespace}})

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS
        while not self._uvicorn.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise RuntimeError(f"the stand-in at {self.server} did not start")
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Safe to call twice."""
        if self._background is not None:
            self._background.stop()
        for client in self._clients:
            client.close()
        self._clients.clear()
        self._uvicorn.end()
        if self._thread.is_alive():
            self._thread.join(START_SECONDS)
        self._socket.close()
        self._remove()

    def run_controllers(
        self,
        *,
        node_grace_period: timedelta = NODE_GRACE_PERIOD,
        gc_period: timedelta = GC_PERIOD,
        eviction_interval: timedelta = EVICTION_INTERVAL,
    ) -> None:
        """Scheduler and controllers, from now on; call it once.

        On a clock that stands still, they act when it is advanced, and have come to rest when that returns.
        """
        objects = self._objects
        with self.store.lock:
            running = self._controllers = Controllers(
                self.store,
                self.clock,
                objects,
                [
                    NodeLifecycle(objects, node_grace_period, eviction_interval),
                    TaintEviction(objects),
                    PodGarbageCollector(objects, gc_period),
                    Heirs(objects),
                    Deployments(objects),
                    ReplicaSets(objects),
                    StatefulSets(objects),
                    DaemonSets(objects),
                    VolumeBinder(objects),
                    Scheduler(objects),
                    AttachDetach(objects),
                    EndpointSlices(objects),
                ],
            )
        if self.clock.is_running:
            self._background = Background(self.clock, running)
            self._background.start()

    def add_controller(self, make: Callable[[Objects], Controller]) -> None:
        """One more controller, made of what controllers see."""
        assert self._controllers is not None, "run_controllers comes first"
        with self.store.lock:
            self._controllers.add(make(self._objects))

    @property
    def controller_failures(self) -> list[Exception]:
        """On the machine's clock; on one that stands still, `advance` raises them."""
        return self._background.failures if self._background is not None else []

    def run_kubelets(
        self,
        *,
        start_delay: timedelta = timedelta(0),
        stop_delay: timedelta = timedelta(0),
        mount: Act = nothing,
        unmount: Act = nothing,
    ) -> Kubelets:
        """Nodes on this cluster's clock; their containers take so long to start and to stop. Both acts are
        called with a volume's handle and a node's name.
        """
        assert self._controllers is not None, "run_controllers comes first"
        with self.store.lock:
            kubelets = Kubelets(
                self._objects, start_delay=start_delay, stop_delay=stop_delay, mount=mount, unmount=unmount
            )
            self._controllers.add(kubelets)
        return kubelets

    def run_driver(self, name: str, *, attach: Act, detach: Act) -> None:
        """A CSI driver on this cluster's clock: both are called with a volume's handle and a node's name."""
        assert self._controllers is not None, "run_controllers comes first"
        with self.store.lock:
            if self._objects.get(DRIVERS, name) is None:
                self.put(DRIVERS, {"metadata": {"name": name}, "spec": {"attachRequired": True}})
            self._controllers.add(Driver(self._objects, name, attach=attach, detach=detach))

    # Reaching it

    def client(self, user: str = "admin", groups: tuple[str, ...] = (access.ADMINISTRATORS,)) -> KubeClient:
        """A client of that user; closed with the stand-in."""
        token = self.api.tokens.issue(user, groups)
        client = KubeClient(self.server, ca=self.directory / "ca.pem", token=token, connections=32)
        self._clients.append(client)
        return client

    def kubeconfig(self, user: str = "admin", groups: tuple[str, ...] = (access.ADMINISTRATORS,)) -> Path:
        """A self-contained kubeconfig of that user; what others than administrators may do, RBAC says."""
        authority = base64.b64encode((self.directory / "ca.pem").read_bytes()).decode()
        token = self.api.tokens.issue(user, groups)
        cluster = {"server": self.server, "certificate-authority-data": authority}
        path = self.directory / f"{user}.kubeconfig"
        path.touch(mode=0o600)
        path.write_bytes(msgspec.json.encode(kubeconfig_document(cluster, {"token": token}, user=user)))
        return path

    @property
    def requests(self) -> list[Recorded]:
        """Everything asked, in order of arrival."""
        return self.api.requests

    @property
    def faults(self) -> list[Fault]:
        """What is still to go wrong."""
        return self.api.faults

    def forbid(self, method: str = "*", path: str = "") -> Fault:
        """Refuse matching requests (see `sandbox.asgi.on`) as RBAC does, whoever asks, until `times` of the
        fault that is returned is set to 0.
        """
        message = f'requests like "{method} {path}" are forbidden: User cannot do this here'
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        body = {**status, "message": message, "reason": "Forbidden", "details": {}, "code": 403}
        fault = Fault(on(method, path), 403, body, times=sys.maxsize)
        self.faults.append(fault)
        return fault

    # Behind its back

    def put(self, kind: Kind, document: Document) -> Record:
        """Stores an object without HTTP, with the defaults of a creation and the status it brings along."""
        namespace = document["metadata"].get("namespace", "")
        created = rules.created(kind, document, namespace, self.clock.now())
        if "status" in document:
            created["status"] = {**(created.get("status") or {}), **document["status"]}
        return self.store.write(kind, created)

    def load(self, kind: Kind, documents: Iterable[Document]) -> int:
        """Many new objects, complete with status and uid, as fast as can be: see `sandbox.kube.crowd`."""
        return self.store.load(kind, documents)

    def remove(self, kind: Kind, name: str, namespace: str = "", *, grace: int | None = None) -> None:
        """Begins a deletion, as anyone's DELETE would; nothing happens when there is no such object."""
        with self.store.lock:
            record = self.store.get(kind, (namespace, name))
            if record is not None:
                options = {} if grace is None else {"gracePeriodSeconds": grace}
                self.api.delete(kind, record.decode(), options)

    def objects(self, kind: Kind, namespace: str = "") -> list[Document]:
        """What there is of a kind, decoded."""
        with self.store.lock:
            return [record.decode() for record in self.store.select(kind, Selection(namespace))]

    # How

    def _configuration(self) -> uvicorn.Config:
        authority = Authority("Sandbox Kubernetes CA")
        serving = authority.issue("kube-apiserver")
        for name, text in (
            ("ca.pem", authority.pem),
            ("server.pem", serving.certificate),
            ("server.key", serving.key),
        ):
            path = self.directory / name
            path.touch(mode=0o600)
            path.write_text(text)
        return uvicorn.Config(
            self.api,
            log_level="critical",
            access_log=False,
            lifespan="off",
            ws="none",
            ssl_certfile=str(self.directory / "server.pem"),
            ssl_keyfile=str(self.directory / "server.key"),
            # Clients keep idle connections for later; one that is half closed over TLS would outlive us.
            timeout_keep_alive=3600,
            # A watch may go on for ever; stopping does not wait for it.
            timeout_graceful_shutdown=1,
        )

    def _serve(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        await self._uvicorn.serve(sockets=[self._socket])
        # A TLS connection is not closed before the other side has said so too: do not leave the loop to that.
        for connection in list(self._uvicorn.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0.02)
