"""Starts from what the layers read: the directions in which inputs vary (EVA), or a weight seen with them (CorDA).

    EVA:    Σ (x − x̄)(x − x̄)ᵀ/N = V Λ Vᵀ:   A₀ = V_rᵀ, B₀ = 0; of all matrices' λ_i/Σλ, at most ρr from each, the N·r
            largest say how many directions each has                                                  (2410.07170)
    CorDA:  C = Σ x xᵀ/N, damped;  W C = U Σ Vᵀ:   B₀ = U√(Σ/s), A₀ = √(Σ/s) VᵀC⁻¹, of the largest σ ("ipm": fit the
            previewed task) or of the smallest ("kpm": keep what the batches show)                    (2406.05223)

C⁻¹ is not needed: VᵀC⁻¹ = Σ⁻¹UᵀW, so s·B₀A₀ = U Uᵀ W, with no more than U of W C. B₀A₀ is subtracted by a frozen pair.

Cost: one forward pass for each batch. EVA: block Lanczos on each different (n, n), once for all that read one input.
CorDA: m n² for W C, and block Lanczos, or for "kpm" an eigendecomposition in float64.

Paper: EVA's code streams an incremental SVD until its components settle; ours has the exact covariance, and where an
input has fewer directions than the rank, the rest of A is drawn as LoRA's (it could not learn at λ = 0). s is α/r for
all matrices, whatever rank they get, as α·r'/r makes it in theirs. CorDA's code divides each sample by its largest
entry; ours scales C to a mean variance of 1, and damps it by 0.01 as theirs, never by more (theirs doubles that where
float32 fails).
"""

import torch
from torch import Tensor

from eckart.adapters.shapes.two_factor import TwoFactor
from eckart.adapters.starts.split import drawn, fill, rounding
from eckart.adapters.starts.start import Look, LookAtAll, Prepared, not_seen
from eckart.linalg import map_side_by_side, smallest_svd, truncated_svd
from eckart.nn import Matrix, Observation

DAMPING = 0.01  # of the mean variance


def components(look: LookAtAll) -> dict[str, Prepared]:
    """EVA's ranks, and for each matrix the directions of its input with their shares of the variance."""
    rho = look.options["rho"]
    if not rho >= 1:
        raise ValueError(f"rho: {rho!r}; a matrix may have rho times the rank, so give a number of at least 1")
    most = {
        matrix.name: min(int(rho * look.ranks[matrix.name]), *matrix.shape) if look.free else look.ranks[matrix.name]
        for matrix in look.matrices
    }
    found = _directions(look, most)
    shares = {name: share[: most[name]].tolist() for name, (_, _, share) in found.items()}
    ranks = _shared_out(shares, sum(look.ranks.values())) if look.free else look.ranks
    return {
        name: Prepared(ranks[name], (Vh, live), {"explained variance": [round(s, 6) for s in shares[name]]})
        for name, (Vh, live, _) in found.items()
    }


def principal(adapter: TwoFactor, look: Look) -> None:
    """EVA: A is the leading directions of the input, B zero."""
    Vh, live = look.given
    r = adapter.rank
    random = drawn(adapter, look.generator)
    adapter.A.copy_(torch.where(live[..., :r, None], Vh[..., :r, :].to(random), random))
    adapter.B.zero_()


def oriented(adapter: TwoFactor, look: Look) -> None:
    """CorDA: the directions in which W and its inputs are largest together, or smallest."""
    mode = look.options["mode"]
    if mode not in ("ipm", "kpm"):
        raise ValueError(f"mode: {mode!r}; give 'ipm' (fit the previewed task) or 'kpm' (keep what the batches show)")
    seen = _with_covariance(look.matrix, look.seen)
    W, C = look.exact_weight(), _damped(seen.input_second_moment)  # type: ignore[arg-type]
    if mode == "ipm":
        WC = W @ C.to(W)
        U, S, _ = truncated_svd(WC, adapter.rank, method="krylov")
    else:  # the smallest directions of a product of two steep spectra need float64
        W = W.double()
        WC = W @ C.double()
        U, S, _ = smallest_svd(WC, adapter.rank)
    dead = rounding(WC).unsqueeze(-1) >= S
    root = torch.where(dead, 1.0, S * adapter.scale).sqrt()
    fill(adapter, U * (root / adapter.scale).unsqueeze(-2), U.mT @ W / root.unsqueeze(-1), dead, look.generator)
    adapter.freeze(-1.0)


def _directions(look: LookAtAll, most: dict[str, int]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """(k, n) directions, which of them have variance, and their shares of it; computed once for one tensor."""
    covariances: dict[int, Tensor] = {}
    width: dict[int, int] = {}
    members: dict[int, list[str]] = {}
    for matrix in look.matrices:
        covariance = _with_covariance(matrix, look.seen.get(matrix.name)).covariance
        assert covariance is not None
        key = id(covariance)
        covariances[key] = covariance
        width[key] = max(width.get(key, 0), most[matrix.name])
        members.setdefault(key, []).append(matrix.name)
    workers = None if all(C.device.type == "cpu" for C in covariances.values()) else 1
    results = map_side_by_side(lambda key: _leading(covariances[key], width[key]), covariances, workers=workers)
    found = {}
    for done, (key, result) in enumerate(zip(covariances, results, strict=True), 1):
        found.update(dict.fromkeys(members[key], result))
        if look.progress is not None:
            look.progress(done, len(covariances), "decomposing inputs")
    return {matrix.name: found[matrix.name] for matrix in look.matrices}


def _with_covariance(matrix: Matrix, seen: Observation | None) -> Observation:
    """What was seen, with a covariance of inputs: an embedding has none, a head that is tied to it reads for itself."""
    if seen is None or seen.covariance is None or matrix.kind == "embedding":
        raise not_seen(matrix, "covariance")
    return seen


def _leading(C: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of one covariance (n, n), or a stack of them, whose matrices share a rank and so the variance."""
    _, S, Vh = truncated_svd(C, count, method="krylov")
    total = C.diagonal(dim1=-2, dim2=-1).sum()
    values = S if S.ndim == 1 else S.sum(0)
    return Vh, rounding(C).unsqueeze(-1) < S, values / total if total > 0 else torch.zeros_like(values)


def _shared_out(shares: dict[str, list[float]], budget: int) -> dict[str, int]:
    """How many of each matrix's shares are among the `budget` largest of all; the earlier matrix where they tie."""
    ordered = sorted(((share, name) for name, each in shares.items() for share in each), key=lambda pair: -pair[0])
    ranks = dict.fromkeys(shares, 0)
    for _, name in ordered[:budget]:
        ranks[name] += 1
    return ranks


def _damped(C: Tensor) -> Tensor:
    """C scaled to a mean variance of 1, plus 0.01 I."""
    mean = C.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    return C / torch.where(mean > 0, mean, 1.0) + DAMPING * torch.eye(C.shape[-1], dtype=C.dtype, device=C.device)
