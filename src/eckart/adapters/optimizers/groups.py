"""Parameter groups of an adapted model: who learns at which rate, for any torch optimizer.

    LoRA+        lr_B = λ · lr, λ = 16: B starts at 0, and in wide models needs a far larger rate than A
    Deep LoRA    lr of the outer factors L and R = γ · lr, γ = 0.01: they start in the right subspace and only drift

Paper: LoRA+ 2402.12354, whose code gives λ to all vectors too (biases, magnitudes); here they keep the rate and have no
weight decay. Its rate for adapters of embeddings is 1e-6. Deep LoRA 2406.04112.
"""

from typing import Any

from torch import nn

from eckart.adapters.layers.place import places


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    plus: float = 1.0,
    outer: float = 0.01,
    embeddings: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """The parameters that train, in named groups with rates of their own.

    Args:
        model: A model with adapters.
        lr: The rate of A, of other factors and of what is no adapter.
        plus: λ of LoRA+: lr_B ÷ lr; 16 is usual, with a somewhat smaller lr than without.
        outer: γ: the rate of a compressed Deep LoRA's two outer factors ÷ lr; 0 keeps them.
        embeddings: Rate of all factors of adapted embeddings, not multiplied by anything; None treats them as others.
        weight_decay: Of matrices; vectors (biases, magnitudes, norms) have none.

    Returns:
        Groups for `torch.optim` with "params", "lr", "weight_decay" and "name", the empty ones left out: "factors",
        "B", "outer", "embeddings", "vectors" of adapters, then "saved" and "saved vectors" of modules trained whole.

    Raises:
        ValueError: A rate is negative, or nothing trains.

    Example:
        >>> from eckart.adapters import adapt
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> said = adapt(model, rank=2)
        >>> [(group["name"], group["lr"]) for group in param_groups(model, 0.001, plus=16)]
        [('factors', 0.001), ('B', 0.016)]
    """
    for name, value in {"lr": lr, "plus": plus, "outer": outer, "embeddings": embeddings or 0.0}.items():
        if not value >= 0:
            raise ValueError(f"{name}: {value!r}; rates and their ratios are at least 0")
    if not places(model):
        raise ValueError("model: it has no adapters; call adapt first, or give an optimizer model.parameters()")
    roles = _roles(model, embeddings is not None)
    rates = {"B": plus * lr, "outer": outer * lr, "embeddings": embeddings if embeddings is not None else lr}
    groups: dict[str, dict[str, Any]] = {}
    for name in ("factors", "B", "outer", "embeddings", "vectors", "saved", "saved vectors"):
        decay = 0.0 if name.endswith("vectors") else weight_decay
        groups[name] = {"params": [], "lr": rates.get(name, lr), "weight_decay": decay, "name": name}
    for parameter in model.parameters():
        if parameter.requires_grad:
            saved = "saved vectors" if parameter.ndim < 2 else "saved"
            groups[roles.get(id(parameter), saved)]["params"].append(parameter)
    found = [group for group in groups.values() if group["params"]]
    if not found:
        raise ValueError("model: nothing trains; call adapt, or activate an adapter")
    return found


def _roles(model: nn.Module, embeddings: bool) -> dict[int, str]:
    """Which group each parameter of an adapter belongs to."""
    roles = {}
    for place in places(model).values():
        for adapter in place.adapters.values():
            for name, parameter in adapter.named_parameters():
                if parameter.ndim < 2:
                    roles[id(parameter)] = "vectors"
                elif embeddings and place.kind == "embedding":
                    roles[id(parameter)] = "embeddings"
                elif name in getattr(adapter, "outer", ()):
                    roles[id(parameter)] = "outer"
                else:
                    roles[id(parameter)] = "B" if name == "B" else "factors"
    return roles
