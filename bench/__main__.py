"""`python -m bench [NAME]`: one JSON line per figure, progress on stderr; NAME may be the start of a name.

`BENCH_SIZE` (such as 256MiB) replaces the database of 1 GiB for a quick run; its goals are meant for 1 GiB.
Exit code 1 when a goal is not met, 2 for a name that no figure has.
"""

from __future__ import annotations

import os
import re
import sys

import msgspec

from bench import etcd_backup, footprint
from bench.figure import Figure

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def main(arguments: list[str]) -> int:
    """Run what was asked for."""
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        print("usage: python -m bench [NAME]   (BENCH_SIZE=256MiB for a quick run)", file=sys.stderr)
        return 2
    only = arguments[0] if arguments else ""
    try:
        size = parse_size(os.environ.get("BENCH_SIZE", "1GiB"))
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    printed: list[Figure] = []

    def emit(figure: Figure) -> None:
        printed.append(figure)
        print(msgspec.json.encode(figure).decode(), flush=True)

    footprint.run(lambda name: name.startswith(only), emit)
    etcd_backup.run(size, lambda name: name.startswith(only), emit)
    if not printed:
        print(f"bench: no figure is called '{only}'; run without a name to see them all", file=sys.stderr)
        return 2
    return 0 if all(figure.met for figure in printed) else 1


def parse_size(text: str) -> int:
    """`256MiB` or `1GiB` in bytes; ValueError says what is expected."""
    match = re.fullmatch(r"(\d+)(KiB|MiB|GiB)", text.strip())
    if not match or int(match[1]) == 0:
        raise ValueError(f"BENCH_SIZE is '{text}'; write it like 256MiB or 1GiB")
    return int(match[1]) * _UNITS[match[2]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
