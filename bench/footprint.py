"""What the deployed app weighs: the installed size of its packages, and the CPU its import costs."""

from __future__ import annotations

import importlib.metadata
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench.figure import Figure, at_most

CHECKOUT = Path(__file__).resolve().parent.parent
ROUNDS = 7
IMPORT_LIMIT_MS = 50
SIZE_LIMIT_MB = 400


def run(wants: Callable[[str], bool], emit: Callable[[Figure], None]) -> None:
    """The figures that are wanted."""
    if wants("deployed-size"):
        emit(_size())
    if wants("import-function-app"):
        emit(_import_cost())


def _size() -> Figure:
    """Bytes on disk of everything requirements.txt installs here, and of the app's own code."""
    packages = {name: _installed_bytes(name) for name in _deployed()}
    missing = sorted(name for name, size in packages.items() if size is None)
    sizes = {name: size for name, size in packages.items() if size is not None}
    own = sum(
        path.stat().st_size for part in ("shared", "functions") for path in (CHECKOUT / part).rglob("*.py")
    )
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    shown = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in largest)
    note = f"{len(sizes)} packages, the largest (MB): {shown}; own code {own / 1e6:.1f} MB"
    if missing:
        note += f"; not installed on this platform: {', '.join(missing)}"
    return at_most("deployed-size", (sum(sizes.values()) + own) / 1e6, "MB", SIZE_LIMIT_MB, note=note)


def _deployed() -> list[str]:
    lines = (CHECKOUT / "requirements.txt").read_text().splitlines()
    return sorted({match[1] for line in lines if (match := re.match(r"([A-Za-z0-9._-]+)==", line))})


def _installed_bytes(name: str) -> int | None:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if "__pycache__" not in file.parts]
    return sum(path.stat().st_size for path in paths if path.exists())


def _import_cost() -> Figure:
    """CPU milliseconds of importing function_app beyond azure.functions, in alternating fresh processes."""
    costs = []
    for _ in range(ROUNDS):
        library = _cpu_ms("import azure.functions")
        app = _cpu_ms("import azure.functions, function_app")
        costs.append(app - library)
    note = "beyond `import azure.functions`: " + ", ".join(f"{cost:.0f}" for cost in costs)
    return at_most(
        "import-function-app", max(statistics.median(costs), 0.001), "ms", IMPORT_LIMIT_MS, note=note
    )


def _cpu_ms(statement: str) -> float:
    code = f"import time; {statement}; print(time.process_time() * 1000)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)
