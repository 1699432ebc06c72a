"""One thread inside, as many as before after."""

import pytest
import torch

from eckart.claims.threads import one_thread


def test_the_threads_come_back_even_after_an_error_and_stay_if_not_asked() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), one_thread():
            1 / 0
        assert torch.get_num_threads() == 2
        with one_thread(when=False):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_function_runs_on_one_thread_each_time() -> None:
    @one_thread()
    def count() -> int:
        return torch.get_num_threads()

    assert [count(), count()] == [1, 1]
