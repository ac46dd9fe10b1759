"""A YAML document as plain values plus the line of every key, so that an error can point at its place.

Owns what is refused before any meaning is read: broken YAML, duplicate keys, keys without a value, documents
that expand without end. Called by `shared.settings`; knows nothing about what the keys mean.
"""

from __future__ import annotations

from typing import Any

import msgspec

from shared.errors import SettingsError

MAX_DOCUMENT_BYTES = 1024 * 1024  # a fleet of a thousand clusters fits; a mistaken file does not
MAX_NODES = 200_000  # aliases may repeat a part of the document, not blow it up
MAX_DEPTH = 30

_MERGE = "tag:yaml.org,2002:merge"


class Document(msgspec.Struct, frozen=True):
    """`value` as built-in types; `lines`: the line, from 1, of each key path such as `clusters[0].name`."""

    value: Any
    source: str
    lines: dict[str, int]

    def error(self, path: str, problem: str) -> SettingsError:
        """The error for `path`, pointing at its line or, where it is absent, at its nearest parent's."""
        at = path
        while at and at not in self.lines:
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        line = self.lines.get(at, 1)
        return SettingsError(f"{self.source}:{line}: {path + ': ' if path else ''}{problem}")


def read_document(text: str | bytes, source: str) -> Document:
    """Parse one YAML (or JSON) document; an empty one has the value None. Raises SettingsError."""
    import yaml

    if len(text) > MAX_DOCUMENT_BYTES:
        raise SettingsError(f"{source}: larger than {MAX_DOCUMENT_BYTES} bytes; that is no configuration")
    try:
        content = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise SettingsError(
            f"{source}: byte {error.start} is not UTF-8; save the file as UTF-8 text"
        ) from None
    try:
        loader = yaml.SafeLoader(content)
        try:
            root = loader.get_single_node()
            walk = _Walk(loader, source)
            return Document(walk.value(root, "", 0) if root else None, source, walk.lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.line + 1}:{mark.column + 1}" if mark else "1"
        raise SettingsError(f"{source}:{place}: not valid YAML: {_reason(error)}") from None
    except RecursionError:
        raise SettingsError(f"{source}: nested too deeply; a configuration has a handful of levels") from None
    except yaml.reader.ReaderError as error:
        raise SettingsError(
            f"{source}: character {error.position} cannot stand in YAML: {error.reason}"
        ) from None


def _reason(error: Any) -> str:
    problem = " ".join(str(error.problem or error.context).split())
    if "\\t" in problem:
        return "a tab is used for indentation; use spaces"
    if "<block end>" in problem:
        return "this line is not indented like the lines it belongs to"
    if "mapping values are not allowed" in problem:
        return f"{problem}; check the indentation, and quote values that contain ': '"
    if "single document" in problem or "another document" in problem:
        return "more than one document; put all clusters into one, without '---' between them"
    return problem


class _Walk:
    """Turns YAML nodes into values, once per alias use, and notes lines on the way."""

    def __init__(self, loader: Any, source: str) -> None:
        self._loader = loader
        self._source = source
        self._nodes = 0
        self.lines: dict[str, int] = {}

    def value(self, node: Any, path: str, depth: int) -> Any:
        import yaml

        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self._refuse(node, "the document expands too far; use fewer aliases or less nesting")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        value = self._loader.construct_object(node)
        if value is None and path:
            raise self._refuse(
                node, f"{path}: has no value; give it one, or remove the key to take its default"
            )
        return value

    def _mapping(self, node: Any, path: str, depth: int) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[Any] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged.append(value_node)
                continue
            key = str(key_node.value)
            if key in result:
                raise self._refuse(
                    key_node, f"{path + ': ' if path else ''}the key '{key}' stands here twice"
                )
            at = f"{path}.{key}" if path else key
            self.lines[at] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, at, depth + 1)
        for source in merged:
            result = self._merge(source, path, depth) | result
        return result

    def _merge(self, node: Any, path: str, depth: int) -> dict[str, Any]:
        import yaml

        if isinstance(node, yaml.SequenceNode):
            merged: dict[str, Any] = {}
            for item in reversed(node.value):
                merged |= self._merge(item, path, depth + 1)
            return merged
        if not isinstance(node, yaml.MappingNode):
            raise self._refuse(node, f"{path}: '<<' takes an alias of a mapping, such as '<<: *defaults'")
        return self._mapping(node, path, depth + 1)

    def _refuse(self, node: Any, problem: str) -> SettingsError:
        return SettingsError(f"{self._source}:{node.start_mark.line + 1}: {problem}")
