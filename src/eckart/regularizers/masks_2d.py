"""DropBlock on images: square holes of block × block in every channel's feature map.

Seeds fall at rate γ where a whole block fits, and each kills the block that it opens:

    γ = rate / b² · H W / ((H − b + 1)(W − b + 1))

A pixel that n blocks can cover survives with probability (1 − γ)^n. Pixels at the border have a smaller n. We divide
every pixel by its own survival probability, so the mean is exact at each of them and samples stay independent.
Holes overlap, so that somewhat less than `rate` is dropped, the less the larger rate is.

Cost: one max-pooling of the mask.
Paper: DropBlock (arXiv 1810.12890) divides by the share of ones in the batch's mask, which ties the samples together
and leaves the border too bright; γ and a mask for each channel are the paper's.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from eckart.regularizers.masks import Dropout
from eckart.regularizers.rates import require_block


class DropBlock2d(Dropout):
    """Drop square holes out of images (N, C, H, W), or (C, H, W), a mask of its own for every channel.

    Args:
        rate: share of the pixels to drop, in [0, 1); overlap makes it a little less.
        block: side b of the holes in pixels, from 1 (dropout) to min(H, W) (whole channels).
        generator: source of the masks, on the device of the features; None draws from torch's default generator.

    Raises:
        ValueError: rate outside [0, 1), block below 1, or (in forward) an image smaller than the block.

    Example:
        >>> mask = DropBlock2d(0.5, 3, generator=torch.Generator().manual_seed(0))
        >>> holes = mask(torch.ones(2000, 1, 8, 8))
        >>> bool((holes == 0).any()), abs(holes.mean().item() - 1) < 0.02
        (True, True)
    """

    def __init__(self, rate: float, block: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(rate, generator=generator)
        require_block(block, block)
        self.block = block

    def draw(self, x: Tensor) -> Tensor:  # (..., C, H, W) → (..., C, H, W)
        """A mask for x, of mean 1 at every pixel."""
        b, (H, W) = self.block, x.shape[-2:]
        if x.ndim < 3 or b > min(H, W):
            raise ValueError(f"x must be (..., C, H, W) with H, W ≥ block = {b}, got {tuple(x.shape)}")
        gamma = self.seed_rate(H, W)
        seeds = torch.empty(*x.shape[:-2], H - b + 1, W - b + 1, dtype=x.dtype, device=x.device)
        seeds.bernoulli_(gamma, generator=self.generator)
        holes = F.max_pool2d(F.pad(seeds, (b - 1,) * 4), b, stride=1)
        cover = _blocks_over(H, b, x)[:, None] * _blocks_over(W, b, x)
        return (1 - holes) / (1 - gamma) ** cover

    def seed_rate(self, H: int, W: int) -> float:
        """γ, the probability that a block opens at a place where it fits."""
        b = self.block
        return self.rate / b**2 * H * W / ((H - b + 1) * (W - b + 1))

    def extra_repr(self) -> str:
        """The rate and the block."""
        return f"rate={self.rate:g}, block={self.block}"


def _blocks_over(size: int, block: int, like: Tensor) -> Tensor:  # (size,)
    """How many of the blocks that fit in a line of this size cover each of its pixels."""
    place = torch.arange(size, device=like.device)
    return (place.clamp(max=size - block) - (place - block + 1).clamp(min=0) + 1).to(like.dtype)
