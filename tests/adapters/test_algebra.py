"""Sums, truncations, distances and overlaps of factored adapters are those of the dense matrices, and peft's."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import METHODS, activate, adapt
from eckart.adapters.factored.algebra import combine, delta_spectra, truncate, used_ranks
from eckart.adapters.factored.comparing import compare
from eckart.adapters.factored.pairing import attach, pairs, write_pairs
from eckart.adapters.layers.place import places
from eckart.nn.batches import run_model
from eckart.nn.files import LoraPair, lora_pairs, read_adapter
from families import families

SHAPES = {"tall": (9, 4), "wide": (3, 8), "square": (6, 6)}


def drawn(seed: int, rank: int, names: tuple[str, ...] = tuple(SHAPES), scale: float = 1.5) -> dict[str, LoraPair]:
    """A random adapter in float64."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    return {name: LoraPair(normal(SHAPES[name][0], rank), normal(rank, SHAPES[name][1]), scale) for name in names}


def dense(change: Mapping[str, LoraPair], name: str) -> Tensor:
    """Δ, zero where the adapter does not have the matrix."""
    if name not in change:
        return torch.zeros(SHAPES[name], dtype=torch.float64)
    B, A, scale = change[name]
    return scale * B @ A


def test_a_weighted_sum_is_exact_and_a_missing_matrix_is_zero() -> None:
    changes = [drawn(1, 2), drawn(2, 3, ("tall",)), drawn(3, 1, ("tall", "wide"), scale=0.5)]
    total = combine(changes, [1.0, -0.5, 2.0])
    assert list(total) == ["tall", "wide", "square"]
    assert {name: pair.A.shape[0] for name, pair in total.items()} == {"tall": 6, "wide": 3, "square": 2}
    for name in SHAPES:
        expected = dense(changes[0], name) - 0.5 * dense(changes[1], name) + 2 * dense(changes[2], name)
        torch.testing.assert_close(dense(total, name), expected, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_sum_cut_to_a_rank_is_the_truncated_svd_of_the_dense_sum(rank: int) -> None:
    changes = [drawn(1, 2), drawn(2, 2)]
    total = combine(changes, rank=rank)
    for name in SHAPES:
        U, S, Vh = torch.linalg.svd(dense(changes[0], name) + dense(changes[1], name), full_matrices=False)
        k = min(rank, 4, len(S))
        torch.testing.assert_close(dense(total, name), U[:, :k] * S[:k] @ Vh[:k], atol=1e-12, rtol=1e-12)
        assert total[name].A.shape[0] == k


def test_energy_keeps_the_least_rank_that_holds_it_and_a_dict_names_ranks() -> None:
    change = drawn(4, 3)
    cut = truncate(change, energy=0.9)
    for name, pair in cut.items():
        S = torch.linalg.svdvals(dense(change, name))
        shares = S.square().cumsum(0) / S.square().sum()
        assert pair.A.shape[0] == int((shares < 0.9).sum()) + 1
    cut = truncate(change, rank={"tall": 1, "wide": 0})
    assert {name: pair.A.shape[0] for name, pair in cut.items()} == {"tall": 1, "square": 3}
    torch.testing.assert_close(dense(cut, "square"), dense(change, "square"))


def test_spectra_are_the_dense_ones_and_say_which_ranks_are_used() -> None:
    change = drawn(5, 3)
    for name, S in delta_spectra(change).items():
        torch.testing.assert_close(S, torch.linalg.svdvals(dense(change, name))[: len(S)], atol=1e-12, rtol=1e-12)
    B, A, scale = change["tall"]
    padded = {"tall": LoraPair(torch.cat((B[:, :2], 1e-3 * B[:, 2:]), 1), A, scale)}
    assert used_ranks(padded) == {"tall": 2}
    assert used_ranks({"tall": LoraPair(torch.zeros_like(B), A, scale)}) == {"tall": 0}


def test_comparisons_are_those_of_the_dense_matrices() -> None:
    first, second = drawn(6, 2), drawn(7, 2, ("tall", "wide"))
    found = compare(first, second)
    for name, row in found.matrices.items():
        one, other = dense(first, name), dense(second, name)
        assert row.distance == pytest.approx(float((one - other).norm()))
        assert row.inner == pytest.approx(float((one * other).sum()), abs=1e-12)
        assert (row.first, row.second) == pytest.approx((float(one.norm()), float(other.norm())))
    one, other = (torch.cat([dense(each, name).flatten() for name in SHAPES]) for each in (first, second))
    assert found.total.distance == pytest.approx(float((one - other).norm()))
    assert found.total.cosine == pytest.approx(float(torch.cosine_similarity(one, other, 0)))


def test_overlap_is_one_within_a_subspace_and_zero_across() -> None:
    E = torch.eye(6, dtype=torch.float64)
    one = {"square": LoraPair(E[:, :2], E[:2], 1.0)}
    other = {"square": LoraPair(E[:, :1] * 3, E[3:4], 2.0)}
    row = compare(one, other).matrices["square"]
    assert (row.left, row.right) == pytest.approx((1.0, 0.0), abs=1e-12)
    zero = {"square": LoraPair(0 * E[:, :1], E[:1], 1.0)}
    row = compare(one, zero).matrices["square"]
    assert (row.left, row.cosine) == (0.0, 0.0)
    leading = {"square": LoraPair(E[:, :2] * torch.tensor([5.0, 1.0]), E[:2], 1.0)}
    assert compare(leading, {"square": LoraPair(E[:, 1:2], E[1:2], 1.0)}, rank=1).total.left == pytest.approx(0.0)


def test_shapes_that_do_not_agree_and_empty_requests_are_named() -> None:
    change = drawn(8, 2)
    other = {"tall": LoraPair(torch.zeros(5, 1), torch.zeros(1, 4), 1.0)}
    for call in (lambda: combine([change, other]), lambda: compare(change, other)):
        with pytest.raises(ValueError, match="changes: tall: the products must have one shape"):
            call()
    with pytest.raises(ValueError, match="weights: 1 of them for 2"):
        combine([change, change], [1.0])
    with pytest.raises(ValueError, match="the adapter has no 'tal'; closest: tall"):
        truncate(change, rank={"tal": 1})
    with pytest.raises(ValueError, match="give rank= or energy="):
        truncate(change)


def lora_model(seed: int, family: str = "llama", **options: object) -> nn.Module:
    """A family's model with a LoRA that changes something."""
    model, _ = families()[family]()
    adapt(model, rank=2, **options)
    generator = torch.Generator().manual_seed(seed)
    for place in places(model).values():
        nn.init.normal_(place.held["default"].B, std=0.1, generator=generator)
    return model


@pytest.mark.parametrize("family", ["conv1d", "gpt2", "llama", "vit"])
def test_pairs_of_a_model_through_files_and_back_on_a_model_change_it_the_same(family: str, tmp_path: Path) -> None:
    targets = ["0"] if family == "conv1d" else ["*wte", "c_attn"] if family == "gpt2" else None
    model = lora_model(1, family, targets=targets)
    plain, batches = families()[family]()
    write_pairs(tmp_path / "adapter", truncate(pairs(model), energy=1.0), plain)
    attach(plain, lora_pairs(tmp_path / "adapter"), "again")
    outputs = [getattr(run_model(each, batches[0]), "logits", None) for each in (model, plain)]
    if outputs[0] is None:
        outputs = [run_model(each, batches[0]) for each in (model, plain)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [name for name, row in METHODS.items() if row.shape.thin and not row.magnitude])
def test_pairs_are_the_change_with_its_frozen_part(method: str) -> None:
    model, batches = families()["sequential"]()
    options: dict[str, object] = {"exclude": "4"}  # LoHa is no thin product of so small a matrix
    if METHODS[method].wanted:
        options |= {"batches": batches, "loss": lambda y, batch: y.square().mean()}
    if "original" in METHODS[method].options:
        options["original"] = {name: p * 1.1 for name, p in model.named_parameters()}
    adapt(model, method, rank=2, **options)
    for name, (B, A, scale) in pairs(model).items():
        torch.testing.assert_close(scale * B @ A, places(model)[name].held["default"].delta(), atol=1e-6, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*shares its weight")
def test_a_tied_weight_is_written_as_the_kind_of_the_place_that_is_named(tmp_path: Path) -> None:
    model, _ = families()["llama"]()
    pair = LoraPair(torch.ones(64, 1), torch.ones(1, 24), 1.0)
    write_pairs(tmp_path / "a", {"lm_head": pair}, model)
    write_pairs(tmp_path / "b", {"model.embed_tokens": pair}, model)
    assert lora_pairs(tmp_path / "a")["lm_head"].B.shape == (64, 1)
    keys = [{key.split(".")[-2] for key in read_adapter(tmp_path / folder).tensors} for folder in "ab"]
    assert keys == [{"lora_A", "lora_B"}, {"embed_tokens"}]
    attach(model, {"lm_head": pair})
    assert list(places(model)) == ["lm_head"]


def test_what_is_no_pair_is_refused_by_name_or_left_out_with_a_warning() -> None:
    model, _ = families()["sequential"]()
    adapt(model, "dora", rank=2, name="dora", exclude="4")
    with pytest.raises(ValueError, match="dora trained a magnitude of 0"):
        pairs(model, "dora")
    adapt(model, rank=2, name="more", bias=True, modules_to_save="4")
    with pytest.warns(UserWarning, match="left out: the bias of 0, the bias of 2, 4"):
        assert list(pairs(model, "more")) == ["0", "2"]
    net, _ = families()["conv1d"]()
    adapt(net, rank=2)
    with pytest.raises(ValueError, match="default changes a stack of 2 matrices at 2"):
        pairs(net)


def test_pairs_that_do_not_fit_are_refused_before_anything_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    pair = LoraPair(torch.ones(2, 1), torch.ones(1, 4), 1.0)
    with pytest.raises(ValueError, match=r"the pair of 0 is for a matrix \(2, 4\)"):
        attach(model, {"0": pair})
    with pytest.raises(ValueError, match="no matrix '00'; closest: 0"):
        attach(model, {"00": pair})
    assert type(model[0]) is nn.Linear


def test_a_sum_of_more_ranks_than_the_matrix_has_is_attached_at_its_own() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False))
    generator = torch.Generator().manual_seed(0)
    change = {"0": LoraPair(torch.randn(3, 7, generator=generator), torch.randn(7, 4, generator=generator), 1.0)}
    attach(model, change)
    assert pairs(model)["0"].A.shape == (3, 4)
    torch.testing.assert_close(model(torch.eye(4)) - model[0].base(torch.eye(4)), (change["0"].B @ change["0"].A).T)


def two_peft_adapters(tmp_path: Path) -> list[Path]:
    """Folders of two LoRAs of the llama family, of ranks and scales that differ."""
    folders = []
    for seed in (1, 2):
        change = pairs(lora_model(seed, alpha=float(seed)))
        folders.append(tmp_path / str(seed))
        write_pairs(folders[-1], truncate(change, rank=seed))
    return folders


@pytest.mark.parametrize(("combination", "rank"), [("cat", None), ("svd", 2)])
def test_weighted_sums_are_those_of_peft(combination: str, rank: int | None, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    folders = two_peft_adapters(tmp_path)
    base, _ = families()["llama"]()
    model = peft.PeftModel.from_pretrained(base, folders[0], "one")
    model.load_adapter(folders[1], "two")
    options = {"svd_rank": rank} if rank else {}
    model.add_weighted_adapter(["one", "two"], [0.7, 0.4], "sum", combination_type=combination, **options)
    total = combine([lora_pairs(folder) for folder in folders], [0.7, 0.4], rank=rank)
    for name, (B, A, scale) in total.items():
        layer = model.base_model.model.get_submodule(name)
        torch.testing.assert_close(scale * B @ A, layer.get_delta_weight("sum"), atol=1e-5, rtol=1e-4)


def test_peft_loads_pairs_of_several_ranks_and_gives_the_same_logits(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = lora_model(3)
    change = pairs(model)
    cut = truncate(change, rank={name: 1 + i % 2 for i, name in enumerate(change)})
    plain, batches = families()["llama"]()
    write_pairs(tmp_path / "adapter", cut, plain)
    theirs = peft.PeftModel.from_pretrained(families()["llama"]()[0], tmp_path / "adapter")
    attach(plain, cut)
    activate(plain, "default")
    ids = batches[0]["input_ids"]
    torch.testing.assert_close(theirs(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (nn.MultiheadAttention(8, 2), "in_proj_weight is a parameter that no layer of its own applies"),
        (nn.Sequential(nn.Conv1d(3, 4, 3, dilation=2)), "0 is a convolution with dilation"),
    ],
)
def test_pairs_on_which_peft_would_not_act_the_same_are_not_written(
    model: nn.Module, told: str, tmp_path: Path
) -> None:
    adapt(model, rank=2)
    with pytest.raises(ValueError, match=f"not for PEFT: {told}"):
        write_pairs(tmp_path / "a", pairs(model), model)
    assert not (tmp_path / "a").exists()
