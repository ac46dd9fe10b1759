"""Durations as operators write them (`90s`, `10m`, `6h`, `30d`, `1h30m`) and `timedelta`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

import msgspec

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PATTERN = r"^(\d+d)?(\d+h)?(\d+m)?(\d+s)?$"

Duration = Annotated[
    str,
    msgspec.Meta(
        pattern=_PATTERN,
        min_length=2,
        description="a duration, such as 90s, 10m, 6h or 1h30m",
        examples=["10m", "6h"],
    ),
]
"""A key of the configuration that takes a duration."""


def parse_duration(text: str) -> timedelta:
    """`1h30m` to a timedelta; raises ValueError with what is expected."""
    match = re.fullmatch(_PATTERN, text.strip())
    if not match or not match.group(0):
        raise ValueError(f"'{text}' is not a duration; write it like 90s, 10m, 6h or 1h30m")
    return timedelta(seconds=sum(int(part[:-1]) * _UNITS[part[-1]] for part in match.groups() if part))


def format_duration(value: timedelta) -> str:
    """A timedelta as an operator would write it, whole seconds, largest units first; `0s` for nothing."""
    seconds = round(value.total_seconds())
    if seconds < 0:
        return "-" + format_duration(-value)
    parts = []
    for unit, size in _UNITS.items():
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"
