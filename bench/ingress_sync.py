"""Compiling and proving the ingress of a large cluster: 1,000 Ingress objects with 5,000 endpoints.

80 hosts, 95 services with readiness probes, three paths an object: as much as one gateway can hold. CPU
seconds of one thread, medians of several rounds, since the machine may be busy. And from an event to the
write that it causes, through the app's own triggers in the local Functions host, with the default policy.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from bench.figure import Figure, at_most, faster
from sandbox.arm.gateway import new_gateway
from sandbox.demo.ingress_sync import AUTOMATION, CLUSTER, World
from sandbox.demo.screen import Screen
from shared.ingress_sync.backends import Backends
from shared.ingress_sync.compile import compile_gateway
from shared.ingress_sync.compiled import Compiled
from shared.ingress_sync.decide import decide_compiled
from shared.ingress_sync.ingress import translate
from shared.ingress_sync.observation import Observation, read_objects
from shared.ingress_sync.ownership import every_part
from shared.ingress_sync.proof import prove
from shared.ingress_sync.state import PartRecord, Settled, State, write_state
from shared.model.gateway import COLLECTIONS, part_digest, part_key
from shared.model.snapshot import AzureReading

GROUP = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network"
GATEWAY = f"{GROUP}/applicationGateways/gw"
PUBLIC = f"{GROUP}/publicIPAddresses/ip"
NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
INGRESSES, HOSTS, SERVICES, ENDPOINTS = 1_000, 80, 95, 5_000
ROUNDS = 15
PLACE = "/apis/networking.k8s.io/v1/namespaces/shop/ingresses"
EVENTS, BURST, BURST_SECONDS = 7, 100, 5.0
Emit = Callable[[Figure], None]
Document = dict[str, Any]


def run(wants: Callable[[str], bool], emit: Emit) -> None:
    """Every figure of the ingress sync that is wanted."""
    if any(map(wants, ("ingress-compile", "ingress-compile-and-prove", "ingress-no-change"))):
        for figure in _figures():
            if wants(figure.name):
                emit(figure)
    if wants("ingress-import"):
        emit(_imports())
    if wants("ingress-event-to-write") or wants("ingress-burst"):
        with World(Screen(0), policy="") as world:
            world.start()
            _furnish(world)
            if wants("ingress-event-to-write"):
                emit(_event_to_write(world))
            if wants("ingress-burst"):
                emit(_burst(world))


def _figures() -> list[Figure]:
    compiling, proving, both = [], [], []
    fresh = observation()
    compiled = decide_compiled(fresh, fresh.policy, NOW)[0]
    for _ in range(ROUNDS):
        first = cpu(lambda: compile_once(again(fresh)))
        second = cpu(lambda: prove(fresh, compiled))
        compiling.append(first)
        proving.append(second)
        both.append(cpu(lambda: decide_compiled(again(fresh), fresh.policy, NOW)))
    settled = settle(fresh, compiled)
    idle = [cpu(lambda: is_settled(again(settled))) for _ in range(ROUNDS)]
    whole = [cpu(lambda: decide_compiled(again(settled), settled.policy, NOW)) for _ in range(ROUNDS)]
    note = f"{INGRESSES} Ingress objects, {ENDPOINTS} endpoints, {HOSTS} hosts"
    fastest = f"the fastest of {ROUNDS} rounds took {min(compiling) * 1e3:.0f} and {min(both) * 1e3:.0f} ms"
    prove_note = (
        f"{note}; {prove(fresh, compiled).requests} requests; the proof alone "
        f"{statistics.median(proving) * 1e3:.0f} ms; with validation and the plan's texts"
    )
    idle_note = f"by digests; compiling and comparing instead: {statistics.median(whole) * 1e3:.0f} ms"
    return [
        at_most(
            "ingress-compile", statistics.median(compiling) * 1e3, "ms CPU", 100, note=f"{note}; {fastest}"
        ),
        at_most("ingress-compile-and-prove", statistics.median(both) * 1e3, "ms CPU", 300, note=prove_note),
        at_most("ingress-no-change", statistics.median(idle) * 1e3, "ms CPU", 50, note=idle_note),
    ]


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


def again(seen: Observation) -> Observation:
    """The same observation with nothing remembered of it."""
    return msgspec.structs.replace(seen)


def compile_once(seen: Observation) -> Compiled:
    """Front end and compiler."""
    backends = Backends(seen.kubernetes, seen.policy)
    return compile_gateway(seen, translate(seen, backends), backends, NOW)


def is_settled(seen: Observation) -> bool:
    """What a pass with nothing to do comes down to."""
    settled = seen.record.settled
    assert settled is not None
    return (settled.inputs, settled.gateway) == (seen.inputs_digest, seen.gateway_digest)


def settle(seen: Observation, compiled: Compiled) -> Observation:
    """As it is after the document was written and found in place."""
    document = compiled.document
    live = {part_key(c, str(p["name"])): part_digest(c, p) for c, p in every_part(document)}
    parts = {key: PartRecord(sent=sent, live=live[key]) for key, sent in compiled.parts.items()}
    readings = (AzureReading(id=GATEWAY, status=200, read_at=NOW, body=document), seen.azure[1])
    found = msgspec.structs.replace(seen, azure=readings)
    rest = Settled(inputs=found.inputs_digest, gateway=found.gateway_digest)
    state = write_state(State(parts=parts, routes=compiled.routes, settled=rest))
    settled = msgspec.structs.replace(found, state=state)
    assert is_settled(settled)
    again_compiled, _ = decide_compiled(settled, settled.policy, NOW)
    assert not again_compiled.changes, again_compiled.changes
    return settled


def observation() -> Observation:
    """The cluster and an empty gateway."""
    pages = {
        "ingressclasses": [
            {"metadata": {"name": "azure"}, "spec": {"controller": "azure/application-gateway"}}
        ],
        "ingresses": [_ingress(number) for number in range(INGRESSES)],
        "services": [_service(number) for number in range(SERVICES)],
        "endpointslices": [_slice(number) for number in range(SERVICES)],
        "pods": [_pod(number) for number in range(SERVICES)],
    }
    raw = {plural: [json.dumps({"items": found}).encode()] for plural, found in pages.items()}
    public: Document = {"properties": {"ipAddress": "20.1.2.3"}}
    return Observation(
        cluster="prod",
        now=NOW,
        cluster_entry={"name": "prod", "ingressSync": {"gateway": GATEWAY}},
        kubernetes=read_objects(raw),
        azure=(
            AzureReading(id=GATEWAY, status=200, read_at=NOW, body=_gateway()),
            AzureReading(id=PUBLIC, status=200, read_at=NOW, body=public),
        ),
    )


def _gateway() -> Document:
    properties = new_gateway(GATEWAY, PUBLIC)
    for collection in COLLECTIONS:
        for part in properties.get(collection) or []:
            part["id"] = f"{GATEWAY}/{collection}/{part['name']}"
    return {"id": GATEWAY, "name": "gw", "etag": "1", "location": "here", "properties": properties}


def _ingress(number: int) -> Document:
    host, service = f"host{number % HOSTS:02d}.example.com", f"app{number % SERVICES:02d}"
    backend = {"service": {"name": service, "port": {"number": 80}}}
    paths = [
        {"path": f"/team{number}", "pathType": "Prefix", "backend": backend},
        {"path": f"/team{number}/health", "pathType": "Exact", "backend": backend},
        {"path": f"/static{number}", "pathType": "Prefix", "backend": backend},
    ]
    return {
        "metadata": {
            "name": f"ing{number:04d}",
            "namespace": "shop",
            "uid": f"u{number}",
            "resourceVersion": str(number),
            "annotations": {"appgw.ingress.kubernetes.io/request-timeout": "60"},
        },
        "spec": {"ingressClassName": "azure", "rules": [{"host": host, "http": {"paths": paths}}]},
    }


def _service(number: int) -> Document:
    name = f"app{number:02d}"
    ports = [{"port": 80, "targetPort": "http", "name": "http"}]
    return {
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"selector": {"app": name}, "ports": ports},
    }


def _slice(number: int) -> Document:
    count = ENDPOINTS // SERVICES + (number < ENDPOINTS % SERVICES)
    endpoints = [
        {
            "addresses": [f"10.{number}.{one // 250}.{one % 250 + 1}"],
            "conditions": {"ready": True, "serving": True, "terminating": False},
            "targetRef": {"kind": "Pod", "namespace": "shop", "name": f"pod{number}-{one}", "uid": f"{one}"},
            "nodeName": f"node{one % 50}",
        }
        for one in range(count)
    ]
    return {
        "metadata": {
            "name": f"app{number:02d}-x",
            "namespace": "shop",
            "labels": {"kubernetes.io/service-name": f"app{number:02d}"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    }


def _pod(number: int) -> Document:
    probe = {"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10}
    container = {
        "name": "main",
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": probe,
    }
    return {
        "metadata": {"name": f"pod{number}-0", "namespace": "shop"},
        "spec": {"containers": [container]},
    }


def _imports() -> Figure:
    ours = [_import_seconds("import shared.ingress_sync.decide") for _ in range(5)]
    theirs = [_import_seconds("import azure.mgmt.network.models") for _ in range(5)]
    return faster(
        "ingress-import",
        ours,
        "import azure.mgmt.network.models",
        theirs,
        at_least=2,
        note="whole processes; the typed models are not on the path",
    )


def _import_seconds(statement: str) -> float:
    code = f"import time; t = time.process_time(); {statement}; print(time.process_time() - t)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(run.stdout)


# From an event to the write


def _furnish(world: World) -> None:
    world.kube.create("/api/v1/namespaces", {"metadata": {"name": "shop"}})
    spec = {"controller": "azure/application-gateway"}
    world.kube.create(
        "/apis/networking.k8s.io/v1/ingressclasses", {"metadata": {"name": "azure"}, "spec": spec}
    )
    _change(world, 0)  # a worker imports what it uses
    _settle(world)


def _change(world: World, number: int) -> None:
    """Another Ingress, and the event that the forwarder makes of it."""
    world.kube.create(PLACE, _ingress(number))
    kind = "Kubekeeper.Cluster.IngressChanged"
    event = {"specversion": "1.0", "id": str(number), "source": "/bench", "type": kind}
    world.host.send_events("cluster_event", [{**event, "data": {"cluster": CLUSTER}}])


def _settle(world: World) -> None:
    """Until every Ingress is served, and the queue has rested for longer than the host does."""
    claims = world.clients.claims

    def is_served() -> bool:
        state = claims.state(CLUSTER, AUTOMATION).automation
        found = world.kube.get(PLACE)["items"]
        return "put" not in state and all((one.get("status") or {}).get("loadBalancer") for one in found)

    world.wait("address of every Ingress", is_served, 120)
    time.sleep(2.5)  # the host rests at most 2 s between two looks into an idle queue


def _event_to_write(world: World) -> Figure:
    seconds = []
    for number in range(1, EVENTS + 1):
        before, began = world.writes(), time.monotonic()
        _change(world, number)
        world.wait("write", lambda before=before: world.writes() > before)  # type: ignore[misc]
        seconds.append(time.monotonic() - began)
        _settle(world)
    shown = ", ".join(f"{one:.1f}" for one in seconds)
    note = f"{EVENTS} events, each into a world at rest: {shown} s; of them 2 s of `quiet`"
    return at_most("ingress-event-to-write", statistics.median(seconds), "s", 5, note=note)


def _burst(world: World) -> Figure:
    before, began = world.writes(), time.monotonic()
    for number in range(BURST):
        time.sleep(max(0.0, began + number * BURST_SECONDS / BURST - time.monotonic()))
        _change(world, EVENTS + 1 + number)
    took = time.monotonic() - began
    _settle(world)
    note = f"writes of the gateway for {BURST} changes, each with its event, within {took:.1f} s"
    return at_most("ingress-burst", world.writes() - before, "writes", 2, note=note)
