"""The regularisers of this area as rows: a mask law, the penalty it induces, and the optimum of that penalty.

Every row is about one problem, two linear layers U (m, d) and Vᵀ (d, n) that fit Y (m, N) from X (n, N):

    E‖Y − masked network(X)‖²  =  ‖Y − U VᵀX‖² + penalty(U, V)  ≥  optimum(Y, d).objective

Adding a regulariser: write the three functions, add one row. The contract tests run over all rows: Monte Carlo of the
mask agrees with the penalty, and the optimum is attained, and beaten by nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eckart.linalg import singular_values
from eckart.regularizers.decay import decay_optimum, decay_penalty
from eckart.regularizers.linear_masked import masked_linear_factors, masked_linear_penalty
from eckart.regularizers.masks import AdaptiveDropout, DropBlock, DropConnect, Dropout
from eckart.regularizers.optima import Optimum, dropblock_optimum, dropout_optimum
from eckart.regularizers.penalties import dropblock_penalty, dropconnect_penalty, dropout_penalty
from eckart.regularizers.rates import adaptive_rate


@dataclass(frozen=True)
class Method:
    """One regulariser of two linear layers.

    Args:
        law: what is dropped (or decayed), in a few words.
        induces: the penalty on the product Z = UVᵀX that its optimum minimises.
        source: arXiv id, or that we derived it.
        penalty: (U, V, rate, *, inputs=None, **options) → scalar, to add to ‖Y − UVᵀX‖².
        optimum: (target, width, rate, *, inputs=None, **options) → Optimum.
        masked: (first, second, rate, **options) → the two `nn.Linear` layers with the mask in place; None if the
            regulariser draws no mask.
        options: names of the further arguments that it needs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> method = METHODS["dropout"]
        >>> method.masked(nn.Linear(3, 4), nn.Linear(4, 2), 0.5)[1]
        Dropout(rate=0.5)
        >>> round(method.optimum(torch.eye(2), 4, 0.5).objective, 4), method.induces
        (0.6667, '(c/d) ‖Z‖_*²')
    """

    law: str
    induces: str
    source: str
    penalty: Callable[..., Tensor]
    optimum: Callable[..., Optimum]
    masked: Callable[..., nn.Module] | None = None
    options: tuple[str, ...] = ()


def _between(law: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The two layers with a mask of this law on what passes between them."""

    def masked(first: nn.Linear, second: nn.Linear, rate: float, **options: int) -> nn.Module:
        return nn.Sequential(first, law(rate, **options), second)

    return masked


def _on_second_weight(first: nn.Linear, second: nn.Linear, rate: float) -> nn.Module:
    return nn.Sequential(first, DropConnect(second, rate))


def _on_inputs(first: nn.Linear, second: nn.Linear, rate: float) -> nn.Module:
    return nn.Sequential(Dropout(rate), first, second)


def _adaptive_penalty(U: Tensor, V: Tensor, rate: float, *, inputs: Tensor | None = None) -> Tensor:
    return dropout_penalty(U, V, adaptive_rate(rate, U.shape[1]), inputs=inputs)


def _adaptive_optimum(target: Tensor, width: int, rate: float, *, inputs: Tensor | None = None) -> Optimum:
    return dropout_optimum(target, width, adaptive_rate(rate, width), inputs=inputs)


def _decay_penalty(U: Tensor, V: Tensor, rate: float, *, inputs: Tensor | None = None) -> Tensor:
    return 2 * rate * decay_penalty([U, V])


def _decay_optimum(target: Tensor, width: int, rate: float, *, inputs: Tensor | None = None) -> Optimum:
    if inputs is not None:
        raise ValueError("weight decay has a closed-form optimum for matrix factorisation only; leave inputs out")
    values, (first, second) = decay_optimum(target.double(), 2, rate)
    values, U, V = values[:width], second[:, :width], first[:width].mT
    objective = (target - U @ V.mT).square().sum() + _decay_penalty(U, V, rate)
    U, V = (F.pad(factor, (0, max(0, width - len(values)))).to(target.dtype) for factor in (U, V))
    return Optimum(U, V, values, float(objective))


def _autoencoder_penalty(U: Tensor, V: Tensor, rate: float, *, inputs: Tensor | None = None) -> Tensor:
    return masked_linear_penalty(U @ V.mT, _second_moment(inputs, V), rate=rate)


def _autoencoder_optimum(target: Tensor, width: int, rate: float, *, inputs: Tensor | None = None) -> Optimum:
    """The target is the inputs."""
    X = target.double()
    if inputs is not None and not torch.equal(inputs.double(), X):
        raise ValueError("a masked autoencoder's target is its inputs: pass the same matrix as target and inputs")
    U, encoder = masked_linear_factors(X @ X.mT, min(width, len(X)), rate=rate)
    fit = U @ (encoder @ X)
    objective = float((X - fit).square().sum() + _autoencoder_penalty(U, encoder.mT, rate, inputs=X))
    U, V = (F.pad(factor, (0, max(0, width - len(X)))).to(target.dtype) for factor in (U, encoder.mT))
    return Optimum(U, V, singular_values(fit)[: U.shape[1]], objective)


def _second_moment(inputs: Tensor | None, V: Tensor) -> Tensor:
    return torch.eye(len(V), dtype=V.dtype, device=V.device) if inputs is None else inputs @ inputs.mT


METHODS: dict[str, Method] = {
    "dropout": Method(
        "columns between the layers, each on its own",
        "(c/d) ‖Z‖_*²",
        "1710.05092, 1806.09777",
        dropout_penalty,
        dropout_optimum,
        _between(Dropout),
    ),
    "adaptive dropout": Method(
        "columns, at the rate d·rate/(1 + (d − 1)·rate)",
        "c ‖Z‖_*², at every width",
        "1710.05092",
        _adaptive_penalty,
        _adaptive_optimum,
        _between(AdaptiveDropout),
    ),
    "DropConnect": Method(
        "entries of the second layer's weight",
        "(c/d) ‖Z‖_*²",
        "1910.14186",
        dropconnect_penalty,
        dropout_optimum,
        _on_second_weight,
    ),
    "DropBlock": Method(
        "blocks of k neighbouring columns",
        "(c/B) (‖Z‖_k^{sp})², the k-support norm",
        "1910.14186",
        dropblock_penalty,
        dropblock_optimum,
        _between(DropBlock),
        ("block",),
    ),
    "weight decay": Method(
        "nothing: rate is λ, in λ(‖U‖² + ‖V‖²)",
        "2λ ‖Z‖_*",
        "Srebro, Rennie, Jaakkola 2004",
        _decay_penalty,
        _decay_optimum,
    ),
    "masked autoencoder": Method(
        "entries of the inputs, which are the target",
        "c ‖UVᵀ diag(XXᵀ)^{1/2}‖²",
        "our derivation",
        _autoencoder_penalty,
        _autoencoder_optimum,
        _on_inputs,
    ),
}
