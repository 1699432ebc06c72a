"""`shrink`: give an adapter fewer directions during training, and free their parameters and optimizer state.

Triplets P Λ Q drop whole triplets: parameters and every state tensor of theirs are sliced, so that a triplet with λ = 0
leaves without a trace in the function. A pair B A is first turned so that its directions are ordered by energy,

    B A = U S Vᵀ,   B′ = U_k √S_k = B M,   A′ = √S_k V_kᵀ = N A,   M (r, k), N (k, r)

the best approximation of B A by rank k. By the chain rule the gradients of the new factors are G_B Nᵀ and Mᵀ G_A: a
first moment, linear in the gradients, turns with them exactly. A second moment is turned by the squares, V_B (N∘N)ᵀ and
(M∘M)ᵀ V_A, which leaves out the correlation between the directions that are mixed; it is right where they are not.

Paper: none; AdaLoRA 2303.10512 only masks, as does PEFT.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from eckart.adapters.adapter import Adapter
from eckart.adapters.changing.adalora import RankSchedule
from eckart.adapters.changing.replicas import refuse_replicas
from eckart.adapters.changing.swapping import Change, Factor, swap
from eckart.adapters.layers.place import Place, places
from eckart.adapters.shapes.triplets import Triplets
from eckart.adapters.shapes.two_factor import TwoFactor
from eckart.adapters.using.switching import take_off
from eckart.linalg import product_svd
from eckart.nn.patterns import closest

Wish = RankSchedule | int | float | Mapping[str, int]


def shrink(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, to: Wish, *, name: str = "default"
) -> dict[str, int]:
    """Take directions out of an adapter, and out of the optimizer that trains it, at a step boundary.

    The factors become new, smaller parameters: the optimizer's groups stay the same objects and hold them in the old
    places, with every state tensor of the old ones sliced or turned. Hooks on the old parameters are gone. A matrix
    that is left with no direction loses its adapter.

    Args:
        model: A model with adapters; not under DDP or FSDP.
        optimizer: Any torch optimizer whose state tensors are shaped like its parameters; None for none.
        to: What stays. A `RankSchedule`: the triplets that it has not pruned. A whole number: that rank at most, for
            each matrix. A share between 0 and 1: the least rank that holds this share of each product's energy
            ‖B A‖_F². Matrix name → rank: for those matrices, 0 takes the adapter away.
        name: The adapter.

    Returns:
        Matrix name → rank, as it is now.

    Raises:
        RuntimeError: The model is under DDP or FSDP, whose buckets are fixed when they are built.
        ValueError: No such adapter or matrix, a rank or share outside its range, a pair whose product is still zero.
        TypeError: A shape that has no directions to drop, or an optimizer state that cannot be followed.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 6))
        >>> _ = adapt(model, rank=4)
        >>> optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
        >>> model(torch.randn(8, 6)).square().mean().backward(); optimizer.step()
        >>> shrink(model, optimizer, 2), [tuple(p.shape) for p in optimizer.param_groups[0]["params"]]
        ({'0': 2}, [(6, 2), (2, 6)])
    """
    held = places(model, name)
    if not held:
        raise ValueError(f"name: the model has no adapter {name!r}; adapt it first")
    refuse_replicas(model, "shrink")
    read = _reader(to, held, name)
    changes, ranks = [], {}
    for place_name, place in held.items():
        change = _change(place_name, place.adapters[name], read(place_name))  # type: ignore[arg-type]
        changes.append((place, change))
        ranks[place_name] = change.rank
    swap(optimizer, [change for _, change in changes])
    settings = changes[0][1].adapter.settings
    settings.ranks.clear()
    settings.ranks.update({place_name: r for place_name, r in ranks.items() if r})
    for place, change in changes:
        if change.keep is not None and isinstance(change.adapter, Triplets):
            change.adapter.kept = change.adapter.kept[change.keep]
        if isinstance(to, RankSchedule):
            to.select(place.name, change.keep if change.rank else None)
        if not change.rank:
            take_off(model, place, name)
    return dict(settings.ranks)


def _reader(to: Wish, held: Mapping[str, Place], name: str) -> Callable[[str], int | float | Tensor | None]:
    """Matrix name → the rank at most, a share of energy, the indices of triplets, or None to leave it as it is."""
    if isinstance(to, RankSchedule):
        own = [place.adapters[name] for place in held.values()]
        if to.name != name or not all(any(made is each for each in own) for made in to.triplets().values()):
            raise ValueError(
                f"to: this schedule looks after adapter {to.name!r} of another model or name, not {name!r}"
            )
        kept = {place: adapter.kept.nonzero().squeeze(1) for place, adapter in to.triplets().items()}
        return kept.get
    if isinstance(to, Mapping):
        unknown = [key for key in to if key not in held]
        if unknown:
            raise ValueError(f"to: {name!r} has no matrix {unknown[0]!r}; closest: {closest(unknown[0], held)}")
    for value in to.values() if isinstance(to, Mapping) else [to]:
        whole = (
            isinstance(value, int) and not isinstance(value, bool) and value >= (0 if isinstance(to, Mapping) else 1)
        )
        if not whole and not (isinstance(value, float) and not isinstance(to, Mapping) and 0 < value < 1):
            raise ValueError(
                f"to: {value!r}; give a whole number (a rank), a share of the energy between 0 and 1, matrix name → "
                "rank, or a RankSchedule"
            )
    return to.get if isinstance(to, Mapping) else lambda place: to


def _change(place: str, adapter: Adapter, wish: int | float | Tensor | None) -> Change:
    """What one adapter becomes."""
    if wish is None or (isinstance(wish, int) and wish >= adapter.rank):
        return Change(adapter, adapter.rank, keep=None)
    if isinstance(adapter, Triplets):
        return _sliced(adapter, wish)
    if not isinstance(adapter, TwoFactor) or isinstance(wish, Tensor):
        raise TypeError(f"{place}: {type(adapter).__name__} has no directions to drop; shrink works on B A and P Λ Q")
    return _turned(place, adapter, wish)


def _least(adapter: Adapter) -> int:
    """0, or 1 where an adapter without directions would still change the layer."""
    return 0 if adapter.magnitude is None and adapter.bias is None and adapter.frozen_B is None else 1


def _sliced(adapter: Triplets, wish: int | float | Tensor) -> Change:
    """The triplets that stay, in the order that they had."""
    sizes = adapter.Lambda.detach().double().square()
    sizes = sizes * adapter.P.detach().double().square().sum(-2) * adapter.Q.detach().double().square().sum(-1)
    sizes = sizes if sizes.ndim == 1 else sizes.sum(0)  # (r,) energy of each triplet alone
    order = sizes.argsort(descending=True, stable=True)
    least = _least(adapter)
    if isinstance(wish, Tensor):
        keep = wish if len(wish) >= least else order[:least]
    else:
        keep = order[: max(least, _count(sizes[order], wish))].sort().values
    if len(keep) == adapter.rank:
        return Change(adapter, adapter.rank, keep=keep)

    def along(dim: int) -> Callable[[Tensor, bool], Tensor]:
        return lambda tensor, _: tensor.index_select(dim, keep)

    dims = Triplets.rank_dims
    factors = {key: Factor(along(dim)(getattr(adapter, key).detach(), False), along(dim)) for key, dim in dims.items()}
    return Change(adapter, len(keep), factors, keep)


def _turned(place: str, adapter: TwoFactor, wish: int | float) -> Change:
    """The leading directions of B A, balanced."""
    B, A = adapter.B.detach().double(), adapter.A.detach().double()
    U, S, Vh = product_svd(B, A)
    rank = max(_least(adapter), _count((S if S.ndim == 1 else S.norm(dim=0)).square(), wish))
    if rank == 0:
        return Change(adapter, 0, {key: _nothing(getattr(adapter, key).detach()) for key in ("B", "A")})
    if not bool((S[..., rank - 1] > torch.finfo(adapter.B.dtype).eps * S[..., 0]).all()):
        raise ValueError(
            f"to: the product of {place} has fewer than {rank} directions yet (B starts at zero); train it first, or "
            "adapt with that rank"
        )
    root = S[..., :rank].sqrt()
    turn_A = (root.reciprocal().unsqueeze(-1) * U[..., :rank].mT) @ B  # N (k, r) = S^-1/2 Uᵀ B: N A = √S Vᵀ
    turn_B = A @ (Vh[..., :rank, :].mT * root.reciprocal().unsqueeze(-2))  # M (r, k) = A V S^-1/2: B M = U √S
    dtype = adapter.B.dtype
    factors = {
        "B": Factor((B @ turn_B).to(dtype), lambda t, sq: _mix(t, sq, lambda x, T: x @ T.mT, turn_A)),
        "A": Factor((turn_A @ A).to(dtype), lambda t, sq: _mix(t, sq, lambda x, T: T.mT @ x, turn_B)),
    }
    return Change(adapter, rank, factors)


def _mix(tensor: Tensor, squares: bool, apply: Callable[[Tensor, Tensor], Tensor], T: Tensor) -> Tensor:
    """A state tensor in the new basis; one of squares turns by the squares."""
    return apply(tensor.double(), T.square() if squares else T).to(tensor.dtype)


def _nothing(factor: Tensor) -> Factor:
    return Factor(factor.new_zeros(0), lambda tensor, _: tensor.new_zeros(0))


def _count(energies: Tensor, wish: int | float) -> int:
    """How many of some descending energies stay."""
    if isinstance(wish, int):
        return min(wish, len(energies))
    tail = energies.flip(0).cumsum(0).flip(0)
    return max(1, int((tail > (1 - wish) * tail[0]).sum()))
