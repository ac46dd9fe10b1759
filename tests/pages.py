"""The pages of the documentation as tests read them: their blocks of code, with language and place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "infra/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: what it is written in, its text without indentation, and `page:line`."""

    language: str
    text: str
    place: str


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        body = "".join(one[len(match[1]) :] for one in match[3].splitlines(keepends=True))
        yield Block(match[2], body, f"{page.relative_to(ROOT)}:{line}")


def all_blocks(*languages: str) -> list[Block]:
    """Of every page, in order; of these languages only, where some are named."""
    return [one for page in PAGES for one in blocks(page) if not languages or one.language in languages]


def command_lines() -> list[tuple[str, str]]:
    """(place, line) of every line of shell, continuations joined, comments cut off; and of prose."""
    found = []
    for block in all_blocks("sh"):
        for line in re.sub(r" *\\\n\s*", " ", block.text).splitlines():
            if bare := re.sub(r"(^|\s+)#.*", "", line).strip():
                found.append((block.place, bare))
    for page in PAGES:
        for inline in re.findall(
            r"`((?:keeper|make|az|azd|kubectl) [^`\n]+)`", FENCE.sub("", page.read_text())
        ):
            found.append((str(page.relative_to(ROOT)), inline))
    return found
