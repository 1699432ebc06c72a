"""Give freed memory back to the system between the matrices of a scan."""

import ctypes
import sys


def release_freed() -> None:
    """Return the pages that are free inside glibc's heaps; elsewhere do nothing.

    glibc keeps freed blocks below 32 MB for later, and a small result that lands in one keeps the rest from being used
    again: over the matrices of a checkpoint that adds up to several times the largest one.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
