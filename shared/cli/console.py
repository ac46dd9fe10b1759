"""What `keeper` prints: tables and lines for people on a terminal, one JSON document for programs.

Colours only on a terminal (and never with NO_COLOR); tables fit 80 columns when the width is unknown. rich is
imported when something is printed, not when the command line starts.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_COLUMNS = 80  # a pipe or file has no width; 80 fits mail, tickets and half a screen

STYLES = {
    "verified": "green",
    "Succeeded": "green",
    "succeeded": "green",
    "ok": "green",
    "unverified": "yellow",
    "Skipped": "yellow",
    "warning": "yellow",
    "bad": "red",
    "Failed": "red",
    "failed": "red",
    "problem": "red",
}
"""Words with a colour of their own wherever a cell consists of them."""


_ANSI = {"green": 32, "yellow": 33, "red": 31}


def print_json(document: Any) -> None:
    """One JSON document, indented, times in RFC 3339."""
    text = msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
    sys.stdout.write(text + "\n")


def print_line(line: str = "", *, whole: bool = False) -> None:
    """One line on stdout; on a terminal one that is too long goes on below, indented, unless it is `whole`.

    Elsewhere lines stay whole, for whoever searches in them.
    """
    if not whole and sys.stdout.isatty() and "\n" not in line:
        indent = line[: len(line) - len(line.lstrip())]
        for part in wrapped(line.strip(), f"{indent}  ", first=indent) or [""]:
            sys.stdout.write(part + "\n")
        return
    sys.stdout.write(line + "\n")


def wrapped(text: str, indent: str, *, first: str) -> list[str]:
    """Text in lines as wide as the terminal, the first after `first`, the others indented."""
    import textwrap

    # A path or an id that is longer than a line is broken; one that fits on a line of its own is not.
    return textwrap.wrap(
        text, console_width(), initial_indent=first, subsequent_indent=indent, break_on_hyphens=False
    )


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole; the OSError names it also when it is the writing that fails."""
    try:
        path.write_bytes(data)
    except OSError as error:
        error.filename = str(path)
        raise


def styled(text: str, word: str) -> str:
    """`text` in the colour that `word` has, on a terminal; otherwise unchanged."""
    style = STYLES.get(word)
    if not style or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_ANSI[style]}m{text}\x1b[0m"


def print_note(line: str) -> None:
    """One line for people on stderr: progress, or what comes next; stdout keeps the answer alone."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


@contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """Tells what goes on while something is waited for, on stderr: `show(line, seconds so far)`.

    On a terminal it is written over and gone at the end; elsewhere each change is a line.
    """
    from rich.console import Console
    from rich.text import Text

    place, shown = Console(stderr=True, highlight=False), ""

    def note(line: str, _: float) -> None:
        nonlocal shown
        if line and line != shown:
            print_note(f"  {line}")
            shown = line

    if not place.is_terminal or place.is_dumb_terminal:
        yield note
        return
    with place.status("", spinner="line") as status:
        yield lambda line, seconds: status.update(Text(f"{duration(seconds):>7}  {line}"))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    right: Iterable[str] = (),
    whole: Iterable[str] = (),
) -> None:
    """A table. `right` columns are right-aligned, `whole` ones are folded rather than squeezed."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in set(right) else "left",
            overflow="fold",
            no_wrap=name in set(right),
            min_width=len(name) if name in set(whole) else None,
        )
    for row in rows:
        cells = ["" if cell is None else str(cell) for cell in row]
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
    console().print(table)


def console() -> Console:
    """Standard output as rich sees it."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    return Console(
        file=sys.stdout,
        width=console_width(),
        force_terminal=is_terminal,
        no_color=not is_terminal or bool(os.environ.get("NO_COLOR")),
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def console_width() -> int:
    """Columns of the terminal; PLAIN_COLUMNS where there is none."""
    if not sys.stdout.isatty():
        return PLAIN_COLUMNS
    return shutil.get_terminal_size((PLAIN_COLUMNS, 24)).columns


def ago(then: datetime, now: datetime) -> str:
    """How long ago, in the largest two units: `3m 20s`, `2d 4h`."""
    return duration((now - then).total_seconds())


def duration(took: float) -> str:
    """So many seconds in the largest two units."""
    seconds = max(0, round(took))
    parts = [
        (seconds // 86400, "d"),
        (seconds // 3600 % 24, "h"),
        (seconds // 60 % 60, "m"),
        (seconds % 60, "s"),
    ]
    first = next((i for i, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count) or "0s"


def when(value: datetime) -> str:
    """A time as tables show it: UTC, to the second."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
