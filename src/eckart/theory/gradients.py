"""Why the gradient of a layer loses rank while it trains: the model G_t = A − B W_t C (T8).

B (m, m) and C (n, n) are symmetric positive semi-definite (averages of Jacobians and of inputs, per sample). Then
W_{t+1} = W_t + η G_t gives G_{t+1} = G_t − η B G_t C, and in the eigenbases of B and C (eigenvalues β_i, γ_j) each
entry shrinks on its own:

    ĝ_ij(t) = (1 − η β_i γ_j)^t ĝ_ij(0).

For η β γ ≤ 1 the slowest entries win: with λ_1 < λ_2 the two smallest values of β_i γ_j and G^∥ the part of G_0 at λ_1
the stable rank tends to that of G^∥. If λ_1 > 0, then

    sr(G_t) = ‖G_t‖_F² / ‖G_t‖_2² ≤ sr(G^∥) + ((1−ηλ_2)/(1−ηλ_1))^{2t} ‖G_0 − G^∥‖_F² / ‖G^∥‖_2²,

and the limit is at most the smaller multiplicity of the smallest β and γ: 1 if one of them is simple. If B or C is
singular, λ_1 = 0 takes whole rows and columns of ĝ, any stable rank can be left, and the bound does not hold: it needs
‖G^∥‖_2 ≤ ‖G_t‖_2, true where each β meets one γ. The descent in rank need not be monotone.

Cost: two eigendecompositions, then m·n·(m + n) for any t.
Paper: 2403.03507, whose lemma also allows a sum over samples, Σ_i B_i W C_i; ours is one pair.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from eckart.linalg import singular_values, stable_rank, truncated_svd


def gradient_course(
    A: Tensor,  # (m, n)
    B: Tensor,  # (m, m)
    C: Tensor,  # (n, n)
    W: Tensor,  # (m, n)
    *,
    rate: float,
) -> Iterator[Tensor]:
    """Train W by W ← W + η G with G = A − B W C, for as long as the caller iterates.

    Args:
        A: the gradient at W = 0.
        B, C: symmetric positive semi-definite.
        W: the start; left as it is.
        rate: η.

    Yields:
        G_0, G_1, …, each (m, n).

    Example:
        >>> from itertools import islice
        >>> A, B, C = torch.tensor([[1.0, 1.0]]), torch.eye(1), torch.diag(torch.tensor([1.0, 0.0]))
        >>> [G.tolist() for G in islice(gradient_course(A, B, C, torch.zeros(1, 2), rate=0.5), 3)]
        [[[1.0, 1.0]], [[0.5, 1.0]], [[0.25, 1.0]]]
    """
    while True:
        G = A - B @ W @ C
        yield G
        W = W + rate * G


def gradient_at(
    G: Tensor,  # (m, n)
    B: Tensor,  # (m, m)
    C: Tensor,  # (n, n)
    *,
    rate: float,
    times: Tensor,  # (T,)
) -> Tensor:  # (T, m, n)
    """G_t from G_0 at once, by the eigenbases of B and C.

    Args:
        G: G_0.
        B, C: symmetric positive semi-definite.
        rate: η.
        times: the steps t wanted.

    Returns:
        G_t, one for each time.

    Raises:
        ValueError: B or C is not square of G's size, not symmetric, or not positive semi-definite.

    Example:
        >>> G, B, C = torch.tensor([[1.0, 1.0]]), torch.eye(1), torch.diag(torch.tensor([1.0, 0.0]))
        >>> gradient_at(G, B, C, rate=0.5, times=torch.tensor([0, 2])).abs().tolist()
        [[[1.0, 1.0]], [[0.25, 1.0]]]
    """
    P, Q, speeds = _joint_eigenspaces(G, B, C)
    factors = (1 - rate * speeds) ** times.to(G.device)[:, None, None]
    return P @ (factors * (P.mT @ G @ Q)) @ Q.mT


def slowest_part(
    G: Tensor,  # (m, n)
    B: Tensor,  # (m, m)
    C: Tensor,  # (n, n)
) -> Tensor:  # (m, n)
    """The part G^∥ of the gradient that shrinks slowest, and that is left of it in the end.

    Args:
        G: G_0.
        B, C: symmetric positive semi-definite.

    Returns:
        G^∥: the entries of G at the smallest β_i γ_j. Where B or C is singular this is what never shrinks.

    Raises:
        ValueError: as `gradient_at`.

    Example:
        >>> G, B, C = torch.tensor([[1.0, 2.0]]), torch.eye(1), torch.diag(torch.tensor([1.0, 0.5]))
        >>> (slowest_part(G, B, C) + 0.0).tolist()
        [[0.0, 2.0]]
    """
    P, Q, speeds = _joint_eigenspaces(G, B, C)
    return P @ (_slowest(speeds) * (P.mT @ G @ Q)) @ Q.mT


def stable_rank_bound(
    G: Tensor,  # (m, n)
    B: Tensor,  # (m, m)
    C: Tensor,  # (n, n)
    *,
    rate: float,
    times: Tensor,  # (T,)
) -> Tensor:  # (T,)
    """The lemma's bound on sr(G_t), which tends to the stable rank of `slowest_part`.

    Args:
        G: G_0, with a part at the smallest β_i γ_j that is not zero.
        B, C: symmetric positive definite.
        rate: η, at most 1 / (largest β γ).
        times: the steps t.

    Returns:
        One bound for each time; infinite if G has no slowest part.

    Raises:
        ValueError: as `gradient_at`; the rate is too large for the bound, or B or C is singular.

    Example:
        >>> G, B, C = torch.ones(2, 1), torch.diag(torch.tensor([1.0, 0.5])), torch.eye(1)
        >>> stable_rank_bound(G, B, C, rate=1.0, times=torch.tensor([0, 1])).tolist()
        [2.0, 1.0]
    """
    _, _, speeds = _joint_eigenspaces(G, B, C)
    slow = _slowest(speeds)
    first, others = speeds.min(), speeds[~slow]
    if rate * speeds.max() > 1 + 1e-6:
        raise ValueError(f"rate must be at most {1 / speeds.max():.3g}, 1 / the largest β γ, got {rate}")
    if first <= _rounding(speeds):
        raise ValueError(
            "B and C must be positive definite for the bound; add a small multiple of the identity to both"
        )
    slowest = slowest_part(G, B, C)
    S = singular_values(slowest)
    if not S[0] > _rounding(G):
        return torch.full(times.shape, torch.inf, dtype=S.dtype, device=S.device)
    shrink = (1 - rate * others.min()) / (1 - rate * first) if others.numel() else first * 0
    rest = (G - slowest).square().sum() / S[0].square()
    return stable_rank(S) + shrink ** (2 * times.to(G.device)) * rest


def _joint_eigenspaces(G: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenbases P of B and Q of C, and β_i γ_j for each pair (m, n)."""
    P, beta = _eigen("B", B, G.shape[0])
    Q, gamma = _eigen("C", C, G.shape[1])
    return P, Q, beta[:, None] * gamma


def _eigen(name: str, M: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Basis and eigenvalues of a positive semi-definite matrix: its SVD, once that is checked."""
    if M.shape != (size, size):
        raise ValueError(f"{name} {tuple(M.shape)} must be ({size}, {size}) to stand beside G")
    U, S, Vh = truncated_svd(M, size, method="exact")
    # M = U S Vᵀ is positive semi-definite just when it also is U S Uᵀ.
    if torch.linalg.norm((U - Vh.mT) * S) > _rounding(M):
        raise ValueError(f"{name} {tuple(M.shape)} must be symmetric positive semi-definite, like MᵀM")
    return U, S


def _slowest(speeds: Tensor) -> Tensor:
    """Where β_i γ_j is its smallest, up to rounding of the largest."""
    return speeds <= speeds.min() + _rounding(speeds)


def _rounding(M: Tensor) -> Tensor:
    """What rounding may leave of a zero beside the largest entry."""
    return 100 * max(M.shape) * torch.finfo(M.dtype).eps * M.abs().max()
