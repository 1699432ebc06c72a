"""The best rank-r approximation of a matrix in the metric of its inputs and outputs.

    minimise ‖G^{1/2}(W − BA)C^{1/2}‖_F      W (m, n), B (m, r), A (r, n), C (n, n) inputs, G (m, m) output gradients

The least error² is Σ_{i>r} σ_i²(G^{1/2} W C^{1/2}), and it is met without inverting C or G, so both may be singular:

    G absent:   B = U_r, A = U_rᵀW, U_r the leading eigenvectors of W C Wᵀ           (C absent: the same for Wᵀ)
    both:       A = XᵀW, B = W C Aᵀ Σ_r⁻², X = L U_r, G = L Lᵀ, U_r and Σ_r² the leading eigenpairs of Lᵀ W C Wᵀ L
    anchored:   the same for T = W + W(M − C)C⁺ in place of W (`anchored_target`)

[W C^{1/2}]_r C^{-1/2} agrees with these on the calibrated inputs and is zero off them, where these keep what B spans
of W. If C sees fewer than r directions, the ranks left over approximate W itself.
A is nested in r: rows 1…s of A and columns 1…s of B are the answer for rank s, so one call serves every budget.

Cost: with k = min(m, n): one QR of W if it is tall, products with C, one k×k `eigh`, and with both metrics a root
of the smaller one, in float64.
Working with squares, errors below 1e-8·‖G^{1/2}‖‖W‖‖C^{1/2}‖ are rounding; entries of C in float64 carry no more.

Paper: SVD-LLM (arXiv 2403.07378) whitens with a Cholesky factor of C and inverts it; Swift-SVD and AA-SVD have the
inverse-free and the anchored optimum, we keep W instead of zero where the inputs never go.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_matrix, require_rank
from eckart.linalg._weighted import energy_matrix, fit_both, fit_outputs, problem
from eckart.linalg.covariance import psd_root
from eckart.linalg.svd import singular_values


def weighted_approximation(
    W: Tensor,  # (..., m, n)
    rank: int,
    *,
    input_covariance: Tensor | None = None,  # (..., n, n)
    output_covariance: Tensor | None = None,  # (..., m, m)
    cross: Tensor | None = None,  # (..., n, n)
) -> tuple[Tensor, Tensor]:  # (..., m, r), (..., r, n)
    """The pair B, A of rank r that minimises ‖G^{1/2}(W − BA)C^{1/2}‖_F.

    Args:
        W: Matrix (..., m, n), any float dtype.
        rank: r, from 1 to min(m, n).
        input_covariance: C, positive semidefinite, of any scale; None for the identity. All zero counts as None.
        output_covariance: G, likewise.
        cross: M = X X̂ᵀ if C = X̂X̂ᵀ comes from inputs that have changed: then BA X̂ approximates W X.

    Returns:
        B (..., m, r) and A (..., r, n) in the dtype of W, best direction first. The columns of B are of unit length
        (orthonormal without an output covariance); with an output covariance alone, the rows of A are orthonormal
        instead. Directions that nothing asks for are zero.

    Raises:
        ValueError: A rank or shape that does not fit, non-finite entries, a covariance that is not positive
            semidefinite, `cross` without `input_covariance`.

    Example:
        >>> import torch
        >>> W = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> B, A = weighted_approximation(W, 1)
        >>> print((B @ A).round(decimals=4).abs())  # the larger entry of W is kept
        tensor([[3., 0.],
                [0., 0.]])
        >>> C = torch.diag(torch.tensor([1.0, 100.0]))  # the second input is ten times larger
        >>> B, A = weighted_approximation(W, 1, input_covariance=C)
        >>> print((B @ A).round(decimals=4).abs())
        tensor([[0., 0.],
                [0., 1.]])
    """
    B, _, A = weighted_svd(W, rank, input_covariance=input_covariance, output_covariance=output_covariance, cross=cross)
    return B, A


def weighted_svd(
    W: Tensor,  # (..., m, n)
    rank: int,
    *,
    input_covariance: Tensor | None = None,  # (..., n, n)
    output_covariance: Tensor | None = None,  # (..., m, m)
    cross: Tensor | None = None,  # (..., n, n)
) -> tuple[Tensor, Tensor, Tensor]:  # (..., m, r), (..., r), (..., r, n)
    """`weighted_approximation` with the singular values of its directions.

    Args:
        W: Matrix (..., m, n), any float dtype.
        rank: r, from 1 to min(m, n).
        input_covariance: C as in `weighted_approximation`.
        output_covariance: G likewise.
        cross: M likewise.

    Returns:
        B (..., m, r); the r largest singular values (..., r) of G^{1/2} W C^{1/2}, descending, in float64, of which
        those below 1e-8 of the first are rounding; A (..., r, n). In a metric that is all zero the values are zero,
        though B and A are those of the identity.

    Raises:
        ValueError: As `weighted_approximation`.

    Example:
        >>> import torch
        >>> B, S, A = weighted_svd(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), 2)
        >>> S
        tensor([3., 1.], dtype=torch.float64)
    """
    T, C, G = problem(W, input_covariance, output_covariance, cross)
    require_rank(rank, W)
    if G is None:
        B, A, squares = fit_outputs(T, C, rank)
    elif C is None:
        A, B, squares = _turned(fit_outputs(T.mT, G, rank))
    elif T.shape[-2] <= T.shape[-1]:
        B, A, squares = fit_both(T, C, G, rank)
    else:
        A, B, squares = _turned(fit_both(T.mT, G, C, rank))
    if C is not None and G is not None:
        length = B.norm(dim=-2, keepdim=True)
        length = torch.where(length > 0, length, 1.0)
        B, A = B / length, A * length.mT
    for metric in (C, G):
        if metric is not None:
            squares = torch.where((metric == 0).all(-1).all(-1, keepdim=True), 0.0, squares)
    return B.to(W.dtype), squares.sqrt(), A.to(W.dtype)


def _turned(found: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Both factors of the transposed problem as those of the problem."""
    return found[0].mT, found[1].mT, found[2]


def approximation_error(
    W: Tensor,  # (..., m, n)
    B: Tensor,  # (..., m, r)
    A: Tensor,  # (..., r, n)
    *,
    input_covariance: Tensor | None = None,  # (..., n, n)
    output_covariance: Tensor | None = None,  # (..., m, m)
    cross: Tensor | None = None,  # (..., n, n)
) -> Tensor:  # (...)
    """The weighted error ‖G^{1/2}(W − BA)C^{1/2}‖_F of any pair of factors, in float64.

    With `cross`, the error against `anchored_target`: what more rank could still remove of ‖W X − BA X̂‖_F.

    Args:
        W: Matrix (..., m, n).
        B: Left factor (..., m, r).
        A: Right factor (..., r, n).
        input_covariance: C as in `weighted_approximation`.
        output_covariance: G likewise.
        cross: M likewise.

    Returns:
        The error (...), in the units of G^{1/2} W C^{1/2}; below 1e-8·‖G^{1/2}‖‖W‖‖C^{1/2}‖ it is rounding.

    Raises:
        ValueError: Factors that do not multiply to the shape of W, and as `weighted_approximation`.

    Example:
        >>> import torch
        >>> W, B, A = torch.eye(2), torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0, 0.0]])
        >>> approximation_error(W, B, A, input_covariance=torch.diag(torch.tensor([1.0, 9.0])))
        tensor(3., dtype=torch.float64)
    """
    T, C, G = problem(W, input_covariance, output_covariance, cross)
    require_matrix("B", B)
    require_matrix("A", A)
    if B.shape[-2] != W.shape[-2] or A.shape[-1] != W.shape[-1] or B.shape[-1] != A.shape[-2]:
        raise ValueError(f"B {tuple(B.shape)} times A {tuple(A.shape)} does not give the shape of W {tuple(W.shape)}")
    D = T - B.to(torch.float64) @ A.to(torch.float64)
    weighted = D if C is None else D @ C
    if G is not None:
        weighted = G @ weighted
    return (weighted * D).sum((-2, -1)).clamp_min(0).sqrt()


def weighted_singular_values(
    W: Tensor,  # (..., m, n)
    *,
    input_covariance: Tensor | None = None,  # (..., n, n)
    output_covariance: Tensor | None = None,  # (..., m, m)
    cross: Tensor | None = None,  # (..., n, n)
) -> Tensor:  # (..., min(m, n))
    """The singular values of G^{1/2} W C^{1/2}: their tail Σ_{i>r} σ_i² is the least error² at rank r.

    Args:
        W: Matrix (..., m, n).
        input_covariance: C as in `weighted_approximation`.
        output_covariance: G likewise.
        cross: M likewise.

    Returns:
        The values (..., min(m, n)), descending, float64; below 1e-8 of the first they are rounding.

    Raises:
        ValueError: As `weighted_approximation`.

    Example:
        >>> import torch
        >>> W = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> weighted_singular_values(W, input_covariance=torch.diag(torch.tensor([1.0, 100.0])))
        tensor([10.,  3.], dtype=torch.float64)
    """
    T, C, G = problem(W, input_covariance, output_covariance, cross)
    if C is None and G is None:
        return singular_values(W)
    if C is None or (G is not None and T.shape[-2] > T.shape[-1]):
        T, C, G = T.mT, G, C
    if G is not None:
        T = psd_root(G).mT @ T
    elif T.shape[-2] > T.shape[-1]:
        T = torch.linalg.qr(T, mode="r").R
    return torch.linalg.eigvalsh(energy_matrix(T, C)).flip(-1).clamp_min(0).sqrt()
