"""The list of contracts in the documentation is that of the tests."""

from __future__ import annotations

from contracts.report import PAGE, contracts, sentence


def test_the_documentation_lists_every_contract() -> None:
    listed = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    expected = [sentence(name) for names in contracts().values() for name in names]
    assert [line for line in listed if line != "contract"] == expected
    assert "| broken |" not in PAGE.read_text()
