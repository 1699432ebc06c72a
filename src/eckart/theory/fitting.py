"""One fit of a deep factorisation to a matrix seen in part, on the matrix's own scale.

`matrix_completion` says what is minimised, and why.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from eckart.linalg import spectral_start, top_singular_values
from eckart.theory.descent import Slope, descend, product
from eckart.theory.losses import completion
from eckart.theory.observed import Scale, standardise
from eckart.theory.surrogates import completion_surrogate, spectral_rates

EVERY = 10  # steps between looks, each of which waits for the device
HALVINGS = 8  # of the learning rate, before giving up
DIVERGED = 4.0  # times the first loss


class Fit(NamedTuple):
    """A deep factorisation of a standardised matrix: X = mean + scale · unit · W_L … W_1."""

    weights: list[Tensor]
    slope: Slope
    rates: list[float]
    scale: Scale
    unit: float  # 0 for a matrix that is nothing but its means
    share: float  # p, of the entries seen

    @classmethod
    def start(cls, matrix: Tensor, mask: Tensor, width: int, depth: int, eps: float, discrepant: float) -> "Fit":
        """Outer factors at the surrogate's singular vectors, inner ones at εI."""
        X, scale = standardise(matrix, mask)
        surrogate = completion_surrogate(X, mask)
        unit = float(top_singular_values(surrogate, 1)[0])
        first, *inner, last = spectral_start(surrogate, width, depth, eps)
        share = float(mask.sum()) / mask.numel()
        rates = spectral_rates(depth, 1.2 / depth, discrepant)
        last = last / eps if inner else last  # at depth 2 too the product starts small
        return cls([first / eps, *inner, last], completion(X / (unit or 1.0), mask), rates, scale, unit, share)

    def clone(self) -> "Fit":
        """With weights of its own, which further training leaves as they are."""
        return self._replace(weights=[W.clone() for W in self.weights])

    def factors(self) -> tuple[Tensor, Tensor]:  # (m, w), (w, n)
        """left, right: their product is the standardised matrix."""
        return self.unit * product(self.weights[1:]), self.weights[0]

    def completed(self) -> Tensor:  # (m, n)
        """The matrix in its own units."""
        left, right = self.factors()
        return self.scale.mean + self.scale.scale * (left @ right)


def looks(
    fit: Fit,
    decay: float,
    steps: int,
) -> Iterator[tuple[int, Fit, float]]:
    """Train, and stop at every tenth step for a look; a diverging training starts again with half the rate.

    Args:
        fit: where to start; left as it is.
        decay: λ.
        steps: how many, a multiple of ten.

    Yields:
        The step (which goes back to 0 where the training starts again), the fit there, and its loss.

    Raises:
        ValueError: it diverges at every rate.

    Example:
        >>> mask = torch.tensor([[True, True], [True, False]])
        >>> start = Fit.start(torch.tensor([[1.0, 2.0], [2.0, 0.0]]), mask, 1, 2, 0.1, 1.0)
        >>> [(step, loss > 1e-3) for step, _, loss in looks(start, 0.0, 40)]
        [(0, True), (10, False), (20, False), (30, False), (40, False)]
    """
    for halving in range(HALVINGS):
        # The weighted loss p⁻¹‖mask∘(…)‖² is the plain one with its rate divided by p, and its decay multiplied.
        rates = [rate / fit.share / 2**halving for rate in fit.rates]
        first = torch.inf
        for step, (weights, loss) in enumerate(
            islice(descend(fit.weights, fit.slope, rate=rates, decay=decay * fit.share), steps + 1)
        ):
            if step % EVERY:
                continue
            value = float(loss)
            first = value if step == 0 else first
            if not value <= DIVERGED * first:
                break
            yield step, fit._replace(weights=weights), value
        else:
            return
    raise ValueError(f"training diverged at every learning rate down to {rates[0]:.1e}; is the mask extremely uneven?")
