"""The documentation tells the truth: its keys, settings and events exist.

Run as a program (`PYTHONPATH=.:tests python tests/unit/cli/test_docs.py`) this writes the tables of keys into
docs/configuration.md and the pages of the automations.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shared.cli.schema import schema
from shared.record import VERBS

ROOT = Path(__file__).parents[3]
CONFIGURATION = ROOT / "docs/configuration.md"
OPERATIONS_PAGE = ROOT / "docs/operations.md"
SECTIONS = {
    CONFIGURATION: "",
    ROOT / "docs/autoscaling.md": "clusters[].autoscaling",
    ROOT / "docs/disk-release.md": "clusters[].diskRelease",
    ROOT / "docs/etcd-backup.md": "clusters[].etcdBackup",
    ROOT / "docs/ingress-sync.md": "clusters[].ingressSync",
}
"""Page to the part of the configuration whose keys it explains; the rest is on the first."""
BEGIN = "<!-- keys: made from the types by tests/unit/cli/test_docs.py -->\n"
END = "<!-- end of keys -->\n"


@pytest.mark.parametrize("page", SECTIONS, ids=lambda page: page.stem)
def test_every_key_of_the_configuration_is_documented(page: Path) -> None:
    text = page.read_text()
    assert text == with_keys(page, text), "run: PYTHONPATH=.:tests python tests/unit/cli/test_docs.py"


def test_every_app_setting_is_documented() -> None:
    sources = [*(ROOT / "shared").rglob("*.py"), *(ROOT / "functions").rglob("*.py")]
    # The forwarder is another process, with variables of its own.
    sources = [file for file in sources if "forwarder" not in file.parts]
    used = {name for file in sources for name in re.findall(r"KUBEKEEPER_[A-Z_]+[A-Z]", file.read_text())}
    documented = set(re.findall(r"^\| `(KUBEKEEPER_[A-Z_]+)`", CONFIGURATION.read_text(), re.MULTILINE))
    assert used == documented


def test_every_operation_is_documented_with_its_parameters() -> None:
    from shared.operations.catalogue import OPERATIONS

    rows = re.findall(
        r"^\| (`[a-z-]+`(?:, `[a-z-]+`)*) \| .* \| (.*) \|$", OPERATIONS_PAGE.read_text(), re.MULTILINE
    )
    documented: dict[str, set[str]] = {}
    for names, parameters in rows:
        for name in re.findall(r"`([a-z-]+)`", names):
            # `reason` (`pause`) says which of the operations of one row takes it.
            only = dict(re.findall(r"`(\w+)` \(`([a-z-]+)`\)", parameters))
            bare = re.sub(r":.*?(?=;|$)| \(`[a-z-]+`\)", "", parameters)
            documented[name] = {p for p in re.findall(r"`(\w+)`", bare) if only.get(p, name) == name}
    taken = {
        name: {field.encode_name for field in msgspec.structs.fields(one.parameters)}
        for name, one in OPERATIONS.items()
    }
    assert documented == taken


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


def with_keys(page: Path, text: str) -> str:
    """The page with its tables of keys made anew."""
    before, begin, rest = text.partition(BEGIN)
    assert begin, f"{page.name} has no place for its keys"
    return before + BEGIN + "\n".join(key_tables(page)) + "\n" + END + rest.partition(END)[2]


def key_tables(page: Path) -> Iterator[str]:
    """One table for each part of the configuration that belongs on the page, in the order of the document."""
    document = schema()
    definitions = document["$defs"]
    todo = [("", document["$ref"])]
    done: set[str] = set()
    while todo:
        path, reference = todo.pop(0)
        definition = definitions[reference.rpartition("/")[2]]
        if reference in done:
            continue
        done.add(reference)
        if _page_of(path) == page:
            yield from _table(path if page == CONFIGURATION else path.removeprefix("clusters[]."), definition)
        here = f"{path}." if path else ""
        todo = [(here + key, part) for key, part in _parts(definition)] + todo
    assert len(done) == len(definitions), f"not reached: {sorted(definitions)}"


def _page_of(path: str) -> Path:
    found = [page for page, begin in SECTIONS.items() if begin and f"{path}.".startswith(f"{begin}.")]
    return found[0] if found else CONFIGURATION


def _table(path: str, definition: dict[str, Any]) -> Iterator[str]:
    yield f"### {f'`{path}`' if path else 'the document'}\n"
    yield f"{inspect.cleandoc(definition['description'])}\n"
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for key, value in definition["properties"].items():
        meaning = _cell(value["description"])
        if page := next((p for p, begin in SECTIONS.items() if begin == f"{path}.{key}"), None):
            meaning += f" [Its keys]({page.name}#settings)."
        yield f"| `{key}` | {_default(definition, key, value)} | {meaning} |"
    yield ""


def _parts(definition: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, reference) of the keys that hold further keys; a list's key ends in []."""
    for key, value in definition["properties"].items():
        held, mark = (value["items"], "[]") if "items" in value else (value, "")
        found = [held, *held.get("anyOf", ()), *held.get("allOf", ())]
        yield from ((key + mark, one["$ref"]) for one in found if isinstance(one, dict) and "$ref" in one)


def _cell(text: str) -> str:
    """Without what the page says once for all durations."""
    return re.sub(r" \(a duration, such as [^)]*\)", "", text).replace("|", "\\|")


def _default(definition: dict[str, Any], key: str, value: dict[str, Any]) -> str:
    if key in definition.get("required", []):
        return "required"
    default = value.get("default")
    if default in (None, "") or isinstance(default, dict):
        return ""
    if isinstance(default, (list, tuple)):
        return ", ".join(f"`{one}`" for one in default)
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


if __name__ == "__main__":
    for path in SECTIONS:
        path.write_text(with_keys(path, path.read_text()))
