"""Many items side by side: order, laziness, memory, threads and failures."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from eckart.linalg import map_side_by_side


def test_results_come_in_the_order_of_the_items_even_when_later_ones_are_faster() -> None:
    def work(item: int) -> int:
        time.sleep(0.02 if item % 3 == 0 else 0.001)
        return item * item

    assert list(map_side_by_side(work, range(20), workers=4)) == [item * item for item in range(20)]


def test_several_items_run_at_once() -> None:
    both_are_here = threading.Barrier(2)
    assert len(list(map_side_by_side(lambda _: both_are_here.wait(timeout=20), range(2), workers=2))) == 2


@pytest.mark.parametrize("workers", [1, 3])
def test_nothing_gives_nothing(workers: int) -> None:
    assert list(map_side_by_side(lambda item: item, [], workers=workers)) == []


def test_items_are_pulled_only_a_little_ahead() -> None:
    pulled = []

    def items() -> Iterator[int]:
        for item in range(100):
            pulled.append(item)
            yield item

    results = map_side_by_side(lambda item: item, items(), workers=2)
    assert pulled == []
    assert next(results) == 0
    assert len(pulled) <= 8
    results.close()
    assert len(pulled) <= 8


def test_a_slow_item_does_not_hold_up_those_behind_it() -> None:
    last_is_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert last_is_done.wait(timeout=20)
        if item == 30:
            last_is_done.set()
        return item

    assert list(map_side_by_side(work, range(31), workers=2)) == list(range(31))


def test_what_is_in_flight_never_costs_more_than_the_capacity() -> None:
    held, most, lock = 0.0, 0.0, threading.Lock()

    def work(item: float) -> float:
        nonlocal held, most
        with lock:
            held += item
            most = max(most, held)
        time.sleep(0.002)
        with lock:
            held -= item
        return item

    items = [3.0, 1.0, 2.0, 4.0, 1.0, 1.0, 1.0, 3.0, 2.0] * 4
    assert list(map_side_by_side(work, items, cost=float, capacity=4, workers=4)) == items
    assert 3 <= most <= 4


def test_an_item_dearer_than_the_capacity_runs_alone_in_the_calling_thread_with_all_the_threads() -> None:
    running, alone, seen, lock = set(), {}, {}, threading.Lock()

    def work(item: int) -> int:
        with lock:
            running.add(item)
            if item == 100:
                alone[item] = set(running)
        time.sleep(0.005)
        seen[item] = (threading.current_thread(), torch.get_num_threads())
        with lock:
            running.discard(item)
        return item

    items = [1, 2, 3, 100, 4, 5]
    assert list(map_side_by_side(work, items, cost=float, capacity=50, workers=2)) == items
    assert alone[100] == {100}
    assert seen[100] == (threading.current_thread(), torch.get_num_threads())
    assert all(seen[item][0] is not threading.current_thread() for item in items if item != 100)


def test_workers_have_one_blas_thread_and_nobody_else_loses_theirs() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        big = torch.ones(400, 400)
        inside = list(
            map_side_by_side(lambda _: (big @ big).add(1) is None or torch.get_num_threads(), range(8), workers=2)
        )
        assert inside == [1] * 8
        assert torch.get_num_threads() == 2
        newborn = []
        thread = threading.Thread(target=lambda: newborn.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert newborn == [2]
    finally:
        torch.set_num_threads(before)


def test_a_map_inside_a_worker_runs_in_that_worker() -> None:
    def outer(_: int) -> list[str]:
        me = threading.current_thread().name
        return [name == me for name in map_side_by_side(lambda _: threading.current_thread().name, range(3))]

    assert list(map_side_by_side(outer, range(4), workers=2)) == [[True] * 3] * 4


def test_an_exception_comes_at_its_turn_and_cancels_what_has_not_begun() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.002)
        if item == 3:
            raise RuntimeError("item 3 is broken")
        return item

    results = map_side_by_side(work, range(1000), workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="item 3 is broken"):
        next(results)
    assert len(begun) < 12
    assert not any(thread.name.startswith("eckart") for thread in threading.enumerate())


def test_an_exception_while_making_an_item_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("cannot read the second item")

    with pytest.raises(OSError, match="second item"):
        list(map_side_by_side(lambda item: item, items(), workers=2))


@pytest.mark.parametrize("enabled", [True, False])
def test_workers_inherit_the_grad_mode(enabled: bool) -> None:
    with torch.set_grad_enabled(enabled):
        assert list(map_side_by_side(lambda _: torch.is_grad_enabled(), range(3), workers=2)) == [enabled] * 3


def test_results_do_not_depend_on_the_number_of_workers() -> None:
    matrices = [torch.randn(30, 20, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    one, three = (list(map_side_by_side(torch.linalg.svdvals, matrices, workers=workers)) for workers in (1, 3))
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_bad_arguments_are_named_errors() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        map_side_by_side(str, [1], workers=0)
    with pytest.raises(TypeError, match="workers must be an int"):
        map_side_by_side(str, [1], workers=1.5)
    with pytest.raises(ValueError, match="capacity must be above 0"):
        map_side_by_side(str, [1], capacity=0)
