"""What training changed: ΔW = W − W₀, its spectrum, and where it lies in the spectrum of the base W₀.

    overlap_left  φ(U_Δ, U_0) = ‖U_Δᵀ U_0‖_F² / r over the r leading left singular vectors of both, r = 8 or the
                  number of directions in which W moved beyond rounding (0: orthogonal to what the base emphasises,
                  1: the same directions); overlap_right likewise on the right.
    intruders     how many of the 10 leading left singular vectors of W have |cos| < 0.5 with *every* left singular
                  vector of W₀ (full mode only: it needs all of them).

Paper: intruder dimensions, arXiv 2410.21228 (top 10, threshold 0.5 as in its code). None.
An adapter's update B·A stays factored for its spectrum: O((m+n)r²) instead of O(mn·min(m,n)).
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from eckart import linalg
from eckart.nn import Patterns, Progress
from eckart.nn.files import lora_pairs, read_adapter

from .entry import Entry, complete_entry, rounding_of
from .sources import weight_sources
from .spectrum import Source, entry_of, measure_all

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
    if isinstance(subject, nn.Module) != isinstance(base, nn.Module):  # one side lives, the other lies in a file
        tuned = [_as_stored(s) for s in tuned]
        origin = {name: _as_stored(s) for name, s in origin.items()}
    for source in tuned:
        _require_same(source, origin)

    def measure(source: Source) -> Entry:
        W0, W = origin[source.name].read(), source.read()
        dtype = max(W0.dtype, W.dtype, key=lambda each: torch.finfo(each).eps)
        W0 = wide(W0)
        W = wide(W).to(W0.device)
        rounding = rounding_of(float(W0.norm() + W.norm()), source.shape, dtype)
        D = W - W0
        entry = entry_of(D, name=source.name, of="updates", mode=mode, rounding=rounding)
        if entry.energy:
            update = linalg.truncated_svd(D, min(LEADING, entry.count), method="krylov")
            entry.extra.update(_against_base(W0, W, update, rounding, mode))
        entry.extra.update(_relative(entry, W0))
        return entry

    return measure_all(tuned, measure, progress=progress, bounded=not isinstance(subject, nn.Module))


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
    files = read_adapter(adapter)
    pairs = lora_pairs(files)
    # transformers' Conv1D is (out, in) in a live model, as in the pairs, but (in, out) on disk.
    stored_transposed = not isinstance(subject, nn.Module) and bool(files.config.get("fan_in_fan_out"))
    everything = {source.name: source for source in weight_sources(subject)}
    if unknown := sorted(set(pairs) - set(everything)):
        raise ValueError(f"adapter {adapter} changes {unknown[:5]}, which the base does not have; pass its own base")
    chosen = [source for source in weight_sources(subject, targets, exclude) if source.name in pairs]
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
        values = torch.zeros(min(W0.shape), dtype=torch.float64)
        values[: len(update[1])] = update[1].to(values)
        rounding = rounding_of(float(values.norm()), source.shape, B.dtype)
        extra = {"adapter_rank": A.shape[0]}
        entry = complete_entry(source.name, "updates", source.shape, values, rounding, extra)
        if entry.energy:
            entry.extra.update(_against_base(W0, W0 + B @ A, update, rounding, mode))
        entry.extra.update(_relative(entry, W0))
        return entry

    return measure_all(chosen, measure, progress=progress, bounded=not isinstance(subject, nn.Module))


def wide(W: Tensor) -> Tensor:
    """The matrix in the dtype that linalg computes in: float32, or float64 where it is."""
    return W.to(linalg.working_dtype(W.dtype))


def _against_base(
    W0: Tensor,  # (m, n)
    W: Tensor,  # (m, n)
    update: tuple[Tensor, Tensor, Tensor],  # U (m, k), S (k,), Vh (k, n) of W − W₀, its leading ones at least
    rounding: float,
    mode: str,
) -> dict[str, float | int | None]:
    U, S, Vh = update
    r = min(LEADING, max(1, int((rounding < S).sum())))
    full = mode == "full"
    count = min(W0.shape) if full else r
    U0, _, Vh0 = linalg.truncated_svd(W0, count, method="auto" if full else "krylov")
    return {
        "overlap_left": float(linalg.overlap(U[:, :r], U0[:, :r])),
        "overlap_right": float(linalg.overlap(Vh[:r].mT, Vh0[:r].mT)),
        "intruders": _intruders(W, U0) if full else None,
    }


def _intruders(W: Tensor, U0: Tensor) -> int:
    U, _, _ = linalg.truncated_svd(W, min(INTRUDER_COUNT, *W.shape), method="krylov")
    closest = (U.mT @ U0).abs().amax(dim=-1)  # (10,)
    return int((closest < INTRUDER_COSINE).sum())


def _relative(entry: Entry, W0: Tensor) -> dict[str, float | None]:
    norm = float(W0.norm())
    return {"relative_norm": entry.energy**0.5 / norm if norm else None}


def _as_stored(source: Source) -> Source:
    """The source in the orientation of files, where the live model's is the transpose of it."""
    if not source.flipped:
        return source
    return replace(source, shape=source.shape[::-1], read=lambda: source.read().mT)


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
