"""`python -m sandbox package`: the zip that a deployment uploads, made of what .funcignore leaves; its size.

Packages are not in it: Azure installs requirements.txt itself (remote build), by the hashes in there.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile

from sandbox.tools import CHECKOUT

TARGET = CHECKOUT / "build" / "kubekeeper.zip"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say: the same files give the same bytes


def deployed() -> list[str]:
    """Tracked files that .funcignore does not leave behind, in order."""
    ignored = set(_git("ls-files", "-z", "--cached", "--ignored", "--exclude-from=.funcignore"))
    return sorted(name for name in _git("ls-files", "-z") if name not in ignored)


def main(arguments: list[str]) -> int:
    """Write the zip; exit code 2 for arguments, which it does not take."""
    if arguments:
        print("usage: python -m sandbox package", file=sys.stderr)
        return 2
    TARGET.parent.mkdir(exist_ok=True)
    names = deployed()
    with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(
                zipfile.ZipInfo(name, EPOCH), (CHECKOUT / name).read_bytes(), zipfile.ZIP_DEFLATED
            )
    raw = sum((CHECKOUT / name).stat().st_size for name in names)
    shown = TARGET.relative_to(CHECKOUT)
    print(f"{shown}: {len(names)} files, {raw / 1e3:.0f} kB, {TARGET.stat().st_size / 1e3:.0f} kB packed")
    return 0


def _git(*arguments: str) -> list[str]:
    answer = subprocess.run(["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return [line for line in answer.stdout.split("\0") if line]
