"""rank="auto": it finds planted ranks and targets, is not fooled by noise, keeps to the budget and says why."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart import linalg
from eckart.adapters import adapt, load, save
from eckart.adapters.choosing.auto import _agreed, _crossed, _falling, choose_ranks
from eckart.adapters.choosing.evidence import evidence_lines
from eckart.adapters.choosing.targets import chosen
from eckart.adapters.layers.place import adapters
from families import families


def square(y: Tensor, batch: Any) -> Tensor:
    return (y - batch[1]).square().sum(-1).mean()


def planted(ranks: tuple[int, int], noise: float = 0.0) -> tuple[nn.Module, list[Any]]:
    """Two layers side by side whose targets differ from their outputs by changes of these ranks."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(24, 20, bias=False), nn.Linear(24, 20, bias=False)

        def forward(self, x: Tensor, _: Tensor) -> Tensor:
            return torch.cat((self.left(x), self.right(x)), -1)

    generator = torch.Generator().manual_seed(0)
    model = Pair()
    change = [
        torch.linalg.qr(torch.randn(20, r, generator=generator))[0]
        @ torch.linalg.qr(torch.randn(24, r, generator=generator))[0].mT
        if r
        else torch.zeros(20, 24)
        for r in ranks
    ]
    batches = []
    for _ in range(6):
        x = torch.randn(400, 24, generator=generator)
        y = torch.cat(
            [x @ (layer.weight.detach() + D).mT for layer, D in zip(model.children(), change, strict=True)], -1
        )
        batches.append((x, y + noise * torch.randn(y.shape, generator=generator)))
    return model, batches


@pytest.mark.parametrize("ranks", [(3, 1), (0, 4), (2, 2)])
def test_planted_ranks_are_found_and_a_matrix_that_needs_no_change_is_left_alone(ranks: tuple[int, int]) -> None:
    model, batches = planted(ranks, noise=0.3)
    found = choose_ranks(model, chosen(model), sum(ranks) * 44, batches, square)
    assert found.ranks == {name: r for name, r in zip(("left", "right"), ranks, strict=True) if r}
    for each in found.evidence.values():
        assert each["captured"] > 0.9 or each["rank"] == 0


def test_noise_has_no_energy_for_it_and_a_single_gradient_would_have_been_fooled() -> None:
    model, batches = planted((2, 0), noise=4.0)
    found = choose_ranks(model, chosen(model), 10 * 44, batches, square)
    noise = found.evidence["right"]
    assert noise["energy"] < 0.1 * found.evidence["left"]["energy"]
    assert abs(noise["agreement"]) < 0.1 < found.evidence["left"]["agreement"]
    model.zero_grad()
    square(model(*batches[0]), batches[0]).backward()
    left, right = (layer.weight.grad.square().sum() for layer in model.children())
    assert right > 0.2 * left


def test_ranks_capture_more_than_one_rank_for_all_and_cost_no_more_than_the_budget() -> None:
    model, batches = families()["llama"]()
    budget = 3 * sum(sum(matrix.shape) for matrix in chosen(model))
    found = choose_ranks(model, chosen(model), budget, batches)
    rows = found.evidence.values()
    assert sum(each["parameters"] for each in rows) <= budget
    ours, alike = (sum(each["energy"] * each[key] for each in rows) for key in ("captured", "captured_by_uniform"))
    assert ours > alike


def test_little_memory_means_more_passes_and_the_same_ranks() -> None:
    model, batches = families()["llama"]()
    at_once, by_block = (choose_ranks(model, chosen(model), 2000, batches, memory=memory) for memory in (2**31, 20_000))
    assert at_once.ranks == by_block.ranks
    for name, row in at_once.evidence.items():
        assert by_block.evidence[name]["energy"] == pytest.approx(row["energy"], rel=1e-4)


def test_an_adapter_that_is_there_does_not_change_what_is_measured() -> None:
    model, batches = planted((3, 1), noise=0.3)
    alone = choose_ranks(model, chosen(model), 4 * 44, batches, square)
    adapt(model, rank=2, name="other")
    for _, adapter in adapters(model, "other"):
        nn.init.normal_(adapter.B)
    assert choose_ranks(model, chosen(model), 4 * 44, batches, square) == alone
    adapt(model, rank="auto", budget=4 * 44, batches=batches, loss=square)
    assert {name: adapter.rank for name, adapter in adapters(model, "default")} == alone.ranks


def test_matrices_that_only_one_half_uses_have_nothing_to_agree_on() -> None:
    class Turns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.even, self.odd = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor, even: bool) -> Tensor:
            return (self.even if even else self.odd)(x)

    model = Turns()
    batches = [(torch.ones(2, 6), step % 2 == 0) for step in range(4)]
    with (
        pytest.warns(UserWarning, match="does not depend on the weight"),
        pytest.raises(ValueError, match="agree on no direction"),
    ):
        choose_ranks(model, chosen(model), 100, batches, lambda y, batch: y.square().sum())


def test_grouped_convolutions_pay_for_each_group() -> None:
    model, images = families()["conv2d"]()
    batches = [(x, torch.zeros(3, 5)) for x in images]
    model.forward = lambda x, _, inner=model.forward: inner(x)  # type: ignore[method-assign]
    found = choose_ranks(model, chosen(model), 800, batches, square)
    for matrix in chosen(model):
        row = found.evidence[matrix.name]
        assert row["parameters"] == row["rank"] * matrix.stack * sum(matrix.shape)


def test_adapt_takes_a_share_and_a_generator_of_batches_and_scales_all_ranks_alike() -> None:
    model, batches = families()["llama"]()
    total = sum(p.numel() for p in model.parameters())
    made = adapt(model, rank="auto", budget="10%", batches=iter(batches))
    assert 0.05 * total < made.trained <= 0.1 * total
    assert made.trained == sum(each["parameters"] for each in made.settings.evidence.values())  # type: ignore[union-attr]
    assert len(set(made.settings.ranks.values())) > 1
    assert {adapter.scale for _, adapter in adapters(model, "default")} == {2.0}
    assert "of the first-order decrease" in str(made)
    assert "self_attn.q_proj" in str(made)


def test_the_evidence_is_kept_in_the_files(tmp_path: Path) -> None:
    model, batches = families()["llama"]()
    made = adapt(model, rank="auto", budget=0.1, batches=batches)
    save(model, tmp_path / "adapter")
    other, _ = families()["llama"]()
    back = load(tmp_path / "adapter", other)
    assert back.settings.evidence == json.loads(json.dumps(made.settings.evidence))
    assert back.settings.ranks == made.settings.ranks
    assert {n: a.scale for n, a in adapters(other, "default")} == {n: a.scale for n, a in adapters(model, "default")}


def test_the_energies_add_up_to_the_squared_norm_of_the_expected_gradient_and_noise_alone_keeps_little() -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.zeros(30, 20)
    signal[range(3), range(3)] = torch.tensor([3.0, 2.0, 1.0])
    total = noise = of_noise = 0.0
    for _ in range(100):
        one, other = (0.3 * torch.randn(30, 20, generator=generator) for _ in range(2))
        total += float(sum(_crossed(signal + one, signal + other, 20))) / 100
        noise += float(_agreed(one, other, 20)["energies"].sum())
        of_noise += float(one.square().sum())
    assert total == pytest.approx(14, rel=0.05)  # of one half alone it is 14 + 54
    assert noise < 0.04 * of_noise


@pytest.mark.parametrize("odd", [1, None, "x", {"captured_by_uniform": "x"}])
def test_evidence_that_a_file_does_not_tell_in_numbers_is_not_told(odd: Any) -> None:
    good = {"rank": 1, "parameters": 8, "energy": 1.0, "captured": 0.5, "captured_by_uniform": 0.5}
    assert evidence_lines({"a": good})
    assert evidence_lines({"a": good, "b": odd}) == []


def test_the_falling_sequence_is_the_nearest() -> None:
    isotonic = pytest.importorskip("sklearn.isotonic").IsotonicRegression(increasing=False)
    values = torch.randn(40, generator=torch.Generator().manual_seed(3)).tolist()
    expected = isotonic.fit_transform(range(40), values)
    assert _falling(values) == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_energies_are_the_decrease_that_a_step_makes_on_the_other_half() -> None:
    generator = torch.Generator().manual_seed(2)
    G, H = (torch.randn(12, 9, generator=generator) for _ in range(2))
    energies = _crossed(G, H, 4)
    U, S, Vh = linalg.truncated_svd(G, 4)
    for r in range(1, 5):
        torch.testing.assert_close(
            energies[:r].sum(), (U[:, :r] * S[:r] @ Vh[:r] * H).sum().double(), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": None}, "budget: None"),
        ({"budget": "much"}, "budget: 'much'"),
        ({"budget": "x%"}, "budget: 'x%'"),
        ({"budget": 1.5}, "budget: 1.5"),
        ({"budget": True}, "budget: True"),
        ({"budget": 5}, "buy no direction"),
        ({"budget": "10%", "batches": None}, "give at least two"),
        ({"budget": "10%", "method": "lora-fa"}, "methods that do: lora"),
        ({"budget": "10%", "rank": 4}, 'is for rank="auto"'),
        ({"rank": "best"}, "rank: 'best'"),
    ],
)
def test_what_cannot_be_chosen_is_said_before_anything_changes(options: dict[str, Any], message: str) -> None:
    model, batches = families()["llama"]()
    with pytest.raises(ValueError, match=message):
        adapt(model, **{"rank": "auto", "batches": batches} | options)
    assert not dict(adapters(model, "default"))
    assert all(p.requires_grad for p in model.parameters())
