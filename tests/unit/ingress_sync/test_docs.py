"""The pages on the ingress say what the code does.

Run as a program (`PYTHONPATH=.:tests python tests/unit/ingress_sync/test_docs.py`) this writes the tables of
annotations and deviations into the documentation.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.ingress_sync.annotations import NOTHING_SAID, TABLE, Options, documentation
from shared.ingress_sync.compile.limits import ACTIVE, LIMITS, PATH_RULES
from shared.ingress_sync.proof import DEVIATIONS

ROOT = Path(__file__).parents[3]
PAGE, ANNOTATIONS = ROOT / "docs/ingress-sync.md", ROOT / "docs/ingress-annotations.md"
END = "<!-- end of table -->\n"


def deviations() -> str:
    lines = ["| name | what it means |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {text} |" for name, text in DEVIATIONS.items())]) + "\n"


def limits() -> str:
    lines = ["| limit | |", "|---|---|"]
    lines += [f"| {name} | {number} |" for name, number in LIMITS.items()]
    return "\n".join([*lines, f"| {ACTIVE} | 100 |", f"| {PATH_RULES} of one host | 100 |"]) + "\n"


TABLES = {
    (ANNOTATIONS, "<!-- annotations: made by tests/unit/ingress_sync/test_docs.py -->\n"): documentation,
    (PAGE, "<!-- deviations: made by tests/unit/ingress_sync/test_docs.py -->\n"): deviations,
    (PAGE, "<!-- limits: made by tests/unit/ingress_sync/test_docs.py -->\n"): limits,
}


def replaced(text: str, begin: str, table: str) -> str:
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return before + begin + table + END + after


@pytest.mark.parametrize(("page", "begin"), TABLES, ids=lambda one: getattr(one, "name", None))
def test_the_tables_are_those_of_the_code(page: Path, begin: str) -> None:
    text = page.read_text()
    assert begin in text
    assert replaced(text, begin, TABLES[page, begin]()) == text


def test_every_annotation_has_a_field_of_its_own() -> None:
    fields = [annotation.field for annotation in TABLE]
    assert sorted(fields) == sorted(Options.__struct_fields__)
    assert len({annotation.key for annotation in TABLE}) == len(TABLE)
    assert Options() == NOTHING_SAID


def test_every_reason_that_the_code_gives_is_explained() -> None:
    sources = [path.read_text() for path in (ROOT / "shared/ingress_sync").rglob("*.py")]
    pattern = (
        r"(?:Refusal|ConflictError|Finding|_gateway|warn|_warn|_leave_out|note = )"
        r"\(?\s*[^\"()]{0,40}\"([A-Z][A-Za-z0-9]+)\""
    )
    given = {name for text in sources for name in re.findall(pattern, text)}
    given |= {name for text in sources for name in re.findall(r"reason=\"([A-Z][A-Za-z0-9]+)\"", text)}
    page = PAGE.read_text()
    written = {
        "No",
        "Gateway",
        "FollowUp",
        "GatewayReady",
        "GatewayPut",
        "AddressPublished",
        "AddressWithdrawn",
        "Explained",
        "StatusUpdated",
        "EventNotWritten",
    }
    missing = {name for name in given - written if f"`{name}`" not in page}
    assert len(given) > 20 and missing == set()


if __name__ == "__main__":
    for (where, mark), make in TABLES.items():
        where.write_text(replaced(where.read_text(), mark, make()))
