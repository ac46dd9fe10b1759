"""How long a database is down when its node fails: Kubekeeper beside what there is without it.

Simulated time over the local world, with latencies of Azure that are quoted, not measured; the table of all
courses goes to stderr. What is measured for real is how long the app's own passes take.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from bench.figure import Figure, at_most, fewer
from sandbox.azurite import Azurite
from sandbox.failover import COLUMNS, EAGER, HEALTH_CHECK, OURS, PROVIDER, VANILLA, Course, compare, rows

PREFIX = "disk-timeline"
NOTE = "simulated seconds, quoted latencies of Azure"
Emit = Callable[[Figure], None]


def run(wants: Callable[[str], bool], emit: Emit) -> None:
    """Every figure of the timeline that is wanted; all come from the same courses."""
    names = [
        f"{PREFIX}-{what}"
        for what in (
            "kubelet-dead",
            "vm-stopped",
            "vm-deleted",
            "decision",
            "first-request",
            "free",
            "writes",
        )
    ]
    if not any(map(wants, names)):
        return
    with Azurite() as azurite:
        courses = compare(azurite.connection_string, lambda line: print(f"  {line}", file=sys.stderr))
    print(table(courses), file=sys.stderr)
    for figure in figures(courses):
        if wants(figure.name):
            emit(figure)


def figures(courses: list[Course]) -> list[Figure]:
    """From the courses to figures with goals."""
    found = {(course.failure.partition(",")[0], course.way): course for course in courses}
    dead, eager = found["kubelet dead", OURS], found["kubelet dead", EAGER]
    longest = max(course.longest_pass for course in courses)
    assert dead.running is not None and eager.running is not None
    mine = [course for course in courses if course.way in (OURS, EAGER)]
    assert not any(course.corruptions or course.broken for course in mine)
    return [
        _times("kubelet-dead", dead, HEALTH_CHECK, found["kubelet dead", HEALTH_CHECK], 1.8),
        _times("vm-stopped", found["VM stopped", OURS], PROVIDER, found["VM stopped", PROVIDER], 2.0),
        _times("vm-deleted", found["VM deleted", OURS], VANILLA, found["VM deleted", VANILLA], 3.0),
        at_most(
            f"{PREFIX}-decision",
            eager.seconds["firstWrite"] - eager.seconds["notReady"] + longest,
            "s",
            10.0,
            note="from the nudge to a fence that was decided, with grace 0s; longest pass, really measured",
        ),
        at_most(
            f"{PREFIX}-first-request",
            dead.seconds["firstRequest"] - dead.seconds["notReady"] + longest,
            "s",
            15.0,
            note="from the nudge to the first question about the VM; longest pass, really measured",
        ),
        at_most(
            f"{PREFIX}-free",
            dead.seconds["diskFree"] - dead.seconds["fenced"] - dead.detach_seconds,
            "s",
            60.0,
            note=f"from the VM being off to the disk being free, less {dead.detach_seconds:.0f} s of Azure's "
            "own detach",
        ),
        at_most(f"{PREFIX}-writes", dead.writes, "writes", 1.0, note="to Azure, for one release"),
    ]


def _times(name: str, ours: Course, way: str, theirs: Course, goal: float) -> Figure:
    assert ours.running is not None and theirs.running is not None
    baseline = f"{way} ({theirs.failure})"
    return fewer(f"{PREFIX}-{name}", ours.running, "s", baseline, theirs.running, at_least=goal, note=NOTE)


def table(courses: list[Course]) -> str:
    """Columns under each other."""
    lines = [COLUMNS, *rows(courses)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
