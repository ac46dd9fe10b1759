"""`python -m sandbox down`: ends a world that `up` has started, and sees that nothing is left of it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress

from sandbox.up import END_SECONDS, RUNNING, NameTakenError, Record, Slot, clear_away, read, start_of


def main(arguments: list[str]) -> int:
    """0 when it is down, also when it was not up; 1 when it would not go."""
    parser = argparse.ArgumentParser(prog="python -m sandbox down", description="End a local world.")
    parser.add_argument("--name", default="default", help="which one (default: default)")
    parser.add_argument("--all", action="store_true", help="every world of this user")
    options = parser.parse_args(arguments)
    names = sorted(path.stem for path in RUNNING.glob("*.json")) if options.all else [options.name]
    return max((down(name) for name in names), default=0)


def down(name: str) -> int:
    """Ask it to end, wait, and clear away what it could not."""
    path = RUNNING / f"{name}.json"
    if not path.exists():
        print(f"there is no world {name!r}")
        return 0
    record = read(path)
    slot = _take_over(name, record)
    if slot is None:
        print(f"error: the world {name!r} does not end", file=sys.stderr)
        return 1
    clear_away(slot.read() or record)
    slot.release()
    deadline = time.monotonic() + END_SECONDS
    # Its lock goes a moment before the process does.
    while record is not None and start_of(record.process) == record.started and time.monotonic() < deadline:
        time.sleep(0.01)
    print(f"the world {name!r} is down")
    return 0


def _take_over(name: str, record: Record | None) -> Slot | None:
    """Its lock is free when it has ended, however it did."""
    signals = [signal.SIGTERM, signal.SIGKILL]
    for number in signals:
        deadline = time.monotonic() + END_SECONDS
        is_told = False
        while time.monotonic() < deadline:
            try:
                return Slot.take(name)
            except NameTakenError:
                if not is_told and record is not None:
                    with suppress(ProcessLookupError):
                        os.kill(record.process, number)
                    is_told = True
            time.sleep(0.02)
    return None
