"""What is a reason to send what: objects in, reasons out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from forwarder_world import (
    attach_event,
    attachment,
    endpoint_slice,
    ingress,
    node,
    pod,
    secret,
    service,
)

from shared.forwarder.decide import (
    EVENTS,
    INGRESSES,
    PATIENCE_SECONDS,
    SOURCES,
    Etcd,
    Known,
    Reason,
    References,
    references_of,
    sources,
)
from shared.runtime.automation import AUTOMATIONS

EVERYTHING = {source.name: source for source in sources(frozenset(EVENTS), ("*",))}
REFERENCES = References(frozenset({"default/web"}), frozenset({"default/cert"}))


def thing(source: str, document: dict[str, Any], uid: str = "u", **metadata: Any) -> Any:
    """The document as the watch of that source decodes it."""
    whole = {**document, "metadata": {"uid": uid, **document["metadata"], **metadata}}
    return msgspec.json.decode(msgspec.json.encode(whole), type=EVERYTHING[source].shape)


class Watcher:
    """One source, fed by hand; `now` is 0 unless said."""

    def __init__(self, source: str, most: int = 1000) -> None:
        self.source = source
        self.known = Known(EVERYTHING[source], most)

    def see(self, document: dict[str, Any], kind: str = "MODIFIED", now: float = 0.0, **more: Any) -> str:
        """Why that is a reason; "" when it is none."""
        reason = self.known.changed(kind, thing(self.source, document, **more), REFERENCES, now)
        return reason.why if reason else ""

    def list(self, *documents: dict[str, Any], now: float = 0.0, uid: str = "u") -> list[str]:
        """The whys of a list of all there is."""
        self.known.begin_list()
        found = [
            self.known.listed(thing(self.source, document, uid=f"{uid}{number}"), REFERENCES, now)
            for number, document in enumerate(documents)
        ]
        reasons = [*filter(None, found), *self.known.end_list(REFERENCES)]
        return [reason.why for reason in reasons]


# Pods


def test_a_pod_without_a_node_is_a_reason_once() -> None:
    watcher = Watcher("pods")
    assert watcher.see(pod("p"), "ADDED") == ""
    assert watcher.see(pod("p", unschedulable=True)) == "Unschedulable"
    assert watcher.see(pod("p", unschedulable=True)) == ""
    assert watcher.see(pod("p", unschedulable=True), uid="another") == "Unschedulable"


def test_a_pod_that_finds_a_node_and_loses_it_is_a_reason_again() -> None:
    watcher = Watcher("pods")
    watcher.see(pod("p", unschedulable=True))
    assert watcher.see(pod("p", unschedulable=True), "DELETED") == ""
    assert watcher.see(pod("p", unschedulable=True), "ADDED") == "Unschedulable"


@pytest.mark.parametrize("reason", ["SchedulingGated", "", "SchedulerError"])
def test_a_pod_that_waits_for_something_else_is_no_reason(reason: str) -> None:
    document = pod("p", unschedulable=True)
    document["status"]["conditions"][0]["reason"] = reason
    assert Watcher("pods").see(document, "ADDED") == ""


def test_pods_are_watched_only_while_they_wait_for_a_node() -> None:
    assert EVERYTHING["pods"].query == {"fieldSelector": "status.phase=Pending,spec.nodeName="}


# Nodes and etcd members


@pytest.mark.parametrize(("source", "kind"), [("nodes", "Node"), ("etcd", "Member")])
def test_what_turns_not_ready_or_goes_is_a_reason(source: str, kind: str) -> None:
    def one(ready: str) -> dict[str, Any]:
        document = node("a", ready)
        if source == "etcd":
            document["metadata"]["namespace"] = "kube-system"
        return document

    watcher = Watcher(source)
    assert watcher.see(one("True"), "ADDED") == ""
    assert watcher.see(one("True")) == ""
    assert watcher.see(one("Unknown")) == f"{kind}NotReady"
    assert watcher.see(one("False")) == ""
    assert watcher.see(one("True")) == ""
    assert watcher.see(one("True"), "DELETED") == f"{kind}Gone"


def test_a_node_that_was_replaced_while_nobody_watched_is_gone() -> None:
    watcher = Watcher("nodes")
    watcher.list(node("a"), node("b"))
    assert watcher.list(node("a"), node("b"), uid="new") == ["NodeGone", "NodeGone"]
    assert watcher.list(node("a"), node("b"), uid="new") == []


def test_a_node_without_conditions_is_not_ready() -> None:
    assert Watcher("nodes").see({"metadata": {"name": "a"}, "status": {}}, "ADDED") == "NodeNotReady"


# Volumes


def test_each_failed_attempt_to_attach_is_a_reason() -> None:
    watcher = Watcher("events")
    assert watcher.see(attach_event("e"), "ADDED") == "FailedAttachVolume"
    assert watcher.see(attach_event("e")) == ""
    assert watcher.see(attach_event("e", count=2)) == "FailedAttachVolume"
    series = attach_event("e", count=2) | {"series": {"count": 5}}
    assert watcher.see(series) == "FailedAttachVolume"
    assert watcher.see(series, "DELETED") == ""


def test_events_are_chosen_by_their_reason_on_the_server() -> None:
    """Not by their text, which Kubernetes 1.36 has reworded."""
    assert EVERYTHING["events"].query == {"fieldSelector": "reason=FailedAttachVolume"}


def test_a_new_error_of_an_attachment_is_a_reason() -> None:
    watcher = Watcher("volumeattachments")
    assert watcher.see(attachment("va", attached=False), "ADDED") == ""
    assert watcher.see(attachment("va", attached=False, attach_error="in use by a")) == "AttachError"
    assert watcher.see(attachment("va", attached=False, attach_error="in use by a")) == ""
    assert watcher.see(attachment("va", attached=False, attach_error="in use by b")) == "AttachError"
    assert watcher.see(attachment("va")) == ""
    leaving = attachment("va", detach_error="throttled")
    assert watcher.see(leaving, deletionTimestamp="2026-11-23T10:00:00Z") == "DetachError"
    assert watcher.see(leaving, "DELETED") == ""


def test_a_volume_that_takes_longer_than_it_should_is_said_once() -> None:
    watcher = Watcher("volumeattachments")
    watcher.see(attachment("slow", attached=False), "ADDED", now=100)
    watcher.see(attachment("quick", attached=False), "ADDED", now=100)
    watcher.see(attachment("quick"), now=110)
    known = watcher.known
    assert list(known.lingering(100 + PATIENCE_SECONDS - 1)) == []
    assert list(known.lingering(100 + PATIENCE_SECONDS)) == [
        Reason("VolumeAttachFailed", "AttachSlow", "slow")
    ]
    assert list(known.lingering(10_000)) == []
    watcher.see(attachment("slow"), now=200)
    watcher.see(attachment("slow"), now=300, deletionTimestamp="2026-11-23T10:00:00Z")
    assert [reason.why for reason in known.lingering(300 + PATIENCE_SECONDS)] == ["DetachSlow"]


def test_a_list_in_between_does_not_begin_the_wait_anew() -> None:
    watcher = Watcher("volumeattachments")
    watcher.list(attachment("slow", attached=False), now=100)
    watcher.list(attachment("slow", attached=False), now=100 + PATIENCE_SECONDS - 1)
    assert len(list(watcher.known.lingering(100 + PATIENCE_SECONDS))) == 1


# Ingress, and what it refers to


@pytest.mark.parametrize(
    ("change", "is_reason"),
    [
        ({"metadata": {"resourceVersion": "2", "managedFields": [{"manager": "x"}]}}, False),
        ({"status": {"loadBalancer": {"ingress": [{"ip": "20.0.0.1"}]}}}, False),
        ({"metadata": {"annotations": {"note": "new"}}}, True),
        ({"metadata": {"deletionTimestamp": "2026-11-23T10:00:00Z"}}, True),
        ({"spec": {"rules": [], "defaultBackend": {"service": {"name": "web"}}}}, True),
        ({"spec": {"rules": None, "tls": None}}, True),
    ],
)
@pytest.mark.parametrize("source", ["ingresses", "services"])
def test_what_somebody_wrote_is_a_reason_and_what_controllers_write_is_not(
    source: str, change: dict[str, Any], is_reason: bool
) -> None:
    first = ingress("web", "web") if source == "ingresses" else service("web")
    watcher = Watcher(source)
    watcher.list(first)
    changed = {**first, **change, "metadata": {**first["metadata"], **change.get("metadata", {})}}
    assert bool(watcher.see(changed)) is is_reason
    assert watcher.see(changed) == ""


def test_an_ingress_refers_to_the_services_of_all_its_backends_and_to_its_secrets() -> None:
    document = ingress("shop", "web", secret="cert")
    document["spec"]["defaultBackend"] = {"service": {"name": "fallback"}}
    document["spec"]["rules"] += [
        {"host": "x"},
        {"http": {"paths": None}},
        {"http": {"paths": [{"backend": {"resource": {"name": "bucket"}}}]}},
    ]
    known = Known(INGRESSES)
    known.changed("ADDED", thing("ingresses", document), References(), 0)
    known.changed("ADDED", thing("ingresses", ingress("other", "api", namespace="team")), References(), 0)
    assert references_of(known.states) == References(
        frozenset({"default/web", "default/fallback", "team/api"}), frozenset({"default/cert"})
    )


def test_an_ingress_that_nobody_understands_still_changes() -> None:
    watcher = Watcher("ingresses")
    strange = {"metadata": {"name": "x", "namespace": "default"}, "spec": {"rules": "none"}}
    assert watcher.see(strange, "ADDED") == "IngressChanged"
    assert watcher.see(strange, "DELETED") == "IngressChanged"


@pytest.mark.parametrize(
    ("source", "make", "why"),
    [
        ("services", service, "ServiceChanged"),
        ("secrets", lambda name: secret(name, "x"), "SecretChanged"),
        ("endpointslices", lambda name: endpoint_slice(name, ()), "EndpointsChanged"),
    ],
)
def test_things_that_no_ingress_refers_to_are_no_reason(source: str, make: Any, why: str) -> None:
    mine = "cert" if source == "secrets" else "web"
    for name, expected in ((mine, why), ("other", "")):
        watcher = Watcher(source)
        first = make(name)
        assert watcher.see(first, "ADDED", generation=1, resourceVersion="1") == expected
        changed = {**first, "spec": {"changed": True}}
        assert watcher.see(changed, generation=2, resourceVersion="2") == expected
        assert watcher.see(changed, generation=2, resourceVersion="2") == ""
        assert watcher.see(changed, "DELETED", generation=2, resourceVersion="3") == expected


def test_endpoints_that_did_not_change_are_no_reason() -> None:
    """Their annotation of the last change is written more often than they change."""
    watcher = Watcher("endpointslices")
    watcher.see(endpoint_slice("web", ()), "ADDED", generation=4, resourceVersion="1")
    assert watcher.see(endpoint_slice("web", ()), generation=4, resourceVersion="2") == ""


# Lists


def test_a_list_finds_what_came_changed_and_went() -> None:
    watcher = Watcher("ingresses")
    assert watcher.list(ingress("a", "web"), ingress("b", "web")) == ["IngressChanged"] * 2
    assert watcher.list(ingress("a", "web"), ingress("b", "web")) == []
    assert watcher.list(ingress("a", "api"), ingress("c", "web")) == ["IngressChanged"] * 3
    assert set(watcher.known.states) == {"default/a", "default/c"}


def test_a_list_that_was_not_ended_is_forgotten() -> None:
    watcher = Watcher("nodes")
    watcher.list(node("a"), node("b"))
    watcher.known.begin_list()
    assert set(watcher.known.states) == {"a", "b"}
    assert watcher.list(node("a"), node("b")) == []


def test_beyond_what_is_kept_in_mind_every_change_is_a_reason() -> None:
    watcher = Watcher("ingresses", most=2)
    documents = [ingress(name, "web") for name in "abc"]
    watcher.list(*documents)
    assert len(watcher.known) == 2
    assert watcher.known.overflowed == 1
    assert watcher.see(ingress("c", "web")) == "IngressChanged"
    assert watcher.see(ingress("c", "web"), "DELETED") == "IngressChanged"
    assert "TooManyToCompare" in watcher.list(*documents)


def test_trouble_is_said_again_until_it_is_over() -> None:
    for source, bad, good in (
        ("pods", pod("p", unschedulable=True), pod("p")),
        ("nodes", node("a", "False"), node("a")),
        ("volumeattachments", attachment("va", attach_error="x"), attachment("va")),
    ):
        watcher = Watcher(source)
        watcher.see(bad, "ADDED")
        trouble = watcher.known.trouble()
        assert trouble is not None and trouble.why == "Resync"
        watcher.see(good)
        assert watcher.known.trouble() is None


# Etcd, by the API server


def test_one_failed_check_of_etcd_is_not_yet_a_reason() -> None:
    etcd = Etcd()
    answers = [True, False, True, False, False, False, True, False, False]
    found = [bool(etcd.checked(is_well, "etcd")) for is_well in answers]
    assert found == [False, False, False, False, True, False, False, False, True]
    assert etcd.trouble() == Reason("EtcdUnhealthy", "Resync", "etcd")


# The table


def test_only_what_somebody_wants_is_watched() -> None:
    def names(*events: str) -> set[str]:
        return {source.name for source in sources(frozenset(events), ("a", "b"))}

    assert names("PodUnschedulable") == {"pods"}
    assert names("VolumeAttachFailed", "NodeNotReady") == {"nodes", "events", "volumeattachments"}
    assert names("EndpointsChanged") == {"ingresses", "endpointslices", "secrets/a", "secrets/b"}
    assert names(*EVENTS) >= {source.name for source in SOURCES}


def test_every_event_that_is_sent_wakes_somebody_and_the_other_way_round() -> None:
    wanted = {kind for automation in AUTOMATIONS.values() for kind in automation.events}
    prefix = "Kubekeeper.Cluster."
    assert {kind.removeprefix(prefix) for kind in wanted if kind.startswith(prefix)} == set(EVENTS)
    assert {source.event for source in SOURCES} == set(EVENTS)


@pytest.mark.parametrize("source", EVERYTHING.values(), ids=lambda one: one.name)
def test_a_bookmark_of_the_real_api_server_can_be_read(source: Any) -> None:
    """Empty objects in the Go type's own zero values."""
    empty = {
        "metadata": {"resourceVersion": "12", "creationTimestamp": None},
        "spec": {"containers": None, "attacher": "", "source": {}, "nodeName": ""},
        "status": {"loadBalancer": {}, "daemonEndpoints": {}, "nodeInfo": {}, "attached": False},
        "involvedObject": {},
        "source": {},
        "firstTimestamp": None,
        "lastTimestamp": None,
        "eventTime": None,
        "reportingComponent": "",
    }
    found = msgspec.json.decode(msgspec.json.encode(empty), type=source.shape)
    assert found.metadata.resource_version == "12"
