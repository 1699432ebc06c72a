"""What training changed: ΔW = W − W₀, its spectrum, and where it lies in the spectrum of the base W₀.

    overlap_left  φ(U_Δ, U_0) = ‖U_Δᵀ U_0‖_F² / r over the r leading left singular vectors of both, r = 8 or the
                  number of directions in which W moved beyond rounding (0: orthogonal to what the base emphasises,
                  1: the same directions); overlap_right likewise on the right.
    intruders     how many of the 10 leading left singular vectors of W have |cos| < 0.5 with *every* left singular
                  vector of W₀ (full mode only: it needs all of them).

Paper: intruder dimensions, arXiv 2410.21228 (top 10, threshold 0.5 as in its code). None.
An adapter's update B·A stays factored for its spectrum: O((m+n)r²) instead of O(mn·min(m,n)).
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from eckart import linalg
from eckart.nn.files import lora_pairs, read_adapter

from .entry import Entry, complete_entry
from .spectrum import Progress, Source, entry_of, measure_all, wide
from .weights import Patterns, weight_sources

LEADING = 8
INTRUDER_COUNT = 10
INTRUDER_COSINE = 0.5


def measure_updates(
    subject: nn.Module | str | Path,
    base: nn.Module | str | Path,
    *,
    mode: str,
    targets: Patterns = None,
    exclude: Patterns = None,
    progress: Progress | None = None,
) -> list[Entry]:
    """The spectrum of W − W₀ for every matrix of `subject`, W₀ being the matrix of the same name in `base`.

    Raises:
        ValueError: The base lacks a matrix, or has it in another shape.
    """
    origin = {source.name: source for source in weight_sources(base, targets, exclude)}
    tuned = weight_sources(subject, targets, exclude)
    for source in tuned:
        _require_same(source, origin)

    def measure(source: Source) -> Entry:
        W0 = wide(origin[source.name].read())
        W = wide(source.read()).to(W0.device)
        entry = entry_of(W - W0, name=source.name, of="updates", mode=mode)
        if entry.energy:
            entry.extra.update(_against_base(W0, W, linalg.truncated_svd(W - W0, min(LEADING, entry.count)), mode))
        entry.extra.update(_relative(entry, W0))
        return entry

    return measure_all(tuned, measure, progress=progress)


def measure_adapter(
    subject: nn.Module | str | Path,
    adapter: str | Path,
    *,
    mode: str,
    targets: Patterns = None,
    exclude: Patterns = None,
    progress: Progress | None = None,
) -> list[Entry]:
    """The spectrum of the update s·B·A of every matrix that a PEFT adapter folder changes; `subject` is its base.

    Raises:
        ValueError: The adapter changes a matrix that the base does not have, or fits another shape.
    """
    pairs = lora_pairs(adapter)
    # transformers' Conv1D is (out, in) in a live model, as in the pairs, but (in, out) on disk.
    stored_transposed = not isinstance(subject, nn.Module) and bool(read_adapter(adapter).config.get("fan_in_fan_out"))
    sources = {source.name: source for source in weight_sources(subject, targets, exclude)}
    if targets is None and exclude is None and (unknown := sorted(set(pairs) - set(sources))):
        raise ValueError(
            f"adapter {adapter} changes {unknown[:5]}, which the base does not have; pass its own base model"
        )
    chosen = [source for name, source in sources.items() if name in pairs]
    if not chosen:
        raise ValueError(f"adapter {adapter} changes none of the selected matrices; it has {sorted(pairs)[:5]}")

    def measure(source: Source) -> Entry:
        B, A, scale = pairs[source.name]
        W0 = wide(source.read())
        B, A = scale * wide(B).to(W0.device), wide(A).to(W0.device)
        if stored_transposed:
            B, A = A.mT, B.mT
        _require_fit(B, A, W0)
        update = linalg.product_svd(B, A)
        S = update[1]
        padded = torch.zeros(min(W0.shape), dtype=torch.float64)
        padded[: len(S)] = S.to(padded)
        entry = complete_entry(source.name, "updates", (W0.shape[0], W0.shape[1]), padded, {"adapter_rank": A.shape[0]})
        if entry.energy:
            entry.extra.update(_against_base(W0, W0 + B @ A, update, mode))
        entry.extra.update(_relative(entry, W0))
        return entry

    return measure_all(chosen, measure, progress=progress)


def _against_base(
    W0: Tensor,  # (m, n)
    W: Tensor,  # (m, n)
    update: tuple[Tensor, Tensor, Tensor],  # U (m, k), S (k,), Vh (k, n) of W − W₀, its leading ones at least
    mode: str,
) -> dict[str, float | int | None]:
    U, S, Vh = update
    rounding = torch.finfo(S.dtype).eps * torch.maximum(W0.norm(), S[0] * max(W0.shape))
    r = min(LEADING, max(1, int(S.gt(rounding).sum())))
    full = mode == "full"
    U0, _, Vh0 = linalg.truncated_svd(W0, min(W0.shape) if full else r)
    return {
        "overlap_left": float(linalg.overlap(U[:, :r], U0[:, :r])),
        "overlap_right": float(linalg.overlap(Vh[:r].mT, Vh0[:r].mT)),
        "intruders": _intruders(W, U0) if full else None,
    }


def _intruders(W: Tensor, U0: Tensor) -> int:
    U, _, _ = linalg.truncated_svd(W, min(INTRUDER_COUNT, *W.shape))
    closest = (U.mT @ U0).abs().amax(dim=-1)  # (10,)
    return int((closest < INTRUDER_COSINE).sum())


def _relative(entry: Entry, W0: Tensor) -> dict[str, float | None]:
    norm = float(W0.norm())
    return {"relative_norm": entry.energy**0.5 / norm if norm else None}


def _require_fit(B: Tensor, A: Tensor, W0: Tensor) -> None:
    shape = (B.shape[0], A.shape[1])
    if shape != tuple(W0.shape):
        raise ValueError(
            f"the adapter's update is {shape}, the base's matrix is {tuple(W0.shape)}; pass the adapter's own base"
        )


def _require_same(source: Source, origin: dict[str, Source]) -> None:
    if source.name not in origin:
        raise ValueError(f"base has no matrix {source.name!r}; pass the model that was fine-tuned, or exclude it")
    if origin[source.name].shape != source.shape:
        raise ValueError(
            f"{source.name}: shape {source.shape} against {origin[source.name].shape} in base; "
            "pass the model that was fine-tuned, or exclude this matrix"
        )
