"""Merge adapters into new weights, unless rounding would take too much of what they learned (see `certifying`).

    W ← round(W + Δ)   or   round(c ∘ (W + Δ)) where a magnitude trained;      b ← b + b′

All matrices are certified before one is written, each computed a second time then, so that memory holds one at a time
and a refusal changes nothing.

Paper: LoRA 2106.09685 merges without a look; so do peers.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eckart.adapters.changing.replicas import plain
from eckart.adapters.layers.saved_modules import saved_modules
from eckart.adapters.using.certifying import Certificate, Plan, Rounding
from eckart.adapters.using.switching import let_act
from eckart.nn import Progress, is_compressed, replace


@dataclass(frozen=True)
class Merged:
    """What `merge` did.

    Example:
        >>> print(Merged({"q": Certificate(0.004, 0.0, 0.05, "bfloat16")}, {}))
        merged 1 matrix; rounding took at most 0.40 % of a change (q)
    """

    certificates: dict[str, Certificate]  # of all matrices that were to be merged
    kept: dict[str, str]  # those left as they were, with their adapters: name → why

    def __str__(self) -> str:
        done = {name: each.error for name, each in self.certificates.items() if name not in self.kept}
        worst = max(done, key=done.__getitem__, default=None)
        said = f"merged {len(done)} {'matrix' if len(done) == 1 else 'matrices'}"
        said += f"; rounding took at most {done[worst]:.2%} of a change ({worst})".replace("%", " %") if worst else ""
        return said + (f"; {len(self.kept)} keep their adapters: {', '.join(self.kept)}" if self.kept else "")


def merge(
    model: nn.Module,
    names: str | Sequence[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    tolerance: float = 0.01,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    keep_unmergeable: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """Write adapters into new weight tensors and put the plain layers back.

    A quantised base becomes a plain layer with its dequantised weight, and a compressed one a dense layer, which a
    warning names: W + Δ does not fit what it holds. Modules that the adapter trained whole take the places of the
    originals. Tied weights are not merged, since that would untie them.

    Args:
        model: A model with adapters.
        names: Which to merge, added up; None for those that are active.
        dtype: Of the merged layers, weight and bias; None keeps that of the weight (a quantised layer's: as it
            dequantises). The rest of the model keeps its own: a model that is to run in float32 wants `model.float()`.
        tolerance: How large a share of any matrix's change rounding may take: its `error`, or with stochastic
            rounding the size of `lost`.
        rounding: "nearest", or "stochastic" (to bfloat16 only).
        generator: Source of stochastic rounding, on the CPU; None is a fixed seed.
        keep_unmergeable: Leave matrices above the tolerance, and tied ones, with their adapters and merge the others.
        progress: Called as progress(done, total, label) during long work.

    Returns:
        Merged: a certificate for each matrix, and which keep their adapters.

    Raises:
        ValueError: An unknown name, no active adapter, another adapter on the same matrices or modules, a tied weight,
            or rounding that takes more than the tolerance (the message names the worst matrices and the remedies). The
            model is then as it was.
        RuntimeError: The model is under DDP or FSDP.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(8, 8))
        >>> _ = adapt(model, rank=2)
        >>> print(merge(model))
        merged 1 matrix; rounding took at most 0.00 % of a change (0)
        >>> model
        Sequential(
          (0): Linear(in_features=8, out_features=8, bias=True)
        )
    """
    model = plain(model, "merge into")
    plan = Plan.of(model, names, dtype, rounding, generator)
    certificates = plan.certificates(progress)
    kept = _unmergeable(plan, certificates, tolerance)
    if kept and not keep_unmergeable:
        raise ValueError(_refusal(kept, certificates, tolerance, rounding))
    todo = [name for name in plan.live if name not in kept]
    grown = [name for name in todo if is_compressed(getattr(plan.places[name], "base", model))]
    for done, name in enumerate(todo, 1):
        _write(model, plan, name)
        if progress is not None:
            progress(done, len(todo), "merging")
    let_act({plan.places[name]: tuple(plan.live[name]) for name in kept})
    for path, module in saved_modules(model).items():
        for name in set(plan.names) & set(module.copies):
            replace(model, path, module.copies[name])
    if grown:
        warnings.warn(
            f"merge: {len(grown)} compressed layers are dense now ({', '.join(grown[:3])}): compress the model again, "
            "or keep the adapters beside them",
            stacklevel=2,
        )
    return Merged(certificates, kept)


def _unmergeable(plan: Plan, certificates: Mapping[str, Certificate], tolerance: float) -> dict[str, str]:
    """Which matrices cannot be merged, and why."""
    found = {}
    for name, each in certificates.items():
        place = plan.places[name]
        taken = _taken(each, plan.seeds[name] is not None)
        tied = [other for other in place.tied if other not in place.aliases]
        if tied:
            found[name] = f"tied to {', '.join(tied)}"
        elif not taken <= tolerance:
            found[name] = f"rounding to {each.dtype} takes {taken:.2%} of its change".replace("%", " %")
    return found


def _taken(certificate: Certificate, stochastic: bool) -> float:
    """The share of the change that the tolerance is about: stochastic rounding is right in the mean only."""
    return abs(certificate.lost) if stochastic else certificate.error


def _refusal(kept: Mapping[str, str], certificates: Mapping[str, Certificate], tolerance: float, rounding: str) -> str:
    tied = [f"{name} ({why})" for name, why in kept.items() if why.startswith("tied")]
    if tied:
        return (
            f"names: merging would untie {', '.join(tied)}: give it a weight of its own first (module.weight = "
            "nn.Parameter(module.weight.clone()), tie_word_embeddings = False in a config), or keep_unmergeable=True"
        )
    worst = sorted(kept, key=lambda name: -_taken(certificates[name], rounding == "stochastic"))[:3]
    stochastic = ', rounding="stochastic" (--stochastic)' if rounding == "nearest" else ""
    return (
        f"tolerance: {tolerance:g} is exceeded by {len(kept)} of {len(certificates)} matrices, worst "
        + "; ".join(f"{name}: {kept[name]}" for name in worst)
        + f". Remedies: dtype=torch.float32 (--dtype float32){stochastic}, keep_unmergeable=True (in Python), or a "
        "larger tolerance"
    )


def _write(model: nn.Module, plan: Plan, name: str) -> None:
    """Merge one matrix and put its layer back."""
    place, live = plan.places[name], plan.live[name]
    _, target = plan.exact(name)
    biases = [adapter.bias.flatten() for adapter in live.values() if adapter.bias is not None]
    place.write(plan.rounded(name, target))
    base = getattr(place, "base", None)
    if base is not None and (biases or plan.dtype is not None):
        _write_bias(base, biases, plan.dtype)
    place.active = ()
    place.adapters.clear()
    place.leave(model)


@torch.no_grad()
def _write_bias(base: Any, biases: Sequence[Tensor], dtype: torch.dtype | None) -> None:
    """The bias with its changes, in a new tensor."""
    old = base.bias if hasattr(base, "bias") else None
    if old is None and not biases:
        return
    total = sum(biases, torch.zeros(()) if old is None else old)
    wanted = dtype or (base.weight if old is None else old).dtype
    base.bias = nn.Parameter(total.to(wanted), requires_grad=old is not None and old.requires_grad)
