"""A whole forwarder against the local Kubernetes and a topic, over real connections that break."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest
from forwarder_world import (
    INGRESSES,
    SECRETS,
    SERVICES,
    SLICES,
    Gate,
    Kept,
    Running,
    attach_event,
    attachment,
    client_of,
    endpoint_slice,
    ingress,
    node,
    pod,
    process_environ,
    rewrite,
    secret,
    service,
    until,
)

from sandbox.asgi import Fault, on
from sandbox.eventgrid import LocalTopic, WorkloadIdentity
from sandbox.kube import LocalKubernetes
from sandbox.kube.kinds import ATTACHMENTS, EVENTS, NODES, PODS
from sandbox.tools import CHECKOUT
from shared.clients.queue import queue_service
from shared.errors import UnavailableError
from shared.forwarder.clock import Clock
from shared.forwarder.deliver import PREFIX
from shared.forwarder.gather import Pace


@pytest.fixture
def kubernetes() -> Iterator[LocalKubernetes]:
    with LocalKubernetes() as running:
        yield running


@pytest.fixture
def topic() -> Iterator[LocalTopic]:
    with LocalTopic() as running:
        yield running


def test_every_event_of_the_contract_is_sent_for_what_happens(
    kubernetes: LocalKubernetes, topic: LocalTopic
) -> None:
    kubernetes.put(NODES, node("a"))
    kubernetes.put(INGRESSES, ingress("shop", "web", secret="cert"))
    etcd = pod("etcd-a", "kube-system")
    etcd["metadata"]["labels"] = {"component": "etcd"}
    kubernetes.put(PODS, etcd)
    with Running(kubernetes, topic.environ) as running:
        running.ready()
        until(lambda: topic.of(PREFIX + "IngressChanged"))  # at the start everything is new
        kubernetes.put(PODS, pod("web-1", unschedulable=True))
        rewrite(kubernetes, NODES, node("a", "Unknown"))
        kubernetes.put(EVENTS, attach_event("db-0.1"))
        kubernetes.put(SLICES, endpoint_slice("web", ("10.0.0.1",)))
        etcd["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
        rewrite(kubernetes, PODS, etcd)
        expected = {
            "PodUnschedulable": ("Unschedulable", "default/web-1"),
            "NodeNotReady": ("NodeNotReady", "a"),
            "VolumeAttachFailed": ("FailedAttachVolume", "default/db-0"),
            "EndpointsChanged": ("EndpointsChanged", "default/web"),
            "EtcdUnhealthy": ("MemberNotReady", "kube-system/etcd-a"),
        }
        for kind, (reason, subject) in expected.items():
            (event,) = until(lambda kind=kind: topic.of(PREFIX + kind), kind)
            assert event["specversion"] == "1.0"
            assert event["source"] == "/kubekeeper/clusters/prod"
            assert event["subject"] == subject
            assert event["data"] == {
                "cluster": "prod",
                "reason": reason,
                "reasons": [reason],
                "objects": [subject],
                "count": 1,
            }
    assert len({event["id"] for event in topic.events}) == len(topic.events)


def test_what_ingresses_refer_to_is_a_reason_and_the_rest_is_not(kubernetes: LocalKubernetes) -> None:
    kept = Kept()
    kubernetes.put(INGRESSES, ingress("shop", "web", secret="cert"))
    for name in ("web", "other"):
        kubernetes.put(SERVICES, service(name))
        kubernetes.put(SLICES, endpoint_slice(name, ("10.0.0.1",)))
    for name in ("cert", "unused"):
        kubernetes.put(SECRETS, secret(name, "one"))
    with Running(kubernetes, kept) as running:
        running.ready()
        until(lambda: kept.of("IngressChanged"))
        time.sleep(0.3)
        kept.messages.clear()
        rewrite(kubernetes, SERVICES, service("other", 81))
        rewrite(kubernetes, SLICES, endpoint_slice("other", ("10.0.0.2",)))
        rewrite(kubernetes, SECRETS, secret("unused", "two"))
        rewrite(kubernetes, SERVICES, service("web", 81))
        rewrite(kubernetes, SLICES, endpoint_slice("web", ("10.0.0.2",)))
        rewrite(kubernetes, SECRETS, secret("cert", "two"))
        until(lambda: {"ServiceChanged", "SecretChanged"} <= {w for m in kept.messages for w in m.whys})
        until(lambda: kept.of("EndpointsChanged"))
    subjects = {subject for message in kept.messages for subject in message.subjects}
    assert subjects == {"default/web", "default/cert"}


def test_what_controllers_write_into_the_status_of_an_ingress_is_no_reason(
    kubernetes: LocalKubernetes,
) -> None:
    """Ingress sync itself writes there: it would call itself for ever."""
    kept = Kept()
    kubernetes.put(INGRESSES, ingress("shop", "web"))
    with Running(kubernetes, kept) as running:
        until(lambda: kept.of("IngressChanged"))
        status = {"status": {"loadBalancer": {"ingress": [{"ip": "20.0.0.1"}]}}}
        path = "/apis/networking.k8s.io/v1/namespaces/default/ingresses/shop"
        running.client.patch(f"{path}/status", status)
        until(lambda: running.value("lines_total", source="ingresses") >= 1)
        assert running.value("reasons_total", event="IngressChanged") == 1
        running.client.patch(path, {"metadata": {"annotations": {"note": "changed"}}})
        until(lambda: running.value("reasons_total", event="IngressChanged") == 2)


def test_the_content_of_a_secret_never_reaches_the_forwarder(kubernetes: LocalKubernetes) -> None:
    kubernetes.put(SECRETS, secret("cert", "very-private"))
    with Running(kubernetes, Kept()) as running:
        running.ready()
        asked = [request for request in kubernetes.requests if request.path.endswith("/secrets")]
        assert asked
        for request in asked:
            assert "as=PartialObjectMetadata" in request.headers["accept"]
            assert request.query["fieldSelector"] == "type=kubernetes.io/tls"


def test_a_burst_becomes_one_message_that_counts_it(kubernetes: LocalKubernetes) -> None:
    kept = Kept()
    with Running(kubernetes, kept, pace=Pace(quiet=2, longest=9, gap=0.1)) as running:
        running.ready()
        for number in range(200):
            kubernetes.put(PODS, pod(f"p-{number}", unschedulable=True))
        (message,) = until(lambda: kept.of("PodUnschedulable"))
        assert message.count == 200
        assert len(message.subjects) == 10
        assert running.value("gathered_total") == 199


def test_an_api_restart_is_survived_and_what_happened_meanwhile_is_said(
    kubernetes: LocalKubernetes,
) -> None:
    kept = Kept()
    port = int(kubernetes.server.rpartition(":")[2])
    kubernetes.put(NODES, node("a"))
    kubernetes.put(NODES, node("b"))
    with Gate(port) as gate, Running(kubernetes, kept, port=gate.port) as running:
        running.ready()
        gate.close()
        until(lambda: not running.forwarder.is_ready)
        rewrite(kubernetes, NODES, node("a", "False"))
        kubernetes.remove(NODES, "b")
        kubernetes.put(PODS, pod("p", unschedulable=True))
        gate.open()
        running.ready()
        until(lambda: kept.of("PodUnschedulable"))
        until(lambda: {"NodeNotReady", "NodeGone"} <= {w for m in kept.of("NodeNotReady") for w in m.whys})
        # Taken up where it broke off: nothing had to be listed again.
        assert running.value("lists_total", cause="Expired") == 0
        assert running.value("breaks_total") >= 1


def test_after_410_everything_is_compared_so_that_nothing_is_missed(kubernetes: LocalKubernetes) -> None:
    kept = Kept()
    port = int(kubernetes.server.rpartition(":")[2])
    kubernetes.put(NODES, node("a"))
    kubernetes.put(NODES, node("b"))
    kubernetes.put(ATTACHMENTS, attachment("va"))
    with Gate(port) as gate, Running(kubernetes, kept, port=gate.port) as running:
        running.ready()
        gate.close()
        until(lambda: not running.forwarder.is_ready)
        rewrite(kubernetes, NODES, node("a", "False"))
        kubernetes.remove(NODES, "b")
        kubernetes.put(ATTACHMENTS, attachment("va", attached=False, attach_error="in use"))
        kubernetes.store.forget()
        gate.open()
        running.ready()
        until(lambda: {"NodeNotReady", "NodeGone"} <= {w for m in kept.of("NodeNotReady") for w in m.whys})
        until(lambda: [m for m in kept.of("VolumeAttachFailed") if "AttachError" in m.whys])
        assert running.value("lists_total", cause="Expired") >= 2


def test_a_list_that_expires_between_its_pages_is_begun_again(kubernetes: LocalKubernetes) -> None:
    for number in range(120):
        kubernetes.put(NODES, node(f"n-{number:03}"))
    page = Fault(
        on("GET", "/api/v1/nodes"),
        skip=1,
        before=lambda: (kubernetes.put(NODES, node("n-000")), kubernetes.store.forget()),
    )
    kubernetes.faults.append(page)
    with Running(kubernetes, Kept()) as running:
        running.ready()
        assert running.forwarder.mind.sizes()["nodes"] == 120
        assert running.value("lists_total", source="nodes", cause="Expired") >= 1


def test_a_topic_that_is_away_or_throttles_loses_nothing(
    kubernetes: LocalKubernetes, topic: LocalTopic
) -> None:
    topic.fail(503, times=4)
    clock = Clock(speed=20)
    with Running(kubernetes, topic.environ, clock=clock, pace=Pace(quiet=1, longest=5, gap=10)) as running:
        running.ready()
        kubernetes.put(PODS, pod("p", unschedulable=True))
        until(lambda: running.value("send_failures_total") >= 1)
        kubernetes.put(PODS, pod("q", unschedulable=True))
        (event,) = until(lambda: topic.of(PREFIX + "PodUnschedulable"))
        events = [event]
        if event["data"]["count"] == 1:
            events = until(lambda: topic.of(PREFIX + "PodUnschedulable")[1:]) + events
        assert {name for e in events for name in e["data"]["objects"]} == {"default/p", "default/q"}
        assert running.forwarder.mind.waiting(clock.now())[0] == 0


def test_while_nothing_can_be_sent_the_watches_go_on_and_memory_stays(kubernetes: LocalKubernetes) -> None:
    """Back-pressure ends at the outbox: one message for each event, however long it lasts."""
    kept = Kept()
    kept.error = UnavailableError("no answer")
    with Running(kubernetes, kept, clock=Clock(speed=10)) as running:
        running.ready()
        for number in range(500):
            kubernetes.put(PODS, pod(f"p-{number}", unschedulable=True))
            kubernetes.put(NODES, node(f"n-{number}", "False"))
        until(lambda: running.value("reasons_total") >= 1000)
        assert running.forwarder.mind.waiting(0)[0] <= 2
        kept.error = None
        until(lambda: kept.of("PodUnschedulable") and kept.of("NodeNotReady"))
        running.forwarder.mind.wake.set()
        until(lambda: running.value("reasons_sent_total") >= 1000)
        assert sum(message.count for message in kept.messages) == 1000


def test_without_event_grid_nudges_go_to_the_queues_of_the_automations(
    kubernetes: LocalKubernetes, storage: str
) -> None:
    environ = {"AzureWebJobsStorage": storage}
    service = queue_service(environ)
    names = ("autoscaling", "disk-release")
    for name in names:
        service.get_queue_client(name).clear_messages() if name in _queues(service) else None
    with Running(kubernetes, environ, by_queue=True, automations=names) as running:
        running.ready()
        assert {follower.source.name for follower in running.forwarder.followers} == {
            "pods",
            "nodes",
            "events",
            "volumeattachments",
        }
        kubernetes.put(PODS, pod("p", unschedulable=True))
        kubernetes.put(NODES, node("a", "False"))
        until(lambda: running.value("messages_total") >= 2)
    found = {
        name: [json.loads(message.content) for message in service.get_queue_client(name).receive_messages()]
        for name in names
    }
    assert found["autoscaling"] == [
        {"cluster": "prod", "automation": "autoscaling", "reason": "PodUnschedulable"}
    ]
    assert found["disk-release"] == [
        {"cluster": "prod", "automation": "disk-release", "reason": "NodeNotReady"}
    ]


def _queues(service: object) -> set[str]:
    return {queue.name for queue in service.list_queues()}


def test_a_missing_role_is_said_and_the_rest_goes_on(
    kubernetes: LocalKubernetes, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept()
    with Running(kubernetes, kept, client=client_of(kubernetes, user="forwarder")) as running:
        until(lambda: running.value("breaks_total", error="Forbidden") >= len(running.forwarder.followers))
        assert not running.forwarder.is_ready
        assert 'User "forwarder" cannot list resource "nodes"' in caplog.text
        assert "bind the role" in caplog.text
        role = {
            "metadata": {"name": "nodes"},
            "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}],
        }
        group = "rbac.authorization.k8s.io"
        binding = {
            "metadata": {"name": "nodes"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "nodes"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": "forwarder"}],
        }
        kubernetes.client().create(f"/apis/{group}/v1/clusterroles", role)
        kubernetes.client().create(f"/apis/{group}/v1/clusterrolebindings", binding)
        kubernetes.put(NODES, node("a", "False"))
        until(lambda: kept.of("NodeNotReady"))


def test_a_resync_says_again_what_is_still_wrong(kubernetes: LocalKubernetes) -> None:
    kept = Kept()
    kubernetes.put(PODS, pod("p", unschedulable=True))
    with Running(kubernetes, kept, clock=Clock(speed=60), resync=60.0):
        until(lambda: [m for m in kept.of("PodUnschedulable") if "Resync" in m.whys])


def test_a_resync_lists_everything_again(kubernetes: LocalKubernetes) -> None:
    with Running(kubernetes, Kept(), clock=Clock(speed=60), resync=60.0) as running:
        until(lambda: running.value("lists_total", cause="Resync") >= len(running.forwarder.followers))


def test_a_volume_that_lingers_is_said(kubernetes: LocalKubernetes) -> None:
    kept = Kept()
    with Running(kubernetes, kept, clock=Clock(speed=60)) as running:
        running.ready()
        kubernetes.put(ATTACHMENTS, attachment("va", attached=False))
        until(lambda: [m for m in kept.of("VolumeAttachFailed") if "AttachSlow" in m.whys])


def test_etcd_is_unhealthy_when_the_api_server_says_so_twice(kubernetes: LocalKubernetes) -> None:
    kept = Kept()
    kubernetes.faults.append(Fault(on("GET", "/readyz/etcd"), status=500, times=100, body={}))
    with Running(kubernetes, kept, clock=Clock(speed=60), etcd_interval=10.0):
        (message,) = until(lambda: kept.of("EtcdUnhealthy"))
        assert message.whys == ["NotReady"]


def start_process(environ: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    kept = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "shared.forwarder"], env=kept | environ, stderr=file, cwd=CHECKOUT
        )


def test_the_process_publishes_with_workload_identity_and_ends_when_asked(
    kubernetes: LocalKubernetes, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    kubernetes.put(PODS, pod("p", unschedulable=True))
    identity = WorkloadIdentity(tmp_path)
    with LocalTopic(identity) as topic:
        process = start_process(process_environ(kubernetes, tmp_path, **topic.environ), log)
        try:
            (event,) = until(lambda: topic.of(PREFIX + "PodUnschedulable"), log.read_text())
            assert event["data"]["cluster"] == "prod"
            assert identity.exchanges == 1
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(90) == 0, log.read_text()
    written = log.read_text()
    assert "Stopped" in written
    assert (tmp_path / "token").read_text() not in written


def test_an_identity_that_entra_refuses_is_said_plainly(kubernetes: LocalKubernetes, tmp_path: Path) -> None:
    log = tmp_path / "log"
    kubernetes.put(PODS, pod("p", unschedulable=True))
    with LocalTopic(WorkloadIdentity(tmp_path)) as topic:
        nobody = {"AZURE_CLIENT_ID": "30000000-0000-4000-8000-000000000000"}
        process = start_process(process_environ(kubernetes, tmp_path, **{**topic.environ, **nobody}), log)
        try:
            until(lambda: "NotSent" in log.read_text())
            (line, *_) = [line for line in log.read_text().splitlines() if "NotSent" in line]
            assert (
                "no token from Entra ID (AADSTS700213); check the managed identity or its federated" in line
            )
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(90) == 0, log.read_text()
    assert topic.events == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"KUBEKEEPER_CLUSTER": "Not a name"}, "KUBEKEEPER_CLUSTER"),
        ({"KUBEKEEPER_KUBERNETES_SERVER": ""}, "not in a cluster"),
        ({"KUBEKEEPER_LOG_LEVEL": "LOUD"}, "LOUD"),
        ({}, "nowhere to send to"),
    ],
)
def test_wrong_settings_end_the_process_with_one_line(
    kubernetes: LocalKubernetes, tmp_path: Path, wrong: dict[str, str], said: str
) -> None:
    process = start_process(process_environ(kubernetes, tmp_path, **wrong), tmp_path / "log")
    assert process.wait(90) == 2
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith("forwarder: ") and said in line


def test_what_waits_is_sent_before_the_end(kubernetes: LocalKubernetes) -> None:
    kept = Kept()
    with Running(kubernetes, kept, pace=Pace(quiet=3600, longest=3600, gap=0)) as running:
        running.ready()
        kubernetes.put(PODS, pod("p", unschedulable=True))
        until(lambda: running.value("reasons_total") == 1)
        assert kept.messages == []
    assert [message.event for message in kept.messages] == ["PodUnschedulable"]


def fetch(running: Running, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.forwarder.port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_its_pages_say_how_it_is(kubernetes: LocalKubernetes) -> None:
    port = int(kubernetes.server.rpartition(":")[2])
    with Gate(port) as gate, Running(kubernetes, Kept(), port=gate.port) as running:
        running.ready()
        assert fetch(running, "/readyz")[0] == 200
        kubernetes.put(PODS, pod("p", unschedulable=True))
        until(lambda: running.value("messages_total") == 1)
        status, text = fetch(running, "/metrics")
        assert status == 200
        assert 'kubekeeper_forwarder_messages_total{event="PodUnschedulable"} 1' in text
        assert 'kubekeeper_forwarder_source_synced{source="pods"} 1' in text
        sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+')
        assert all(sample.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
        gate.close()
        until(lambda: fetch(running, "/readyz")[0] == 503)
        # Killing it would not bring the API server back.
        status, text = fetch(running, "/healthz")
        assert (status, json.loads(text)["died"]) == (200, [])
        assert fetch(running, "/nowhere")[0] == 404


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_in_one_part_ends_the_process_instead_of_blinding_it(
    kubernetes: LocalKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(kubernetes, Kept())
    monkeypatch.setattr(running.forwarder.followers[0], "_list", lambda: 1 / 0)
    assert running.forwarder.run() is False
    running.client.close()
