"""Every command and sample of the documentation is right: parsed by the real program, or held to a schema.

`keeper`, `make` and `python -m sandbox` are asked themselves. `az` is held to tests/data/az_commands.json,
which tests/az_commands.py writes from the real one. Configuration, messages and events are read by the code
that reads them in the app. A block that none of this can check says so: its language is `text`.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import subprocess
from functools import cache
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

import pytest
import typer
import yaml
from pages import PAGES, ROOT, Block, all_blocks, blocks, command_lines

from sandbox import __main__ as sandbox
from shared.cli.main import app
from shared.errors import AutomationError

LANGUAGES = {"sh", "yaml", "json", "python", "text", "mermaid"}
AZ: dict[str, Any] = json.loads((ROOT / "tests/data/az_commands.json").read_text())["commands"]
# What the app's own commands do not cover: the program, and how its commands begin.
KNOWN = {
    "azd": ("auth login", "down", "env get-values", "env set", "up"),
    "func": ("azure functionapp publish", "start"),
    "git": ("clone",),
    "etcdctl": ("alarm disarm", "endpoint hashkv", "endpoint status"),
    "docker": ("build", "push"),
}
KUBECTL = {"apply", "create", "delete", "describe", "get", "kustomize", "rollout", "scale", "top", "wait"}


def test_every_block_says_what_it_is() -> None:
    wrong = [f"{one.place}: '{one.language}'" for one in all_blocks() if one.language not in LANGUAGES]
    assert wrong == []


def test_no_code_stands_in_an_indented_block() -> None:
    """Those have no language, so nothing could check or colour them."""
    found = []
    for page in PAGES:
        prose = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        found += [
            f"{page.name}: {one.strip()}" for one in re.findall(r"\n\n {4,}(?:keeper|az|make|\{).*", prose)
        ]
    assert found == []


# --- commands ---


def check_keeper(words: list[str]) -> None:
    command = _keeper()
    options = _options(command)
    rest = iter(words)
    for word in rest:
        if word.startswith("-") and word != "-":
            assert word in options, f"there is no option '{word}'"
            if options[word]:
                next(rest, None)
        elif word in getattr(command, "commands", {}):
            command = command.commands[word]
            options |= _options(command)
        else:
            assert not getattr(command, "commands", None), f"there is no command '{word}'"


@cache
def _keeper() -> Any:
    return typer.main.get_command(app)


def _options(command: Any) -> dict[str, bool]:
    """Each option's names, and whether it takes a value."""
    named = {
        name: not parameter.is_flag
        for parameter in command.params
        if hasattr(parameter, "is_flag")
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    return named | {"--help": False}


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for word in words:
        assert word in targets or re.match(r"(-k$|[A-Z]+=|\.venv-)", word), f"there is no target '{word}'"


def check_az(words: list[str], *, whole: bool = True) -> None:
    """In prose, not `whole`, a command may leave away what it must be given."""
    at = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
    # What a command takes without an option's name, as `az` itself, would stand between.
    command = " ".join(words[:at])
    assert command in AZ, f"no such command is known: run tests/az_commands.py, or mend '{command}'"
    given = [word for word in words[at:] if re.match(r"--?[a-z]", word)]
    options = {name for names in AZ[command]["options"] for name in names}
    assert set(given) <= options, f"unknown options: {sorted(set(given) - options)}"
    if whole:
        missing = [names for names in AZ[command]["required"] if not set(names) & set(given)]
        assert missing == [], f"missing: {missing}"
    for word in words:
        if word.startswith("infra/"):
            assert (ROOT / word).exists(), word


def check_kubectl(words: list[str]) -> None:
    verbs = [word for word in words if word in KUBECTL]
    assert verbs, "no verb that is known here"
    for option, value in pairwise(words):
        if option in ("-k", "-f") and value != "-":
            assert (ROOT / value).exists(), value


def check_curl(words: list[str]) -> None:
    from app_functions import FUNCTIONS

    url = urlsplit(next(word for word in words if word.startswith("http")))
    routes = [
        binding["route"] for one in FUNCTIONS.values() for binding in one.bindings if "route" in binding
    ]
    patterns = ["api/" + re.sub(r"\{\w+\}", "[^/]+", route) for route in routes]
    patterns += [f"admin/functions/{name}" for name in FUNCTIONS]
    assert any(re.fullmatch(pattern, url.path.strip("/")) for pattern in patterns), url.path


def check_python(words: list[str]) -> None:
    assert words[0] == "-m", "only modules are run"
    if words[1] == "sandbox":
        assert words[2] in sandbox.COMMANDS, f"there is no 'sandbox {words[2]}'"
        if options := [word for word in words[3:] if word.startswith("-") and word != "--help"]:
            said = io.StringIO()
            with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
                sandbox.main([words[2], "--help"])
            assert [one for one in options if one not in said.getvalue()] == []
    else:
        path = ROOT / words[1].replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), words[1]


def check_cp(words: list[str]) -> None:
    assert (ROOT / words[0]).exists(), words[0]


def check_export(words: list[str]) -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    for word in words:
        name = word.partition("=")[0]
        assert name == "PATH" or f"`{name}`" in page, f"{word} is no setting of configuration.md"


CHECKS = {
    "keeper": check_keeper,
    "make": check_make,
    "az": check_az,
    "kubectl": check_kubectl,
    "curl": check_curl,
    ".venv/bin/python": check_python,
    "python": check_python,
    "cp": check_cp,
    "export": check_export,
    "cd": lambda words: None,
}


@pytest.mark.parametrize(("place", "line"), sorted(set(command_lines())))
def test_a_command_exists_with_its_options(place: str, line: str) -> None:
    for part in re.split(r" (?:\||&&) ", line):
        bare = re.sub(r"(?<![\w\"'=@])[\[\]]", "", part) if part.startswith("keeper") else part
        bare = re.sub(r"\](?=\s|$)", "", bare) if part.startswith("keeper") else bare
        words = shlex.split(bare)
        while re.match(r"[A-Z_]+=", words[0]):  # variables of the command's own
            words.pop(0)
        program, rest = words[0], [word for word in words[1:] if word != "..."]
        if program in KNOWN:
            assert " ".join(rest).startswith(KNOWN[program]), f"{place}: {line}"
            continue
        assert program in CHECKS, f"{place}: nothing here knows '{program}'"
        try:
            if program == "az":
                check_az(rest, whole=":" in place)
            else:
                CHECKS[program](rest)
        except AssertionError as error:
            pytest.fail(f"{place}: {line}: {error}")


# --- samples ---

CLUSTER: dict[str, Any] = {
    "name": "prod",
    "kubernetes": {"kubeconfig": "setting:PROD_KUBECONFIG"},
    "azure": {
        "subscription": "00000000-0000-0000-0000-000000000000",
        "resourceGroups": ["rg-kubernetes"],
        "location": "westeurope",
    },
    "etcd": {"endpoints": ["http://127.0.0.1:2379"]},
}


def check_yaml(block: Block) -> None:
    """A whole configuration, keys of it or of one cluster, or Kubernetes objects."""
    from shared.settings import parse_settings

    for document in yaml.safe_load_all(block.text):
        if document is None:
            continue
        if "apiVersion" in document:
            assert document["kind"]
            assert document["metadata"]["name"] or document["kind"] == "Kustomization"
            continue
        whole = {"storageAccount", "clusters"} & document.keys()
        keys = document if whole else {"clusters": [CLUSTER | document]}
        parse_settings(yaml.safe_dump({"clusters": [CLUSTER]} | keys), block.place)


def check_json(block: Block) -> None:
    """An operation's message, an event, a snapshot, a list of lifecycle rules; read by what reads it."""
    from shared.operations.catalogue import find, read_parameters
    from shared.runtime.message import Nudge, decode
    from shared.runtime.operation import OperationMessage

    document = json.loads(block.text)
    if "operation" in document:
        message = decode(block.text.encode(), OperationMessage)
        read_parameters(find(message.operation), message.parameters)
    elif "specversion" in document:
        assert {"id", "source", "type", "time", "data"} <= document.keys()
        assert document["data"]["cluster"]
    elif "automation" in document and "cluster" in document and "kubekeeper" not in document:
        decode(block.text.encode(), Nudge)
    elif "rules" in document:
        assert document["rules"] == _rules_of_the_templates()
    else:
        assert document.get("kubekeeper") == "snapshot/v1", "no reader is known for this"


def _rules_of_the_templates() -> Any:
    from bicep import Deployment, Scope

    main = Deployment(ROOT / "infra/main.bicep", {"environmentName": "prod", "location": "x"}, Scope("s"))
    (policy,) = [one for one in main.resources if one.type.endswith("/managementPolicies")]
    return policy.body["properties"]["policy"]["rules"]


@pytest.mark.parametrize("block", all_blocks("yaml", "json", "python"), ids=lambda one: one.place)
def test_a_sample_is_what_its_reader_takes(block: Block) -> None:
    if block.language == "python":
        compile(block.text, block.place, "exec")
    else:
        try:
            {"yaml": check_yaml, "json": check_json}[block.language](block)
        except AutomationError as error:
            pytest.fail(f"{block.place}: {error}")


def test_every_page_has_been_read() -> None:
    pages = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert {page for page in pages if page.startswith("docs/")} <= {
        str(one.relative_to(ROOT)) for one in PAGES
    }
    assert sum(len(list(blocks(page))) for page in PAGES) == len(all_blocks()) > 50
