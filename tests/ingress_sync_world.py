"""A world for scenarios of the ingress sync: local gateway, Kubernetes and storage on one clock.

`IngressWorld` runs the real runtime (`shared.work`) over queued nudges in simulated time; a worker is a
`Process`, which a test may let die at any request. The oracle looks at each write that reaches the gateway:
foreign parts are as they were, no own write is still running, the gateway is not stopped.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import in_process
from memory_storage import Account, MemoryBlobs, MemoryQueue, MemoryTable

from sandbox.arm import LocalArm
from sandbox.arm.core import Answer, ArmError, Call
from sandbox.arm.gateway import GATEWAYS
from sandbox.arm.gateway_rules import COLLECTIONS
from sandbox.clock import Clock
from sandbox.kube import LocalKubernetes, kinds
from shared import work
from shared.bootstrap import Clients
from shared.errors import AutomationError, LostLeaseError
from shared.operations import dispatch
from shared.runtime.message import Nudge, Received
from shared.runtime.nudge import send_nudge
from shared.settings import Settings, load_settings

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
AUTOMATION = "ingress-sync"
CLUSTER = "prod"
INGRESSES = kinds.named("ingresses", "networking.k8s.io")
CLASSES = kinds.named("ingressclasses", "networking.k8s.io")
SLICES = kinds.named("endpointslices", "discovery.k8s.io")
SERVICES, SECRETS = kinds.named("services"), kinds.named("secrets")
MAX_DEQUEUE_COUNT = 5
Document = dict[str, Any]


class Crash(BaseException):
    """The process is gone: nothing it still tries has any effect."""


@dataclass
class Process:
    """One worker. It dies at request number `dies_at`, if that is set: before or after it was worked on."""

    dies_at: int | None = None
    requests: list[str] = field(default_factory=list)
    is_dead: bool = False
    thread: int = field(default_factory=threading.get_ident)

    def touch(self, word: str) -> None:
        """Count a request, or the answer to one."""
        if threading.get_ident() != self.thread:
            if self.is_dead:
                raise LostLeaseError("this process is gone")
            return  # the renewal of the lease, whose time no test can say
        if not self.is_dead:
            self.requests.append(word)
            self.is_dead = self.dies_at is not None and len(self.requests) > self.dies_at
        if self.is_dead:
            raise Crash(word)


class _Counted:
    """A client whose calls are requests of a process."""

    def __init__(self, inner: Any, name: str, process: Process) -> None:
        self._inner, self._name, self._process = inner, name, process

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._inner, method)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            word = f"{self._name} {method} {arguments[0] if arguments else ''}"
            self._process.touch(word)
            done = found(*arguments, **options)
            if isinstance(done, Iterator):
                done = iter(list(done))
            self._process.touch(f"{word} done")
            return done

        return call


class WorldClients(Clients):
    """What one process reaches: everything of the world, until it dies."""

    def __init__(self, world: IngressWorld, process: Process) -> None:
        super().__init__(world.environ)
        self.world, self.process = world, process
        self.published: list[Any] = []

    def now(self) -> datetime:
        return self.world.clock.now()

    def settings(self) -> Settings:
        return self.world.settings

    def blobs(self, container: str) -> Any:
        return MemoryBlobs(self.world.account, container, self.process.touch)

    def queue(self, name: str) -> Any:
        return MemoryQueue(self.world.account, name, self.process.touch)

    def table(self, name: str) -> Any:
        return MemoryTable(self.world.account, name, self.process.touch)

    def kube(self, cluster: Any) -> Any:
        return _Counted(self.world.kube, "kube", self.process)

    @property
    def arm(self) -> Any:  # type: ignore[override]
        return _Counted(self.world.arm_client, "arm", self.process)

    @property
    def events(self) -> Any:  # type: ignore[override]
        return self

    def publish(self, events: list[Any]) -> None:
        """As a topic."""
        self.world.published += events


@dataclass(frozen=True)
class Put:
    """An own write that reached the gateway and was accepted."""

    at: datetime
    body: Document
    was: Document


class IngressWorld:
    """The world. Reused by many schedules: `reset` empties it, and time goes on."""

    def __init__(self, servers: Servers, directory: Path, *, policy: str = "", seconds: float = 20.0) -> None:
        self.directory = directory
        self.arm, self.kubernetes, self.clock = servers.arm, servers.kubernetes, servers.clock
        self.kube, self.arm_client = servers.kube, servers.arm_client
        servers.reset()
        self.account = Account(self.clock.now)
        self.published: list[Any] = []
        self.violations: list[str] = []
        self.puts: list[Put] = []
        self.at_end: list[Callable[[], object]] = []
        self.failures: list[str] = []
        self.poisoned: list[str] = []
        self.died = False
        self.gateway = self.arm.add_gateway("gw", tags={})
        self.arm.core.operation_seconds = seconds
        self.arm.core.polling_seconds = 10
        servers.watch = self._watch
        self._own: set[str] = set()
        self.environ = self._configure(policy)
        self.kubernetes.put(CLASSES, ingress_class())

    def _configure(self, policy: str) -> dict[str, str]:
        path = self.directory / "kubekeeper.yaml"
        path.write_text(
            "clusters:\n"
            f"- name: {CLUSTER}\n"
            f"  kubernetes: {{kubeconfig: 'file:{self.kubernetes.kubeconfig()}'}}\n"
            f"  azure: {{subscription: {LocalArm.subscription}, resourceGroups: [{LocalArm.group}],"
            " location: westeurope}\n"
            f"  ingressSync: {{gateway: '{self.gateway}'{policy and ', '}{policy}}}\n"
        )
        return {"KUBEKEEPER_CONFIG": str(path)}

    def close(self) -> None:
        """Undo what a test has done to the servers."""
        for undo in reversed(self.at_end):
            undo()
        self.at_end.clear()

    @cached_property
    def settings(self) -> Settings:
        """The configuration, read once for all workers."""
        return load_settings(self.environ)

    # Running

    def process(self, dies_at: int | None = None) -> WorldClients:
        """A new worker."""
        return WorldClients(self, Process(dies_at))

    def nudge(self, reason: str = "IngressChanged") -> None:
        """As an event of the cluster or the timer would."""
        send_nudge(self.process(), Nudge(cluster=CLUSTER, automation=AUTOMATION, reason=reason))

    def operate(self, operation: str, **parameters: Any) -> str:
        """As `keeper run` would; returns the operation's id."""
        return dispatch.submit(self.process(), operation, CLUSTER, parameters)

    def deliver(self, dies_at: int | None = None) -> int:
        """Work off what is visible now, returning how many messages; one that fails comes again in 30 s."""
        done = 0
        for queue in (AUTOMATION, dispatch.QUEUE):
            source = MemoryQueue(self.account, queue, lambda _: None)
            for message in source.receive(timedelta(seconds=30), 1):
                received = Received(
                    id=message.id,
                    body=message.text.encode(),
                    dequeue_count=message.dequeue_count,
                    inserted_at=message.inserted_at,
                )
                if self._handle(queue, received, dies_at):
                    source.delete(message)
                elif message.dequeue_count >= MAX_DEQUEUE_COUNT:
                    source.delete(message)
                    self.poisoned.append(self.failures[-1] if self.failures else message.text)
                done += 1
        return done

    def _handle(self, queue: str, received: Received, dies_at: int | None) -> bool:
        clients = self.process(dies_at)
        try:
            if queue == dispatch.QUEUE:
                dispatch.work_off(clients, received)
            else:
                work.work_off(clients, queue, received)
        except Crash:
            self.died = True
            return False  # the lease lives on for 30 s, and the message comes again
        except AutomationError as error:
            self.failures.append(str(error))
            return False
        return True

    def advance(self, seconds: float) -> None:
        """Time goes on, and with it operations, controllers, nodes."""
        self.clock.advance(seconds)

    def run(self, seconds: float, *, step: float = 0.5, each: Callable[[], object] = lambda: None) -> None:
        """Deliver whatever comes for so long."""
        end = self.clock.now() + timedelta(seconds=seconds)
        while self.clock.now() < end:
            each()
            while self.deliver():
                pass
            self.advance(step)

    def settle(self, most: float = 1800) -> None:
        """Deliver until nothing is queued any more; time jumps to whatever comes next."""
        end = self.clock.now() + timedelta(seconds=most)
        while self.clock.now() < end:
            while self.deliver():
                pass
            following = MemoryQueue(self.account, AUTOMATION, lambda _: None).next_visible()
            if following is None:
                return
            self.advance(max(0.5, (following - self.clock.now()).total_seconds()))
        raise AssertionError(f"not settled in {most} s; failures: {self.failures[-3:]}")

    # What is there

    @property
    def document(self) -> Document:
        """The gateway as it is stored, as the service shows it."""
        return json.loads(json.dumps(self.arm_client.get(self.gateway).document))

    @property
    def serving(self) -> Document:
        """The document that traffic meets."""
        return self.arm.core.state.resources[self.gateway.lower()].hidden["serving"]

    @property
    def state(self) -> Document:
        """The automation's own state document."""
        return self.process().claims.state(CLUSTER, AUTOMATION).automation

    def summary(self) -> Any:
        """What the last pass saw, did and left alone."""
        found = self.process().journal.summary(CLUSTER, AUTOMATION)
        assert found is not None
        return found

    def names(self, collection: str, document: Document | None = None) -> set[str]:
        """Names of the parts of a collection."""
        found = (document or self.document)["properties"].get(collection) or []
        return {part["name"] for part in found}

    def events_on(self, name: str, namespace: str = "shop") -> list[Document]:
        """Kubernetes Events about an Ingress."""
        found = self.kubernetes.objects(kinds.named("events"), namespace)
        return [event for event in found if event["involvedObject"]["name"] == name]

    def ingress(self, name: str, namespace: str = "shop") -> Document:
        """An Ingress as it is."""
        return next(
            one for one in self.kubernetes.objects(INGRESSES, namespace) if one["metadata"]["name"] == name
        )

    # What users do

    def apply(self, kind: Any, document: Document) -> None:
        """Create or replace an object, as kubectl would."""
        metadata = document["metadata"]
        path = kind.path(metadata.get("namespace", ""), metadata["name"])
        if self.kube.find(path) is None:
            self.kube.create(path.rpartition("/")[0], document)
        else:
            self.kube.replace(path, document)

    def delete(self, kind: Any, name: str, namespace: str = "shop") -> None:
        self.kube.delete(kind.path(namespace, name))

    def app(self, name: str, *hosts: str, addresses: tuple[str, ...] = ("10.1.0.1",), **more: Any) -> None:
        """A Service with endpoints, and an Ingress for the hosts."""
        self.apply(SERVICES, service(name))
        self.endpoints(name, *addresses)
        self.apply(INGRESSES, ingress(name, *hosts, **more))

    def endpoints(self, name: str, *addresses: str | tuple[str, str]) -> None:
        """The EndpointSlice of a Service; `(address, "terminating")` serves and goes."""
        self.apply(SLICES, slice_of(name, *addresses))

    def foreign(self, change: Callable[[Document], None]) -> bool:
        """Somebody else changes the gateway: reads it, and puts it back changed; whether it was accepted."""
        core = self.arm.core
        with core.lock:
            body = json.loads(json.dumps(core.types[GATEWAYS.lower()].render(core.state.find(self.gateway))))
            change(body)
            try:
                core.do("PUT", self.gateway, body, at_once=False)
            except ArmError:
                return False
        return True

    # The oracle

    def _watch(self, call: Call, work: Callable[[Call], Answer]) -> Answer:
        core, is_own = call.core, bool(call.headers)
        before = core.state.find(call.id)
        was = json.loads(json.dumps(before.body)) if before else {}
        running = [one.id for one in core.running_on(call.id) if one.id in self._own]
        answer = work(call)
        if is_own:
            after = core.state.find(call.id)
            assert after is not None
            self._check(was, json.loads(json.dumps(after.body)), running)
            self.puts.append(Put(self.clock.now(), call.body, was))
            self._own |= {
                one.id for one in core.state.operations.values() if one.resource.lower() == call.id.key
            }
        return answer

    def _check(self, was: Document, now: Document, running: list[str]) -> None:
        at = f"{self.clock.now():%H:%M:%S}"
        if running:
            self.violations.append(f"{at} a second own write while one is running")
        if was["properties"]["operationalState"] == "Stopped":
            self.violations.append(f"{at} a write to a stopped gateway")
        for difference in foreign_differences(was, now):
            self.violations.append(f"{at} foreign: {difference}")


PREFIX = "kk_prod_"


def foreign_differences(was: Document, now: Document) -> list[str]:
    """What of others differs between two stored documents."""
    found = [key for key in was.keys() | now.keys() if key != "properties" and was.get(key) != now.get(key)]
    old, new = was["properties"], now["properties"]
    skipped = {*COLLECTIONS, "provisioningState", "operationalState", "resourceGuid"}
    found += [key for key in old.keys() | new.keys() if key not in skipped and old.get(key) != new.get(key)]
    for collection in COLLECTIONS:
        ours, theirs = (
            {
                part["name"]: _bare(part)
                for part in properties.get(collection) or []
                if not is_own(part["name"])
            }
            for properties in (old, new)
        )
        names = ours.keys() | theirs.keys()
        found += [f"{collection}/{name}" for name in sorted(names) if ours.get(name) != theirs.get(name)]
    return found


def is_own(name: str) -> bool:
    return name.startswith(PREFIX)


def _bare(part: Document) -> Document:
    inside = {
        name: value
        for name, value in part["properties"].items()
        if name not in ("requestRoutingRules", "urlPathMaps") or "redirectType" not in part["properties"]
    }
    return {"name": part["name"], "properties": {k: v for k, v in inside.items() if k != "provisioningState"}}


def hosts(document: Document) -> set[str]:
    """Host names that our listeners of a document take."""
    found: set[str] = set()
    for listener in document["properties"]["httpListeners"]:
        inside = listener["properties"]
        if is_own(listener["name"]):
            found |= set(inside.get("hostNames") or [inside.get("hostName", "")])
    return found


def targets(document: Document) -> set[str]:
    """Addresses behind our pools."""
    return {
        to["ipAddress"]
        for pool in document["properties"]["backendAddressPools"]
        for to in pool["properties"].get("backendAddresses") or []
        if is_own(pool["name"])
    }


class Servers:
    """What is started once for many worlds. With `sockets` False clients reach it as `in_process` says."""

    def __init__(self, *, sockets: bool = True) -> None:
        self.sockets = sockets
        self.clock = Clock(START)
        self.arm = LocalArm(self.clock)
        self.kubernetes = LocalKubernetes(self.clock)
        self.watch: Callable[[Call, Callable[[Call], Answer]], Answer] | None = None

    def __enter__(self) -> Servers:
        from shared.clients.arm import arm
        from shared.clients.kube import kube_client
        from shared.settings import KubernetesConnection

        self.arm.__enter__()
        self.kubernetes.__enter__()
        if self.sockets:
            environ = {"KUBEKEEPER_ARM_ENDPOINT": self.arm.url}
            self.arm_client = arm(environ, credential=self.arm.credential(), now=self.clock.now)
            path = self.kubernetes.kubeconfig()
            self.kube = kube_client(KubernetesConnection(kubeconfig=f"file:{path}"), {})
        else:
            self.arm_client = in_process.arm_client(self.arm, self.clock.now)
            self.kube = in_process.kube_client(self.kubernetes)
        gateways = self.arm.core.types[GATEWAYS.lower()]
        put = gateways.put
        gateways.put = lambda call: self.watch(call, put) if self.watch else put(call)  # type: ignore[method-assign]
        return self

    def reset(self) -> None:
        """Everything empty, nothing scripted; time goes on."""
        self.watch = None
        self.arm.reset()
        with self.kubernetes.store.lock:
            for kind in (INGRESSES, CLASSES, SLICES, SERVICES, SECRETS, kinds.PODS, kinds.named("events")):
                for record in list(self.kubernetes.store.select(kind)):
                    self.kubernetes.store.remove(kind, record.key)
        self.kubernetes.faults.clear()
        self.kubernetes.requests.clear()
        for namespace in ("shop", "other"):
            self.kubernetes.put(kinds.NAMESPACES, {"metadata": {"name": namespace}})

    def __exit__(self, *_: object) -> None:
        self.kube.close()
        self.kubernetes.stop()
        self.arm.__exit__(None, None, None)


# Objects


def ingress_class(name: str = "azure", controller: str = "azure/application-gateway") -> Document:
    return {"metadata": {"name": name}, "spec": {"controller": controller}}


def service(name: str, port: int = 80, target: int | str = 8080, namespace: str = "shop") -> Document:
    spec = {"selector": {"app": name}, "ports": [{"port": port, "targetPort": target, "protocol": "TCP"}]}
    return {"metadata": {"name": name, "namespace": namespace}, "spec": spec}


def slice_of(
    name: str, *addresses: str | tuple[str, str], port: int = 8080, namespace: str = "shop"
) -> Document:
    endpoints = []
    for given in addresses:
        address, how = given if isinstance(given, tuple) else (given, "ready")
        conditions = {
            "ready": how == "ready",
            "serving": how != "unready",
            "terminating": how == "terminating",
        }
        endpoints.append({"addresses": [address], "conditions": conditions})
    return {
        "metadata": {
            "name": f"{name}-slice",
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "", "port": port, "protocol": "TCP"}],
    }


def ingress(
    name: str,
    *hosts: str,
    path: str = "/",
    service: str = "",
    tls: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    class_name: str = "azure",
    namespace: str = "shop",
) -> Document:
    """One rule for each host (or one without), all to port 80 of the Service of the same name."""
    backend = {"service": {"name": service or name, "port": {"number": 80}}}
    http = {"paths": [{"path": path, "pathType": "Prefix", "backend": backend}]}
    spec: Document = {
        "ingressClassName": class_name,
        "rules": [{"host": host, "http": http} for host in hosts] or [{"http": http}],
    }
    if tls:
        spec["tls"] = [{"hosts": [host], "secretName": secret} for host, secret in tls.items()]
    metadata = {"name": name, "namespace": namespace, "annotations": dict(annotations or {})}
    return {"metadata": metadata, "spec": spec}
