"""Explicit regularisers: a step is the proximal map of its penalty, kept in factors where weights are factors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from eckart.linalg import prox_nuclear
from eckart.nn import FactoredLinear, PivotedLinear, matrices
from eckart.regularizers.attention import attention_products
from eckart.regularizers.explicit import Decay, FrobeniusDecay, NuclearDecay
from eckart.regularizers.proximal import shrink_product
from families import families

FAMILIES = families()


def _pair(m: int, r: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    B = torch.randn(m, r, dtype=torch.float64, generator=generator)
    return B.requires_grad_(), torch.randn(r, n, dtype=torch.float64, generator=generator).requires_grad_()


@settings(max_examples=25)
@given(m=st.integers(1, 8), r=st.integers(1, 6), n=st.integers(1, 8), step=st.floats(0, 4), seed=st.integers(0, 99))
def test_shrunk_factors_multiply_to_the_proximal_map(m: int, r: int, n: int, step: float, seed: int) -> None:
    B, A = (W.detach() for W in _pair(m, r, n, seed))
    left, right = shrink_product(B, A, step)
    torch.testing.assert_close(left @ right, prox_nuclear(B @ A, step), rtol=1e-8, atol=1e-9)
    assert left.norm() <= B.norm() * (1 + 1e-9)
    assert right.norm() <= A.norm() * (1 + 1e-9)


def test_shrinking_keeps_the_inner_coordinates() -> None:
    """A change of the head's basis commutes with it, and a rotation between the factors sees filtered inputs."""
    B, A = (W.detach() for W in _pair(7, 4, 6))
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    left, right = shrink_product(B, A, 1.0)
    turned = shrink_product(B @ turn, turn.T @ A, 1.0)
    torch.testing.assert_close(turned, (left @ turn, turn.T @ right))


def test_every_matrix_of_the_menagerie_shrinks_as_the_dense_one(matrix: Tensor) -> None:
    eye = torch.eye(matrix.shape[1], dtype=torch.float64)
    left, right = shrink_product(matrix, eye, 0.5)
    torch.testing.assert_close(left @ right, prox_nuclear(matrix, 0.5))


def test_a_small_value_of_long_factors_shrinks_to_zero_too() -> None:
    """The usual bound of rounding, σ₁·max(m, n)·ε, is 2·10⁻³ here, and not what an SVD of factors leaves."""
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(20_000, 3, generator=generator)).Q
    B, A = shrink_product(U * torch.tensor([1.0, 0.1, 1e-3]), torch.eye(3), 5e-3)
    torch.testing.assert_close(B @ A, U * torch.tensor([0.995, 0.095, 0.0]), rtol=0, atol=1e-6)


def test_a_product_that_starts_at_zero_is_left_alone() -> None:
    A = torch.randn(2, 5)
    left, right = shrink_product(torch.zeros(4, 2), A, 0.3)
    assert not left.any()
    torch.testing.assert_close(right, A)


@pytest.mark.parametrize("kind", [NuclearDecay, FrobeniusDecay])
@pytest.mark.parametrize("family", ["sequential", "conv2d", "llama", "gpt2", "mixtral", "bert"])
def test_a_small_step_moves_as_the_slope_of_the_loss_and_lowers_it(family: str, kind: type[Decay]) -> None:
    model = FAMILIES[family]()[0].double()
    decay = kind(model, 0.7)
    loss = decay.loss()
    loss.backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    decay.step(1e-6)
    for name, parameter in model.named_parameters():
        moved = (before[name] - parameter.detach()) / 1e-6
        torch.testing.assert_close(moved, torch.zeros_like(moved) if parameter.grad is None else parameter.grad,
                                   rtol=1e-3, atol=1e-6)  # fmt: skip
    assert decay.loss() < loss


@pytest.mark.parametrize("kind", [NuclearDecay, FrobeniusDecay])
def test_dense_and_factored_layers_have_the_same_loss(kind: type[Decay]) -> None:
    B, A = (W.detach() for W in _pair(6, 3, 5))
    factored = FactoredLinear(B, A)
    dense = factored.to_dense()
    losses = [kind(nn.Sequential(layer), 0.3).loss() for layer in (factored, dense)]
    losses.append(kind([(B, A)], 0.3).loss())
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(losses[0], losses[2])


def test_a_nuclear_step_is_the_proximal_map_of_each_member_of_a_stack() -> None:
    model = FAMILIES["mixtral"]()[0]
    decay = NuclearDecay(model, 2.0, targets="experts.down_proj")
    before = {m.name: m.weight().detach().clone() for m in matrices(model)}
    decay.step(0.05)
    for matrix in matrices(model):
        chosen = matrix.name.endswith("experts.down_proj")
        torch.testing.assert_close(
            matrix.weight(), prox_nuclear(before[matrix.name], 0.1) if chosen else before[matrix.name]
        )


def test_factored_layers_and_pairs_step_in_place() -> None:
    B, A = _pair(6, 3, 5)
    wanted = prox_nuclear((B @ A).detach(), 0.2)
    layer = FactoredLinear(B, A)
    NuclearDecay(nn.Sequential(layer), 2.0).step(0.1)
    NuclearDecay([(B, A)], 2.0).step(0.1)
    torch.testing.assert_close(layer.weight.detach(), wanted)
    torch.testing.assert_close((B @ A).detach(), wanted)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "encoder"])
def test_attention_products_shrink_whether_keys_are_shared_or_not(family: str) -> None:
    model = FAMILIES[family]()[0].double()
    products = attention_products(model, grouped=True)
    before = [product.values for product in products]
    NuclearDecay(products, 1.0).step(0.1)
    for product, values in zip(products, before, strict=True):
        torch.testing.assert_close(product.values, (values - 0.1).clamp(min=0))


def test_heads_that_share_keys_have_a_loss_but_no_step_of_their_own() -> None:
    decay = NuclearDecay(attention_products(FAMILIES["llama"]()[0]), 1.0)
    decay.loss().backward()
    with pytest.raises(ValueError, match="grouped=True"):
        decay.step(0.1)


@pytest.mark.parametrize("kind", [NuclearDecay, FrobeniusDecay])
def test_bf16_parameters_stay_bf16_and_shrink(kind: type[Decay]) -> None:
    model = FAMILIES["llama"]()[0].bfloat16()
    for decay in (kind(model, 1.0), kind(attention_products(model, grouped=True), 1.0)):
        loss = decay.loss()
        loss.backward()
        decay.step(0.02)
        assert decay.loss() < loss
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_tied_weight_counts_and_steps_once() -> None:
    model = FAMILIES["llama"]()[0]
    W = model.lm_head.weight
    decay = NuclearDecay(model, 1.0, targets="lm_head")
    torch.testing.assert_close(decay.loss(), torch.linalg.svdvals(W.double()).sum())
    wanted = prox_nuclear(W.detach(), 0.5)
    decay.step(0.5)
    torch.testing.assert_close(model.model.embed_tokens.weight, wanted)


def test_training_with_the_step_finds_the_soft_threshold() -> None:
    target = torch.diag(torch.tensor([3.0, 1.0, 0.2], dtype=torch.float64))
    model = nn.Sequential(nn.Linear(3, 3, bias=False, dtype=torch.float64))
    decay, optimizer = NuclearDecay(model, 0.5), torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        ((model[0].weight - target).square().sum() / 2).backward()
        optimizer.step()
        decay.step(rate=0.3)
    torch.testing.assert_close(model[0].weight, prox_nuclear(target, 0.5))


def test_bad_input_is_named_with_its_remedy() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="strength must be a finite number of at least 0, got -1"):
        NuclearDecay(model, -1)
    with pytest.raises(ValueError, match="no matrices"):
        FrobeniusDecay(nn.Sequential(nn.ReLU()), 1.0)
    with pytest.raises(ValueError, match="nothing to regularise"):
        NuclearDecay([], 1.0)
    with pytest.raises(ValueError, match="matches none"):
        NuclearDecay(model, 1.0, targets="q_proj")
    attention = nn.MultiheadAttention(4, 2, bias=False)
    with pytest.raises(TypeError, match="put it in a list"):
        NuclearDecay(attention_products(attention)[0], 1.0)
    attention.out_proj.requires_grad_(False)
    with pytest.raises(ValueError, match=r"2 matrices are frozen.*such as AttentionProduct.*kind='ov'"):
        NuclearDecay(attention_products(attention), 1.0)
    with pytest.raises(TypeError, match=r"pairs \(B, A\) of tensors, got Parameter"):
        NuclearDecay([nn.Parameter(torch.ones(3, 3))], 1.0)
    with pytest.raises(ValueError, match="targets and exclude choose"):
        NuclearDecay([_pair(3, 2, 3)], 1.0, targets="0")
    with pytest.raises(ValueError, match="rate must be a finite"):
        NuclearDecay(model, 1.0).step(-0.1)
    model[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"are frozen.*such as 1; leave them out .*exclude="):
        NuclearDecay(model, 1.0)
    assert NuclearDecay(model, 1.0, exclude="1").loss() > 0
    pivoted = nn.Sequential(PivotedLinear.from_linear(nn.Linear(4, 4), rank=1))
    with pytest.raises(ValueError, match="compute their weight"):
        NuclearDecay(pivoted, 1.0)
    with pytest.raises(ValueError, match="step must be a finite"):
        shrink_product(torch.ones(2, 1), torch.ones(1, 2), -1.0)
