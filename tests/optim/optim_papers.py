"""What the tests of papers share: gradients that drift, Adam as its paper writes it, and an optimizer that is fed."""

import torch
from torch import Tensor, nn

from eckart.optim import LowRankOptimizer

SHAPES = {"tall": (24, 10), "wide": (10, 24), "square": (12, 12)}


def drifting(shape: tuple[int, int], steps: int, seed: int = 0, drift: float = 0.2, noise: float = 0.1) -> list[Tensor]:
    """Gradients in float64: rank 3 that turns a little at each step, and noise of full rank."""
    generator = torch.Generator().manual_seed(seed)

    def normal(m: int, n: int) -> Tensor:
        return torch.randn(m, n, generator=generator, dtype=torch.float64)

    U, V, found = normal(shape[0], 3), normal(shape[1], 3), []
    sizes = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    for _ in range(steps):
        U, V = U + drift * normal(*U.shape), V + drift * normal(*V.shape)
        found.append((U * sizes) @ V.mT / shape[0] ** 0.5 + noise * normal(*shape))
    return found


class Adam:
    """M ← β₁M + (1−β₁)R, V ← β₂V + (1−β₂)R², N = M/(1−β₁ᵗ) / (√(V/(1−β₂ᵗ)) + ε)."""

    def __init__(self, betas: tuple[float, float], eps: float = 1e-8) -> None:
        self.betas, self.eps, self.t = betas, eps, 0
        self.M: Tensor | float = 0.0
        self.V: Tensor | float = 0.0

    def __call__(self, R: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        self.t += 1
        self.M = beta1 * self.M + (1 - beta1) * R
        self.V = beta2 * self.V + (1 - beta2) * R * R
        return self.M / (1 - beta1**self.t) / ((self.V / (1 - beta2**self.t)).sqrt() + self.eps)


class Fed:
    """A weight and its optimizer, which is given one gradient after another."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float64, **options: object) -> None:
        generator = torch.Generator().manual_seed(99)
        self.W = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        self.optimizer = LowRankOptimizer([self.W], **options)  # type: ignore[arg-type]

    def step(self, G: Tensor) -> Tensor:
        """The weight after a step; a copy."""
        self.W.grad = G.to(self.W.dtype)
        self.optimizer.step()
        return self.W.detach().clone()

    @property
    def group(self) -> dict[str, object]:
        return self.optimizer.param_groups[0]

    @property
    def state(self) -> dict[str, Tensor]:
        return self.optimizer.state[self.W]


def gram_schmidt(Y: Tensor) -> Tensor:
    """QR with a positive diagonal, which is unique."""
    Q, R = torch.linalg.qr(Y)
    return Q * R.diagonal().sign()


def same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
