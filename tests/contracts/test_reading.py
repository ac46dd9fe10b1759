"""Listing, selecting and watching."""

from __future__ import annotations

import pytest
from contracts.target import PODS, Target, attachment, pod, refusal

from sandbox.kube_client import Document

ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"


def names(items: list[Document]) -> list[str]:
    return [item["metadata"]["name"] for item in items]


@pytest.fixture
def letters(target: Target, namespace: str) -> str:
    """The path of five pods, a to e, that no scheduler wants, labelled with their place and parity."""
    path = PODS.format(namespace)
    for number, name in enumerate("abcde"):
        labels = {"place": str(number), "parity": "odd" if number % 2 else "even"}
        labels |= {"vowel": "yes"} if name in "ae" else {}
        target.client.create(path, pod(name, labels=labels, schedulerName="nobody"))
    return path


def test_a_list_has_its_kind_and_a_version_to_watch_from(target: Target, letters: str) -> None:
    found = target.client.get(letters)
    assert (found["kind"], found["apiVersion"]) == ("PodList", "v1")
    assert names(found["items"]) == list("abcde")
    assert int(found["metadata"]["resourceVersion"]) >= int(found["items"][-1]["metadata"]["resourceVersion"])
    assert "kind" not in found["items"][0]


def test_pages_add_up_to_the_list_of_one_moment(target: Target, letters: str) -> None:
    first = target.client.get(letters, limit=2)
    assert names(first["items"]) == ["a", "b"] and first["metadata"]["remainingItemCount"] == 3
    target.client.create(letters, pod("bb", schedulerName="nobody"))
    rest = target.client.get(letters, limit=10, **{"continue": first["metadata"]["continue"]})
    assert names(rest["items"]) == ["c", "d", "e"]
    assert "continue" not in rest["metadata"]
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_a_damaged_continue_token_is_refused(target: Target, letters: str) -> None:
    error = refusal(target.client.get, letters, limit=2, **{"continue": "abc"})
    assert (error.status, error.reason) == (400, "BadRequest")


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("parity=even", "ace"),
        ("parity==odd", "bd"),
        ("parity!=even", "bd"),
        ("vowel!=yes", "bcd"),
        ("place in (0, 3)", "ad"),
        ("place notin (0,3)", "bce"),
        ("vowel", "ae"),
        ("!vowel", "bcd"),
        ("vowel,parity=even,place!=4", "a"),
        ("parity=", ""),
    ],
)
def test_label_selectors_choose(target: Target, letters: str, selector: str, expected: str) -> None:
    assert names(target.client.get(letters, labelSelector=selector)["items"]) == list(expected)


def test_field_selectors_choose(target: Target, letters: str) -> None:
    def found(selector: str) -> list[str]:
        return names(target.client.get(letters, fieldSelector=selector)["items"])

    target.client.create(letters, pod("bound", nodeName="elsewhere"))
    target.client.patch(f"{letters}/b/status", {"status": {"phase": "Failed"}})
    assert found("metadata.name=c") == ["c"]
    assert found("spec.nodeName=elsewhere") == ["bound"]
    assert found("spec.nodeName!=") == ["bound"]
    assert found("spec.nodeName=,status.phase=Pending") == list("acde")
    assert found("status.phase!=Failed,status.phase!=Succeeded") == ["a", "bound", "c", "d", "e"]
    assert found("spec.schedulerName=nobody,metadata.name!=a") == list("bcde")
    assert found(f"metadata.namespace={letters.split('/')[-2]},metadata.name=d") == ["d"]


def test_unschedulable_nodes_are_a_field_selector(target: Target, unique: str) -> None:
    for name, spec in ((f"{unique}-in", {}), (f"{unique}-out", {"unschedulable": True})):
        target.client.create(
            "/api/v1/nodes", {"metadata": {"name": name, "labels": {"t": unique}}, "spec": spec}
        )
    for selector, expected in (("=true", "out"), ("=false", "in")):
        query = {"labelSelector": f"t={unique}", "fieldSelector": f"spec.unschedulable{selector}"}
        assert names(target.client.get("/api/v1/nodes", **query)["items"]) == [f"{unique}-{expected}"]


def test_a_field_that_cannot_be_selected_is_refused(target: Target) -> None:
    error = refusal(target.client.get, "/api/v1/nodes", fieldSelector="spec.podCIDR=1")
    assert (error.status, error.reason) == (400, "BadRequest")
    assert error.message == "field label not supported: spec.podCIDR"


def test_a_broken_label_selector_is_refused(target: Target) -> None:
    error = refusal(target.client.get, "/api/v1/nodes", labelSelector="a in b")
    assert (error.status, error.reason) == (400, "BadRequest")


def test_events_of_one_object_are_a_field_selector(target: Target, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/events"
    for name in "ab":
        involved = {"kind": "Pod", "name": name, "namespace": namespace, "uid": f"uid-{name}"}
        event = {
            "metadata": {"generateName": "e"},
            "involvedObject": involved,
            "reason": "Tested",
            "type": "Normal",
        }
        target.client.create(path, event)
    selector = (
        "involvedObject.kind=Pod,involvedObject.name=b,involvedObject.uid=uid-b,reason=Tested,type=Normal"
    )
    found = target.client.get(path, fieldSelector=selector)["items"]
    assert [event["involvedObject"]["name"] for event in found] == ["b"]


def test_a_watch_tells_what_happened_since(target: Target, letters: str) -> None:
    version = target.client.get(letters)["metadata"]["resourceVersion"]
    target.client.create(letters, pod("new", schedulerName="nobody"))
    target.client.patch(f"{letters}/a", {"metadata": {"labels": {"place": "9"}}})
    target.client.delete(f"{letters}/b", {"gracePeriodSeconds": 0})
    with target.client.watch(letters, resourceVersion=version, timeoutSeconds=2) as watch:
        events = [(kind, item["metadata"]["name"]) for kind, item in watch.events()]
    # A pod's deletion is a change of its own, even where no grace is given.
    assert events == [("ADDED", "new"), ("MODIFIED", "a"), ("MODIFIED", "b"), ("DELETED", "b")]


def test_a_watch_goes_on_with_what_happens(target: Target, letters: str) -> None:
    version = target.client.get(letters)["metadata"]["resourceVersion"]
    with target.client.watch(letters, resourceVersion=version, timeoutSeconds=30) as watch:
        events = watch.events()
        for place in ("7", "8"):
            target.client.patch(f"{letters}/a", {"metadata": {"labels": {"place": place}}})
            kind, item = next(events)
            assert (kind, item["metadata"]["labels"]["place"]) == ("MODIFIED", place)
            assert item["kind"] == "Pod"


def test_a_deleted_event_carries_the_version_of_the_deletion(target: Target, unique: str) -> None:
    created = target.client.create(ATTACHMENTS, attachment(unique))
    version = created["metadata"]["resourceVersion"]
    target.client.delete(f"{ATTACHMENTS}/{unique}")
    with target.client.watch(ATTACHMENTS, resourceVersion=version, timeoutSeconds=1) as watch:
        (event,) = [item for kind, item in watch.events() if kind == "DELETED"]
    assert int(event["metadata"]["resourceVersion"]) > int(version)
    assert event["metadata"]["uid"] == created["metadata"]["uid"] and event["spec"] == created["spec"]


def test_what_leaves_a_watchs_selection_is_deleted_to_it(target: Target, letters: str) -> None:
    version = target.client.get(letters)["metadata"]["resourceVersion"]
    for parity in ("odd", "even"):
        target.client.patch(f"{letters}/a", {"metadata": {"labels": {"parity": parity}}})
    query = {"labelSelector": "parity=even", "timeoutSeconds": 1}
    with target.client.watch(letters, resourceVersion=version, **query) as watch:
        events = [(kind, item["metadata"]["name"]) for kind, item in watch.events()]
    assert events == [("DELETED", "a"), ("ADDED", "a")]


def test_a_watch_without_version_begins_with_what_there_is(target: Target, letters: str) -> None:
    query = {"fieldSelector": "metadata.name=c", "timeoutSeconds": 1}
    with target.client.watch(letters, **query) as watch:
        assert [(kind, item["metadata"]["name"]) for kind, item in watch.events()] == [("ADDED", "c")]


def test_a_streamed_list_ends_with_a_bookmark(target: Target, letters: str) -> None:
    query = {
        "sendInitialEvents": True,
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": True,
        "timeoutSeconds": 5,
    }
    with target.client.watch(letters, **query) as watch:
        events = watch.events()
        begun = [next(events) for _ in range(6)]
    assert [kind for kind, _ in begun] == ["ADDED"] * 5 + ["BOOKMARK"]
    bookmark = begun[-1][1]["metadata"]
    assert bookmark["annotations"] == {"k8s.io/initial-events-end": "true"} and bookmark["resourceVersion"]


def test_a_watch_of_forgotten_history_is_gone_and_a_new_list_helps(target: Target, letters: str) -> None:
    old = target.client.get(letters)["metadata"]["resourceVersion"]
    for place in ("7", "8"):
        target.client.patch(f"{letters}/a", {"metadata": {"labels": {"place": place}}})
    target.forget_history()
    with target.client.watch(letters, resourceVersion=old, timeoutSeconds=5) as watch:
        ((kind, status),) = list(watch.events())
    assert kind == "ERROR" and status["kind"] == "Status"
    assert (status["code"], status["reason"]) == (410, "Expired")
    assert status["message"].startswith(f"too old resource version: {old} (")

    version = target.client.get(letters)["metadata"]["resourceVersion"]
    target.client.patch(f"{letters}/a", {"metadata": {"labels": {"place": "9"}}})
    with target.client.watch(letters, resourceVersion=version, timeoutSeconds=1) as watch:
        assert [kind for kind, _ in watch.events()] == ["MODIFIED"]
