"""Keeps the process small while gigabytes pass through it: large buffers go back to the system when freed.

glibc raises its threshold for separate mappings to the largest block ever freed, and then keeps megabytes in
heaps that fragment: measured as 15 to 40 MB of the peak of a backup, for an eighth of its CPU. Elsewhere
(musl, macOS) this does nothing. Called by `backup` and `verify`.
"""

from __future__ import annotations

import ctypes
import functools
import platform

LARGE_BYTES = 1024 * 1024
"""Blocks to upload and ranges read are above, frames and pages below."""
_M_MMAP_THRESHOLD = -3  # malloc.h; setting it also stops glibc from adapting it


@functools.cache
def return_large_buffers() -> bool:
    """Tell the C library, once for the process; whether it understood."""
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))
