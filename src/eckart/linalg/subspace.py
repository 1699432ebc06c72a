"""Find the leading subspace of a matrix, keep it fresh, and see how much it captures.

A basis Q (m, r) sits on the left (m) side of G (m, n); for the right side pass `G.mT`.

- Cold: Y = G Ω with Ω Gaussian, then `power` rounds of G Gᵀ (Halko, Martinsson, Tropp, arXiv 0909.4061).
- Warm: Q ← orth(G (Gᵀ Q)), one step of subspace iteration from the last basis (PowerSGD, arXiv 1905.13727).

Cost: 4 m n r flops a warm step. Bases are constants: nothing here builds an autograd graph.
Paper: a basis that sees nothing of G stays as it is, and fresh columns for abrupt shifts, are ours.
"""

import torch
from torch import Tensor

from eckart.linalg._check import magnitude, require_count, require_matrix, require_rank, seeded, working_dtype
from eckart.linalg._scale import comfortable, tame, unit_peak
from eckart.linalg.orthonormal import cholesky_orthonormal, fast_orthonormal, require_columns


@torch.no_grad()
def find_range(
    G: Tensor,  # (..., m, n)
    rank: int,  # r
    *,
    oversample: int = 8,
    power: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:  # (..., m, r)
    """An orthonormal basis of the leading left subspace of G, from a random start.

    Cost 4 m n (r + oversample)(1 + power) flops. The captured energy falls short of the optimum by a part that shrinks
    with (σ_{r+1}/σ_r)^(2 + 4 power), so slowly decaying spectra want power 2.

    Args:
        G: matrix or batch of matrices.
        rank: number of columns r of the basis, from 1 to min(m, n).
        oversample: extra random columns while searching, ≥ 0.
        power: rounds of G Gᵀ, ≥ 0.
        generator: source of the random start, on G's device; None gives the same start at every call.

    Returns:
        Q: (..., m, r), orthonormal columns ordered by the energy that they capture, in G's dtype.

    Raises:
        ValueError: rank out of range, or G holds NaN or infinity.

    Example:
        >>> G = torch.diag(torch.tensor([5.0, 3.0, 0.1, 0.01]))
        >>> find_range(G, 2).abs().round(decimals=2).tolist()
        [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    """
    require_matrix("G", G)
    require_rank(rank, G)
    require_count("oversample", oversample)
    require_count("power", power)
    X = tame("G", G, working_dtype(G.dtype))
    n = G.shape[-1]
    width = min(rank + oversample, *G.shape[-2:])
    Omega = torch.randn(n, width, generator=seeded(G.device, generator), device=G.device, dtype=X.dtype)
    Q = fast_orthonormal(X @ Omega)
    for _ in range(power):
        Q = fast_orthonormal(X @ fast_orthonormal(X.mT @ Q))
    return _leading(X, Q, rank).to(G.dtype)


@torch.no_grad()
def refresh(
    G: Tensor,  # (..., m, n)
    Q: Tensor,  # (..., m, r)
    *,
    fresh: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:  # (..., m, r)
    """One warm step of the basis Q towards the leading left subspace of G: orth(G (Gᵀ Q)).

    Cost 4 m n r flops; with `fresh` columns 6 m n (r + fresh). Where Gᵀ Q is exactly zero (a zero gradient) the basis
    stays as it is, bit for bit. A basis follows what it overlaps: after an abrupt shift of the subspace pass `fresh=8`.
    One host read, for all checks together; an ill-conditioned step or entries near the ends of the range cost more.

    Args:
        G: the new gradient.
        Q: the last basis, orthonormal columns.
        fresh: random columns that join the sketch; the best r directions of the r + fresh are kept. ≥ 0.
        generator: source of the fresh columns, on G's device; None gives the same ones at every call.

    Returns:
        Q: (..., m, r), the new orthonormal basis, in the dtype of the old one.

    Raises:
        ValueError: the shapes of G and Q do not fit, or one of them holds NaN or infinity.

    Example:
        >>> G = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5]))
        >>> Q = torch.full((4, 1), 0.5)
        >>> (refresh(G, Q).flatten() * 1000).round().int().tolist()  # 16 : 4 : 1 : 0.25
        [968, 242, 61, 15]
        >>> torch.equal(refresh(0 * G, Q), Q)
        True
    """
    _require_basis("G", G, "Q", Q)
    require_count("fresh", fresh)
    dtype = working_dtype(torch.promote_types(G.dtype, Q.dtype))
    m, rank = Q.shape[-2:]
    extra = min(fresh, m - rank)
    start = Q.to(dtype)
    if extra:
        source = seeded(G.device, generator)
        noise = torch.randn(*Q.shape[:-1], extra, generator=source, device=G.device, dtype=dtype)
        start = torch.cat((start, noise / m**0.5), dim=-1)
    X = G.to(dtype)
    Y, stays = _step(X, start)
    basis, good = cholesky_orthonormal(Y)
    usual = [torch.as_tensor(comfortable(magnitude(part).double(), dtype)) for part in (G, Q)]
    if not bool(torch.stack((*usual, good.all())).all()):  # the only host read, unless something is out of the usual
        X, start = tame("G", G, dtype), torch.cat((tame("Q", Q, dtype), start[..., rank:]), dim=-1)
        Y, stays = _step(X, start)
        basis = fast_orthonormal(Y)
    return torch.where(stays, Q, _leading(X, basis, rank).to(Q.dtype))


def _step(
    G: Tensor,  # (..., m, n)
    Q: Tensor,  # (..., m, w)
) -> tuple[Tensor, Tensor]:  # (..., m, w), (..., 1, 1)
    """G (Gᵀ Q) to a scale, and Q where Gᵀ Q is zero; and where that is."""
    Z = unit_peak(G.mT @ Q, dim=(-2, -1))
    stays = ~Z.any(dim=(-2, -1), keepdim=True)
    return torch.where(stays, Q, G @ Z), stays


@torch.no_grad()
def captured_energy(
    G: Tensor,  # (..., m, n)
    Q: Tensor,  # (..., m, r)
) -> Tensor:  # (...)
    """The share of G's energy inside the span of Q: ‖QᵀG‖_F² / ‖G‖_F².

    Unlike the cosine of leading vectors it does not depend on signs or order, so it tells when a basis has gone stale.

    Args:
        G: matrix or batch of matrices.
        Q: orthonormal columns (not checked).

    Returns:
        share: from 0 to 1; 1 for a zero G.

    Raises:
        ValueError: the shapes of G and Q do not fit, or one of them holds NaN or infinity.

    Example:
        >>> captured_energy(torch.diag(torch.tensor([3.0, 1.0])), torch.tensor([[1.0], [0.0]])).item()
        0.8999999761581421
    """
    _require_basis("G", G, "Q", Q)
    dtype = working_dtype(torch.promote_types(G.dtype, Q.dtype))
    X = unit_peak(tame("G", G, dtype), dim=(-2, -1))
    # Row norms first: one long float32 sum of squares would lose digits.
    inside = torch.linalg.vector_norm(tame("Q", Q, dtype).mT @ X, dim=-1).square().sum(-1)
    total = torch.linalg.vector_norm(X, dim=-1).square().sum(-1)
    return torch.where(total > 0, inside / total, 1.0).clamp(max=1.0)


def _leading(
    G: Tensor,  # (..., m, n)
    Q: Tensor,  # (..., m, w), orthonormal
    rank: int,  # r ≤ w
) -> Tensor:  # (..., m, r)
    """The r directions inside span(Q) that capture the most of G (Rayleigh–Ritz), best first; Q itself if w = r."""
    if Q.shape[-1] == rank:
        return Q
    B = unit_peak(Q.mT @ G, dim=(-2, -1))
    V = torch.linalg.eigh(B @ B.mT).eigenvectors
    return Q @ V[..., -rank:].flip(-1)


def _require_basis(name: str, G: Tensor, basis: str, Q: Tensor) -> None:
    require_matrix(name, G)
    require_matrix(basis, Q)
    require_columns(basis, Q)
    if Q.shape[:-1] != G.shape[:-1]:
        raise ValueError(
            f"{basis} of shape {tuple(Q.shape)} must be a basis of the left side of {name} {tuple(G.shape)}: "
            f"(..., {G.shape[-2]}, r); for the right side pass {name}.mT"
        )
