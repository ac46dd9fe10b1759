"""The templates under infra/: every file parses, every module, parameter, output and name in them resolves.

The real Bicep compiler comes from no registry that tests may use, so types of resources are not checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import tree_sitter_bicep
from tree_sitter import Language, Node, Parser

from sandbox.tools import CHECKOUT

INFRA = CHECKOUT / "infra"
TEMPLATES = sorted(INFRA.rglob("*.bicep"))
PARAMETERS = sorted(INFRA.rglob("*.bicepparam"))
PARSER = Parser(Language(tree_sitter_bicep.language()))
DECLARATIONS = {
    "parameter_declaration": "param",
    "variable_declaration": "var",
    "resource_declaration": "resource",
    "module_declaration": "module",
    "output_declaration": "output",
}


@dataclass
class Module:
    """A module as it is used: where it is, and what it is given."""

    path: Path
    given: set[str]


@dataclass
class Template:
    """What a file declares, and what it refers to."""

    declared: dict[str, set[str]] = field(
        default_factory=lambda: {kind: set() for kind in DECLARATIONS.values()}
    )
    required: set[str] = field(default_factory=set)
    modules: dict[str, Module] = field(default_factory=dict)
    outputs_used: set[tuple[str, str]] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)


def text(node: Node | None) -> str:
    return node.text.decode() if node is not None and node.text else ""


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


def child(node: Node, kind: str) -> Node | None:
    return next((one for one in node.children if one.type == kind), None)


@cache
def read(path: Path) -> Template:
    source = path.read_bytes()
    if path.suffix == ".bicepparam":
        # The grammar knows templates only; a file of parameters is `using` and assignments.
        source = re.sub(rb"(?m)^using .*$", b"", source)
        source = re.sub(rb"(?m)^param ", b"var ", source)
    template = Template()
    for node in walk(PARSER.parse(source).root_node):
        if node.is_error or node.is_missing:
            template.errors.append(f"{path.name}:{node.start_point.row + 1}: {text(node)[:60]}")
        if node.type in DECLARATIONS:
            _declare(template, node, path)
        elif node.type == "member_expression":
            _use_output(template, node)
    return template


def _declare(template: Template, node: Node, path: Path) -> None:
    kind, name = DECLARATIONS[node.type], text(child(node, "identifier"))
    template.declared[kind].add(name)
    if kind == "param" and not any(one.type == "=" for one in node.children):
        template.required.add(name)
    if kind == "module":
        where = text(child(node, "string")).strip("'")
        template.modules[name] = Module((path.parent / where).resolve(), _given(node))


def _given(module: Node) -> set[str]:
    for node in walk(module):
        if node.type == "object_property" and text(node.children[0]) == "params":
            held = child(node, "object")
            assert held is not None
            return {text(one.children[0]) for one in held.children if one.type == "object_property"}
    return set()


def _use_output(template: Template, node: Node) -> None:
    match = re.fullmatch(r"(\w+)(?:\[\w+\])?\.outputs\.(\w+)", text(node))
    if match:
        template.outputs_used.add((match[1], match[2]))


def name(path: Path) -> str:
    return str(path.relative_to(INFRA))


@pytest.mark.parametrize("path", [*TEMPLATES, *PARAMETERS], ids=name)
def test_a_file_parses(path: Path) -> None:
    assert read(path).errors == []


@pytest.mark.parametrize("path", TEMPLATES, ids=name)
def test_every_module_is_there_and_is_given_what_it_asks_for(path: Path) -> None:
    for used, module in read(path).modules.items():
        assert module.path.is_file(), f"{used}: there is no {module.path.name}"
        theirs = read(module.path)
        assert module.given <= theirs.declared["param"], f"{used}: unknown parameters"
        assert theirs.required <= module.given, f"{used}: missing parameters"


@pytest.mark.parametrize("path", TEMPLATES, ids=name)
def test_every_output_that_is_used_is_declared(path: Path) -> None:
    template = read(path)
    for used, output in template.outputs_used:
        assert output in read(template.modules[used].path).declared["output"], f"{used}.outputs.{output}"


@pytest.mark.parametrize("path", TEMPLATES, ids=name)
def test_every_parameter_variable_and_module_is_used_somewhere(path: Path) -> None:
    template = read(path)
    body = path.read_text()
    for declared in template.declared["param"] | template.declared["var"]:
        assert len(re.findall(rf"\b{declared}\b", body)) > 1, f"{declared} is declared and never used"


@pytest.mark.parametrize("path", PARAMETERS, ids=name)
def test_parameters_are_those_of_their_template(path: Path) -> None:
    match = re.search(r"^using '(.+)'$", path.read_text(), re.MULTILINE)
    assert match
    template = read((path.parent / match[1]).resolve())
    given = read(path).declared["var"]
    assert given <= template.declared["param"]
    assert template.required <= given


def test_every_module_is_used() -> None:
    used = {module.path for path in TEMPLATES for module in read(path).modules.values()}
    assert {path for path in TEMPLATES if path.parent.name == "modules"} == used


def test_every_automation_that_a_sample_names_has_its_actions() -> None:
    actions = json.loads((INFRA / "actions.json").read_text())
    named = {
        one
        for path in PARAMETERS
        for names in re.findall(r"automations: \[(.*)\]", path.read_text())
        for one in re.findall(r"'([a-z-]+)'", names)
    }
    assert named == set(actions)


def test_the_apps_settings_are_those_the_code_reads() -> None:
    settings = set(
        re.findall(r"^  (KUBEKEEPER_\w+):", (INFRA / "modules/app.bicep").read_text(), re.MULTILINE)
    )
    documented = set(
        re.findall(r"^\| `(KUBEKEEPER_\w+)`", (CHECKOUT / "docs/configuration.md").read_text(), re.MULTILINE)
    )
    assert settings <= documented
    assert {one for one in documented if one.endswith("_SCHEDULE")} <= settings


def test_queues_are_those_of_the_automations() -> None:
    from shared.operations.dispatch import QUEUE
    from shared.runtime.automation import AUTOMATIONS

    body = (INFRA / "modules/storage.bicep").read_text()
    match = re.search(r"var queueNames = \[(.*)\]", body)
    assert match
    assert set(re.findall(r"'([a-z-]+)'", match[1])) == {*AUTOMATIONS, QUEUE}


def test_json_files_are_json() -> None:
    for path in INFRA.rglob("*.json"):
        json.loads(path.read_text())
