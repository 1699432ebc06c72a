"""The two solvers behind `weighted_svd`, in float64: one metric (inverse-free), or both. Each gives B, A and σ²."""

import torch
from torch import Tensor

from eckart.linalg._check import require_finite, require_matrix
from eckart.linalg.covariance import anchored_target, known, psd_root, require_covariance

_EPS = torch.finfo(torch.float64).eps


def problem(
    W: Tensor, C: Tensor | None, G: Tensor | None, cross: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What to approximate and both metrics, checked, in float64."""
    require_matrix("W", W)
    require_finite("W", W)
    if cross is not None:
        if C is None:
            raise ValueError("cross needs input_covariance, the covariance X̂X̂ᵀ of the changed inputs")
        W = anchored_target(W.to(torch.float64), C, cross)
    C = None if C is None else require_covariance("input_covariance", C, W.shape[-1])
    G = None if G is None else require_covariance("output_covariance", G, W.shape[-2])
    return W.to(torch.float64), C, G


def energy_matrix(F: Tensor, C: Tensor | None) -> Tensor:
    """F C Fᵀ (..., k, k), symmetric."""
    return _symmetric((F if C is None else F @ C) @ F.mT)


def fit_outputs(W: Tensor, C: Tensor | None, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """B = U_r, A = U_rᵀW, and σ²."""
    if W.shape[-2] > W.shape[-1]:
        Q, R = torch.linalg.qr(W)
        B, A, squares = fit_outputs(R, C, rank)
        return Q @ B, A, squares
    U, _, squares = _leading(W, W if C is None else W @ C, C, rank)
    return U, U.mT @ W, squares


def fit_both(W: Tensor, C: Tensor, G: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """A = XᵀW, B = W C Aᵀ (A C Aᵀ)⁻¹, the last diagonal, and σ². Rows of A that C does not see fit the rest of W."""
    F = psd_root(known(G)).mT @ W
    FC = F @ C
    U, live, squares = _leading(F, FC, C, rank)
    A, V = U.mT @ F, FC.mT @ U  # V = C Aᵀ
    B = W @ V * _inverse((A.mT * V).sum(-2, keepdim=True), live)
    if not bool(live.all()):
        energy = A.mT.square().sum(-2, keepdim=True)
        usable = energy > _EPS * F.square().sum((-2, -1), keepdim=True)
        fill = (W - B @ A) @ A.mT * _inverse(energy, usable)
        B, A = torch.where(live, B, fill), A * (live | usable).mT
    return B, A, squares


def _symmetric(K: Tensor) -> Tensor:
    return (K + K.mT) / 2


def _inverse(x: Tensor, where: Tensor) -> Tensor:
    """1/x, and zero elsewhere."""
    return where * torch.where(where, x, 1.0).reciprocal()


def _leading(F: Tensor, FC: Tensor, C: Tensor | None, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The r leading eigenvectors U (..., k, r) of F C Fᵀ, which of them C sees (..., 1, r), and the values (..., r).

    What C does not see is below the rounding of F C Fᵀ; there the leading directions of F itself follow. One host read.
    """
    values, U = torch.linalg.eigh(_symmetric(FC @ F.mT))
    values, U = values.flip(-1).clamp_min(0), U.flip(-1)
    floor = _EPS * F.square().sum((-2, -1)) * (1.0 if C is None else torch.linalg.matrix_norm(C))
    live = (values > floor.unsqueeze(-1)).unsqueeze(-2)  # (..., 1, k)
    if C is not None and not bool(live[..., :rank].all()):
        seen = U * live
        rest = F - seen @ (seen.mT @ F)
        scale = F.square().sum((-2, -1), keepdim=True)
        K = energy_matrix(rest, None) / torch.where(scale > 0, scale, 1.0) - seen @ seen.mT  # what is seen sorts last
        fill = torch.linalg.eigh(K).eigenvectors.flip(-1)
        place = torch.arange(U.shape[-1], device=U.device) - live.sum(-1, keepdim=True)
        U = torch.where(live, U, fill.gather(-1, place.clamp_min(0).expand_as(U)))
    return U[..., :rank], live[..., :rank], values[..., :rank]
