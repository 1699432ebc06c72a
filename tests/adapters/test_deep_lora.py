"""Deep LoRA: how its factors start, that the compressed one follows the network of full width, what rank it learns."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.adapters import adapt
from eckart.adapters.layers.place import adapters
from eckart.adapters.settings import Settings
from eckart.adapters.shapes.deep import CompressedDeep, Deep
from eckart.adapters.starts import deep
from eckart.adapters.starts.start import Look
from eckart.linalg import complete, invariant_subspace, propagate, singular_values
from eckart.nn import Observation, matrices

EPS = 0.1


def shaped(kind: type, m: int, n: int, rank: int) -> Any:
    """An adapter of an (m, n) matrix in float64, and the matrix."""
    (matrix,) = matrices(nn.Linear(n, m, bias=False).double())
    settings = Settings("deep-lora", {matrix.name: rank}, scaling="none")
    return kind(matrix, rank, 1.0, settings, torch.float64, torch.device("cpu")), matrix


def started(m: int, n: int, rank: int, gradient: Tensor, eps: float = EPS) -> CompressedDeep:
    adapter, matrix = shaped(CompressedDeep, m, n, rank)
    seen = Observation(matrix.name, 1, gradient=gradient)
    with torch.no_grad():
        deep.invariant(adapter, Look(matrix, seen, torch.Generator().manual_seed(0), {"eps": eps}))
    return adapter


def low_rank(m: int, n: int, rank: int, generator: torch.Generator) -> Tensor:
    left, right = (torch.randn(d, rank, dtype=torch.float64, generator=generator) for d in (m, n))
    return left @ right.mT


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12), (16, 16)])
def test_plain_factors_start_at_eps_times_orthogonal_and_the_product_at_eps_cubed(m: int, n: int) -> None:
    adapter, matrix = shaped(Deep, m, n, 6)
    with torch.no_grad():
        deep.orthogonal(adapter, Look(matrix, None, torch.Generator().manual_seed(0), {"eps": 1e-3}))
    for W in (adapter.W3, adapter.W2, adapter.W1):
        assert torch.allclose(singular_values(W), torch.full((6,), 1e-3, dtype=torch.float64), atol=1e-9)
    B, A = adapter.pair()
    torch.testing.assert_close(B @ A, adapter.W3 @ adapter.W2 @ adapter.W1, atol=1e-15, rtol=1e-9)
    assert torch.allclose(singular_values(B @ A)[:6], torch.full((6,), 1e-9, dtype=torch.float64), atol=1e-15)
    assert adapter.frozen_B is None


@pytest.mark.parametrize(("m", "n"), [(12, 20), (20, 12)])
def test_the_middle_joins_the_shorter_side(m: int, n: int) -> None:
    adapter, _ = shaped(Deep, m, n, 4)
    B, A = adapter.pair()
    assert (A is adapter.W1) == (m < n)
    assert (B is adapter.W3) == (m > n)


@pytest.mark.parametrize("method", ["deep-lora", "deep-lora-compressed"])
def test_a_start_that_would_be_seen_is_taken_out(method: str) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    x = torch.randn(5, 8)
    expected = model(x)
    adapt(model, method, rank=4, eps=0.2, batches=[x], loss=lambda y, batch: y.square().sum())
    torch.testing.assert_close(model(x), expected, atol=1e-6, rtol=1e-6)
    for _, adapter in adapters(model, "default"):
        assert adapter.frozen_B is not None
        assert adapter.delta().abs().max() < 1e-7


@pytest.mark.parametrize(("m", "n"), [(14, 22), (22, 14), (18, 18)])
def test_the_compressed_start_holds_the_gradients_directions_on_both_sides(
    m: int, n: int, generator: torch.Generator
) -> None:
    G = low_rank(m, n, 3, generator)
    adapter = started(m, n, 6, G)
    L, R = adapter.left.detach(), adapter.right.detach()
    eye = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close(L.mT @ L, eye)
    torch.testing.assert_close(R.mT @ R, eye)
    torch.testing.assert_close(L @ (L.mT @ G), G)
    torch.testing.assert_close((G @ R) @ R.mT, G)


def test_the_compressed_start_is_the_invariant_subspace_of_a_network_of_full_width(generator: torch.Generator) -> None:
    G = low_rank(18, 18, 3, generator)
    adapter = started(18, 18, 6, G)
    L, R = adapter.left.detach(), adapter.right.detach()
    full = _full_width(L, R)
    V = invariant_subspace(full[2].mT @ full[1].mT @ G, full[0], rank=3)
    torch.testing.assert_close(V @ V.mT, R @ R.mT)
    U, _ = propagate(full, R, EPS)[-1]
    torch.testing.assert_close(U, L)


def test_the_compressed_adapter_follows_the_network_of_full_width_under_gradient_descent(
    generator: torch.Generator,
) -> None:
    target = low_rank(18, 18, 3, generator)
    target /= torch.linalg.matrix_norm(target, 2)
    adapter = started(18, 18, 6, -target)
    large = [W.clone().requires_grad_() for W in _full_width(adapter.left.detach(), adapter.right.detach())]
    inner = [adapter.W1, adapter.W2, adapter.W3]
    bound = (18 - 6) ** 0.5 * EPS**3
    for _ in range(400):
        B, A = adapter.pair()
        products = (large[2] @ large[1] @ large[0], B @ A)
        assert torch.linalg.matrix_norm(products[0] - products[1]) < bound * (1 + 1e-6)
        for product, weights in zip(products, (large, inner), strict=True):
            slopes = torch.autograd.grad(0.5 * (product - target).square().sum(), weights)
            with torch.no_grad():
                for W, slope in zip(weights, slopes, strict=True):
                    W -= 0.1 * slope
    assert torch.linalg.matrix_norm(products[1] - target) < 0.01


def test_a_rank_that_is_far_too_high_learns_what_is_there_and_lora_learns_noise_too(
    generator: torch.Generator,
) -> None:
    W, noise = low_rank(24, 16, 2, generator), torch.randn(24, 16, dtype=torch.float64, generator=generator)
    target = W / torch.linalg.matrix_norm(W, 2) + 0.02 * noise
    spectra = {}
    for method, alpha in (("lora", 12), ("deep-lora", None)):
        model = nn.Linear(16, 24, bias=False).double()
        target_weight = model.weight.detach() + target
        holder = nn.Sequential(model)
        adapt(holder, method, rank=12, alpha=alpha, targets="0", generator=generator)
        ((_, adapter),) = adapters(holder, "default")
        optimizer = torch.optim.SGD([p for p in holder.parameters() if p.requires_grad], lr=0.2)
        for _ in range(20000):
            error = holder[0].weight_matrix() + adapter.delta() - target_weight
            if error.square().sum() < (0.02 * noise).square().sum():
                break
            optimizer.zero_grad()
            (0.5 * error.square().sum()).backward()
            optimizer.step()
        spectra[method] = singular_values(adapter.delta().detach())
    assert spectra["deep-lora"][2] < 1e-3 * spectra["deep-lora"][0]
    assert spectra["lora"][2] > 10 * spectra["deep-lora"][2]


def test_an_odd_rank_a_matrix_without_gradient_and_an_eps_of_zero_are_named_and_change_nothing() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    batches = [torch.randn(3, 6)]
    loss = lambda y, batch: y.square().sum()  # noqa: E731
    model = Unused()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=r"rank: 3 for used is odd.*give 4"):
        adapt(model, "deep-lora-compressed", rank=3, targets="used", batches=batches, loss=loss)
    with pytest.raises(ValueError, match="leave it out with exclude='0'"):
        adapt(nn.Sequential(nn.Linear(6, 1)), "deep-lora-compressed", rank=1, targets="0", batches=batches, loss=loss)
    with pytest.warns(UserWarning, match="idle"), pytest.raises(ValueError, match="exclude='idle'"):
        adapt(model, "deep-lora-compressed", rank=2, batches=batches, loss=loss)
    with pytest.raises(ValueError, match="eps"):
        adapt(model, "deep-lora", rank=2, eps=0.0)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert isinstance(model.used, nn.Linear)


def _full_width(L: Tensor, R: Tensor) -> list[Tensor]:
    """W_1, W_2, W_3 of full width whose product ε³ Q maps R to L."""
    Q, eye = complete(L) @ complete(R).mT, torch.eye(len(L), dtype=L.dtype)
    return [EPS * Q, EPS * eye, EPS * eye]
