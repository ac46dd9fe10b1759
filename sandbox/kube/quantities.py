"""Quantities of resources, `500m` and `16Gi`, as exact numbers. No I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

_FACTORS = {
    "": Fraction(1),
    "n": Fraction(1, 10**9),
    "u": Fraction(1, 10**6),
    "m": Fraction(1, 1000),
    **{letter: Fraction(1000**power) for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": Fraction(1024**power) for power, letter in enumerate("KMGTPE", 1)},
}
_QUANTITY = re.compile(r"([+-]?[0-9.]+)(?:([eE][+-]?[0-9]+)|([numkKMGTPEi]*))")


@lru_cache(maxsize=4096)
def quantity(text: str) -> Fraction:
    """ValueError for what is none."""
    found = _QUANTITY.fullmatch(text)
    if found is None or (found[3] or "") not in _FACTORS:
        raise ValueError(f"{text} is not a quantity")
    return Fraction(found[1] + (found[2] or "")) * _FACTORS[found[3] or ""]


NANO = 10**9
"""Amounts are whole numbers of billionths, the smallest unit there is: exact, and quick to add up."""


@lru_cache(maxsize=4096)
def _amount(text: str) -> int:
    return int(quantity(text) * NANO)


def amounts(resources: Mapping[str, Any] | None) -> dict[str, int]:
    """Of a list of resources, by their names."""
    return {name: _amount(str(text)) for name, text in (resources or {}).items()}


def requested(pod: Mapping[str, Any]) -> dict[str, int]:
    """What a pod asks for: the sum of its containers, or of one that runs before them if that is more."""
    spec = pod["spec"]
    total = _sum(_requests(container) for container in spec.get("containers") or ())
    beside: dict[str, int] = {}
    for container in spec.get("initContainers") or ():
        asked = _requests(container)
        if container.get("restartPolicy") == "Always":  # a sidecar: it goes on beside all that follow
            beside = _sum((beside, asked))
            total = _sum((total, asked))
        else:
            asked = _sum((beside, asked))
            total = {name: max(total.get(name, 0), asked.get(name, 0)) for name in total | asked}
    return _sum((total, amounts(spec.get("overhead"))))


def _requests(container: Mapping[str, Any]) -> dict[str, int]:
    resources = container.get("resources") or {}
    return amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _sum(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0) + amount
    return total
