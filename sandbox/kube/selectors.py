"""Label and field selectors: parsed once, then asked for each object. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from sandbox.kube.errors import bad_request
from sandbox.kube.kinds import METADATA_FIELDS, Kind

Labels: TypeAlias = Mapping[str, str]
Matches: TypeAlias = Callable[[Labels], bool]

_REQUIREMENT = re.compile(
    r"""\s*(?:(?P<absent>!)\s*(?P<missing>[^\s,=!()]+)
        |(?P<key>[^\s,=!()]+)\s*(?:(?P<set>in|notin)\s*\((?P<values>[^)]*)\)
            |(?P<operator>==|=|!=)\s*(?P<value>[^\s,=!()]*))?)\s*(?:,|$)""",
    re.VERBOSE,
)


def label_selector(text: str) -> Matches | None:
    """The test that `labelSelector=` stands for; None when all objects pass; 400 when it makes no sense."""
    tests, at = [], 0
    while at < len(text):
        found = _REQUIREMENT.match(text, at)
        if found is None:
            raise bad_request(f"unable to parse requirement: found '{text[at:].strip()}'")
        tests.append(_requirement(found))
        at = found.end()
    return all_of(tests)


def match_labels(selector: Mapping[str, Any] | None) -> Matches | None:
    """The test of a LabelSelector object; None when all objects pass. An absent one matches nothing."""
    if selector is None:
        return lambda _: False
    tests: list[Matches] = [
        _among(key, {value}) for key, value in (selector.get("matchLabels") or {}).items()
    ]
    for expression in selector.get("matchExpressions") or ():
        key, values = expression["key"], set(expression.get("values") or ())
        tests.append(
            {
                "In": _among(key, values),
                "NotIn": _not_among(key, values),
                "Exists": _has(key),
                "DoesNotExist": _lacks(key),
            }[expression["operator"]]
        )
    return all_of(tests)


def field_selector(text: str, kind: Kind) -> tuple[Matches | None, Matches | None]:
    """The tests that `fieldSelector=` stands for: of the kind's own fields, and of name and namespace."""
    tests: list[Matches] = []
    names: list[Matches] = []
    for term in filter(None, text.split(",")):
        found = re.fullmatch(r"\s*([^=!\s]+)\s*(==|=|!=)\s*(.*?)\s*", term)
        if found is None:
            raise bad_request(f"invalid selector: '{term}'; can't understand '{term}'")
        key, operator, value = found.groups()
        if key not in kind.selectable:
            raise bad_request(f"field label not supported: {key}")
        of_key = names if key in METADATA_FIELDS else tests
        of_key.append(_field_is(key, value, operator != "!="))
    return all_of(tests), all_of(names)


def selectable_fields(kind: Kind, document: Mapping[str, Any]) -> dict[str, str]:
    """What field selectors see of an object besides its name: each field as text, unless that is empty."""
    texts = ((name, _text(kind, document, name)) for name in kind.fields)
    return {name: text for name, text in texts if text}


def all_of(tests: list[Matches]) -> Matches | None:
    """None for no tests."""
    if not tests:
        return None
    return tests[0] if len(tests) == 1 else lambda labels: all(test(labels) for test in tests)


def _text(kind: Kind, document: Mapping[str, Any], name: str) -> str:
    if name == "source" and kind.plural == "events":
        return str(
            (document.get("source") or {}).get("component") or document.get("reportingComponent") or ""
        )
    found: Any = document
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, bool) or name in ("spec.unschedulable", "spec.hostNetwork"):
        return "true" if found else "false"
    return "" if found is None else str(found)


def _field_is(key: str, value: str, expected: bool) -> Matches:
    return lambda fields: (fields.get(key, "") == value) is expected


def _requirement(found: re.Match[str]) -> Matches:
    if found["absent"]:
        return _lacks(found["missing"])
    key = found["key"]
    if found["set"]:
        values = {value.strip() for value in found["values"].split(",")}
        return _among(key, values) if found["set"] == "in" else _not_among(key, values)
    if found["operator"]:
        value = {found["value"]}
        return _not_among(key, value) if found["operator"] == "!=" else _among(key, value)
    return _has(key)


def _among(key: str, values: set[str]) -> Matches:
    return lambda labels: labels.get(key) in values


def _not_among(key: str, values: set[str]) -> Matches:
    return lambda labels: labels.get(key) not in values


def _has(key: str) -> Matches:
    return lambda labels: key in labels


def _lacks(key: str) -> Matches:
    return lambda labels: key not in labels
