"""What `keeper backup restore` does with an opened backup: files, directories, what to tell the operator."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shared.cli.console import print_line, print_note
from shared.errors import SettingsError
from shared.model.wording import byte_size

if TYPE_CHECKING:
    from shared.etcd_backup.archive import Chain
    from shared.etcd_backup.restore import MemberSpec

SINGLE = "default=http://localhost:2380"  # what etcd calls its only member, and where it listens, by default


class Restored(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was written. Where `is_done` is false, `commands` are left to run, by etcdutl 3.5.10 or newer."""

    backup: str
    revision: int
    is_done: bool
    seconds: float
    file: str | None
    data_dirs: tuple[str, ...]
    commands: tuple[str, ...]
    advice: tuple[str, ...]

    def print(self) -> None:
        """For people."""
        print_line(f"restored {self.backup}, revision {self.revision}, in {self.seconds:.1f} s")
        if self.file:
            print_line(f"  snapshot file   {self.file}")
        for directory in self.data_dirs:
            print_line(f"  data directory  {directory}")
        if self.commands:
            print_line("still to be run where etcdutl 3.5.10 or newer is:")
            for command in self.commands:
                print_line(f"  {command}", whole=True)
        for line in self.advice:
            print_line(f"  note: {line}")


def restore_here(
    chain: Chain,
    file: Path | None,
    data_dir: Path | None,
    members: Sequence[str],
    *,
    bump: bool,
    environ: Mapping[str, str],
) -> Restored:
    """Write the snapshot file, and data directories if asked for; errors as in `shared.etcd_backup.restore`.

    Without `file` the snapshot lies beside the data directory, and goes when those are made.
    """
    from shared.etcd_backup.restore import find_tool, restore_data_dirs, restore_file

    specs = read_members(members, data_dir) if data_dir else ()
    for spec in specs:
        if spec.data_dir.exists():
            raise SettingsError(
                f"'{spec.data_dir}' exists; a restore never overwrites, choose another directory"
            )
    snapshot = file or _beside(data_dir)
    written = restore_file(chain, snapshot, progress=_progress)
    manifest = chain.manifest
    made = restore_data_dirs(snapshot, manifest, specs, tool=find_tool(environ), bump=bump) if specs else None
    is_done = made is None or made.is_done
    if file is None and is_done:
        snapshot.unlink()
    return Restored(
        backup=manifest.name,
        revision=manifest.revisions.revision,
        is_done=is_done,
        seconds=round(written.seconds, 3),
        file=str(snapshot) if snapshot.exists() else None,
        data_dirs=tuple(str(spec.data_dir) for spec in specs) if is_done else (),
        commands=() if made is None or made.is_done else tuple(made.lines()),
        advice=made.warnings if made else (),
    )


def read_members(members: Sequence[str], data_dir: Path) -> tuple[MemberSpec, ...]:
    """`NAME=PEER-URL` each; one member gets `data_dir` itself, several a directory of their name below it."""
    from shared.etcd_backup.restore import MemberSpec

    found = []
    for member in members or [SINGLE]:
        name, equals, url = member.partition("=")
        if not equals or not name or "/" in name or not url.startswith(("http://", "https://")):
            raise SettingsError(
                f"--member {member}: expected NAME=PEER-URL, such as m0=https://10.0.0.4:2380"
            )
        found.append(MemberSpec(name, url, data_dir / name if len(members) > 1 else data_dir))
    return tuple(found)


def _beside(data_dir: Path | None) -> Path:
    assert data_dir is not None
    return data_dir.absolute().with_name(f"{data_dir.absolute().name}.snapshot.db")


def _progress(done: int, total: int) -> None:
    """A line that rewrites itself, for people who watch."""
    if sys.stderr.isatty():
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\r{byte_size(done)} of {byte_size(total)}{end}")
    elif done >= total:
        print_note(f"wrote {byte_size(total)}")
