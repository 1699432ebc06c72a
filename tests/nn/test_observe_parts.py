"""The parts behind `observe`: mergeable statistics, patches of convolutions, batches and their padding."""

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eckart.nn.batches import Keys, Padding, to_device
from eckart.nn.patches import patches, positions
from eckart.nn.statistics import Kept, Statistics

ALL = Kept(moments=True, squares=True, sample=5)


def fill(x: Tensor, keys: Tensor, kept: Kept = ALL) -> Statistics:
    statistics = Statistics(kept, len(x), x.shape[-1], x)
    statistics.add([x], slice(0, len(x)), keys if kept.sample else None)
    return statistics


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 12, 3, dtype=torch.float64, generator=generator)


@pytest.fixture
def keys(generator: torch.Generator) -> Tensor:
    return torch.rand(24, dtype=torch.float64, generator=generator)


def test_merged_parts_equal_the_whole(x: Tensor, keys: Tensor) -> None:
    whole = fill(x, keys)
    left, right = fill(x[:, :7], keys.view(2, 12)[:, :7].flatten()), fill(x[:, 7:], keys.view(2, 12)[:, 7:].flatten())
    copy = left.clone()
    left.merge(right, slice(0, 2))
    for field in ("sum", "scatter", "count", "rows", "keys"):
        torch.testing.assert_close(getattr(left, field), getattr(whole, field))
    assert copy.sum.equal(x[:, :7].sum(1))  # a clone goes on alone


def test_the_sample_holds_the_rows_with_the_largest_keys(x: Tensor, keys: Tensor) -> None:
    assert torch.equal(fill(x, keys).rows, x.flatten(0, 1)[keys.topk(5).indices])


def test_squares_are_the_diagonal_of_the_moments(x: Tensor, keys: Tensor) -> None:
    norms = fill(x, keys, Kept(squares=True)).squared_norms()
    torch.testing.assert_close(fill(x, keys, Kept(moments=True)).squared_norms(), norms)
    torch.testing.assert_close(norms, x.square().sum(1))
    with pytest.raises(ValueError, match="neither moments nor squares"):
        fill(x, keys, Kept()).squared_norms()


def test_many_rows_are_added_in_pieces(monkeypatch: pytest.MonkeyPatch, x: Tensor, keys: Tensor) -> None:
    whole = fill(x, keys)
    monkeypatch.setattr("eckart.nn.statistics._CHUNK", 20)
    torch.testing.assert_close(fill(x, keys).moments(), whole.moments())


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv1d(4, 6, 3),
        nn.Conv1d(4, 6, 4, padding="same", groups=2),
        nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1), groups=2),
        nn.Conv2d(4, 4, 3, padding="valid", groups=4),
        nn.Conv3d(4, 6, (1, 2, 3), padding=1, groups=2),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_weight_times_patches_is_the_convolution(
    convolution: nn.Conv2d, pieces: bool, monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    if pieces:
        monkeypatch.setattr("eckart.nn.patches._CHUNK", 1)
    kernel, groups = convolution.kernel_size, convolution.groups
    x = torch.randn(3, 4, *[7] * len(kernel), generator=generator).transpose(-1, 1).contiguous().transpose(-1, 1)
    W = convolution.weight.detach().reshape(groups, -1, convolution.weight[0].numel())
    rows = list(patches(x, kernel, convolution.stride, convolution.padding, convolution.dilation, groups))
    assert len(rows) == (3 if pieces else 1)
    y = convolution(x).detach() - convolution.bias.detach().view(-1, *[1] * len(kernel))
    torch.testing.assert_close(torch.cat(rows, 1) @ W.mT, positions(y, len(kernel), groups), rtol=1e-4, atol=1e-5)


def test_patches_of_one_image_without_a_batch(generator: torch.Generator) -> None:
    x = torch.randn(2, 6, 5, generator=generator)
    (rows,) = patches(x, (3, 3))
    torch.testing.assert_close(rows[0], F.unfold(x[None], 3)[0].T)
    assert positions(torch.zeros(4, 4, 3), 2).shape == (1, 12, 4)


def test_moving_a_batch_keeps_its_form_and_which_tensors_are_one() -> None:
    Pair = namedtuple("Pair", "x y")
    x = torch.ones(2, requires_grad=True)
    moved = to_device({"pair": Pair(x, [x, 3]), "none": None}, torch.device("cpu"))
    assert isinstance(moved["pair"], Pair)
    assert moved["pair"].x is moved["pair"].y[0]
    assert not moved["pair"].x.requires_grad
    assert moved["none"] is None


def test_padding_knows_its_rows_by_position_flat_or_not_at_all() -> None:
    padding = Padding({"attention_mask": torch.tensor([[1, 0, 1], [0, 1, 1]])})
    x = torch.arange(6.0).view(2, 3, 1)
    assert padding.rows(x).flatten().tolist() == padding.rows(x.view(6, 1)).flatten().tolist() == [0, 2, 4, 5]
    assert padding.rows(x.expand(2, 3, 2).unsqueeze(-1)).flatten().tolist() == [0, 0, 2, 2, 4, 4, 5, 5]
    assert [padding.count(shape) for shape in ((2, 3, 1), (6, 7), (2, 3, 5, 1), (2, 4, 1))] == [4, 4, 20, 8]
    assert [padding.misses(shape) for shape in ((2, 3, 1), (2, 7), (2, 4, 1), (5, 1))] == [False, False, True, True]


def test_keys_are_drawn_once_for_as_many_rows() -> None:
    keys = Keys(torch.Generator().manual_seed(0))
    assert keys(4) is keys(4)
    assert not torch.equal(keys(4), keys(4, salt=1))
    assert torch.equal(Keys(torch.Generator().manual_seed(0))(4), keys(4))


def test_a_large_mean_costs_no_digits_of_the_covariance_row_by_row(generator: torch.Generator) -> None:
    x = (torch.randn(1, 3000, 4, generator=generator) + 1e3) * torch.tensor([1.0, 1.0, 1.0, 0.0])
    statistics = Statistics(Kept(moments=True), 1, 4, x)
    for row in x.split(1, dim=1):
        statistics.add([row], slice(0, 1))
    exact = torch.cov(x[0].double().T, correction=0)
    torch.testing.assert_close(statistics.scatter[0].double() / 3000, exact, rtol=1e-5, atol=1e-5)
    moments = x[0].double().T @ x[0].double()
    torch.testing.assert_close(statistics.moments()[0].double(), moments, rtol=1e-6, atol=0)
