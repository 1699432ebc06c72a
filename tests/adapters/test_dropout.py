"""Dropout from a hash: the right share, no pattern, the same from the same seed."""

import torch

from eckart.adapters.layers.dropout import draw_seed, fallen


def test_the_share_that_falls_is_the_rate_within_four_standard_deviations() -> None:
    for rate in (0.05, 0.1, 0.5, 0.9):
        share = float(fallen((1000, 500), rate, torch.tensor([123])).double().mean())
        assert abs(share - rate) < 4 * (rate * (1 - rate) / 500_000) ** 0.5


def test_neighbours_rows_columns_and_seeds_fall_independently() -> None:
    masks = [
        fallen((600, 576), 0.5, torch.tensor([seed], dtype=torch.int32)).double() - 0.5 for seed in (5, 77_777_777)
    ]
    one, other = masks
    bound = 4 * 0.25 / one.numel() ** 0.5
    for a, b in (
        (one, other),
        (one[1:], one[:-1]),
        (one[:, 1:], one[:, :-1]),
        (one[16:], one[:-16]),
        (one[:, 8:], one[:, :-8]),
    ):
        assert abs(float((a * b).mean())) < bound * 1.1
    assert float(one.mean(0).abs().max()) < 6 * 0.5 / 600**0.5
    assert float(one.mean(1).abs().max()) < 6 * 0.5 / 576**0.5


def test_seeds_come_from_torchs_own_state() -> None:
    torch.manual_seed(4)
    first = [int(draw_seed(torch.device("cpu"))) for _ in range(3)]
    torch.manual_seed(4)
    assert [int(draw_seed(torch.device("cpu"))) for _ in range(3)] == first
    assert len(set(first)) == 3


def test_a_seed_gives_one_mask() -> None:
    seed = draw_seed(torch.device("cpu"))
    assert torch.equal(fallen((8, 9), 0.3, seed), fallen((8, 9), 0.3, seed))
