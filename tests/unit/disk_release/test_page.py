"""The table of rules in the documentation is that of the code.

Run as a program (`PYTHONPATH=.:tests python tests/unit/disk_release/test_page.py`) this writes it.
"""

from __future__ import annotations

from sandbox.tools import CHECKOUT
from shared.disk_release.rules import RULES

PAGE = CHECKOUT / "docs/disk-release.md"
BEGIN = "<!-- rules: made from the code by tests/unit/disk_release/test_page.py -->\n\n"
END = "<!-- end of rules -->"


def with_rules(text: str) -> str:
    """The page with the table made anew."""
    before, _, rest = text.partition(BEGIN)
    rows = "".join(
        f"| `{name}` | {rule.text} | {', '.join(rule.invariants)} |\n" for name, rule in RULES.items()
    )
    table = f"| rule | what must hold | serves |\n|---|---|---|\n{rows}\n"
    return before + BEGIN + table + END + rest.partition(END)[2]


def test_every_rule_is_on_the_page() -> None:
    text = PAGE.read_text()
    assert text == with_rules(text), "run: PYTHONPATH=.:tests python tests/unit/disk_release/test_page.py"


if __name__ == "__main__":
    PAGE.write_text(with_rules(PAGE.read_text()))
