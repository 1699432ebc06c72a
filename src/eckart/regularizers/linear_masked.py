"""What masking does to a linear autoencoder A: the penalty it induces, and the best A in closed form.

Each entry of X (n, N) is hidden with probability p, independently (M is 0 there, and 1 with probability θ = 1 − p):

    E‖X − θ⁻¹A(M∘X)‖² = ‖X − AX‖² + c‖A diag(XXᵀ)^{1/2}‖²,     c = (1 − θ)/θ = p/(1 − p)

An entry of θ⁻¹(M∘X) has mean X_ij and variance c·X_ij², and the entries are independent: hence the second term. With
C = XXᵀ and Ĉ = C + c·diag C, the loss is ‖(A − A*)Ĉ^{1/2}‖² + a constant, so that

    A* = C Ĉ⁺,      and at rank k:   A_k = U_k U_kᵀ A*,   U_k the leading eigenvectors of A* Ĉ A*ᵀ = C Ĉ⁺ C

Shapes: C (n, n), a sample is a column of X; C may be XXᵀ (losses are sums over samples), XXᵀ/N (means), or singular.
Cost: two or three n×n `eigh`.

Paper: none; our own derivation. It holds for independent masks and a loss on all entries. A loss on the hidden entries
alone never sees A's diagonal, and has another optimum.
"""

import torch
from torch import Tensor

from eckart import linalg
from eckart.regularizers.rates import odds


def masked_linear_penalty(
    A: Tensor,  # (m, n)
    second_moment: Tensor,  # C (n, n)
    *,
    rate: float,
) -> Tensor:  # ()
    """What masking adds to a linear autoencoder's loss, c‖A diag(C)^{1/2}‖² with c = p/(1 − p).

    Args:
        A: the linear map, decoder times encoder; gradients flow to it.
        second_moment: C = XXᵀ of the data, or XXᵀ/N; not centred, as the mask hides what the map reads.
        rate: p, the probability that an entry is hidden, in [0, 1).

    Returns:
        The penalty, a scalar: summed over samples for XXᵀ, per sample for XXᵀ/N.

    Raises:
        ValueError: rate outside [0, 1), or shapes that do not fit.

    Example:
        >>> C = torch.tensor([[4.0, 2.0], [2.0, 1.0]])
        >>> masked_linear_penalty(torch.eye(2), C, rate=0.5), masked_linear_penalty(torch.eye(2), C, rate=0.75)
        (tensor(5.), tensor(15.))
    """
    _require_fit(A, second_moment)
    return odds(rate) * (A.square() * second_moment.diagonal()).sum()


def masked_linear_loss(
    A: Tensor,  # (n, n)
    second_moment: Tensor,  # C (n, n)
    *,
    rate: float,
) -> Tensor:  # ()
    """The expected loss of a linear masked autoencoder, E‖X − θ⁻¹A(M∘X)‖², exactly and without a mask.

    Args:
        A: the linear map, decoder times encoder; gradients flow to it.
        second_moment: C = XXᵀ of the data, or XXᵀ/N.
        rate: p, the probability that an entry is hidden, in [0, 1); θ = 1 − p.

    Returns:
        The loss, a scalar: summed over samples for XXᵀ, per sample for XXᵀ/N.

    Raises:
        ValueError: rate outside [0, 1), or shapes that do not fit.

    Example:
        >>> C = torch.tensor([[4.0, 2.0], [2.0, 1.0]])  # of one sample (2, 1)
        >>> masked_linear_loss(torch.eye(2), C, rate=0.0), masked_linear_loss(torch.eye(2), C, rate=0.5)
        (tensor(0.), tensor(5.))
    """
    if len(A) != A.shape[-1]:
        raise ValueError(f"A maps the data to themselves and must be square, got {tuple(A.shape)}")
    _require_fit(A, second_moment)
    residual = torch.eye(len(A), dtype=A.dtype, device=A.device) - A
    kept = (residual @ second_moment * residual).sum()
    return kept + masked_linear_penalty(A, second_moment, rate=rate)


def masked_linear_optimum(
    second_moment: Tensor,  # C (n, n)
    *,
    rate: float,
) -> Tensor:  # A* (n, n)
    """The linear map with the least expected loss, A* = C(C + c·diag C)⁺ with c = p/(1 − p).

    Args:
        second_moment: C = XXᵀ of the data on any scale, symmetric positive semidefinite, of any rank.
        rate: p, the probability that an entry is hidden, in [0, 1). At 0, A* projects onto what the data span.

    Returns:
        A*, in the dtype of C; the one of least norm where several are best: features that are always zero map to zero.

    Raises:
        ValueError: rate outside [0, 1); C not square, symmetric, positive semidefinite and finite.

    Example:
        >>> C = torch.tensor([[1.0, 1.0], [1.0, 1.0]])  # two entries that are always equal
        >>> masked_linear_optimum(C, rate=0.5)  # it averages the two, and shrinks
        tensor([[0.3333, 0.3333],
                [0.3333, 0.3333]])
    """
    noisy = _noisy(second_moment, rate)
    eye = torch.eye(len(noisy), dtype=second_moment.dtype, device=second_moment.device)
    # anchored_target(I, Ĉ, M) = I + (M − Ĉ)Ĉ⁺ keeps I where the data never go; with M = 0 that part is all there is.
    kept = linalg.anchored_target(eye, noisy, torch.zeros_like(noisy))
    return linalg.anchored_target(eye, noisy, second_moment) - kept


def masked_linear_factors(
    second_moment: Tensor,  # C (n, n)
    rank: int,
    *,
    rate: float,
) -> tuple[Tensor, Tensor]:  # (n, k), (k, n)
    """The best decoder and encoder through k units: the map of rank k with the least expected loss.

    Args:
        second_moment: C = XXᵀ of the data on any scale, of any rank.
        rank: k, from 1 to n.
        rate: p, the probability that an entry is hidden, in [0, 1).

    Returns:
        decoder (n, k) with orthonormal columns, best direction first, and encoder (k, n), whose first rows are the
        answer for fewer units; their product is A_k.

    Raises:
        ValueError: as `masked_linear_optimum`, or a rank outside 1…n.

    Example:
        >>> C = torch.diag(torch.tensor([9.0, 4.0]))
        >>> decoder, encoder = masked_linear_factors(C, 1, rate=0.5)
        >>> (decoder @ encoder).abs()
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000]])
    """
    best = masked_linear_optimum(second_moment, rate=rate)
    return linalg.weighted_approximation(best, rank, input_covariance=_noisy(second_moment, rate))


def _noisy(C: Tensor, rate: float) -> Tensor:
    """Ĉ = C + c·diag C: the second moment of the rescaled masked data."""
    _require_fit(C, C)
    return C + odds(rate) * C.diagonal().diag()


def _require_fit(A: Tensor, C: Tensor) -> None:
    if C.ndim != 2 or C.shape[0] != C.shape[1] or A.ndim != 2 or A.shape[1] != len(C):
        raise ValueError(
            f"second_moment must be (n, n) and a map (m, n), got {tuple(C.shape)} and {tuple(A.shape)}; "
            f"pass X @ X.T with samples in the columns of X"
        )
