"""What infra/forwarder/Dockerfile puts into the image, laid out in a folder and run without Docker.

    image = lay_out(folder)
    subprocess.Popen(image.command, env=image.environ | {...}, cwd=folder)

The files are those of its COPY lines, the packages those of its requirements as this checkout has them, and
nothing else can be imported but Python's own library. Environment and command are the Dockerfile's. What this
cannot show: the base images, and the packages' builds for their Python.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from sandbox.tools import CHECKOUT

DOCKERFILE = CHECKOUT / "infra/forwarder/Dockerfile"
REQUIREMENTS = CHECKOUT / "infra/forwarder/requirements.txt"
PACKAGES = "/packages"


@dataclass(frozen=True)
class Image:
    """How to run it."""

    command: list[str]
    environ: Mapping[str, str]


def lay_out(folder: Path) -> Image:
    """Make the image's files below `folder`, which is its root."""
    for source, target in copied():
        place = folder / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
    for name in packages():
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts:  # commands, which the image does not have
                place = folder / PACKAGES.lstrip("/") / file
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(file.locate())
    environ = dict(word.split("=", 1) for line in _lines("ENV") for word in line.split())
    environ["PYTHONPATH"] = ":".join(f"{folder}{path}" for path in environ["PYTHONPATH"].split(":"))
    (entry,) = _lines("ENTRYPOINT")
    # -S: without what is installed here. Nothing else is taken over from this process but the PATH.
    command = [sys.executable, "-S", *json.loads(entry)[1:]]
    return Image(command, {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environ})


def copied() -> Iterator[tuple[Path, str]]:
    """(file of the checkout, path in the image) of all that is copied from the checkout into /app."""
    for line in _lines("COPY"):
        *sources, target = line.split()
        if not target.startswith("/app/"):
            continue
        for source in sources:
            path = CHECKOUT / source
            for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
                inside = file.name if path.is_file() else file.relative_to(path)
                yield file, f"{target}{inside}"


def packages() -> list[str]:
    """The distributions of its requirements that this Python needs."""
    lines = re.findall(r"^([A-Za-z][^\\\n]*)", REQUIREMENTS.read_text(), re.MULTILINE)
    wanted = [Requirement(line.strip()) for line in lines]
    return [one.name for one in wanted if one.marker is None or one.marker.evaluate()]


def _lines(instruction: str) -> list[str]:
    """The arguments of each such instruction that names no other stage."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    return re.findall(rf"^{instruction} +((?!--from).*)$", text, re.MULTILINE)
