"""Lines on a terminal of 80 columns, a real one, and whole lines everywhere else."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress

import pytest

from shared.cli.console import print_line, progress
from shared.cli.doctor import _print
from shared.cli.findings import problem

TEXT = "  evidence: " + "a machine runs although its node is dead; " * 4


def on_terminal(monkeypatch: pytest.MonkeyPatch, show: Callable[[], None]) -> list[str]:
    """What stands on a terminal afterwards, without colours."""
    leader, follower = os.openpty()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        show()
        monkeypatch.undo()
    seen = b""
    with (
        os.fdopen(leader, "rb", buffering=0) as screen,
        suppress(OSError),
    ):  # the end of a terminal is an error
        while part := screen.read(4096):
            seen += part
    return seen.decode().replace("\r\n", "\n").splitlines()


def test_a_long_line_goes_on_below_indented(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = on_terminal(monkeypatch, lambda: print_line(TEXT))
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert [line[:5] for line in lines] == ["  evi", "    i", "    a"]
    assert " ".join(" ".join(lines).split()) == TEXT.strip()


def test_an_id_longer_than_a_line_is_broken_and_a_path_that_fits_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = "/subscriptions/" + "x" * 50
    assert on_terminal(monkeypatch, lambda: print_line(f"  pool of the cluster: {path}"))[1].strip() == path
    lines = on_terminal(monkeypatch, lambda: print_line("  " + "y" * 200))
    assert "".join(line.strip() for line in lines) == "y" * 200
    assert max(map(len, lines)) <= 80


def test_what_is_to_be_copied_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_terminal(monkeypatch, lambda: print_line(TEXT, whole=True)) == [TEXT]
    assert on_terminal(monkeypatch, print_line) == [""]


def test_a_finding_stands_beside_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = on_terminal(monkeypatch, lambda: _print(problem("prod azure", "it may not " + "read " * 30)))
    assert lines[0].startswith("problem  prod azure: it may not read")
    assert {line[:9] for line in lines[1:]} == {" " * 9}
    assert max(map(len, lines)) <= 80


def test_elsewhere_every_line_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(TEXT)
    _print(problem("prod azure", "it may not " + "read " * 30))
    assert len(capsys.readouterr().out.splitlines()) == 2


def wait_for_something() -> None:
    with progress() as show:
        show("agents: 0 of 2 nodes done", 3)
        show("agents: 0 of 2 nodes done", 4)
        show("agents: 1 of 2 nodes done; " + "the pods of its budget are leaving; " * 3, 95)
    print_line("Succeeded")


def test_progress_is_written_over_on_a_terminal_and_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    raw = "\n".join(on_terminal(monkeypatch, wait_for_something))
    assert raw.endswith("\x1b[2KSucceeded"), "the last thing before it is a line erased"
    written = re.split(r"\r|\n|\x1b\[[?0-9]*[A-Za-z]", raw)
    assert any("1m 35s  agents: 1 of 2 nodes done" in line for line in written)
    assert max(map(len, written)) <= 80


def test_progress_is_one_line_for_each_change_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for_something()
    printed = capsys.readouterr()
    first, second = printed.err.splitlines()
    assert first == "  agents: 0 of 2 nodes done"
    assert second.startswith("  agents: 1 of 2 nodes done; ")
    assert printed.out == "Succeeded\n"
