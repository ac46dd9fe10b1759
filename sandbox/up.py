"""`python -m sandbox up`: the whole local world for hands and eyes, until Ctrl-C or `python -m sandbox down`.

    python -m sandbox up                      # Azurite, Resource Manager, a cluster of three nodes
    python -m sandbox up --etcd --host        # with an etcd, and the app running on all of it
    python -m sandbox up --detach --name two  # beside the first, in the background

It runs in real time. Everything it writes is in one temporary directory, ports are free ones, and a file in
the directory `RUNNING` says what to end and to remove; its lock is held as long as the world lives.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from sandbox import tools

RUNNING = Path(tempfile.gettempdir()) / f"kubekeeper-{os.getuid()}"
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?")
START_SECONDS = 120.0
END_SECONDS = 30.0


class Record(msgspec.Struct):
    """What is known of a world that is up, or was. `groups` are process groups by leader and start time."""

    name: str
    process: int
    started: str
    directory: str
    groups: list[tuple[int, str]] = []
    text: str = ""
    """What to tell the user; empty while the world is starting."""


class NameTakenError(Exception):
    """A world of that name is up."""


@dataclass
class Slot:
    """The file of one world, locked by whoever runs it."""

    path: Path
    descriptor: int

    @classmethod
    def take(cls, name: str) -> Slot:
        """NameTakenError while the world of that name lives."""
        path = RUNNING / f"{name}.json"
        while True:
            with suppress(FileExistsError):
                RUNNING.mkdir(mode=0o700)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            except FileNotFoundError:  # the last world has ended just now, and the directory with it
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise NameTakenError(name) from None
            # The one before may have removed the file between our opening and our locking it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return cls(path, descriptor)
            os.close(descriptor)

    def read(self) -> Record | None:
        return read(self.path)

    def write(self, record: Record) -> None:
        """In one piece: whoever waits for it reads all or nothing."""
        content = msgspec.json.encode(record)
        os.pwrite(self.descriptor, content, 0)
        os.ftruncate(self.descriptor, len(content))

    def release(self) -> None:
        """Nothing is left of it."""
        self.path.unlink(missing_ok=True)
        os.close(self.descriptor)
        with suppress(OSError):  # another world is there
            RUNNING.rmdir()


def read(path: Path) -> Record | None:
    """None when nothing (yet) stands there."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m sandbox up", description="Start the local world.")
    parser.add_argument("--name", default="default", help="more than one world can be up (default: default)")
    parser.add_argument("--nodes", type=int, default=2, help="of the pool `agents` (default: 2), beside one")
    parser.add_argument("--etcd", action="store_true", help="an etcd member with TLS, for backups")
    parser.add_argument("--host", action="store_true", help="the app's triggers on the local Functions host")
    parser.add_argument("--real", action="store_true", help="the control plane of KUBEBUILDER_ASSETS")
    parser.add_argument("--quoted", action="store_true", help="Azure takes as long as people report")
    parser.add_argument("--detach", action="store_true", help="in the background, once it is ready")
    options = parser.parse_args(arguments)
    if not NAME.fullmatch(options.name):
        parser.error(f"--name {options.name}: lower-case letters, digits and hyphens, at most 30")
    if not 0 <= options.nodes <= 100:
        parser.error("--nodes: 0 to 100")
    return options


def main(arguments: list[str]) -> int:
    """0 after Ctrl-C or `down`, 2 when the name is taken, 3 when something is missing or does not start."""
    options = parse(arguments)
    if options.detach:
        return _detach(options.name, [argument for argument in arguments if argument != "--detach"])
    try:
        slot = Slot.take(options.name)
    except NameTakenError:
        return _say_taken(options.name)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as cleanup:
            cleanup.callback(slot.release)
            clear_away(slot.read())
            _run(options, slot, cleanup)
    except KeyboardInterrupt:
        return 0
    except (tools.ToolMissingError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


def _run(options: argparse.Namespace, slot: Slot, cleanup: ExitStack) -> NoReturn:
    began = time.monotonic()
    directory = cleanup.enter_context(tempfile.TemporaryDirectory(prefix=f"kubekeeper-{options.name}-"))
    # Whatever anyone here, or any process started here, makes for a while, goes when this directory goes.
    tempfile.tempdir = os.environ["TMPDIR"] = directory
    record = Record(options.name, os.getpid(), start_of(os.getpid()), directory)
    slot.write(record)
    from sandbox.whole_world import WholeWorld  # takes a moment, and needs the packages of the app

    world = cleanup.enter_context(WholeWorld(Path(directory), options))
    # Registered last, so it comes first: a second Ctrl-C must not cut short what ends the processes.
    cleanup.callback(_ignore_signals)
    for start in world.steps():
        start()
        record.groups = [(process, start_of(process)) for process in world.processes()]
        slot.write(record)
    record.text = world.text(time.monotonic() - began)
    slot.write(record)
    print(f"{record.text}, or Ctrl-C", flush=True)
    threading.Event().wait()
    raise AssertionError("nothing ends this wait but an interrupt")


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _detach(name: str, arguments: list[str]) -> int:
    if (RUNNING / f"{name}.json").exists() and is_up(name):
        return _say_taken(name)
    with tempfile.TemporaryFile(mode="w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "sandbox", "up", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            cwd=tools.CHECKOUT,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while process.poll() is None and time.monotonic() < deadline:
            record = read(RUNNING / f"{name}.json")
            if record is not None and record.process == process.pid and record.text:
                process.returncode = 0  # it lives on without us, which is no mistake
                print(record.text, flush=True)
                return 0
            time.sleep(0.05)
        process.terminate()
        said.seek(0)
        print(said.read().strip() or "error: the world did not start in time", file=sys.stderr)
        return process.wait() or 3


def _say_taken(name: str) -> int:
    hint = "" if name == "default" else f" --name {name}"
    print(f"error: the world {name!r} is up; end it with: python -m sandbox down{hint}", file=sys.stderr)
    return 2


# --- ending a world; `sandbox.down` calls this too ---


def is_up(name: str) -> bool:
    try:
        slot = Slot.take(name)
    except NameTakenError:
        return True
    if slot.read() is None:
        slot.release()
    else:
        os.close(slot.descriptor)
    return False


def clear_away(record: Record | None) -> None:
    """What a world left that was killed and could not clear up by itself."""
    if record is None:
        return
    for process, started in record.groups:
        if start_of(process) == started:
            with suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
    shutil.rmtree(record.directory, ignore_errors=True)


def start_of(process: int) -> str:
    """When a process was started, as the system counts; "" when it has ended. Numbers are used again."""
    try:
        # The name in brackets may hold anything, spaces too.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return _start_of_elsewhere(process)


def _start_of_elsewhere(process: int) -> str:
    if Path("/proc/self/stat").exists():
        return ""
    done = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(process)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def options_of(**changes: Any) -> argparse.Namespace:
    """The defaults, for tests."""
    return argparse.Namespace(**{**vars(parse([])), **changes})
