"""Writes the JSON Schema of every operation's message: `python -m shared.operations.schema DIRECTORY`.

Generated from the types that read the messages, so it cannot say anything else. A test compares the
committed files.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from shared.operations.catalogue import OPERATIONS, Operation
from shared.runtime.operation import OperationMessage


def schema(operation: Operation) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of messages that ask for this operation."""
    (envelope, parameters), definitions = msgspec.json.schema_components(
        [OperationMessage, operation.parameters], ref_template="#/$defs/{name}"
    )
    names = [ref["$ref"].rpartition("/")[2] for ref in (envelope, parameters)]
    body = definitions.pop(names[0])
    own = definitions.pop(names[1])
    properties: dict[str, Any] = body["properties"]
    properties["operation"] = {"const": operation.name}
    properties["parameters"] = own | {"title": "parameters"}
    properties["id"]["description"] = "The same id runs once. Left out, the message is its own identity."
    properties["cluster"]["description"] = "Name of the cluster in kubekeeper.yaml."
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"operation {operation.name}",
        "description": operation.summary,
        **{key: value for key, value in body.items() if key not in ("title", "description")},
        **({"$defs": definitions} if definitions else {}),
    }


def documents() -> dict[str, bytes]:
    """File name to content, for every operation."""
    return {
        f"{operation.name}.schema.json": msgspec.json.format(msgspec.json.encode(schema(operation)), indent=2)
        + b"\n"
        for operation in OPERATIONS.values()
    }


def main(arguments: list[str]) -> int:
    """Write all files; exit code 2 without a directory."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m shared.operations.schema DIRECTORY\n")
        return 2
    directory = Path(arguments[0])
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in documents().items():
        (directory / name).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
