"""Compiling and proving the ingress of a large cluster: 1,000 Ingress objects with 5,000 endpoints.

80 hosts, 95 services with readiness probes, three paths an object: as much as one gateway can hold. CPU
seconds of one thread, medians of several rounds, since the machine may be busy.
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
Emit = Callable[[Figure], None]
Document = dict[str, Any]


def run(wants: Callable[[str], bool], emit: Emit) -> None:
    """Every figure of the ingress sync that is wanted."""
    names = ("ingress-compile", "ingress-compile-and-prove", "ingress-no-change", "ingress-import")
    if not any(map(wants, names)):
        return
    if any(map(wants, names[:3])):
        for figure in _figures():
            if wants(figure.name):
                emit(figure)
    if wants("ingress-import"):
        emit(_imports())


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
