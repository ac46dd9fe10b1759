"""One measured figure, as the JSON line that `make bench` prints."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec


class Figure(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`ratio` is how many times better the value is than the baseline's; `goal` is what it has to reach.

    `note` says under which circumstances, where the number alone would mislead.
    """

    name: str
    value: float
    unit: str
    baseline: str
    baseline_value: float
    ratio: float
    goal: str
    met: bool
    note: str = ""
    why: str = ""

    def explained(self, why: str) -> Figure:
        """With why, in one line, its goal is not met; the same when it is."""
        return self if self.met else msgspec.structs.replace(self, why=why)


def faster(
    name: str,
    seconds: Sequence[float],
    baseline: str,
    baseline_seconds: Sequence[float],
    *,
    at_least: float,
    note: str = "",
) -> Figure:
    """Seconds against the baseline's of the same round: medians, and the median of the rounds' ratios."""
    ratios = [theirs / ours for ours, theirs in zip(seconds, baseline_seconds, strict=True)]
    spread = f"ratios {', '.join(f'{ratio:.2f}' for ratio in ratios)}"
    return _at_least(
        name,
        (statistics.median(seconds), "s"),
        (baseline, statistics.median(baseline_seconds)),
        ratio=statistics.median(ratios),
        goal=at_least,
        note=f"{note}; {spread}" if note else spread,
    )


def fewer(
    name: str,
    value: float,
    unit: str,
    baseline: str,
    baseline_value: float,
    *,
    at_least: float,
    note: str = "",
) -> Figure:
    """How many times smaller `value` is than the baseline's."""
    return _at_least(
        name,
        (value, unit),
        (baseline, baseline_value),
        ratio=baseline_value / value,
        goal=at_least,
        note=note,
    )


def at_most(name: str, value: float, unit: str, limit: float, *, note: str = "") -> Figure:
    """A value that must not exceed a limit; the limit is the baseline."""
    return Figure(
        name=name,
        value=round(value, 3),
        unit=unit,
        baseline="limit",
        baseline_value=limit,
        ratio=round(limit / value, 2),
        goal=f"<= {limit:g} {unit}",
        met=value <= limit,
        note=note,
    )


def _at_least(
    name: str, value: tuple[float, str], baseline: tuple[str, float], *, ratio: float, goal: float, note: str
) -> Figure:
    return Figure(
        name=name,
        value=round(value[0], 3),
        unit=value[1],
        baseline=baseline[0],
        baseline_value=round(baseline[1], 3),
        ratio=round(ratio, 2),
        goal=f">= {goal:g}x",
        met=ratio >= goal,
        note=note,
    )
