"""What the claims on real trainings measure updates with."""

import pytest
import torch
from torch import nn

from eckart.claims.data._digits import HELD_OUT, load_digits, train
from eckart.claims.data._updates import (
    leading_share,
    looks,
    noise_share,
    noise_stable_rank,
    overlap_at,
    overlaps,
    random_errors,
    recorded,
    stable_rank,
)
from eckart.linalg import singular_values
from eckart.linalg import stable_rank as stable_rank_of
from eckart.spectra import Recorder


@pytest.mark.parametrize("shape", [(300, 300), (200, 800)])
def test_the_stable_rank_of_noise_is_that_of_a_gaussian_matrix(
    shape: tuple[int, int], generator: torch.Generator
) -> None:
    measured = float(stable_rank_of(singular_values(torch.randn(shape, generator=generator))))
    assert noise_stable_rank(shape) == pytest.approx(measured, rel=0.05)


def test_the_leading_share_of_noise_grows_to_one() -> None:
    shares = [noise_share((20, 30), rank) for rank in range(1, 21)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert shares[4] > 5 / 20


def test_a_recorded_update_is_measured_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    recorder = Recorder(model, rank=2)

    def course() -> object:
        for t, values in enumerate(([2.0, 1.0, 0, 0], [4.0, 2.0, 2.0, 0], [0, 3.0, 1.0, 3.0]), start=1):
            model[0].weight.data += torch.diag(torch.tensor(values))
            yield t

    seen: list[tuple[int, int]] = []
    history = recorded(recorder, course(), {1, 3}, lambda done, total, label: seen.append((done, total)), "")["0"]
    assert [now.step for now in history] == [1, 3]
    assert seen == [(1, 3), (3, 3)]
    assert leading_share(history[0], 1) == pytest.approx(0.8)  # 2, 1
    assert stable_rank(history[1]) == pytest.approx((36 + 36 + 9 + 9) / 36)  # 6, 6, 3, 3
    assert overlaps(history, 2) == pytest.approx([1, 1])
    assert overlap_at(history, 0.5, 2) == pytest.approx(1)


def test_random_errors_have_the_rank_of_the_inputs_and_leave_no_hook() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    inputs = torch.outer(torch.arange(1.0, 9), torch.arange(1.0, 7)).view(
        2, 4, 6
    )  # rank 1, as positions of two samples
    found = random_errors(model, ["0"], lambda: model(inputs))
    assert list(found) == ["0"]
    assert float(found["0"][1]) < 1e-5 * float(found["0"][0])
    found.clear()
    model(inputs)
    assert not found


def test_looks_are_early_and_even_and_end_with_the_last_step() -> None:
    assert sorted(looks(100, count=4)) == [1, 3, 10, 25, 30, 50, 75, 100]
    assert looks(1) == {1}


def test_the_digits_are_split_by_the_seed_and_trained_on_the_same_batches() -> None:
    digits = load_digits(torch.Generator().manual_seed(3))
    again = load_digits(torch.Generator().manual_seed(3))
    assert torch.equal(digits.images, again.images)
    assert len(digits.held_out_labels) == HELD_OUT
    assert len(digits.labels) + HELD_OUT == 1797
    assert float(digits.images.mean(dim=0).abs().max()) < 1e-5

    def trained() -> torch.Tensor:
        model = nn.Linear(64, 10)
        nn.init.zeros_(model.weight)
        nn.init.zeros_(model.bias)
        sgd = torch.optim.SGD(model.parameters(), lr=0.5)
        steps = train(model, digits, sgd, steps=30, batch=64, generator=torch.Generator().manual_seed(0))
        assert list(steps) == list(range(1, 31))
        assert digits.accuracy(model) > 0.6
        return model.weight.detach()

    assert torch.equal(trained(), trained())


def test_a_change_replaces_the_gradients_of_matrices_only() -> None:
    digits = load_digits(torch.Generator().manual_seed(0))
    model = nn.Linear(64, 10)
    start = model.weight.detach().clone(), model.bias.detach().clone()
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    generator = torch.Generator().manual_seed(0)
    list(train(model, digits, sgd, steps=1, batch=64, generator=generator, change=torch.zeros_like))
    assert torch.equal(model.weight, start[0])
    assert not torch.equal(model.bias, start[1])
