"""Mask laws as modules for any network: each keeps an entry with probability 1 − rate and divides it by that.

    Dropout            every entry of the features on its own
    AdaptiveDropout    the same, at a rate that grows with the width so that the penalty does not shrink
    DropBlock          the last dimension in blocks of neighbours that live and die together
    DropConnect        every entry of a layer's weight on its own

The masks are exact: the mean is the unmasked value, entry by entry, in any network, up to the rounding of 1/(1 − rate)
in the features' dtype (2⁻⁹ of it in bfloat16). In evaluation they do nothing. `penalties` says what each adds to a
squared loss, `DropBlock2d` in `masks_2d` is for images.

Paper: 1207.0580 (dropout) scales at test time, we scale in training as torch does; DropConnect (Wan et al. 2013) draws
a mask for each sample, ours serves the whole batch (the same expected loss) and the test-time Gaussian is left out;
DropBlock on vectors is the law that arXiv 1910.14186 analyses, disjoint blocks.
"""

import torch
from torch import Tensor, nn

from eckart.regularizers.rates import adaptive_rate, require_block, require_rate


class Dropout(nn.Module):
    """Drop each entry with probability `rate` and scale the others by 1/(1 − rate); bit for bit torch's on the CPU.

    Args:
        rate: share dropped, in [0, 1).
        generator: source of the masks, on the device of the features; None draws from torch's default generator.

    Raises:
        ValueError: rate outside [0, 1).

    Example:
        >>> mask = Dropout(0.5, generator=torch.Generator().manual_seed(0))
        >>> mask(torch.ones(8)).unique().tolist(), mask.eval()(torch.ones(2)).tolist()
        ([0.0, 2.0], [1.0, 1.0])
    """

    def __init__(self, rate: float, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        require_rate(rate)
        self.rate = float(rate)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:  # (..., d) → (..., d)
        """x times a fresh mask in training, x itself in evaluation."""
        return x * self.draw(x) if self.training and self.rate else x

    def draw(self, x: Tensor) -> Tensor:  # (..., d) → (..., d)
        """A mask for x, of mean 1."""
        keep = 1 - self.rate_for(x)
        draws = torch.empty(self.units(x), dtype=x.dtype, device=x.device)
        return self.spread(draws.bernoulli_(keep, generator=self.generator).div_(keep))

    def rate_for(self, x: Tensor) -> float:
        """The share of x that is dropped."""
        return self.rate

    def units(self, x: Tensor) -> torch.Size:
        """The shape of what is drawn independently."""
        return x.shape

    def spread(self, draws: Tensor) -> Tensor:
        """From the independent draws to the shape of x."""
        return draws

    def extra_repr(self) -> str:
        """The rate."""
        return f"rate={self.rate:g}"


class AdaptiveDropout(Dropout):
    """Dropout at a rate that follows the width, d·rate/(1 + (d − 1)·rate), so that wide layers keep their penalty.

    Args:
        rate: share dropped at width 1, in [0, 1); the squared nuclear norm is weighed with rate/(1 − rate).
        generator: as in `Dropout`.

    Example:
        >>> mask = AdaptiveDropout(0.2)
        >>> [round(mask.rate_for(torch.ones(3, width)), 3) for width in (1, 10)]
        [0.2, 0.714]
    """

    def rate_for(self, x: Tensor) -> float:
        """The share of x (..., d) that is dropped."""
        return adaptive_rate(self.rate, x.shape[-1])


class DropBlock(Dropout):
    """Drop the last dimension in blocks of neighbours: entries 0 … block − 1 share one mask, and so on.

    Args:
        rate: share of the blocks that is dropped, in [0, 1).
        block: entries in a block; must divide the width.
        generator: as in `Dropout`.

    Raises:
        ValueError: rate outside [0, 1), block below 1, or (in forward) a width that is no multiple of it.

    Example:
        >>> mask = DropBlock(0.5, 2, generator=torch.Generator().manual_seed(0))
        >>> mask(torch.ones(8)).tolist()
        [0.0, 0.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0]
    """

    def __init__(self, rate: float, block: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__(rate, generator=generator)
        require_block(block, block)
        self.block = block

    def units(self, x: Tensor) -> torch.Size:
        """One draw for each block."""
        require_block(self.block, x.shape[-1])
        return torch.Size((*x.shape[:-1], x.shape[-1] // self.block))

    def spread(self, draws: Tensor) -> Tensor:
        """Each draw `block` times."""
        return draws.repeat_interleave(self.block, dim=-1)

    def extra_repr(self) -> str:
        """The rate and the block."""
        return f"rate={self.rate:g}, block={self.block}"


class DropConnect(nn.Module):
    """Drop entries of a layer's weight instead of its inputs: a wrapper around any module that has one.

    Args:
        layer: the module, kept as `.layer` (so its parameters are called layer.weight, layer.bias, …).
        rate: share of the weight that is dropped, in [0, 1).
        name: which parameter of the layer to mask.
        generator: as in `Dropout`.

    Raises:
        ValueError: rate outside [0, 1), or the layer has no parameter of that name.

    Example:
        >>> layer = nn.Linear(4, 1, bias=False)
        >>> _ = nn.init.ones_(layer.weight)
        >>> masked = DropConnect(layer, 0.5, generator=torch.Generator().manual_seed(0))
        >>> masked(torch.eye(4)).flatten().tolist(), masked.eval()(torch.ones(4)).item()
        ([0.0, 0.0, 2.0, 0.0], 4.0)
    """

    def __init__(
        self, layer: nn.Module, rate: float, *, name: str = "weight", generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if name not in dict(layer.named_parameters()):
            raise ValueError(f"{type(layer).__name__} has no parameter {name!r}; it has {[*layer.state_dict()]}")
        self.layer = layer
        self.name = name
        self.mask = Dropout(rate, generator=generator)

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """The layer with its weight masked in training; the layer itself in evaluation."""
        weight = self.mask(self.layer.get_parameter(self.name))
        return torch.func.functional_call(self.layer, {self.name: weight}, args, kwargs)
