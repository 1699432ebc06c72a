"""What tests of the optimizer's contract share: a small model with a parameter of each kind, and training it."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.optim import METHODS, LowRankOptimizer

RANK, GAP = 3, 3


class Experts(nn.Module):
    """A stack of matrices (E, out, in)."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(4, 10, 8) / 8**0.5)

    def forward(self, x: Tensor) -> Tensor:  # (B, 8) -> (B, 10)
        return torch.einsum("eoi,bi->bo", self.up_proj, x).tanh()


class Zoo(nn.Module):
    """A convolution in channels_last, a stack of experts, a wide and a tall matrix, vectors, and a tied table."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Embedding(12, 8)
        self.conv = nn.Conv2d(3, 8, 3)
        self.experts = Experts()
        self.norm = nn.LayerNorm(10)
        self.wide = nn.Linear(10, 24)
        self.tall = nn.Linear(24, 8, bias=False)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.table.weight
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
        self.to(dtype)
        self.conv.to(memory_format=torch.channels_last)

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:  # (B, 3, 6, 6), (B,) -> ()
        images, words = batch
        x = self.conv(images.to(self.conv.weight)).mean((-2, -1)) + self.table(words)
        logits = self.head(self.tall(self.wide(self.norm(self.experts(x))).relu()))
        return F.cross_entropy(logits.float(), words)


def batches(number: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Batches of images and words, the same each time."""
    generator = torch.Generator().manual_seed(4)
    return [
        (torch.randn(6, 3, 6, 6, generator=generator), torch.randint(12, (6,), generator=generator))
        for _ in range(number)
    ]


def choices(method: str, rank: int = RANK, gap: int = GAP) -> dict[str, Any]:
    """A method with a rank and a gap for few steps, where it is not of rank 1 and not renewed at every step anyway."""
    row = METHODS[method]
    return {
        "method": method,
        "rank": 1 if row.rank == 1 else rank,
        "gap": 1 if row.options()["gap"] == 1 else gap,
    }


def optimizer_for(model: nn.Module, method: str, **options: Any) -> LowRankOptimizer:
    """A method at rank 3, with refreshes each third step."""
    return LowRankOptimizer(model, **{"lr": 2e-3, **choices(method), **options})


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[Any],
    loss_of: Callable[[nn.Module, Any], Tensor] = lambda model, batch: model(batch),
) -> list[float]:
    """A step for each batch; the losses."""
    losses = []
    for batch in data:
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    """A loss of any family's model, in the model's type."""
    dtype = next(p.dtype for p in model.parameters())
    if isinstance(batch, dict):
        out = model(**{key: t.to(dtype) if t.is_floating_point() else t for key, t in batch.items()})
        return out.loss.float()
    out = model(batch.to(dtype))
    return out.float().square().mean()


def differences(one: nn.Module, other: nn.Module) -> list[str]:
    """The names of the parameters that are not the same bit for bit."""
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    return [name for (name, p), q in pairs if not torch.equal(p, q)]


def state_of(optimizer: torch.optim.Optimizer) -> dict[tuple[int, str], Tensor]:
    """All tensors of a state, by position and name."""
    return {(i, key): t for i, state in optimizer.state_dict()["state"].items() for key, t in state.items()}


def through_a_file(*parts: Any) -> list[Any]:
    """What `torch.load` reads of it with its safe defaults."""
    file = io.BytesIO()
    torch.save(parts, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
