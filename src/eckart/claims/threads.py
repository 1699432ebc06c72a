"""Train networks of tiny matrices on one thread.

A product of 30×30 matrices takes microseconds, less than it takes to share it among threads; and when other programs
have the cores, threads that wait for each other at every product make a second into minutes.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread(when: bool = True) -> Iterator[None]:
    """Let torch use one thread inside, and as many as before after; as a `with` block or on a function.

    Args:
        when: false leaves the threads as they are.

    Example:
        >>> with one_thread():
        ...     inside = torch.get_num_threads()
        >>> inside
        1
    """
    before = torch.get_num_threads()
    if when:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
