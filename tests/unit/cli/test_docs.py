"""The documentation tells the truth: its commands parse, its keys, settings and events exist.

Run as a program (`PYTHONPATH=.:tests python tests/unit/cli/test_docs.py`) this writes the table of keys into
docs/configuration.md.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from shared.cli.main import app
from shared.cli.schema import schema
from shared.record import VERBS

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGURATION = ROOT / "docs/configuration.md"
BEGIN = "<!-- keys: made from the types by tests/unit/cli/test_docs.py -->\n"
END = "<!-- end of keys -->\n"


def commands() -> Iterator[tuple[str, str]]:
    """(page, command line) of every `keeper ...` in code."""
    for page in PAGES:
        text = page.read_text()
        found = re.findall(r"^ {4,}(keeper .*)$", text, re.MULTILINE) + re.findall(r"`(keeper [^`]+)`", text)
        for line in found:
            bare = re.sub(r"[\[\]]", "", line.partition("  #")[0]).strip()
            yield str(page.relative_to(ROOT)), bare


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_a_command_in_the_documentation_exists_with_its_options(page: str, line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = iter(shlex.split(line)[1:])
    options = _options(command)
    for word in words:
        if word.startswith("-") and word != "-":
            assert word in options, f"{page}: {line}: there is no option '{word}'"
            if options[word]:
                next(words, None)
        elif word in getattr(command, "commands", {}):
            command = command.commands[word]
            options |= _options(command)
        elif getattr(command, "commands", None):
            pytest.fail(f"{page}: {line}: there is no command '{word}'")


def _options(command: Any) -> dict[str, bool]:
    """Each option's names, and whether it takes a value."""
    named = {
        name: not parameter.is_flag
        for parameter in command.params
        if hasattr(parameter, "is_flag")
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    return named | {"--help": False}


def test_every_key_of_the_configuration_is_documented() -> None:
    text = CONFIGURATION.read_text()
    assert text == with_keys(text), "run: PYTHONPATH=.:tests python tests/unit/cli/test_docs.py"


def test_every_app_setting_is_documented() -> None:
    sources = [*(ROOT / "shared").rglob("*.py"), *(ROOT / "functions").rglob("*.py")]
    # The forwarder is another process, with variables of its own.
    sources = [file for file in sources if "forwarder" not in file.parts]
    used = {name for file in sources for name in re.findall(r"KUBEKEEPER_[A-Z_]+[A-Z]", file.read_text())}
    documented = set(re.findall(r"^\| `(KUBEKEEPER_[A-Z_]+)`", CONFIGURATION.read_text(), re.MULTILINE))
    assert used == documented


def test_every_documented_event_can_be_sent() -> None:
    text = (ROOT / "docs/etcd-backup.md").read_text()
    section = text.partition("## Events")[2].partition("## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    documented = {n.rpartition(".")[2] for row in rows for n in re.findall(r"`([A-Za-z.]+)`", row)}
    sources = "".join(file.read_text() for file in (ROOT / "shared").rglob("*.py"))
    failed = {f"{kind}Failed" for kind in VERBS}
    unknown = {
        n for n in documented if n not in VERBS.values() and n not in failed and f'"{n}"' not in sources
    }
    assert unknown == set()


def with_keys(text: str) -> str:
    """The page with the table of keys made anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "\n".join(key_tables()) + "\n" + END + rest.partition(END)[2]


def key_tables() -> Iterator[str]:
    """One table for each part of the configuration, in the order of the document."""
    document = schema()
    definitions = document["$defs"]
    todo = [("the document", document["$ref"])]
    done: set[str] = set()
    while todo:
        path, reference = todo.pop(0)
        definition = definitions[reference.rpartition("/")[2]]
        if reference in done:
            continue
        done.add(reference)
        yield f"## {path}\n"
        yield f"{definition['description']}\n"
        yield "| key | default | meaning |"
        yield "|---|---|---|"
        for key, value in definition["properties"].items():
            meaning = _cell(value["description"])
            yield f"| `{key}` | {_default(definition, key, value)} | {meaning} |"
        yield ""
        here = "" if path == "the document" else path.strip("`") + "."
        todo = [(f"`{here}{key}`", part) for key, part in _parts(definition)] + todo
    assert len(done) == len(definitions), f"not reached: {sorted(definitions)}"


def _parts(definition: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, reference) of the keys that hold further keys; a list's key ends in []."""
    for key, value in definition["properties"].items():
        held, mark = (value["items"], "[]") if "items" in value else (value, "")
        found = [held, *held.get("anyOf", ()), *held.get("allOf", ())]
        yield from ((key + mark, one["$ref"]) for one in found if isinstance(one, dict) and "$ref" in one)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(definition: dict[str, Any], key: str, value: dict[str, Any]) -> str:
    if key in definition.get("required", []):
        return "required"
    default = value.get("default")
    if default is None or isinstance(default, dict):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    CONFIGURATION.write_text(with_keys(CONFIGURATION.read_text()))
