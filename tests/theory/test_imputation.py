"""softImpute solves its convex problem, and its tuning finds what generated the data."""

import pytest
import torch

from eckart.linalg import nuclear_norm, prox_nuclear
from eckart.theory import low_rank_target, soft_impute, tuned_soft_impute


def _problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = low_rank_target((40, 25), [10.0, 6.0], generator=generator)
    return target, torch.rand(40, 25, generator=generator) < 0.5


def test_where_all_is_observed_it_is_singular_value_thresholding() -> None:
    target, _ = _problem()
    [(_, Z)] = soft_impute(target, torch.ones_like(target, dtype=torch.bool), [2.0])
    torch.testing.assert_close(Z, prox_nuclear(target, 2.0))


def test_the_solution_is_optimal() -> None:
    target, mask = _problem()
    [(_, Z)] = soft_impute(target, mask, [0.5], steps=3000, tolerance=1e-10)

    def objective(Z: torch.Tensor) -> float:
        return float(((Z - target)[mask]).square().sum() / 2 + 0.5 * nuclear_norm(Z))

    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        direction = torch.randn(Z.shape, generator=generator, dtype=Z.dtype)
        assert objective(Z + 1e-3 * direction) > objective(Z)
    # and it is the fixed point of the map
    torch.testing.assert_close(prox_nuclear(torch.where(mask, target, Z), 0.5), Z, atol=1e-7, rtol=0)


def test_the_path_starts_at_zero_and_its_error_falls_on_clean_data() -> None:
    target, mask = _problem()
    errors = [float((Z - target).norm()) for _, Z in soft_impute(target, mask, [100.0, 1.0, 0.1, 0.01], steps=1000)]
    assert errors[0] == pytest.approx(float(target.norm()))
    assert errors == sorted(errors, reverse=True)


def test_tuning_beats_the_means_on_noisy_data_and_is_the_same_each_time() -> None:
    target, mask = _problem()
    noisy = target + 0.05 * torch.randn(target.shape, generator=torch.Generator().manual_seed(2), dtype=target.dtype)
    first, again = (tuned_soft_impute(noisy, mask, ranks=(3, None)) for _ in range(2))
    assert torch.equal(first.matrix, again.matrix)
    assert (first.matrix - target)[~mask].norm() < 0.6 * (target - target.mean(dim=0))[~mask].norm()


def test_bad_input_is_refused() -> None:
    target, mask = _problem()
    with pytest.raises(ValueError, match="must not be negative"):
        next(soft_impute(target, mask, [-1.0]))
    with pytest.raises(ValueError, match="rank must be from 1 to 25"):
        next(soft_impute(target, mask, [1.0], rank=26))
    with pytest.raises(ValueError, match="held_out"):
        tuned_soft_impute(target, mask, held_out=1.0)
    mask[3] = False
    with pytest.raises(ValueError, match=r"1 rows without an observed entry \(3\)"):
        next(soft_impute(target, mask, [1.0]))
