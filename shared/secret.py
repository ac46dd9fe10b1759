"""Reads the secret that a configuration value refers to; nothing is kept, nothing of it is ever in a message.

Below `settings` and `clients`, so that both may use it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from shared.errors import SettingsError


def resolve_secret(reference: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text behind `file:` or `setting:`; SettingsError says which one is missing, never its content."""
    kind, _, name = reference.partition(":")
    if kind == "setting":
        if name not in environ:
            raise SettingsError(
                f"app setting '{name}' is not set, but the configuration refers to it; "
                "set it, or correct the reference"
            )
        return environ[name]
    try:
        return Path(name).read_text()
    except OSError as error:
        raise SettingsError(
            f"cannot read '{name}', which the configuration refers to: {error.strerror}"
        ) from error
