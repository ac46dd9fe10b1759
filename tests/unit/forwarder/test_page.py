"""docs/forwarder.md names every setting that is read, every metric and every log line, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from shared.clients.eventgrid import ENDPOINT, KEY
from shared.clients.storage import CONNECTION
from shared.forwarder import metrics

CHECKOUT = Path(__file__).resolve().parents[3]
CODE = "\n".join(path.read_text() for path in (CHECKOUT / "shared/forwarder").glob("*.py"))
PAGE = (CHECKOUT / "docs/forwarder.md").read_text()


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def first_cells(heading: str) -> set[str]:
    rows = re.findall(r"^\| (`.*?) \|", section(heading), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_page_has_every_setting() -> None:
    read = set(re.findall(r"""["'](KUBEKEEPER_[A-Z_]+)["']""", CODE)) | {ENDPOINT, KEY}
    storage = {CONNECTION, f"{CONNECTION}__accountName", f"{CONNECTION}__queueServiceUri"}
    assert first_cells("Settings") == read | storage


def test_the_page_has_every_metric() -> None:
    assert first_cells("Pages") - {"kubekeeper_forwarder_..."} == {*metrics.COUNTERS, *metrics.GAUGES}


def test_lines_that_need_a_person_are_on_the_page() -> None:
    lines = set(re.findall(r'"([A-Z]\w+)", level=', CODE)) | set(re.findall(r'exception\("(\w+)', CODE))
    lines |= set(re.findall(r'log, "(\w+)", level=', CODE))
    assert lines == {"NotSent", "SourceBroke", "Unreadable", "Died"}
    for line in lines:
        assert f"`{line} " in section("When something is wrong"), line
