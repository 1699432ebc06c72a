"""Have glibc keep what was freed: fresh pages for temporaries drown the differences that a benchmark is after."""

import os
import sys

KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "1000000000"}


def keep_freed() -> None:
    """Start the program again with these settings, unless it has them."""
    if any(key not in os.environ for key in KEEP):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
