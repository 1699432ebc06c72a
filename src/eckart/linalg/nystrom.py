"""Keep some columns of a weight and move the others onto them: a Nyström approximation in the metric of the inputs.

    minimise ‖G^{1/2}(W − V S_J)C^{1/2}‖_F over V (m, s)      W (m, n), C (n, n) inputs, G (m, m), S_J (s, n) picks J

    V = W C_{:J} C_JJ⁻¹,      error² = tr(G W (C − C_{:J} C_JJ⁻¹ C_{J:}) Wᵀ)

so a layer that reads neurons of which J are left loses least. J grows column by column, nested: along the order π with
C_ππ = L Lᵀ and F = W_π L, the s first columns leave Σ_{j>s} ‖G^{1/2} f_j‖² and V = F_{:,:s} L_ss⁻¹. One order and one
Cholesky factor serve every s. The order is greedy: the next column is the one that removes most, ‖G^{1/2}W R e_j‖²/R_jj
with R the covariance that those before leave. So of two equal columns the second comes last.

Cost: n³ flops, in blocks: within a block the greedy choice is among the 2·BLOCK best columns only.
Paper: none; MoDeGPT (arXiv 2408.09632) orders by ridge leverage, which W does not enter and where twins tie.
"""

import torch
from torch import Tensor

from eckart.linalg._check import require_finite, require_matrix, working_dtype
from eckart.linalg.covariance import known, psd_root, require_covariance

BLOCK = 32


@torch.no_grad()
def nystrom(
    W: Tensor,  # (m, n)
    *,
    input_covariance: Tensor | None = None,  # (n, n)
    output_covariance: Tensor | None = None,  # (m, m)
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An order of the columns, and all that is needed to keep any number of the first ones.

    Args:
        W: Matrix (m, n), any float dtype.
        input_covariance: C, positive semidefinite; None or all zero: the identity. Its diagonal is raised by the
            rounding of its dtype, 10 ε‖C‖_F, so that it may be singular.
        output_covariance: G, likewise, as it is.

    Returns:
        order: (n,) int64, the columns, the most useful first.
        F: (m, n) and
        L: (n, n) lower triangular, in W's dtype, float32 at least (see `nystrom_weight`).
        errors: (n + 1,) float64, the squared error when so many are kept, not increasing, the last 0.

    Raises:
        ValueError: W or a covariance is not finite, of a shape that does not fit, or not positive semidefinite.

    Example:
        >>> W = torch.tensor([[1.0, 1.0, 3.0]])
        >>> C = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])  # the first two read the same
        >>> order, F, L, errors = nystrom(W, input_covariance=C)
        >>> errors.round(decimals=3).abs()
        tensor([13.,  4.,  0.,  0.], dtype=torch.float64)
        >>> nystrom_weight(F, L, 2).round(decimals=3)
        tensor([[3., 2.]])
    """
    require_matrix("W", W)
    require_finite("W", W)
    m, n = W.shape
    T = W.to(torch.float64)
    C = torch.eye(n, dtype=torch.float64, device=W.device)
    if input_covariance is not None:
        C = known(require_covariance("input_covariance", input_covariance, n))
        ridge = 10 * torch.finfo(input_covariance.dtype).eps * torch.linalg.matrix_norm(C)
        C = C + ridge * torch.eye(n, dtype=C.dtype, device=C.device)
    half = None
    if output_covariance is not None:
        half = psd_root(known(require_covariance("output_covariance", output_covariance, m))).mT
    order = _greedy(T if half is None else half @ T, C)
    L = torch.linalg.cholesky(C[order][:, order])
    F = T[:, order] @ L
    energies = (F if half is None else half @ F).square().sum(0)
    errors = torch.cat((energies.flip(0).cumsum(0).flip(0), energies.new_zeros(1)))
    dtype = working_dtype(W.dtype)
    return order, F.to(dtype), L.to(dtype), errors


def nystrom_weight(
    F: Tensor,  # (m, n)
    L: Tensor,  # (n, n)
    size: int,
) -> Tensor:  # (m, size)
    """The weight V of the first `size` columns of `nystrom`'s order that makes up best for the others.

    Args:
        F: As `nystrom` gives it.
        L: Likewise.
        size: From 0 to n.

    Returns:
        V, in the dtype of F.

    Raises:
        ValueError: size outside its range.

    Example:
        >>> order, F, L, errors = nystrom(torch.tensor([[1.0, -3.0, 2.0]]))
        >>> order, nystrom_weight(F, L, 2).round(decimals=3)
        (tensor([1, 2, 0]), tensor([[-3.,  2.]]))
    """
    if not 0 <= size <= L.shape[-1]:
        raise ValueError(f"size: {size}; give a number from 0 to {L.shape[-1]}")
    head, triangle = F[:, :size].double(), L[:size, :size].double()
    return torch.linalg.solve_triangular(triangle, head, upper=False, left=False).to(F.dtype)


def _greedy(
    W: Tensor,  # (m, n) float64, its outputs weighted
    C: Tensor,  # (n, n) float64, positive definite
) -> Tensor:  # (n,)
    """The columns in the order in which they remove most of ‖W C^{1/2}‖², block by block."""
    n = len(C)
    R, T = C.clone(), W @ C  # of what is left: covariance and W times it
    left = torch.ones(n, dtype=torch.bool, device=C.device)
    order: list[Tensor] = []
    floor = 1e-14 * C.diagonal().amax()
    for start in range(0, n, BLOCK):
        gains = torch.where(left, T.square().sum(0) / R.diagonal().clamp_min(floor), -1.0)
        best = gains.topk(min(2 * BLOCK, n - start)).indices
        picked = best[_greedy_few(T[:, best], R[best][:, best], min(BLOCK, n - start), floor)]
        left[picked] = False
        order.append(picked)
        P = torch.linalg.cholesky(R[picked][:, picked] + floor * torch.eye(len(picked), dtype=R.dtype, device=R.device))
        K = torch.linalg.solve_triangular(P, R[picked], upper=False)  # (b, n)
        Z = torch.linalg.solve_triangular(P, T[:, picked].mT, upper=False)  # (b, m)
        R.addmm_(K.mT, K, alpha=-1)
        T.addmm_(Z.mT, K, alpha=-1)
    return torch.cat(order)


def _greedy_few(T: Tensor, R: Tensor, count: int, floor: Tensor) -> Tensor:  # (m, c), (c, c) -> (count,)
    """The same one by one, among few columns."""
    left = torch.ones(len(R), dtype=torch.bool, device=R.device)
    picked = []
    for _ in range(count):
        variance = R.diagonal().clamp_min(floor)
        best = torch.where(left, T.square().sum(0) / variance, -1.0).argmax(keepdim=True)  # (1,): no host read
        picked.append(best)
        left[best] = False
        row = R[best] / variance[best]  # (1, c)
        T = T - T[:, best] * row
        R = R - R[:, best] * row
    return torch.cat(picked)
