"""What a client asks an API server about itself: versions, groups, resources, the outline of its schema."""

from __future__ import annotations

from typing import Any

from sandbox.kube.kinds import KINDS, Kind

Document = dict[str, Any]

VERSION = "v1.36.4"
"""Of which the contracts were written down."""
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def document(path: str) -> Document | None:
    """The answer to a GET that is not about objects; None when there is no such page."""
    path = path.rstrip("/")
    if path in ("/healthz", "/livez", "/readyz"):
        return {}
    fixed = {
        "/version": _version,
        "/api": lambda: {"kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"]},
        "/apis": _groups,
        "/openapi/v3": _schemas,
    }
    if path in fixed:
        return fixed[path]()
    prefix, _, rest = path.partition("/openapi/v3")
    root = f"/{rest.strip('/')}" if not prefix and rest else path
    found = [kind for kind in KINDS if kind.root == root]
    if not found:
        return None
    return _schema(found) if root != path else _resources(found)


def _version() -> Document:
    major, minor, _ = VERSION[1:].split(".")
    return {"major": major, "minor": minor, "gitVersion": VERSION, "platform": "sandbox"}


def _groups() -> Document:
    versions: dict[str, list[Document]] = {}
    for kind in KINDS:
        if kind.group:
            version = {"groupVersion": kind.api_version, "version": kind.version}
            known = versions.setdefault(kind.group, [])
            if version not in known:
                known.append(version)
    groups = [
        {"name": name, "versions": known, "preferredVersion": known[0]} for name, known in versions.items()
    ]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _resources(found: list[Kind]) -> Document:
    resources: list[Document] = []
    for kind in found:
        named = {"namespaced": kind.is_namespaced, "kind": kind.kind}
        whole = {"name": kind.plural, "singularName": kind.kind.lower(), **named, "verbs": _VERBS}
        resources.append(whole | ({"shortNames": list(kind.short_names)} if kind.short_names else {}))
        part = {"singularName": "", **named}
        if kind.has_status:
            resources.append({"name": f"{kind.plural}/status", **part, "verbs": ["get", "patch", "update"]})
        if (kind.plural, kind.group) == ("pods", ""):
            eviction = {"group": "policy", "version": "v1", "kind": "Eviction", "verbs": ["create"]}
            resources.append({**part, "name": "pods/eviction", **eviction})
            resources.append({**part, "name": "pods/binding", "kind": "Binding", "verbs": ["create"]})
    head = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": found[0].api_version}
    return {**head, "resources": resources}


def _schemas() -> Document:
    roots = dict.fromkeys(kind.root.lstrip("/") for kind in KINDS)
    return {"paths": {root: {"serverRelativeURL": f"/openapi/v3/{root}?hash={VERSION}"} for root in roots}}


def _schema(found: list[Kind]) -> Document:
    """As much as kubectl needs to leave validation to the server and to use merge rules of its own."""
    paths = {}
    for kind in found:
        gvk = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        operation = {
            "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-group-version-kind": gvk,
        }
        paths[kind.path("{namespace}", "{name}")] = {"patch": operation, "put": operation}
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": VERSION}, "paths": paths}
