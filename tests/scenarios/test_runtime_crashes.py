"""A crash after every single I/O call of a run is followed by a correct completion with a single effect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scenarios import runtime_world as world

from sandbox.azurite import Azurite

pytestmark = [pytest.mark.azurite, pytest.mark.slow]


@pytest.mark.parametrize("kind", ["nudge", "operation"])
def test_a_crash_after_each_io_call_leaves_one_effect_and_nothing_open(kind: str, tmp_path: Path) -> None:
    with Azurite() as azurite:
        clusters = [f"{kind}-{step:03d}" for step in range(40)]
        settings = world.environ(azurite.connection_string, tmp_path, clusters, KUBEKEEPER_SETTLE="1s")
        run = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("runtime_crashes.py")), kind],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-4000:]
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert [report["crashed"] for report in reports] == [True] * (len(reports) - 1) + [False]
    assert len(reports) > 12, "fewer I/O calls than the story has: the crashes missed their aim"
    for report in reports:
        where = f"after I/O call {report['step']}"
        assert len(report["effects"]) == 1, where
        assert report["effects"][0] in report["journalled"], where
        assert report["openIntents"] == 0, where
        assert report["left"] == 0, where
        if kind == "operation":
            assert report["operation"] == "Succeeded", where
