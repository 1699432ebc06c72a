"""What the masks of any network add to any loss, to second order, and by Monte Carlo beside it.

Perturb every entry (or block) that a mask draws by a factor 1 + ε. A mask is ε of mean 0, variance c = rate/(1 − rate),
independent from entry to entry, so

    E loss(mask) − loss(no mask) = ½ Σ c ∂²loss/∂ε² + O(third moments)  =  ½ c Σ_i h_i² ∂²loss/∂h_i² + …

with h the features that are dropped, summed over all masks of the network. The second derivative is the diagonal of the
exact Hessian, not of Gauss-Newton: one Hessian-vector product for each entry of a sample, or `probes` of them with
random signs s (E sᵀHs = tr H). It can be differentiated, as a penalty in a loss.

It is exact where the loss is quadratic in ε (one mask in a linear network, squared loss), and an approximation
elsewhere, whose neglected terms grow with the rate; `compare_penalties` shows the error.

Cost: exact, one backward pass of the gradient for each entry of a sample (each weight, for DropConnect).
Paper: arXiv 2002.12915 drops the network's own second derivative (the Gauss-Newton part is left); we keep it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eckart.nn.modes import evaluating
from eckart.regularizers.perturbation import Perturbation, drawing_by_default, masks, perturbed

Loss = Callable[[nn.Module, Any], Tensor]  # (model, batch) → scalar


class Comparison(NamedTuple):
    """The second-order penalty beside Monte Carlo's, which is the truth within its standard error.

    Args:
        second_order: of `second_order_penalty`.
        monte_carlo: mean of loss(mask) − loss(no mask).
        standard_error: of that mean.
    """

    second_order: float
    monte_carlo: float
    standard_error: float

    def __str__(self) -> str:
        error = self.second_order - self.monte_carlo
        return (
            f"second order {self.second_order:.4g}, Monte Carlo {self.monte_carlo:.4g} ± {self.standard_error:.1g}, "
            f"error {error:+.2g} ({error / abs(self.monte_carlo or 1):+.0%})"
        )


@torch.enable_grad()
def second_order_penalty(
    model: nn.Module, loss: Loss, batch: Any, *, probes: int | None = None, generator: torch.Generator | None = None
) -> Tensor:  # ()
    """½ c Σ_i h_i² ∂²loss/∂h_i² at the model's masks: E loss(mask) − loss(no mask) to second order, differentiable.

    Args:
        model: with modules `Dropout`, `AdaptiveDropout`, `DropBlock`, `DropConnect` or torch's `nn.Dropout` in it.
            Dropout that is called as a function (inside attention, say) is not seen.
        loss: (model, batch) → scalar. Without probes, the samples of a batch must be its first dimension and must
            not interact (evaluation mode sees to batch norm).
        batch: what `loss` takes.
        probes: None for the exact diagonal; or the number ≥ 1 of random-sign probes, each one backward pass, unbiased.
        generator: of the probes; None for a fixed seed.

    Returns:
        A scalar that can be added to loss(model, batch) and differentiated, in the loss's dtype.

    Raises:
        ValueError: the model has no mask, or one of a kind that has no independent entries (`DropBlock2d`,
            `nn.Dropout2d`): use `monte_carlo_penalty`; or, without probes, one on features of another first dimension
            than the batch's samples; or probes below 1.

    Example:
        >>> from eckart.regularizers import Dropout
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), Dropout(0.5))
        >>> _ = nn.init.constant_(model[0].weight, 3.0)
        >>> second_order_penalty(model, lambda model, x: model(x).square().sum(), torch.ones(1, 1)).item()  # ½·1·3²·2
        9.0
    """
    if probes is not None and probes < 1:
        raise ValueError(f"probes must be at least 1, or None for the exact diagonal, got {probes}")
    with perturbed(model) as perturbations:
        value = loss(model, batch)
    if probes is None:
        _require_samples(perturbations, batch)
    found = [(c, e, batched) for c, e, batched in perturbations if c > 0]
    if not found:
        return value.new_zeros(())
    slopes = torch.autograd.grad(value, [e for _, e, _ in found], create_graph=True, materialize_grads=True)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    total = value.new_zeros(())
    for (c, e, batched), slope in zip(found, slopes, strict=True):
        if slope.requires_grad:  # otherwise the loss is linear in this mask
            diagonal = _trace(slope, e, batched) if probes is None else _probed(slope, e, probes, generator)
            total = total + c / 2 * diagonal
    return total


@torch.no_grad()
def monte_carlo_penalty(
    model: nn.Module, loss: Loss, batch: Any, *, samples: int = 1000, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:  # (), ()
    """E loss(mask) − loss(no mask) by drawing masks, and its standard error; all else stays in evaluation mode.

    Args:
        model: with masks of any kind, torch's among them.
        loss: (model, batch) → scalar.
        batch: what `loss` takes.
        samples: number of masks, ≥ 2.
        generator: gives the seed of the masks; None for a fixed one. torch's own random state is left as it was.

    Returns:
        mean: of the difference, and its standard error; float64 scalars.

    Raises:
        ValueError: fewer than two samples, or the model has no mask.

    Example:
        >>> from eckart.regularizers import Dropout
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), Dropout(0.5))
        >>> _ = nn.init.constant_(model[0].weight, 3.0)
        >>> mean, error = monte_carlo_penalty(model, lambda model, x: model(x).square().sum(), torch.ones(1, 1))
        >>> abs(mean.item() - 9.0) < 4 * error.item(), error.item() < 1
        (True, True)
    """
    if samples < 2:
        raise ValueError(f"samples must be at least 2 for a standard error, got {samples}")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with evaluating(model), drawing_by_default(model), torch.random.fork_rng(devices):
        for source in (torch.default_generator, *(torch.cuda.default_generators[index] for index in devices)):
            source.manual_seed(seed)  # torch.manual_seed would seed the GPUs that are not in use too
        plain = loss(model, batch).double()
        for mask in masks(model):
            mask.train()
        drawn = torch.stack([loss(model, batch).double() for _ in range(samples)]) - plain
    return drawn.mean(), drawn.std() / samples**0.5


def compare_penalties(
    model: nn.Module, loss: Loss, batch: Any, *, samples: int = 1000, generator: torch.Generator | None = None
) -> Comparison:
    """The second-order penalty and Monte Carlo's side by side; printing it shows the error of the approximation.

    Args:
        model: as in `second_order_penalty`.
        loss: (model, batch) → scalar.
        batch: what `loss` takes.
        samples: number of masks for Monte Carlo.
        generator: as in `monte_carlo_penalty`.

    Returns:
        Comparison: both numbers and the standard error, with a one-line str.

    Raises:
        ValueError: as the two do.

    Example:
        >>> from eckart.regularizers import Dropout
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), Dropout(0.5))
        >>> _ = nn.init.constant_(model[0].weight, 1.0)
        >>> quartic = lambda model, x: model(x).pow(4).sum()  # E z⁴ = 8, so the truth is 7; second order sees 6
        >>> print(str(compare_penalties(model, quartic, torch.ones(1, 1)))[:14])
        second order 6
    """
    second = second_order_penalty(model, loss, batch)
    mean, error = monte_carlo_penalty(model, loss, batch, samples=samples, generator=generator)
    return Comparison(float(second.detach()), float(mean), float(error))


def _require_samples(perturbations: Sequence[Perturbation], batch: Any) -> None:
    """Raise if a mask fell on features whose first dimension can't be the samples: their curvatures would mix."""
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    sizes = {len(part) for part in parts if isinstance(part, Tensor) and part.ndim}
    for _, e, batched in perturbations:
        if batched and sizes and len(e) not in sizes:
            raise ValueError(
                f"a mask fell on features that vary as {tuple(e.shape)}, whose first dimension is not the batch's "
                f"{sorted(sizes)} samples (a position embedding, say); give probes=, which holds for any shape"
            )


def _trace(slope: Tensor, e: Tensor, batched: bool) -> Tensor:  # ()
    """The trace of ∂slope/∂e, an entry at a time; where samples do not interact, the same entry of all at once."""
    rows = slope.reshape(len(slope), -1).sum(0) if batched else slope.flatten()
    total = slope.new_zeros(())
    for index, row in enumerate(rows):
        (curvature,) = torch.autograd.grad(row, e, create_graph=True, materialize_grads=True)
        total = total + (
            curvature.reshape(len(curvature), -1)[:, index].sum() if batched else curvature.flatten()[index]
        )
    return total


def _probed(slope: Tensor, e: Tensor, probes: int, generator: torch.Generator) -> Tensor:  # ()
    """The trace of ∂slope/∂e by Hutchinson's estimate, the mean of sᵀ(∂slope/∂e)s over random signs s."""
    total = slope.new_zeros(())
    for _ in range(probes):
        signs = torch.randint(2, slope.shape, generator=generator, device=generator.device).to(slope) * 2 - 1
        (curvature,) = torch.autograd.grad(slope, e, grad_outputs=signs, create_graph=True, materialize_grads=True)
        total = total + (curvature * signs).sum() / probes
    return total
