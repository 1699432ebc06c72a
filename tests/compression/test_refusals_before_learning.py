"""What does not fit together is refused before the model runs once; what learning does not read is no other run."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eckart import compress
from families import families


class Counting(nn.Module):
    """A model that counts how often it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.second(self.first(x).relu())


def _batches() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(32, 8) for _ in range(3)]


@pytest.mark.parametrize("ranks", [{"none": 2}, {"first": 99}, {"first": True}])
def test_wrong_ranks_cost_no_run_of_the_model(ranks: dict[str, int]) -> None:
    model = Counting()
    with pytest.raises(ValueError, match="ranks"):
        compress(model, _batches(), ranks=ranks, method="svd-llm")
    assert model.calls == 0


def test_a_rank_of_one_matrix_among_several_is_refused_and_names_what_to_do() -> None:
    model, batches = families()["llama"]()
    with pytest.raises(ValueError, match=r"counts neurons; give '.*' one size.*'two-sided'"):
        compress(model, batches, ranks={"model.layers.0.mlp.up_proj": 4}, method="auto", held_out=batches)
    plan = compress(model, batches, keep=1.0, method="auto", held_out=batches, dry_run=True)
    label = next(piece.label for piece in plan.pieces if len(piece.names) > 1)
    assert plan.at(ranks={label: 4}).sizes[label] == 4


def test_allocations_that_compare_do_not_go_with_fits_to_a_prefix() -> None:
    model = Counting()
    with pytest.raises(ValueError, match=r"allocation: 'candidates' compares layers.*such as 'uniform'"):
        compress(model, _batches(), keep=0.5, method="aa-svd", allocation="candidates", held_out=_batches())
    assert model.calls == 0


def test_a_folder_of_what_was_learned_serves_other_floors_and_allocations(tmp_path: Path) -> None:
    model = Counting()
    options = {"keep": 0.5, "method": "svd-llm", "work": tmp_path, "dry_run": True}
    compress(model, _batches(), **options)
    calls = model.calls
    for more in ({"floor": 0.5}, {"multiple": 2}, {"allocation": "hulls"}):
        compress(model, _batches(), **options, **more)
    assert model.calls == calls
    with pytest.raises(ValueError, match="another run"):
        compress(model, _batches(), **options, shrink=0.2)


def test_the_allocation_that_was_taken_is_named() -> None:
    loss = {"loss": lambda output, batch: output.square().mean()}
    plan = compress(Counting(), _batches(), keep=0.6, method="auto", held_out=_batches(), dry_run=True, **loss)
    assert min(plan.losses, key=lambda name: plan.losses[name]) == plan.sizes.best
    assert f"sizes by {plan.sizes.best!r}" in plan.report()
    assert compress(Counting(), keep=0.6, method="svd", dry_run=True).losses == {}
