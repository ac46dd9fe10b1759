"""Keeps the process small while gigabytes pass through it: large buffers go back to the system when freed.

glibc raises its threshold for separate mappings to the largest block ever freed, and then keeps megabytes in
heaps that fragment: measured as 15 to 40 MB of the peak of a backup, for an eighth of its CPU. Elsewhere
(musl, macOS) this does nothing. Called by `backup` and `verify` before each pass over a database.
"""

from __future__ import annotations

import ctypes
import functools
import platform

LARGE_BYTES = 1024 * 1024
"""Blocks to upload and ranges read are above, frames and pages below."""
_M_MMAP_THRESHOLD = -3  # malloc.h; setting it also stops glibc from adapting it


def give_back() -> None:
    """Return free memory to the system, and from now on large buffers as soon as they are freed."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, told once for the process to map large buffers separately; None if it is another."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
    return library
