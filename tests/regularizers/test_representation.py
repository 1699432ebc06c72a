"""The spectrum of a representation is that of its covariance, however the rows come."""

import pytest
import torch
from torch import nn

from eckart.regularizers import representation_spectrum


def test_batches_are_merged_into_the_covariance_of_all_rows() -> None:
    Z = torch.randn(101, 5, dtype=torch.float64) * torch.arange(1.0, 6.0) + 100
    seen = representation_spectrum(nn.Identity(), Z.split([1, 60, 40]))
    expected = torch.linalg.eigvalsh(torch.cov(Z.mT, correction=0)).flip(0)
    torch.testing.assert_close(seen.variances, expected)
    assert seen.stable_rank == pytest.approx(float(expected.sum() / expected[0]))
    p = expected / expected.sum()
    assert seen.effective_rank == pytest.approx(float((-p * p.log()).sum().exp()))
    assert seen.rows == 101


def test_an_encoder_into_two_directions_has_rank_two() -> None:
    encoder = nn.Sequential(nn.Linear(10, 2), nn.Linear(2, 8)).double()
    seen = representation_spectrum(encoder, [torch.randn(50, 10, dtype=torch.float64)])
    assert int((seen.variances > 1e-12 * seen.variances[0]).sum()) == 2
    assert 1 < seen.effective_rank <= 2


def test_the_encoder_runs_in_eval_mode_and_is_left_as_it_was() -> None:
    encoder = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4))
    encoder[0].eval()
    encoder[1].train()
    X = torch.randn(20, 4)
    first, second = (representation_spectrum(encoder, [X]).variances for _ in range(2))
    assert torch.equal(first, second)
    assert [module.training for module in encoder] == [False, True]
    assert float(encoder[1].num_batches_tracked) == 0


def test_padding_does_not_count() -> None:
    class Take(nn.Module):
        def forward(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return inputs_embeds

    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    seen = representation_spectrum(Take(), [{"inputs_embeds": x, "attention_mask": mask}])
    whole = representation_spectrum(nn.Identity(), [torch.cat([x[0], x[1, :1]])])
    assert seen.rows == 4
    torch.testing.assert_close(seen.variances, whole.variances)


def test_half_precision_is_summed_in_double() -> None:
    Z = torch.randn(300, 3).to(torch.bfloat16) + 64
    seen = representation_spectrum(nn.Identity(), Z.split(7))
    torch.testing.assert_close(seen.variances, representation_spectrum(nn.Identity(), [Z.double()]).variances)


def test_what_cannot_be_measured_is_named() -> None:
    with pytest.raises(ValueError, match="batches is empty"):
        representation_spectrum(nn.Identity(), [])
    with pytest.raises(TypeError, match="put it in a list"):
        representation_spectrum(nn.Identity(), torch.zeros(3, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"encoder gave \(4,\); a representation is \(N, h\)"):
        representation_spectrum(nn.Identity(), [torch.ones(4)])
    with pytest.raises(TypeError, match="encoder gave tuple"):
        representation_spectrum(nn.LSTM(2, 3), [torch.zeros(4, 2)])
    with pytest.raises(ValueError, match="NaN"):
        representation_spectrum(nn.Identity(), [torch.full((3, 2), float("nan"))])
