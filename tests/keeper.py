"""Runs `keeper` in this process, as its console script would, and keeps what it printed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from shared.cli.main import run


@dataclass(frozen=True)
class Printed:
    """How one command line ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output as the one JSON document it has to be."""
        return json.loads(self.out)


class Keeper:
    """`keeper("backup", "list")` with these app settings and none of the machine's own."""

    def __init__(self, settings: Mapping[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        self._settings = settings
        self._capsys = capsys

    def __call__(self, *arguments: str, **settings: str) -> Printed:
        kept = dict(os.environ)
        self._capsys.readouterr()
        try:
            for name in list(os.environ):
                if name.startswith(("AzureWebJobs", "KUBEKEEPER_", "KEEPER_", "AZURE_")):
                    del os.environ[name]
            os.environ.update({**self._settings, **settings})
            code = run(list(arguments))
        finally:
            os.environ.clear()
            os.environ.update(kept)
            logging.disable(logging.NOTSET)
        printed = self._capsys.readouterr()
        return Printed(code, printed.out, printed.err)
