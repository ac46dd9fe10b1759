"""Cordon and uncordon: a node takes no new pods, or takes them again.

Every change is conditional on the version of the Node it was decided on, and on its uid, so that a new node
of the same name is never touched. Whoever cordons leaves its name in an annotation, and only that one is
undone by `uncordon(by=...)`: an operator's own cordon stays. Decides nothing; called by the automations'
`act` and by the operations `cordon`, `uncordon` and `drain`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shared.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from shared.clients.kube import KubeClient

CORDONED_BY = "kubekeeper.io/cordoned-by"
"""Annotation: who cordoned the node; empty or absent when it was somebody else."""

ATTEMPTS = 4
"""Of one change, when kubelet or controllers write the Node at the same moment."""


def path_of(name: str) -> str:
    """Where a Node stands in the API."""
    return f"/api/v1/nodes/{name}"


def cordon(
    kube: KubeClient, name: str, *, by: str, uid: str = "", taint: dict[str, str] | None = None
) -> bool:
    """Make the node unschedulable (with `taint` besides), returning whether anything was changed.

    A node that somebody else has cordoned gets the taint, but not our name. NotFoundError when there is no
    node of that name and uid, ConflictError when it changes faster than we can write.
    """

    def change(node: dict[str, Any]) -> dict[str, Any] | None:
        spec = node.get("spec") or {}
        wanted: dict[str, Any] = {}
        if not spec.get("unschedulable"):
            wanted = {"metadata": {"annotations": {CORDONED_BY: by}}, "spec": {"unschedulable": True}}
        taints = spec.get("taints") or []
        if taint and not any(_is_same(known, taint) for known in taints):
            wanted.setdefault("spec", {})["taints"] = [*taints, taint]
        return wanted or None

    return _change(kube, name, uid, change)


def uncordon(kube: KubeClient, name: str, *, by: str = "", uid: str = "", taint_key: str = "") -> bool:
    """Make the node schedulable again, returning whether anything was changed; a node that is gone is fine.

    With `by`, only a cordon of that name is undone; taints of `taint_key` go in any case.
    """

    def change(node: dict[str, Any]) -> dict[str, Any] | None:
        spec, wanted = node.get("spec") or {}, dict[str, Any]()
        annotations = (node.get("metadata") or {}).get("annotations") or {}
        if spec.get("unschedulable") and (not by or annotations.get(CORDONED_BY) == by):
            wanted["spec"] = {"unschedulable": None}
        if CORDONED_BY in annotations and (not by or annotations[CORDONED_BY] == by):
            wanted["metadata"] = {"annotations": {CORDONED_BY: None}}
        taints = spec.get("taints") or []
        kept = [known for known in taints if not taint_key or known.get("key") != taint_key]
        if len(kept) < len(taints):
            wanted.setdefault("spec", {})["taints"] = kept
        return wanted or None

    try:
        return _change(kube, name, uid, change)
    except NotFoundError:
        return False


def _change(kube: KubeClient, name: str, uid: str, change: Any) -> bool:
    for attempt in range(ATTEMPTS):
        node = kube.read(path_of(name))
        metadata = node.get("metadata") or {}
        if uid and metadata.get("uid") != uid:
            raise NotFoundError(f"node '{name}' is another one now; it was left as it is", code="OtherUid")
        wanted = change(node)
        if wanted is None:
            return False
        version = {"resourceVersion": metadata.get("resourceVersion"), "uid": metadata.get("uid")}
        wanted["metadata"] = {**(wanted.get("metadata") or {}), **version}
        try:
            kube.patch(path_of(name), wanted)
        except ConflictError:
            if attempt == ATTEMPTS - 1:
                raise
            continue
        return True
    raise AssertionError("unreachable: the last attempt returns or raises")


def _is_same(known: dict[str, Any], taint: dict[str, str]) -> bool:
    return known.get("key") == taint["key"] and known.get("effect") == taint["effect"]
