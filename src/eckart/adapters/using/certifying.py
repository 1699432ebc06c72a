"""What merging would take from an adapter: the rounding of W + Δ, measured against Δ, for each matrix.

    W′ = round(W + Δ)   or   round(c ∘ (W + Δ)),      with Δ′ = W + Δ − W (or c ∘ (W + Δ) − W) the change,
    error = ‖W′ − W − Δ′‖ / ‖Δ′‖,      lost = −⟨W′ − W − Δ′, Δ′⟩ / ‖Δ′‖²

A change is small beside its weight, so what rounding to bfloat16 takes of the sum is much of the change: for Gaussian
W and Δ the error is 6, 17, 48 and 79 % at ‖Δ‖/‖W‖ = 3e-2, 1e-2, 3e-3 and 1e-3 (in float16 0.7, 2, 7 and 21 %).
To nearest, entries of Δ far below a step of the grid all stay where they were: in bfloat16 47 % of the change is lost
at 1e-3, 7 % at 3e-3, and above that the error is noise. Stochastic rounding makes a larger error (24 % at 1e-2) of
mean zero at every size, so sums over many entries are right; there `lost` is what counts.
Cost: O(mnr) and some (m, n) temporaries for each matrix, one at a time.

Paper: none; no peer reports the error.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.layers.magnitude import row_factor
from eckart.adapters.layers.place import Place, places
from eckart.adapters.layers.saved_modules import SavedModule, saved_modules
from eckart.adapters.using import switching
from eckart.linalg import stochastic_round
from eckart.nn import Progress

Rounding = Literal["nearest", "stochastic"]


class Certificate(NamedTuple):
    """What merging does to one matrix."""

    error: float  # ‖W′ − W − Δ′‖ / ‖Δ′‖
    lost: float  # the share of Δ′ that is missing along Δ′ itself
    size: float  # ‖Δ′‖ / ‖W‖
    dtype: str  # of W′


def certify(
    model: nn.Module,
    names: str | Sequence[str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    rounding: Rounding = "nearest",
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> dict[str, Certificate]:
    """What `merge` would do to each matrix, without doing it.

    Args:
        model: A model with adapters.
        names: As for `merge`.
        dtype: As for `merge`.
        rounding: As for `merge`.
        generator: As for `merge`, which gives the same from a generator in the same state.
        progress: As for `merge`.

    Returns:
        Matrix name → Certificate.

    Raises:
        ValueError: An unknown name, no active adapter, or another adapter on the same matrices.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(64, 64)).bfloat16()
        >>> _ = adapt(model, rank=2)
        >>> _ = nn.init.constant_(model[0].adapters["default"].B, 1e-3)
        >>> certificate = certify(model)["0"]
        >>> certificate.error > 0.1, certificate.dtype
        (True, 'bfloat16')
        >>> certify(model, dtype=torch.float32)["0"].error < 1e-4
        True
    """
    return Plan.of(model, names, dtype, rounding, generator).certificates(progress)


class Plan(NamedTuple):
    """What is to be merged, checked, and how it is rounded."""

    names: tuple[str, ...]
    places: dict[str, Place]
    live: dict[str, dict[str, Adapter]]  # matrix name → the adapters to merge
    dtype: torch.dtype | None
    seeds: dict[str, int | None]  # of stochastic rounding; None to nearest

    @staticmethod
    def of(
        model: nn.Module,
        wanted: str | Sequence[str] | None,
        dtype: torch.dtype | None,
        rounding: str,
        generator: torch.Generator | None,
    ) -> "Plan":
        if rounding not in ("nearest", "stochastic"):
            raise ValueError(f'rounding: {rounding!r}; give "nearest" or "stochastic"')
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype: {dtype} is no floating-point type; give torch.float32 or another")
        chosen = _chosen(model, wanted)
        held = {name: place for name, place in places(model).items() if set(chosen) & set(place.held)}
        live = {n: {a: p.held[a] for a in chosen if a in p.held} for n, p in held.items()}
        for name, place in held.items():
            _check(place, tuple(live[name]))
        _check_modules(saved_modules(model), chosen)
        generator = generator if generator is not None else torch.Generator().manual_seed(0)
        drawn = torch.randint(2**62, (len(held),), generator=generator).tolist()
        seeds = dict(zip(held, drawn if rounding == "stochastic" else [None] * len(held), strict=True))
        plan = Plan(chosen, held, live, dtype, seeds)
        for name, place in held.items() if rounding == "stochastic" else ():
            if (goal := plan.goal(place)) != torch.bfloat16:
                raise ValueError(f'rounding: "stochastic" goes to bfloat16, and {name} is to be {goal}; use "nearest"')
        return plan

    def goal(self, place: Place) -> torch.dtype:
        return self.dtype or place.weight_matrix().dtype

    @torch.no_grad()
    def exact(self, name: str) -> tuple[Tensor, Tensor]:  # two (m, n), or (stack, m, n)
        """W and c ∘ (W + Δ), in a dtype wide enough to see what rounding to a narrower one takes."""
        place, live = self.places[name], self.live[name].values()
        frozen = place.weight_matrix()
        wide = torch.float64 if torch.finfo(self.goal(place)).bits >= 32 else torch.float32
        W = frozen.to(wide)
        target = W + sum(adapter.delta().to(wide) for adapter in live)
        for adapter in live:
            if adapter.magnitude is not None:
                target = row_factor(adapter, frozen).to(wide).unsqueeze(-1) * target
        return W, target

    def rounded(self, name: str, target: Tensor) -> Tensor:
        seed = self.seeds[name]
        if seed is None:
            return target.to(self.goal(self.places[name]))
        return stochastic_round(target.float(), generator=torch.Generator(target.device).manual_seed(seed))

    def certificates(self, progress: Progress | None) -> dict[str, Certificate]:
        found = {}
        for done, name in enumerate(self.live, 1):
            W, target = self.exact(name)
            new = self.rounded(name, target)
            found[name] = _certificate(W, target, new)
            if progress is not None:
                progress(done, len(self.live), "certifying")
        return found


def _certificate(W: Tensor, target: Tensor, new: Tensor) -> Certificate:
    change, missed = target - W, new.to(target.dtype) - target
    norm = float(torch.linalg.vector_norm(change))
    size = norm / max(float(torch.linalg.vector_norm(W)), torch.finfo(torch.float64).tiny)
    dtype = str(new.dtype).removeprefix("torch.")
    if norm == 0:
        return Certificate(0.0, 0.0, 0.0, dtype)
    error = float(torch.linalg.vector_norm(missed)) / norm
    lost = -float((missed / norm * (change / norm)).sum(dtype=torch.float64))
    return Certificate(error, lost, size, dtype)


def _chosen(model: nn.Module, wanted: str | Sequence[str] | None) -> tuple[str, ...]:
    known = switching.names(model)
    if wanted is None:
        active = {name for place in places(model).values() for name in place.active}
        if not active:
            raise ValueError(f"names: no adapter is active; name those to merge, of {', '.join(known) or 'none'}")
        return tuple(name for name in known if name in active)
    wanted = (wanted,) if isinstance(wanted, str) else tuple(dict.fromkeys(wanted))
    if not wanted:
        raise ValueError("names: none given; name the adapters to merge, or give None for those that are active")
    switching.require_known(wanted, known, "names")
    return wanted


def _check(place: Place, live: tuple[str, ...]) -> None:
    switching.check_magnitudes(place, live)
    others = [name for name in place.held if name not in live]
    if others:
        raise ValueError(
            f"names: {place.name} has {', '.join(others)} too, which changes the weight as it is now; remove it, or "
            "name it to merge the sum"
        )
    if place.kind == "embedding" and any(place.held[name].bias is not None for name in live):
        raise ValueError(f"names: the embedding {place.name} has no bias to merge one into; keep its adapter")


def _check_modules(saved: Mapping[str, SavedModule], live: tuple[str, ...]) -> None:
    """A module trained whole is taken from one adapter, and must not be another's that stays."""
    switching.check_copies(saved, live)
    for name, module in saved.items():
        others = [adapter for adapter in module.copies if adapter not in live]
        if others and len(others) < len(module.copies):
            raise ValueError(f"names: {', '.join(others)} trained {name} whole too, and would lose it; remove it first")
