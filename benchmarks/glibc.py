"""Tell glibc to keep what was freed: fresh pages for temporaries would drown the differences that a benchmark is after."""

import argparse
import os
import sys

KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_TOP_PAD_": "1000000000"}


def add_option(parser: argparse.ArgumentParser) -> None:
    """Let the caller leave it out."""
    parser.add_argument("--keep-malloc", action="store_true", help="use the environment's own allocation")


def restart(options: argparse.Namespace) -> None:
    """Start the program again with these settings, unless it has them or is told not to."""
    if not options.keep_malloc and any(key not in os.environ for key in KEEP):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
