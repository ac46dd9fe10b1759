"""Kubernetes quantities as integers, exactly: `1.5`, `500m`, `0.5Gi`, `12e6`.

Fractions of the unit asked for are rounded up, as the scheduler does. Memoised, because a cluster has few
distinct ones and parsing costs twenty times a look-up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache

_NUMBER = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))([eE][+-]?\d+|[numkMGTPE]|[KMGTPE]i)?")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}

Quantity = str | int | float


@lru_cache(maxsize=65536)
def parse_quantity(text: Quantity) -> Fraction:
    """The exact value; ValueError says what is expected. Numbers, as in YAML by hand, pass."""
    match = _NUMBER.fullmatch(str(text))
    if not match:
        raise ValueError(f"'{text}' is not a quantity; write it like 500m, 1.5, 0.5Gi or 12e6")
    number, suffix = Fraction(match[1]), match[2] or ""
    if suffix in _BINARY:
        return number * (1 << _BINARY[suffix])
    return number * Fraction(10) ** (_DECIMAL[suffix] if suffix in _DECIMAL else int(suffix[1:]))


@lru_cache(maxsize=65536)
def units(text: Quantity) -> int:
    """Whole units: bytes, devices, pods."""
    return -(-parse_quantity(text) // 1)


@lru_cache(maxsize=65536)
def millis(text: Quantity) -> int:
    """Thousandths: millicores."""
    return -((parse_quantity(text) * -1000) // 1)


def amounts(resources: Mapping[str, Quantity] | None) -> dict[str, int]:
    """A resource list as integers: cpu in millicores, everything else in whole units."""
    return {
        name: millis(value) if name == "cpu" else units(value) for name, value in (resources or {}).items()
    }


def format_amount(resource: str, amount: int) -> str:
    """For people: `1500m`, `2`, `3.5Gi`."""
    if resource == "cpu":
        return f"{amount // 1000}" if amount % 1000 == 0 else f"{amount}m"
    if resource in ("memory", "ephemeral-storage") or resource.startswith("hugepages-"):
        for suffix, power in (("Gi", 30), ("Mi", 20), ("Ki", 10)):
            if abs(amount) >= 1 << power:
                return f"{amount / (1 << power):.4g}{suffix}"
    return str(amount)
