"""`python -m bench [NAME]`: one JSON line per figure, progress on stderr; NAME may be the start of a name.
In the end, on stderr, one line for each goal that is not met, with the figure and why.

`BENCH_SIZE` (such as 256MiB) replaces the 1 GiB database of etcd for a quick run; goals are meant for 1 GiB.
Exit code 1 when a goal is not met, 2 for a name that no figure has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

import msgspec

from bench.figure import Figure

AREAS = (
    "footprint",
    "latency",
    "autoscaling",
    "disk_release",
    "disk_timeline",
    "ingress_sync",
    "forwarder",
    "etcd_backup",
)
"""Modules of this package; each has `run(wants, emit)`, which measures what is wanted, figure by figure."""


def main(arguments: list[str]) -> int:
    """Run what was asked for."""
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print("usage: python -m bench [NAME]   (BENCH_SIZE=256MiB for a quick run)", file=sys.stderr)
        return 2
    only = arguments[0] if arguments else ""
    printed: list[Figure] = []

    def emit(figure: Figure) -> None:
        printed.append(figure)
        print(msgspec.json.encode(figure).decode(), flush=True)

    try:
        for area in AREAS:
            run: Callable[..., None] = import_module(f"bench.{area}").run
            run(lambda name: name.startswith(only), emit)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if not printed:
        print(f"bench: no figure is called '{only}'; run without a name to see them all", file=sys.stderr)
        return 2
    missed = [figure for figure in printed if not figure.met]
    for one in missed:
        why = f": {one.why}" if one.why else ""
        print(f"not met: {one.name}, {one.value:g} {one.unit}, goal {one.goal}{why}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
