"""A small attention that learns from another one, with weight decay, and with or without a rotary embedding."""

import torch
from torch import Tensor, nn

from eckart.regularizers import AttentionProduct, attention_products

WIDTH, HEADS, LENGTH, SEQUENCES = 8, 2, 5, 16


class SmallAttention(nn.Module):
    """Softmax attention without biases; a rotary embedding turns dimensions i and i + d_h/2 of q and k together."""

    def __init__(self, scale: float, rotary: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.angles = _angles() if rotary else None
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear = nn.utils.skip_init(nn.Linear, WIDTH, WIDTH, bias=False, dtype=torch.float64)
            start = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator)
            linear.weight.data.copy_(scale * start)
            self.add_module(name, linear)

    def forward(self, x: Tensor) -> Tensor:  # (N, T, n) -> (N, T, n)
        """Attention of all tokens to all tokens."""
        q, k, v = (
            self.get_submodule(name)(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if self.angles is not None:
            q, k = _turn(q, self.angles), _turn(k, self.angles)
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.get_submodule("o_proj")((weights @ v).transpose(1, 2).flatten(-2))


def train(
    seed: int,
    *,
    decay: float,
    rate: float,
    steps: int,
    rotary: bool = False,
) -> list[AttentionProduct]:
    """Let an attention that starts far out of balance learn from a random one, by descent with weight decay."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = (SmallAttention(scale, rotary, generator) for scale in (0.35, 0.3))
    with torch.no_grad():
        for name, factor in (("q_proj", 2.0), ("k_proj", 0.5), ("o_proj", 2.0), ("v_proj", 0.5)):
            student.get_submodule(name).weight.mul_(factor)  # type: ignore[operator]
        x = torch.randn(SEQUENCES, LENGTH, WIDTH, dtype=torch.float64, generator=generator)
        y = teacher(x)
    optimizer = torch.optim.SGD(student.parameters(), lr=rate, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        ((student(x) - y).square().sum(-1).mean() / 2).backward()
        optimizer.step()
    return attention_products(student)


def _angles() -> Tensor:  # (T, d_h/2)
    pairs = WIDTH // HEADS // 2
    speeds = 10.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    return torch.arange(LENGTH, dtype=torch.float64).unsqueeze(-1) * speeds


def _turn(x: Tensor, angles: Tensor) -> Tensor:  # (N, heads, T, d_h)
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
