"""Many small factorisations at once: one matrix per core instead of all cores on one matrix.

LAPACK gains little from a second core on a matrix of a few hundred rows (an eigensolver spends half its time in
matrix-vector products), while two matrices on two cores take hardly longer than one. So a pool of threads takes one
item each with one BLAS thread each, and an item too dear to share memory with others runs alone with all the threads.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from eckart.linalg._check import require_count

AHEAD = 32  # results a worker that wait for a slow one before them

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_side_by_side(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    cost: Callable[[Item], float] | None = None,
    capacity: float | None = None,
    workers: int | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order, computing several items at a time with one BLAS thread each.

    Items are pulled lazily: at most 2·workers are unfinished at a time, and while one takes long at most 32·workers
    are pulled beyond it. An item that costs more than `capacity`, or that is a CUDA tensor, waits for the others and
    runs alone in the calling thread, with all the threads that torch has there. The caller's grad mode holds in the
    workers.

    Args:
        function: what to compute; called from several threads at once.
        items: what to compute it of. Where memory matters let an item be a name and let `function` read the matrix, so
            that nothing is held before it fits.
        cost: what `function(item)` holds while it runs, in the unit of `capacity` (bytes, say); None: nothing.
        capacity: the most that may be held at any time, > 0; None: no limit.
        workers: how many items at a time, ≥ 1; None: torch.get_num_threads(). With 1 the calling thread does it all.

    Returns:
        An iterator over the results. Closing it cancels what has not begun.

    Raises:
        Whatever `function` raises, when its item's turn comes; items that have not begun are then cancelled.
        TypeError, ValueError: `workers` or `capacity` out of range.

    Example:
        >>> from eckart.linalg import map_side_by_side, singular_values
        >>> matrices = [torch.eye(3), 2 * torch.ones(2, 2)]
        >>> [S.tolist() for S in map_side_by_side(singular_values, matrices)]
        [[1.0, 1.0, 1.0], [4.0, 0.0]]
    """
    workers = torch.get_num_threads() if workers is None else workers
    require_count("workers", workers, low=1)
    if capacity is not None and not capacity > 0:
        raise ValueError(f"capacity must be above 0, got {capacity}; leave it out for no limit")
    if workers == 1:
        return map(function, items)
    return _side_by_side(function, items, cost or (lambda item: 0.0), capacity or float("inf"), workers)


def _side_by_side(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    cost: Callable[[Item], float],
    capacity: float,
    workers: int,
) -> Iterator[Result]:
    grad = torch.is_grad_enabled()

    def work(item: Item) -> Result:
        with torch.set_grad_enabled(grad):
            return function(item)

    pool = _pool(workers)
    pending: deque[tuple[Future[Result], float]] = deque()
    try:
        for item in items:
            price = cost(item)
            alone = price > capacity or (isinstance(item, torch.Tensor) and item.is_cuda)
            while pending and (alone or len(pending) >= AHEAD * workers or pending[0][0].done()):
                yield pending.popleft()[0].result()
            if alone:
                yield function(item)
                continue
            _wait_for_room(pending, capacity - price, 2 * workers)
            pending.append((pool.submit(work, item), price))
            del item  # the pool holds it for as long as it is needed
        while pending:
            yield pending.popleft()[0].result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _wait_for_room(pending: Iterable[tuple[Future[Result], float]], room: float, places: int) -> None:
    """Return when what is still running or queued costs at most `room` and leaves one of the `places` free."""
    while True:
        running = [(future, price) for future, price in pending if not future.done()]
        if sum(price for _, price in running) <= room and len(running) < places:
            return
        wait([future for future, _ in running], return_when=FIRST_COMPLETED)


def _pool(workers: int) -> ThreadPoolExecutor:
    """A pool whose threads have one BLAS thread each, while the caller and threads born later keep the caller's count.

    torch.set_num_threads sets the calling thread's own count and the default of threads to come, so the caller sets its
    count again once every worker has set its own.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="eckart")
    everyone_is_here = threading.Barrier(workers)

    def settle(_: int) -> None:
        torch.get_num_threads()  # a thread takes the default at its first use of torch: have that behind us
        torch.set_num_threads(1)
        everyone_is_here.wait()

    list(pool.map(settle, range(workers)))
    torch.set_num_threads(threads)
    return pool
