"""The list of contracts, docs/reference/contracts.md: written by a run on both targets, checked by every run.

CONTRACTS_REPORT=docs/reference/contracts.md make e2e
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "contracts.md"
HEAD = """# Contracts

What the automations rely on in Kubernetes. Each line is a test of `tests/contracts`, written down from the
real control plane and run on it and on the stand-in (`sandbox.kube`); where they differ, the stand-in is
wrong. This page is written by that run:

```sh
CONTRACTS_REPORT=docs/reference/contracts.md make e2e
```
"""


def contracts() -> dict[str, list[str]]:
    """The test functions by module, in the order of the files."""
    found = {}
    for path in sorted(HERE.glob("test_*.py")):
        module = ast.parse(path.read_text())
        names = [node.name for node in module.body if isinstance(node, ast.FunctionDef)]
        found[path.stem] = [name for name in names if name.startswith("test_")]
    return found


def sentence(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ").capitalize()


def title(module: str) -> str:
    """The module's own first line."""
    return (ast.get_docstring(ast.parse((HERE / f"{module}.py").read_text())) or module).splitlines()[0]


class Outcomes:
    """What a run has shown: by contract and target, whether all its cases passed."""

    def __init__(self) -> None:
        self.passed: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)

    def add(self, module: str, test: str, target: str, *, is_passed: bool) -> None:
        known = self.passed[module, test].get(target, True)
        self.passed[module, test][target] = known and is_passed

    @property
    def is_complete(self) -> bool:
        """Whether every contract has been tried on both targets."""
        wanted = {(module, name) for module, names in contracts().items() for name in names}
        return wanted == {known for known, targets in self.passed.items() if len(targets) == 2}

    def page(self, version: str) -> str:
        """The whole page."""
        lines = [HEAD]
        total = sum(map(len, contracts().values()))
        kept = {t: self._count(t) for t in ("stand-in", "real")}
        lines.append(
            f"{total} contracts. Kubernetes {version} keeps {kept['real']}, the stand-in {kept['stand-in']}."
        )
        lines.append("")
        for module, names in contracts().items():
            lines.append(f"## {title(module)}\n")
            lines.append("| contract | real | stand-in |\n|---|---|---|")
            lines += [f"| {sentence(name)} | {self._mark(module, name)} |" for name in names]
            lines.append("")
        return "\n".join(lines).rstrip() + "\n"

    def _count(self, target: str) -> int:
        return sum(1 for targets in self.passed.values() if targets.get(target))

    def _mark(self, module: str, name: str) -> str:
        marks = {True: "kept", False: "broken", None: "not yet"}
        found = self.passed.get((module, name), {})
        return " | ".join(marks[found.get(target)] for target in ("real", "stand-in"))
