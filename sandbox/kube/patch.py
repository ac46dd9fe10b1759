"""The three kinds of PATCH: JSON merge, JSON patch, and the strategic merge of the lists that matter. No I/O.

Nothing given is changed; what comes out may share parts with what went in.
"""

from __future__ import annotations

import copy
from typing import Any

from sandbox.kube.errors import bad_request, unprocessable

# By the name of the list, wherever it stands: which field of its items says that two are the same one. Lists
# that are not named are replaced as a whole, as are the node's taints and the pod's tolerations.
MERGE_KEYS = {
    "conditions": "type",
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "addresses": "type",
    "ownerReferences": "uid",
    "podIPs": "ip",
    "hostIPs": "ip",
    "topologySpreadConstraints": "topologyKey",
}
PORT_KEYS = ("containerPort", "port")
SETS = frozenset({"finalizers", "podCIDRs"})


def merge(document: Any, change: Any) -> Any:
    """JSON merge patch (RFC 7396): null removes."""
    if not isinstance(change, dict):
        return change
    merged = dict(document) if isinstance(document, dict) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def strategic(document: Any, change: dict[str, Any]) -> dict[str, Any]:
    """Strategic merge patch, with `$patch: delete|replace`, `$retainKeys`, `$deleteFromPrimitiveList/...`."""
    if change.get("$patch") == "replace":
        return {key: value for key, value in change.items() if key != "$patch"}
    merged = dict(document) if isinstance(document, dict) else {}
    retained = change.get("$retainKeys")
    if retained is not None:
        merged = {key: value for key, value in merged.items() if key in retained}
    for key, value in change.items():
        if key.startswith("$deleteFromPrimitiveList/"):
            name = key.partition("/")[2]
            merged[name] = [item for item in merged.get(name) or () if item not in value]
        elif key.startswith("$"):
            continue  # $retainKeys is done with, $setElementOrder only says in which order
        elif value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            merged[key] = strategic(merged.get(key), value)
        elif isinstance(value, list):
            merged[key] = _strategic_list(key, merged.get(key) or [], value)
        else:
            merged[key] = value
    return merged


def _strategic_list(name: str, items: list[Any], change: list[Any]) -> list[Any]:
    if name in SETS:
        return items + [item for item in change if item not in items]
    key = MERGE_KEYS.get(name) or _port_key(name, change)
    if key is None:
        return change
    if any(item.get("$patch") == "replace" and key not in item for item in change):
        return [item for item in change if "$patch" not in item]
    merged = list(items)
    for item in change:
        if key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key}")
        at = next((i for i, old in enumerate(merged) if old.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            merged = [old for old in merged if old.get(key) != item[key]]
        elif at is None:
            merged.append(strategic({}, item))
        else:
            merged[at] = strategic(merged[at], item)
    return merged


def _port_key(name: str, change: list[Any]) -> str | None:
    if name != "ports" or not change:
        return None
    return next((key for key in PORT_KEYS if key in change[0]), None)


def json_patch(document: Any, operations: Any) -> Any:
    """JSON patch (RFC 6902); 422 when an operation cannot be done."""
    result = copy.deepcopy(document)
    try:
        for operation in operations:
            result = _operate(result, operation)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise unprocessable() from error
    return result


def _operate(document: Any, operation: dict[str, Any]) -> Any:
    kind, path = operation["op"], _pointer(operation["path"])
    if kind == "test":
        if _find(document, path) != operation["value"]:
            raise ValueError("test failed")
        return document
    if kind == "remove":
        return _remove(document, path)
    if kind == "replace":
        _find(document, path)
        return _add(_remove(document, path), path, operation["value"]) if path else operation["value"]
    if kind == "add":
        return _add(document, path, operation["value"])
    source = _pointer(operation["from"])
    value = copy.deepcopy(_find(document, source))
    if kind == "move":
        document = _remove(document, source)
    elif kind != "copy":
        raise ValueError(kind)
    return _add(document, path, value)


def _pointer(text: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _find(document: Any, path: list[str]) -> Any:
    for part in path:
        document = document[_index(part)] if isinstance(document, list) else document[part]
    return document


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent, last = _find(document, path[:-1]), path[-1]
    if isinstance(parent, list):
        at = len(parent) if last == "-" else _index(last)
        if at > len(parent):
            raise IndexError(last)
        parent.insert(at, value)
    else:
        parent[last] = value
    return document


def _remove(document: Any, path: list[str]) -> Any:
    parent, last = _find(document, path[:-1]), path[-1]
    del parent[_index(last) if isinstance(parent, list) else last]
    return document


def _index(text: str) -> int:
    if not text.isdigit():
        raise IndexError(text)
    return int(text)
