"""Which etcd versions are at hand, and that fetching more is skipped with a clear line where it cannot be
done.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sandbox.etcd_versions import cache_directory, etcd_versions
from sandbox.tools import CHECKOUT

BUILD = CHECKOUT / ".ci" / "etcd" / "build"
NEEDED = ("sh", "sed", "dirname", "mkdir", "mktemp", "rm", "mv", "chmod", "nice")


def put(directory: Path, *names: str) -> None:
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).write_text("")


def test_cached_versions_are_found_and_unfinished_builds_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    put(cache_directory() / "3.4.99", "etcd", "etcdctl")
    put(cache_directory() / "3.6.99", "etcd", "etcdctl", "etcdutl")
    put(cache_directory() / ".build-Xy12", "etcd", "etcdctl", "etcdutl")
    put(cache_directory() / "3.5.99", "etcd")
    found = {installation.version: installation for installation in etcd_versions()}
    assert {(3, 4, 99), (3, 6, 99)} <= found.keys()
    assert (3, 5, 99) not in found
    assert found[3, 4, 99].etcdutl is None
    assert found[3, 6, 99].etcdutl == cache_directory() / "3.6.99" / "etcdutl"
    assert list(found) == sorted(found)


def test_where_there_is_no_go_and_no_apt_the_versions_are_skipped_in_words(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in NEEDED:
        program = shutil.which(name)
        assert program
        (programs / name).symlink_to(program)
    environ = {**os.environ, "PATH": str(programs), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([str(BUILD)], env=environ, capture_output=True, text=True, timeout=60, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"etcd 3\.5\.\d+: skipped, Go is not installed", lines[0])
    assert re.fullmatch(r"etcd 3\.6\.\d+: skipped, Go is not installed", lines[1])
    assert lines[2] == "etcd 3.4: skipped, this machine has no apt"
    assert done.stderr == ""
