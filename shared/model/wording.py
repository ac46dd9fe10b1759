"""How counts and sizes are said in messages to people: `1 node`, `2 nodes`, `912 B`, `1.3 MB`."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """`1 node`, `0 nodes`: of a noun that takes an s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def byte_size(value: float) -> str:
    """Bytes as people read them: `912 B`, `1.3 MB` (decimal, as Azure bills)."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
