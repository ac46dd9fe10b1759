"""The JSON Schema of kubekeeper.yaml, made from the configuration's own types and their docstrings.

`keeper config schema` prints it; `docs/reference/kubekeeper.schema.json` is that output, which a test keeps
current. Editors read it for completion and for hovering over a key.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from typing import Any

import msgspec

from shared.settings import Settings


def schema() -> dict[str, Any]:
    """The schema as built-in types; every key carries the docstring of its field."""
    (root,), definitions = msgspec.json.schema_components([Settings], ref_template="#/$defs/{name}")
    for kind in _structs(msgspec.inspect.type_info(Settings)):
        definition = definitions[kind.__name__]
        if "description" in definition:  # with its indentation before Python 3.13
            definition["description"] = inspect.getdoc(kind)
        properties = definition["properties"]
        for name, description in _field_docstrings(kind).items():
            of_type = properties[name].get("description")
            properties[name] = _without_null(properties[name]) | {
                "description": f"{description} ({of_type})" if of_type else description
            }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "kubekeeper.yaml",
        "description": "Configuration of the fleet that Kubekeeper looks after.",
        **root,
        "$defs": definitions,
    }


def schema_text() -> str:
    """The schema as the text of its file."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A key that may be absent may not be null: an empty `etcdBackup:` would silently mean no backups."""
    if schema.get("default", "") is None:
        schema = {key: value for key, value in schema.items() if key != "default"}
    others = [option for option in schema.pop("anyOf", []) if option != {"type": "null"}]
    return schema | others[0] if others else schema


def _structs(kind: Any) -> list[type]:
    """Every struct reachable from a type, each once."""
    found: dict[type, None] = {}
    todo = [kind]
    while todo:
        kind = todo.pop()
        if isinstance(kind, msgspec.inspect.StructType) and kind.cls not in found:
            found[kind.cls] = None
            todo += [field.type for field in kind.fields]
        todo += getattr(kind, "types", ())
        todo += [inner for name in ("type", "item_type") if (inner := getattr(kind, name, None)) is not None]
    return list(found)


def _field_docstrings(kind: type) -> dict[str, str]:
    """Key in the document to the string that stands below its field in the source."""
    names = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    docstrings: dict[str, str] = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docstrings[names[field.target.id]] = " ".join(str(below.value.value).split())
    return docstrings
