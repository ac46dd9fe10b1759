"""The format page is true: its program restores a chain without any of Kubekeeper's code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from captured import Captured, Shelf, Stored

pytestmark = pytest.mark.etcd

PAGE = Path(__file__).parents[3] / "docs" / "reference" / "backup-format.md"


def test_the_program_on_the_format_page_rebuilds_what_etcd_sent(
    shelf: Shelf, snapshots: dict[str, Captured], tmp_path: Path
) -> None:
    program = tmp_path / "rebuild.py"
    match = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert match
    program.write_text(match[1])
    names = ["written", "defragmented", "churned"]
    stored: list[Stored] = []
    for name in names:
        stored.append(shelf.store(snapshots[name].data, stored[-1] if stored else None))
        for blob, data in ((stored[-1].manifest.data, stored[-1].blob),):
            (tmp_path / blob).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / blob).write_bytes(data)
        (tmp_path / stored[-1].manifest.name).write_bytes(stored[-1].manifest.to_json())
    output = tmp_path / "snapshot.db"
    key = [shelf.key.hex()] if shelf.key else []
    subprocess.run(
        [sys.executable, str(program), str(tmp_path), stored[-1].manifest.name, str(output), *key],
        check=True,
        timeout=60,
    )

    assert output.read_bytes() == snapshots["churned"].data


def test_the_format_page_names_every_field_of_a_manifest(snapshots: dict[str, Captured]) -> None:
    shelf, page = Shelf(bytes(32)), PAGE.read_text()
    full = shelf.store(snapshots["empty"].data)
    manifest = msgspec.json.decode(shelf.store(snapshots["small"].data, full).manifest.to_json())
    for field in [*manifest, *manifest["database"], *manifest["archive"], *manifest["revisions"]]:
        assert field in page, f"'{field}' is not on the format page"
