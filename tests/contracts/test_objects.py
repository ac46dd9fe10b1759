"""Creating, changing and deleting objects: versions, preconditions, finalizers, patches."""

from __future__ import annotations

from contracts.target import Target, attachment, bare_node, pod, refusal

from sandbox.kube_client import JSON_PATCH, STRATEGIC_PATCH, Document

NODES = "/api/v1/nodes"
ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"


def with_label(document: Document) -> Document:
    return document | {"metadata": document["metadata"] | {"labels": {"a": "1"}}}


def bind(target: Target, roles: str, name: str) -> None:
    """Binds the user of that name to the role of that name."""
    group = "rbac.authorization.k8s.io"
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "Role", "name": name},
        "subjects": [{"apiGroup": group, "kind": "User", "name": name}],
    }
    target.client.create(f"{roles}/rolebindings", binding)


def test_a_created_object_carries_identity_and_version(target: Target, unique: str) -> None:
    created = target.client.create(ATTACHMENTS, attachment(unique))
    metadata = created["metadata"]
    assert (created["kind"], created["apiVersion"]) == ("VolumeAttachment", "storage.k8s.io/v1")
    assert metadata["uid"] and metadata["resourceVersion"].isdigit()
    assert metadata["creationTimestamp"].endswith("Z")
    assert target.client.get(f"{ATTACHMENTS}/{unique}") == created


def test_a_second_object_of_the_same_name_is_refused(target: Target, unique: str) -> None:
    target.client.create(NODES, bare_node(unique))
    error = refusal(target.client.create, NODES, bare_node(unique))
    assert (error.status, error.reason) == (409, "AlreadyExists")
    assert error.message == f'nodes "{unique}" already exists'


def test_generate_name_makes_names_of_its_own(target: Target, namespace: str) -> None:
    document = pod("")
    document["metadata"] = {"generateName": "web-"}
    names = {
        target.client.create(f"/api/v1/namespaces/{namespace}/pods", document)["metadata"]["name"]
        for _ in range(2)
    }
    assert len(names) == 2 and all(name.startswith("web-") and len(name) == 9 for name in names)


def test_what_is_not_there_is_not_found(target: Target, unique: str) -> None:
    error = refusal(target.client.get, f"{NODES}/{unique}")
    assert (error.status, error.reason) == (404, "NotFound")
    assert error.message == f'nodes "{unique}" not found'
    assert error.document["kind"] == "Status" and error.document["details"]["name"] == unique


def test_an_unknown_resource_is_not_found(target: Target) -> None:
    error = refusal(target.client.get, "/apis/storage.k8s.io/v1/nonsense")
    assert error.status == 404
    assert error.message == "404 page not found" or error.reason == "NotFound"


def test_a_pod_in_a_namespace_that_is_not_there_is_refused(target: Target, unique: str) -> None:
    error = refusal(target.client.create, f"/api/v1/namespaces/{unique}/pods", pod("a"))
    assert (error.status, error.message) == (404, f'namespaces "{unique}" not found')


def test_a_replacement_of_an_older_version_is_refused(target: Target, unique: str) -> None:
    first = target.client.create(NODES, bare_node(unique))
    target.client.patch(f"{NODES}/{unique}", {"metadata": {"labels": {"a": "1"}}})
    first["spec"]["unschedulable"] = True
    error = refusal(target.client.replace, f"{NODES}/{unique}", first)
    assert (error.status, error.reason) == (409, "Conflict")
    assert error.message == (
        f'Operation cannot be fulfilled on nodes "{unique}": the object has been modified; '
        "please apply your changes to the latest version and try again"
    )


def test_a_replacement_of_the_current_version_gets_a_new_one(target: Target, unique: str) -> None:
    first = target.client.create(ATTACHMENTS, attachment(unique))
    second = target.client.replace(f"{ATTACHMENTS}/{unique}", with_label(first))
    assert second["metadata"]["labels"] == {"a": "1"}
    assert int(second["metadata"]["resourceVersion"]) > int(first["metadata"]["resourceVersion"])
    assert second["metadata"]["uid"] == first["metadata"]["uid"]


def test_a_change_that_changes_nothing_keeps_the_version(target: Target, unique: str) -> None:
    first = target.client.create(ATTACHMENTS, with_label(attachment(unique)))
    again = target.client.patch(f"{ATTACHMENTS}/{unique}", {"metadata": {"labels": {"a": "1"}}})
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_a_patch_that_names_an_older_version_is_refused(target: Target, unique: str) -> None:
    first = target.client.create(NODES, bare_node(unique))
    target.client.patch(f"{NODES}/{unique}", {"metadata": {"labels": {"a": "1"}}})
    version = first["metadata"]["resourceVersion"]
    change = {"metadata": {"resourceVersion": version}, "spec": {"unschedulable": True}}
    for kind in ("application/merge-patch+json", STRATEGIC_PATCH):
        error = refusal(target.client.patch, f"{NODES}/{unique}", change, kind)
        assert (error.status, error.reason) == (409, "Conflict")


def test_a_patch_that_names_another_uid_is_refused(target: Target, unique: str) -> None:
    target.client.create(NODES, bare_node(unique))
    change = {"metadata": {"uid": "00000000-0000-0000-0000-000000000000"}, "spec": {"unschedulable": True}}
    error = refusal(target.client.patch, f"{NODES}/{unique}", change)
    assert (error.status, error.reason) == (422, "Invalid")
    assert "metadata.uid: Invalid value" in error.message and "field is immutable" in error.message


def test_a_merge_patch_removes_with_null(target: Target, unique: str) -> None:
    target.client.create(NODES, bare_node(unique, a="1", b="2"))
    changed = target.client.patch(f"{NODES}/{unique}", {"metadata": {"labels": {"a": None, "c": "3"}}})
    assert changed["metadata"]["labels"] == {"b": "2", "c": "3"}


def test_a_strategic_patch_merges_conditions_by_type(target: Target, unique: str) -> None:
    target.client.create(NODES, bare_node(unique))
    for kind, status in (("Ready", "True"), ("DiskPressure", "False"), ("Ready", "Unknown")):
        change = {"status": {"conditions": [{"type": kind, "status": status}]}}
        changed = target.client.patch(f"{NODES}/{unique}/status", change, STRATEGIC_PATCH)
    found = {c["type"]: c["status"] for c in changed["status"]["conditions"]}
    assert found == {"Ready": "Unknown", "DiskPressure": "False"}


def test_a_strategic_patch_replaces_taints_as_a_whole(target: Target, unique: str) -> None:
    document = bare_node(unique)
    document["spec"]["taints"] = [{"key": "a", "effect": "NoSchedule"}]
    target.client.create(NODES, document)
    change = {"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}}
    changed = target.client.patch(f"{NODES}/{unique}", change, STRATEGIC_PATCH)
    assert [taint["key"] for taint in changed["spec"]["taints"]] == ["b"]


def test_a_strategic_patch_merges_finalizers_as_a_set(target: Target, unique: str) -> None:
    document = attachment(unique)
    document["metadata"]["finalizers"] = ["example.org/a"]
    target.client.create(ATTACHMENTS, document)
    path = f"{ATTACHMENTS}/{unique}"
    change: dict = {"metadata": {"finalizers": ["example.org/a", "example.org/b"]}}
    changed = target.client.patch(path, change, STRATEGIC_PATCH)
    assert sorted(changed["metadata"]["finalizers"]) == ["example.org/a", "example.org/b"]
    change = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.org/a"]}}
    changed = target.client.patch(path, change, STRATEGIC_PATCH)
    assert changed["metadata"]["finalizers"] == ["example.org/b"]


def test_a_json_patch_tests_before_it_changes(target: Target, unique: str) -> None:
    target.client.create(NODES, bare_node(unique, a="1"))
    path = f"{NODES}/{unique}"
    change = [
        {"op": "test", "path": "/metadata/labels/a", "value": "1"},
        {"op": "replace", "path": "/metadata/labels/a", "value": "2"},
        {"op": "add", "path": "/metadata/annotations", "value": {"example.org/x": "y"}},
        {"op": "add", "path": "/spec/taints", "value": [{"key": "k", "effect": "NoSchedule"}]},
        {"op": "add", "path": "/spec/taints/-", "value": {"key": "l", "effect": "NoSchedule"}},
    ]
    changed = target.client.patch(path, change, JSON_PATCH)
    assert changed["metadata"]["labels"] == {"a": "2"}
    assert [taint["key"] for taint in changed["spec"]["taints"]] == ["k", "l"]
    error = refusal(target.client.patch, path, change, JSON_PATCH)
    assert (error.status, error.reason) == (422, "Invalid")


def test_status_changes_only_through_its_own_path(target: Target, unique: str) -> None:
    created = target.client.create(ATTACHMENTS, attachment(unique))
    assert created["status"] == {"attached": False}
    path = f"{ATTACHMENTS}/{unique}"
    unchanged = target.client.patch(path, {"status": {"attached": True}})
    assert unchanged["status"] == {"attached": False}
    change = {"metadata": {"labels": {"a": "1"}}, "status": {"attached": True}}
    changed = target.client.patch(f"{path}/status", change)
    assert changed["status"] == {"attached": True}


def test_a_dry_run_leaves_no_trace(target: Target, unique: str) -> None:
    answer = target.client.create(NODES, bare_node(unique), dryRun="All")
    assert answer["metadata"]["uid"]
    assert target.client.find(f"{NODES}/{unique}") is None


def test_deleting_ends_with_the_object_or_a_status(target: Target, unique: str) -> None:
    created = target.client.create(NODES, bare_node(unique))
    answer = target.client.delete(f"{NODES}/{unique}")
    assert (answer["kind"], answer["status"]) == ("Status", "Success")
    assert answer["details"] == {"name": unique, "kind": "nodes", "uid": created["metadata"]["uid"]}
    error = refusal(target.client.delete, f"{NODES}/{unique}")
    assert (error.status, error.reason) == (404, "NotFound")


def test_deleting_another_uid_or_version_is_refused(target: Target, unique: str) -> None:
    """Of a VolumeAttachment: controllers of nodes write a new one whenever they like."""
    path = f"{ATTACHMENTS}/{unique}"
    created = target.client.create(ATTACHMENTS, attachment(unique))
    target.client.patch(path, {"metadata": {"labels": {"a": "1"}}})
    stale = {"resourceVersion": created["metadata"]["resourceVersion"]}
    other = {"uid": "00000000-0000-0000-0000-000000000000"}
    for preconditions, complaint in (
        (stale, "in record ({version}). The object might have been modified"),
        (other, "in record ({uid}). The object might have been deleted and then recreated"),
    ):
        current = target.client.get(path)["metadata"]
        error = refusal(target.client.delete, path, {"preconditions": preconditions})
        assert (error.status, error.reason) == (409, "Conflict")
        assert complaint.format(version=current["resourceVersion"], uid=current["uid"]) in error.message
    target.client.delete(path, {"preconditions": {"uid": created["metadata"]["uid"]}})


def test_a_finalizer_holds_a_deleted_object_until_it_is_removed(target: Target, unique: str) -> None:
    document = attachment(unique)
    document["metadata"]["finalizers"] = ["example.org/held"]
    target.client.create(ATTACHMENTS, document)
    path = f"{ATTACHMENTS}/{unique}"

    answer = target.client.delete(path)
    assert answer["kind"] == "VolumeAttachment"
    held = target.client.get(path)
    assert held["metadata"]["deletionTimestamp"] and held["metadata"]["deletionGracePeriodSeconds"] == 0

    again = target.client.delete(path)
    assert again["metadata"]["deletionTimestamp"] == held["metadata"]["deletionTimestamp"]

    change = {"metadata": {"finalizers": ["example.org/held", "example.org/new"]}}
    error = refusal(target.client.patch, path, change)
    assert (error.status, error.reason) == (422, "Invalid")
    assert "no new finalizers can be added if the object is being deleted" in error.message

    target.client.patch(path, {"metadata": {"finalizers": None}})
    assert target.client.find(path) is None


def test_an_attachments_spec_cannot_be_changed(target: Target, unique: str) -> None:
    target.client.create(ATTACHMENTS, attachment(unique))
    error = refusal(target.client.patch, f"{ATTACHMENTS}/{unique}", {"spec": {"nodeName": "other"}})
    assert (error.status, error.reason) == (422, "Invalid")
    assert "field is immutable" in error.message


def test_a_user_without_a_role_is_forbidden(target: Target) -> None:
    error = refusal(target.client_of("bob", "system:authenticated").get, NODES)
    assert (error.status, error.reason) == (403, "Forbidden")
    assert error.message == (
        'nodes is forbidden: User "bob" cannot list resource "nodes" in API group "" at the cluster scope'
    )


def test_a_role_allows_what_it_says_and_no_more(target: Target, namespace: str, unique: str) -> None:
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]
    target.client.create(f"{roles}/roles", {"metadata": {"name": unique}, "rules": rules})
    bind(target, roles, unique)
    user = target.client_of(unique)
    pods = f"/api/v1/namespaces/{namespace}/pods"
    assert user.get(pods)["items"] == []
    error = refusal(user.create, pods, pod("a"))
    assert (error.status, error.reason) == (403, "Forbidden")
    assert error.message == (
        f'pods is forbidden: User "{unique}" cannot create resource "pods" in API group "" '
        f'in the namespace "{namespace}"'
    )
    error = refusal(user.delete, f"{pods}/a")
    assert error.message.startswith(f'pods "a" is forbidden: User "{unique}" cannot delete resource "pods"')


def test_a_user_may_ask_what_it_may(target: Target, namespace: str, unique: str) -> None:
    roles = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    rules = [{"apiGroups": [""], "resources": ["pods/eviction"], "verbs": ["create"]}]
    target.client.create(f"{roles}/roles", {"metadata": {"name": unique}, "rules": rules})
    bind(target, roles, unique)
    user = target.client_of(unique, "system:authenticated")

    def may(**attributes: str) -> bool:
        review = {"spec": {"resourceAttributes": {"namespace": namespace, "resource": "pods"} | attributes}}
        return user.create("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)["status"][
            "allowed"
        ]

    assert may(verb="create", subresource="eviction")
    assert not may(verb="create")
    assert not may(verb="create", subresource="eviction", namespace="default")
