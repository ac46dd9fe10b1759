"""What the demo prints: numbered steps with live progress, facts, checked promises, a table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

WIDTH = 80


class Screen:
    """Prints to standard output; `failed` lists the promises that did not hold."""

    def __init__(self, steps: int) -> None:
        terminal = sys.stdout.isatty()
        self.console = Console(
            width=None if terminal else WIDTH,
            force_terminal=terminal,
            highlight=False,
            markup=False,
            emoji=False,
        )
        self.failed: list[str] = []
        self.promises = 0
        self._steps = steps
        self._step = 0
        self._started = time.monotonic()
        self._status: Status | None = None
        self._rows: list[tuple[str, str]] = []

    @property
    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self._started

    def chapter(self, title: str) -> None:
        """The heading above the steps that follow."""
        self.console.print(Text(f"\n{title}", style="bold underline"))

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One numbered step; shows what it is doing now (on a terminal), and how long it took."""
        self._step += 1
        self.console.print(Text(f"\n{self._step}/{self._steps}  {title}", style="bold"))
        began = time.monotonic()
        if self.console.is_terminal:
            self._status = self.console.status("", spinner="dots")
            self._status.start()
        try:
            yield
        finally:
            if self._status:
                self._status.stop()
                self._status = None
        self.console.print(Text(f"     {time.monotonic() - began:.1f} s", style="dim"))

    def progress(self, line: str) -> None:
        """What is going on at the moment; replaced by the next one."""
        if self._status:
            self._status.update(line)

    def say(self, line: str) -> None:
        """A fact."""
        self._print("     ", line)

    def command(self, line: str) -> None:
        """A command that is being run, as a user would type it."""
        self._print("     ", f"$ {line}", "cyan")

    def output(self, text: str, most: int = 12) -> None:
        """What a command printed, its first lines."""
        lines = text.rstrip().splitlines()
        for line in lines[:most]:
            self._print("       ", line, "dim")
        if len(lines) > most:
            self._print("       ", f"... and {len(lines) - most} more lines", "dim")

    def check(self, promise: str, *, holds: bool, otherwise: str = "") -> None:
        """A promise, and whether it held; `otherwise` is what was seen instead."""
        self.promises += 1
        if holds:
            self._print("  ok ", promise, "green")
            return
        self.failed.append(promise)
        self._print("FAIL ", f"{promise}{': ' + otherwise if otherwise else ''}", "bold red")

    def note(self, name: str, value: str) -> None:
        """A row of the table at the end."""
        self._rows.append((name, value))

    def summary(self) -> int:
        """The table and the verdict; the exit code."""
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(style="bold")
        table.add_column()
        for name, value in self._rows:
            table.add_row(name, value)
        self.console.print(Text("\nWhat was shown", style="bold"))
        self.console.print(table)
        if self.failed:
            self.console.print(
                Text(f"\n{len(self.failed)} of {self.promises} promises did NOT hold:", style="bold red")
            )
            for promise in self.failed:
                self.console.print(Text(f"  {promise}", style="red"))
            return 1
        verdict = f"\nAll {self.promises} promises held, in {self.seconds:.0f} s. Nothing is left running."
        self.console.print(Text(verdict, style="bold green"))
        return 0

    def _print(self, indent: str, line: str, style: str = "") -> None:
        text = Text(line, style=style)
        width = max(20, self.console.width - len(indent))
        for number, part in enumerate(text.wrap(self.console, width)):
            lead = Text(indent if number == 0 else " " * len(indent), style=style)
            self.console.print(lead + part)
