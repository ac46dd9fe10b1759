"""The files of the repository: what is committed, locked, deployed, generated, and where the docs point."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from sandbox.package import TARGET, deployed
from sandbox.package import main as package
from sandbox.tools import CHECKOUT
from shared.cli.schema import schema_text

# Spelt in pieces, or this file would find itself.
ELSEWHERE = re.compile(
    r"(?<![\w.:}-])/(?:work|root|home/(?!site/wwwroot)\w+)/"
    + "|"
    + "|".join(
        ("py" + r"pi\.org", "python" + r"hosted\.org", "npm" + r"js\.(?:org|com)", r"proxy\." + "golang")
    )
)
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?: ; (?P<marker>[^\\]+?))?(?: \\)?$")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def git(*arguments: str) -> list[str]:
    answer = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip("not a git checkout: what is committed cannot be told from what is not")
    return [line for line in answer.stdout.split("\0") if line]


def tracked() -> Iterator[Path]:
    for name in git("ls-files", "-z"):
        if (path := CHECKOUT / name).is_file():
            yield path


def text_of(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return ""


def test_no_file_names_this_machine_or_a_package_registry() -> None:
    found = [
        f"{path.relative_to(CHECKOUT)}:{number}: {line.strip()[:80]}"
        for path in tracked()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        if ELSEWHERE.search(line)
    ]
    assert found == []


def test_only_the_app_would_be_deployed() -> None:
    git("ls-files", "-z")  # skips outside a git checkout
    names = deployed()
    roots = {"function_app.py", "functions", "host.json", "requirements.txt", "shared"}
    assert {name.split("/")[0] for name in names} == roots
    assert not [name for name in names if name.startswith(("shared/cli/", "shared/forwarder/"))]


def test_the_package_is_the_same_bytes_each_time_and_small() -> None:
    git("ls-files", "-z")
    assert package([]) == 0
    first = TARGET.read_bytes()
    assert package([]) == 0
    assert TARGET.read_bytes() == first
    assert len(first) < 1_000_000


def test_the_licences_of_what_is_deployed_allow_it() -> None:
    allowed = re.compile(
        r"MIT|Apache|BSD|PSF|Python Software Foundation|MPL|Unlicense|0BSD|ISC", re.IGNORECASE
    )
    odd = {}
    for name in sorted({name for name, _, marker in pins("requirements.txt") if not marker}):
        about = importlib.metadata.metadata(name)
        said = [about.get("License-Expression") or "", (about.get("License") or "")[:200]]
        said += [line for line in about.get_all("Classifier") or [] if line.startswith("License")]
        if not any(allowed.search(text) for text in said):
            odd[name] = said
    assert odd == {}


def pins(name: str) -> list[tuple[str, Version, str]]:
    """(normalised name, version, marker) of each requirement of a lock file."""
    found = [PIN.match(line) for line in (CHECKOUT / name).read_text().splitlines()]
    return [
        (match["name"].lower(), Version(match["version"]), match["marker"] or "") for match in found if match
    ]


FORWARDER = "infra/forwarder/requirements.txt"
LOCKS = [
    "requirements.txt",
    "requirements-dev.txt",
    "requirements-node.txt",
    "requirements-etcd.txt",
    FORWARDER,
]


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_a_hash_for_every_pin_and_no_address(name: str) -> None:
    text = (CHECKOUT / name).read_text()
    entries = re.split(r"^(?=[A-Za-z])", text, flags=re.MULTILINE)[1:]
    assert entries
    assert [entry.split()[0] for entry in entries if not PIN.match(entry.splitlines()[0])] == []
    assert [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text
    assert "--index" not in text


def declared() -> list[tuple[str, Requirement]]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    wanted = {
        "requirements.txt": project["project"]["dependencies"],
        "requirements-dev.txt": [
            *project["project"]["dependencies"],
            *project["project"]["optional-dependencies"]["cli"],
            *groups["dev"],
        ],
        "requirements-node.txt": groups["node"],
        "requirements-etcd.txt": groups["etcd"],
        FORWARDER: groups["forwarder"],
    }
    return [(file, Requirement(text)) for file, texts in wanted.items() for text in texts]


@pytest.mark.parametrize(("file", "requirement"), declared(), ids=str)
def test_the_lock_files_satisfy_the_project_file(file: str, requirement: Requirement) -> None:
    locked = [version for name, version, _ in pins(file) if name == requirement.name.lower()]
    assert locked, f"{requirement.name} is not locked: run `make lock`"
    assert all(requirement.specifier.contains(version) for version in locked), "run `make lock`"


def test_what_is_tested_is_what_is_deployed() -> None:
    assert set(pins("requirements.txt")) <= set(pins("requirements-dev.txt")), "run `make lock`"
    assert set(pins(FORWARDER)) <= set(pins("requirements.txt")), "run `make lock`"


def test_the_node_lock_file_has_hashes_and_no_addresses() -> None:
    packages = json.loads((CHECKOUT / "package-lock.json").read_text())["packages"]
    installed = {name: entry for name, entry in packages.items() if name}
    assert [name for name, entry in installed.items() if "integrity" not in entry] == []
    assert [name for name, entry in installed.items() if "resolved" in entry] == []


def test_actions_of_the_sample_workflow_are_pinned_by_commit() -> None:
    used = [
        line.strip()
        for path in (CHECKOUT / ".github").rglob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert used
    assert [line for line in used if not re.fullmatch(r"- uses: [\w/-]+@[0-9a-f]{40} # v[\d.]+", line)] == []


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        if path.suffix == ".md":
            prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
            for target in LINK.findall(re.sub(r"`[^`]*`", "", prose)):
                if not re.match(r"[a-z]+:", target):
                    yield path, target


def test_every_link_of_the_documentation_leads_somewhere() -> None:
    broken = []
    for path, target in links():
        file, _, anchor = target.partition("#")
        page = path.parent / file if file else path
        if not page.exists() or (anchor and page.suffix == ".md" and anchor not in anchors(page)):
            broken.append(f"{path.relative_to(CHECKOUT)} -> {target}")
    assert broken == []


def test_the_published_schema_is_what_the_configuration_says() -> None:
    published = CHECKOUT / "docs" / "reference" / "kubekeeper.schema.json"
    assert published.read_text() == schema_text(), (
        f"run `keeper config schema -o {published.relative_to(CHECKOUT)}`"
    )


PURE = [
    "model",
    "etcd_backup/policy.py",
    "etcd_backup/decide.py",
    "etcd_backup/members.py",
    "etcd_backup/retention.py",
]


def test_what_decides_asks_no_clock() -> None:
    """The import contracts cannot see `datetime.now`: datetime is also the type of every time."""
    clocks = {"now", "utcnow", "today", "fromtimestamp"}
    found = [
        f"{path.relative_to(CHECKOUT)}:{node.lineno}"
        for name in PURE
        for path in ([*(CHECKOUT / "shared" / name).rglob("*.py")] or [CHECKOUT / "shared" / name])
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in clocks and _is_datetime(node.value)
    ]
    assert found == []


def _is_datetime(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("datetime", "date")
