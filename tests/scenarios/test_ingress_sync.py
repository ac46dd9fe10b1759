"""An ingress in simulated time: real passes, a local gateway, queue messages between them."""

from __future__ import annotations

import base64
import copy
import json
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ingress_sync_world import (
    INGRESSES,
    SECRETS,
    SERVICES,
    SLICES,
    IngressWorld,
    Servers,
    hosts,
    ingress,
    service,
    slice_of,
    targets,
)

from sandbox.arm.core import ArmError, Ending
from sandbox.asgi import Fault, on
from sandbox.certificates import Authority
from sandbox.kube import kinds


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture
def world(servers: Servers, tmp_path: Path) -> Iterator[IngressWorld]:
    world = IngressWorld(servers, tmp_path)
    yield world
    world.close()
    assert world.violations == []


def address_of(world: IngressWorld, name: str) -> list[dict[str, str]]:
    return (world.ingress(name).get("status") or {}).get("loadBalancer", {}).get("ingress") or []


def test_an_ingress_appears_and_gets_its_address_only_after_success(world: IngressWorld) -> None:
    world.app("web", "web.example", addresses=("10.1.0.1", "10.1.0.2"))
    world.nudge()
    world.run(5)
    assert len(world.puts) == 1 and "web.example" in hosts(world.document)
    assert "web.example" not in hosts(world.serving) and address_of(world, "web") == []
    world.settle()
    assert "web.example" in hosts(world.serving) and targets(world.serving) == {"10.1.0.1", "10.1.0.2"}
    assert address_of(world, "web")[0]["ip"].startswith("20.")
    assert world.failures == []


def test_nothing_is_written_when_nothing_changes(world: IngressWorld) -> None:
    world.app("web", "web.example")
    world.nudge()
    world.settle()
    world.arm.recorder.requests.clear()
    world.kubernetes.requests.clear()
    for _ in range(3):
        world.advance(60)
        world.nudge("Timer")
        world.settle()
    assert len(world.puts) == 1
    assert not [one for one in world.kubernetes.requests if one.method != "GET"]
    assert len(world.arm.recorder.requests) == 6, "the gateway and its address, three times"
    assert len(world.kubernetes.requests) <= 18


def test_a_hundred_changes_in_five_seconds_are_at_most_two_writes(world: IngressWorld) -> None:
    for number in range(100):
        name = f"app{number % 20:02d}"
        world.app(name, f"{name}.example", addresses=(f"10.1.0.{number + 1}",))
        world.nudge()
        world.deliver()
        world.advance(0.05)
    world.settle()
    assert len(world.puts) <= 2
    assert len(hosts(world.serving)) == 20
    assert targets(world.serving) == {f"10.1.0.{number}" for number in range(81, 101)}


def test_a_single_change_is_written_within_five_seconds(world: IngressWorld) -> None:
    world.app("web", "web.example")
    world.settle()
    before, began = world.clock.now(), time.process_time()
    world.nudge()
    while not world.puts:
        world.run(0.1, step=0.1)
    waited = (world.puts[0].at - before).total_seconds()
    assert waited + time.process_time() - began < 5, f"waited {waited} s, and worked the rest"


def refuse(world: IngressWorld, name: str, *, says_who: bool = True, times: int = 99) -> None:
    """Azure refuses every document that holds the host `<name>.example`."""
    gateways = world.arm.core.types["microsoft.network/applicationgateways"]
    work = gateways.put

    def put(call: Any) -> Any:
        for listener in call.document["properties"]["httpListeners"]:
            inside = listener["properties"]
            if call.headers and f"{name}.example" in [
                inside.get("hostName"),
                *(inside.get("hostNames") or []),
            ]:
                where = f" {call.id}/httpListeners/{listener['name']}" if says_who else ""
                raise ArmError(400, "ApplicationGatewayNotLiked", f"Not liked:{where}")
        return work(call)

    gateways.put = put  # type: ignore[method-assign]
    world.at_end.append(lambda: setattr(gateways, "put", work))


@pytest.mark.parametrize("says_who", [True, False], ids=["named", "unnamed"])
def test_what_azure_refuses_is_left_out_alone_and_the_others_are_served(
    world: IngressWorld, says_who: bool
) -> None:
    refuse(world, "app3", says_who=says_who)
    for number in range(8):
        world.app(f"app{number}", f"app{number}.example")
    world.nudge()
    world.settle()
    assert hosts(world.serving) == {f"app{n}.example" for n in range(8) if n != 3}
    (event,) = [one for one in world.events_on("app3") if one["reason"] == "RefusedByAzure"]
    assert event["type"] == "Warning" and "ApplicationGatewayNotLiked" in event["message"]
    assert [one.subject for one in world.published if one.type.endswith("IngressSync.Quarantined")] == [
        "shop/app3"
    ]
    assert address_of(world, "app3") == [] and address_of(world, "app4")
    written = len(world.puts)
    world.nudge()
    world.settle()
    assert len(world.puts) == written, "what was refused is not sent again as long as it is the same"


def test_two_that_are_refused_without_a_name_are_both_found(world: IngressWorld) -> None:
    refuse(world, "app1", says_who=False)
    refuse(world, "app6", says_who=False)
    for number in range(8):
        world.app(f"app{number}", f"app{number}.example")
    world.nudge()
    world.settle()
    assert hosts(world.serving) == {f"app{n}.example" for n in range(8) if n not in (1, 6)}
    assert world.arm.recorder.count("PUT", "applicationGateways") <= 16


def test_a_refused_change_leaves_the_last_good_routes_in_place(world: IngressWorld) -> None:
    world.app("web", "web.example")
    world.nudge()
    world.settle()
    refuse(world, "bad")
    world.apply(INGRESSES, ingress("web", "bad.example"))
    world.app("more", "more.example")
    world.nudge()
    world.settle()
    assert hosts(world.serving) == {"web.example", "more.example"}
    world.apply(INGRESSES, ingress("web", "good.example"))
    world.nudge()
    world.settle()
    assert hosts(world.serving) == {"good.example", "more.example"}


def test_a_gateway_that_ends_in_failed_goes_back_to_the_last_good_document(world: IngressWorld) -> None:
    world.app("web", "web.example")
    world.nudge()
    world.settle()
    good = targets(world.serving), hosts(world.serving)
    world.arm.core.endings.append(Ending(on="applicationGateways/put", times=1))
    world.app("one", "one.example")
    world.app("two", "two.example")
    world.nudge()
    world.run(45)
    assert world.puts[1].body != world.puts[2].body
    world.settle()
    assert world.document["properties"]["provisioningState"] == "Succeeded"
    assert good[0] <= targets(world.serving) and good[1] <= hosts(world.serving)
    events = [one.type.rpartition(".")[2] for one in world.published]
    assert "WriteFailed" in events and "RolledBack" in events


def test_a_write_that_was_cut_short_is_sent_again_before_it_counts(world: IngressWorld) -> None:
    world.arm.core.endings.append(Ending(on="applicationGateways/put", status="Canceled", code=None))
    world.app("web", "web.example")
    world.nudge()
    while len(world.puts) < 2:
        world.run(1)
        assert address_of(world, "web") == []
    assert "web.example" in hosts(world.document) and "web.example" not in hosts(world.serving)
    world.settle()
    assert "web.example" in hosts(world.serving) and address_of(world, "web")
    assert len(world.puts) == 2


def test_a_stopped_gateway_is_not_written_until_it_runs(world: IngressWorld) -> None:
    world.arm.core.do("POST", world.gateway, None, "stop")
    world.app("web", "web.example")
    world.nudge()
    world.settle()
    assert world.puts == []
    world.arm.core.do("POST", world.gateway, None, "start")
    world.nudge()
    world.settle()
    assert "web.example" in hosts(world.serving)


def test_a_busy_gateway_is_waited_for(world: IngressWorld) -> None:
    world.app("web", "web.example")
    world.foreign(lambda document: document.update(tags={"by": "portal"}))
    world.nudge()
    world.run(15)
    assert world.puts == []
    world.settle()
    assert "web.example" in hosts(world.serving) and world.document["tags"] == {"by": "portal"}


@pytest.mark.parametrize(
    "fault",
    [
        Fault(on("PUT", "/applicationGateways/"), status=412, body={"error": {"code": "PreconditionFailed"}}),
        Fault(on("PUT", "/applicationGateways/"), status=409, body={"error": {"code": "AnotherOperation"}}),
        Fault(on("PUT", "/applicationGateways/"), status=429, headers={"Retry-After": "17"}),
        Fault(on("PUT", "/applicationGateways/"), status=503),
        Fault(on("PUT", "/applicationGateways/"), lose_answer=True),
        Fault(on("GET", "/applicationGateways/"), status=503, skip=1, times=3),
        Fault(on("GET", "/operations/"), status=503, times=3),
        Fault(on("GET", "/operations/"), lose_answer=True, times=2),
    ],
    ids=["412", "409", "429", "503", "lost", "read-503", "poll-503", "poll-lost"],
)
def test_a_fault_costs_time_and_nothing_else(world: IngressWorld, fault: Fault) -> None:
    world.arm.fault(replace(fault))
    world.app("web", "web.example")
    world.nudge()
    world.settle()
    assert "web.example" in hosts(world.serving) and address_of(world, "web")


def test_pools_that_change_often_are_written_half_a_minute_apart(world: IngressWorld) -> None:
    world.app("web", "web.example")
    world.nudge()
    world.settle()
    world.advance(120)
    for number in range(60):
        world.endpoints("web", f"10.1.1.{number}")
        world.nudge("EndpointsChanged")
        world.run(2)
    world.settle()
    times = [put.at for put in world.puts[1:]]
    gaps = [(after - before).total_seconds() for before, after in pairwise(times)]
    assert len(times) <= 6 and min(gaps) >= 29
    assert targets(world.serving) == {"10.1.1.59"}


def test_an_operation_writes_at_once_and_tells_what_it_did(world: IngressWorld) -> None:
    world.app("web", "web.example")
    identity = world.operate("sync-ingress")
    world.deliver()
    assert len(world.puts) == 1
    world.settle()
    record = world.process().operations.read(identity)
    assert record is not None and record.state == "Succeeded"
    identity = world.operate("sync-ingress")
    world.settle()
    record = world.process().operations.read(identity)
    assert record is not None and record.message == "the gateway is as the Ingress objects want it"


AUTHORITY = Authority()


def put_secret(world: IngressWorld, name: str, host: str) -> str:
    """A TLS Secret, new or renewed; returns the private key's text."""
    issued = AUTHORITY.issue(host, names=(host,))
    data = {"tls.crt": issued.certificate, "tls.key": issued.key}
    encoded = {key: base64.b64encode(text.encode()).decode() for key, text in data.items()}
    metadata = {"name": name, "namespace": "shop"}
    world.apply(SECRETS, {"metadata": metadata, "type": "kubernetes.io/tls", "data": encoded})
    return issued.key


def certificates(world: IngressWorld) -> set[str]:
    return {name for name in world.names("sslCertificates", world.serving) if name.startswith("kk_")}


def test_a_certificate_is_uploaded_renewed_without_a_gap_and_removed_when_its_time_is_over(
    world: IngressWorld,
) -> None:
    put_secret(world, "tls", "web.example")
    world.app("web", "web.example", tls={"web.example": "tls"})
    world.nudge()
    world.settle()
    (first,) = certificates(world)
    https = [one["properties"] for one in world.serving["properties"]["httpListeners"]]
    assert any(one["protocol"] == "Https" and one["sslCertificate"]["id"].endswith(first) for one in https)
    put_secret(world, "tls", "web.example")
    world.nudge()
    world.settle()
    assert first in certificates(world) and len(certificates(world)) == 2, "going back needs no upload"
    used = [
        one["properties"]["sslCertificate"]["id"].rpartition("/")[2]
        for one in world.serving["properties"]["httpListeners"]
        if one["properties"].get("sslCertificate")
    ]
    assert first not in used
    world.advance(25 * 3600)
    world.nudge("Timer")
    world.settle()
    assert first not in certificates(world) and len(certificates(world)) == 1


def test_a_private_key_is_in_the_request_and_nowhere_else(
    world: IngressWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    key = put_secret(world, "tls", "web.example")
    world.app("web", "web.example", tls={"web.example": "tls"})
    world.nudge()
    world.settle()
    sent = [put.body for put in world.puts if "password" in json.dumps(put.body)]
    assert len(sent) == 1, "it is sent once"
    (part,) = [p for p in sent[0]["properties"]["sslCertificates"] if "data" in p["properties"]]
    secrets = [part["properties"]["data"], part["properties"]["password"]]
    secrets += [line for line in key.splitlines() if len(line) > 40]
    secrets += [base64.b64encode(key.encode()).decode()[40:120]]
    kept = repr([world.account.containers, world.account.queues, world.account.tables, world.published])
    plain = b"".join(
        zlib.decompress(blob.data)
        for blobs in world.account.containers.values()
        for blob in blobs.values()
        if blob.data[:1] == b"\x78"
    ).decode()
    for secret in secrets:
        assert secret not in kept and secret not in plain and secret not in caplog.text
    assert "certificate" in plain.lower(), "the last good document was looked into"


def test_a_secret_that_changes_between_reading_and_writing_is_read_again(world: IngressWorld) -> None:
    put_secret(world, "tls", "web.example")
    world.app("web", "web.example", tls={"web.example": "tls"})
    world.nudge()
    world.deliver()
    world.advance(2.5)
    path = "/secrets/tls"
    world.kubernetes.faults.append(
        Fault(on("GET", path), skip=1, before=lambda: put_secret(world, "tls", "web.example"))
    )
    world.settle()
    assert "web.example" in hosts(world.serving) and len(certificates(world)) == 1


def test_a_removed_listener_waits_for_approval_where_the_policy_says_so(
    servers: Servers, tmp_path: Path
) -> None:
    world = IngressWorld(servers, tmp_path, policy="approval: {listenerRemoval: true}")
    for name in ("web", "old"):
        world.app(name, f"{name}.example")
    world.nudge()
    world.settle()
    world.delete(INGRESSES, "old")
    world.app("new", "new.example")
    world.nudge()
    world.settle()
    assert "old.example" in hosts(world.serving), "nothing goes without approval"
    left = world.summary().left_alone
    (waiting,) = [one for one in left if one["reason"] == "ApprovalRequired"]
    digest = re.search(r"[0-9a-f]{32,64}", waiting["message"])
    assert digest is not None, waiting
    world.operate("approve", automation="ingress-sync", subject="0" * 32)
    world.settle()
    assert "old.example" in hosts(world.serving), "another document was approved"
    world.operate("approve", automation="ingress-sync", subject=digest[0])
    world.settle()
    assert hosts(world.serving) == {"web.example", "new.example"}
    assert world.violations == []


def test_terminating_endpoints_stay_while_nothing_else_answers(world: IngressWorld) -> None:
    world.app("web", "web.example", addresses=("10.1.0.1", "10.1.0.2"))
    world.nudge()
    world.settle()
    for endpoints, expected in (
        ((("10.1.0.1", "terminating"), ("10.1.0.2", "terminating"), ("10.1.0.3", "unready")), {1, 2}),
        ((("10.1.0.1", "terminating"), ("10.1.0.2", "terminating"), "10.1.0.3"), {3}),
        (("10.1.0.3", "10.1.0.4"), {3, 4}),
    ):
        world.endpoints("web", *endpoints)
        world.advance(60)
        world.nudge("EndpointsChanged")
        world.settle()
        assert targets(world.serving) == {f"10.1.0.{number}" for number in expected}


def test_a_pod_with_the_readiness_gate_is_ready_when_the_gateway_says_so(
    servers: Servers, tmp_path: Path
) -> None:
    world = IngressWorld(servers, tmp_path, policy="readinessGate: true")
    gated_pod(world, "web-1", "10.1.0.1")
    world.apply(SERVICES, service("web"))
    world.apply(SLICES, slice_with(world, "web-1", "10.1.0.1"))
    world.apply(INGRESSES, ingress("web", "web.example"))
    world.arm.truth.unhealthy_backends["10.1.0.1"] = "Connection refused"
    world.nudge()
    world.run(120, step=2)
    assert targets(world.serving) == {"10.1.0.1"} and gate(world, "web-1") == ""
    del world.arm.truth.unhealthy_backends["10.1.0.1"]
    world.run(60, step=2)
    assert gate(world, "web-1") == "True"
    asked = world.arm.recorder.count("POST", "backendhealth")
    world.settle()
    world.nudge("Timer")
    world.settle()
    assert world.arm.recorder.count("POST", "backendhealth") <= asked + 1, "nobody waits, nobody asks"
    assert world.violations == []


def gated_pod(world: IngressWorld, name: str, address: str) -> None:
    metadata = {"name": name, "namespace": "shop", "labels": {"app": "web"}}
    spec = {
        "containers": [{"name": "main", "image": "m", "ports": [{"containerPort": 8080}]}],
        "readinessGates": [{"conditionType": "kubekeeper.io/gateway-ready"}],
    }
    conditions = [{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": "False"}]
    status = {"phase": "Running", "podIP": address, "conditions": conditions}
    world.kubernetes.put(kinds.PODS, {"metadata": metadata, "spec": spec, "status": status})


def slice_with(world: IngressWorld, pod: str, address: str) -> dict[str, Any]:
    """A slice with that pod, not ready as its gate is not."""
    found = slice_of("web", (address, "unready"))
    about = next(p for p in world.kubernetes.objects(kinds.PODS, "shop") if p["metadata"]["name"] == pod)
    target = {"kind": "Pod", "namespace": "shop", "name": pod, "uid": about["metadata"]["uid"]}
    found["endpoints"][0]["targetRef"] = target
    return found


def gate(world: IngressWorld, pod: str) -> str:
    """The gate's condition, "" where it was never set."""
    found = next(p for p in world.kubernetes.objects(kinds.PODS, "shop") if p["metadata"]["name"] == pod)
    conditions = found["status"].get("conditions") or []
    return next((c["status"] for c in conditions if c["type"] == "kubekeeper.io/gateway-ready"), "")


def test_foreign_parts_of_another_cluster_and_of_the_portal_stay(world: IngressWorld) -> None:
    def add(document: dict[str, Any]) -> None:
        properties = document["properties"]
        listener = copy.deepcopy(properties["httpListeners"][0])
        listener |= {"name": "by-hand"}
        listener["properties"] |= {"hostName": "by-hand.example"}
        rule = copy.deepcopy(properties["requestRoutingRules"][0])
        rule |= {"name": "kk_other_rule"}
        rule["properties"] |= {
            "priority": 7,
            "httpListener": {"id": f"{document['id']}/httpListeners/by-hand"},
        }
        properties["httpListeners"].append(listener)
        properties["requestRoutingRules"].append(rule)
        properties["probes"] = [{"name": "kk_prodigy_p", "properties": PROBE}]

    world.arm.core.operation_seconds = 0.0
    assert world.foreign(add)
    for name in ("web", "more"):
        world.app(name, f"{name}.example")
        world.nudge()
        world.settle()
    world.delete(INGRESSES, "web")
    world.nudge()
    world.settle()
    assert "by-hand" in world.names("httpListeners") and "kk_prodigy_p" in world.names("probes")
    assert "kk_other_rule" in world.names("requestRoutingRules")


PROBE = {
    "protocol": "Http",
    "host": "x.example",
    "path": "/",
    "interval": 30,
    "timeout": 30,
    "unhealthyThreshold": 3,
}
