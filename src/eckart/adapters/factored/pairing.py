"""An adapter as plain pairs, matrix name → LoraPair(B, A, scale): taken from a model, put on a model, written to files.

    Δ = s · B A = s · Σ_t B_t A_t      with B = [B₁, B₂, …], A = [A₁; A₂; …] where a part is frozen

`nn.files.lora_pairs` reads the same from the folder of a PEFT adapter; `algebra` computes with them.

Paper: none.
"""

import os
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from eckart.adapters.adapting import Adaptation, adapt
from eckart.adapters.choosing.targets import matrices_by_name
from eckart.adapters.factored.algebra import Pairs
from eckart.adapters.files import lora
from eckart.adapters.files.peft_config import common
from eckart.adapters.files.stored import gathered
from eckart.adapters.layers.place import Place, adapters, places
from eckart.adapters.layers.saved_modules import saved_modules
from eckart.adapters.using.switching import check_name, names, require_known
from eckart.linalg import product_truncate
from eckart.nn import Matrix
from eckart.nn.files import LoraPair, write_adapter
from eckart.nn.patterns import closest


def pairs(model: nn.Module, name: str = "default") -> dict[str, LoraPair]:
    """The change that an adapter makes to each matrix, as one pair each.

    Args:
        model: A model with adapters.
        name: Which.

    Returns:
        Matrix name → LoraPair(B (m, r), A (r, n), scale), detached copies in the adapter's dtype. Frozen parts
        (what a spectral start takes out, ReLoRA's finished pairs) are in them.

    Raises:
        ValueError: No adapter of that name, or its change is not scale · B A: a trained magnitude (DoRA), no thin
            product (LoKr), stacks of matrices. Biases and modules trained whole are left out, with a warning.

    Example:
        >>> model = nn.Sequential(nn.Linear(6, 4))
        >>> _ = adapt(model, rank=2)
        >>> B, A, scale = pairs(model)["0"]
        >>> tuple(B.shape), tuple(A.shape), scale
        ((4, 2), (2, 6), 2.0)
    """
    require_known((name,), names(model), "name")
    found = {}
    for matrix, place in places(model, name).items():
        terms = _terms(name, place)
        B, A = torch.cat([B for B, _, _ in terms], -1), torch.cat([A for _, A, _ in terms], -2)
        found[matrix] = LoraPair(B.detach(), A.detach(), place.held[name].scale)
    _warn_of_others(model, name)
    return found


def attach(model: nn.Module, changes: Pairs, name: str = "default") -> Adaptation:
    """Put pairs on a model as a named adapter, active and ready to train on, as `adapt` leaves one.

    Args:
        model: The model that they belong to, with or without adapters.
        changes: Matrix name → pair. Ranks above min(m, n) are cut to it, which changes nothing.
        name: What to call the adapter.

    Returns:
        Adaptation.

    Raises:
        ValueError: A name that the model has not (the message gives the closest), a shape that does not fit, or an
            adapter's name in use. The model is then as it was.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2, bias=False))
        >>> pair = LoraPair(torch.ones(2, 1), torch.ones(1, 3), 0.5)
        >>> _ = attach(model, {"0": pair})
        >>> (model(torch.eye(3)) - model[0].base(torch.eye(3))).detach().round(decimals=4)
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    check_name(model, name)
    known = matrices_by_name(model)
    ready = {matrix: _fitting(matrix, pair, known) for matrix, pair in changes.items()}
    if not ready:
        raise ValueError("changes: there is none; give matrix name → LoraPair")
    ranks = {matrix: pair.A.shape[0] for matrix, pair in ready.items()}
    dtype = next(iter(ready.values())).B.dtype
    done = adapt(model, "lora", rank=ranks, name=name, dtype=dtype)
    by_name = {known[matrix].name: pair for matrix, pair in ready.items()}
    with torch.no_grad():
        for matrix, adapter in adapters(model, name):
            B, A, scale = by_name[matrix]
            adapter.get_parameter("B").copy_(B * (scale / adapter.scale))
            adapter.get_parameter("A").copy_(A)
    return done


def write_pairs(
    folder: str | os.PathLike[str], changes: Pairs, model: nn.Module | None = None, *, force: bool = False
) -> None:
    """Write pairs as a LoRA adapter, PEFT's two files, which PEFT, vLLM and `nn.files.lora_pairs` read.

    All matrices get one scale, since some readers know no other; where the pairs differ in it, it goes into B.

    Args:
        folder: The folder to make.
        changes: Matrix name → pair.
        model: The model that they belong to, which tells convolutions, embeddings and Conv1D apart and is named in the
            config; without it all are taken for linear layers.
        force: Replace a folder of an adapter that is already there.

    Raises:
        FileExistsError: `folder` exists and `force` is false.
        ValueError: No pairs; a name that the model has not, a shape that does not fit, or a matrix on which PEFT's
            adapter would not do the same (a bare parameter, a convolution with dilation).

    Example:
        >>> import tempfile
        >>> from eckart.nn.files import lora_pairs
        >>> folder = tempfile.mkdtemp() + "/adapter"
        >>> write_pairs(folder, {"head": LoraPair(torch.ones(2, 1), torch.ones(1, 3), 0.5)})
        >>> lora_pairs(folder)["head"].scale
        0.5
    """
    if not changes:
        raise ValueError("changes: there is none; give matrix name → LoraPair")
    known = matrices_by_name(model) if model is not None else {}
    for name, pair in changes.items():
        if model is not None:
            _check_fit(name, pair, known)
            _check_peft(name, known[name])
    scales = {pair.scale for pair in changes.values()}
    scale = scales.pop() if len(scales) == 1 else 1.0
    ranks = {name: pair.A.shape[0] for name, pair in changes.items()}
    config = lora.ranked(ranks, scale) | {
        "peft_type": "LORA",
        "fan_in_fan_out": any(known[name].kind == "conv1d" for name in changes) if known else False,
        "target_modules": list(changes),
        "inference_mode": True,
    }
    config |= common(model, list(changes), ()) if model is not None else {}
    tensors: dict[str, Tensor] = {}
    for name, (B, A, own) in changes.items():
        kind, layer = (known[name].kind, known[name].module) if known else ("linear", None)
        stored = lora.factors(kind, layer, 1, B if own == scale else B * (own / scale), A)
        tensors |= {f"{name}.{suffix}": tensor.contiguous() for suffix, tensor in stored.items()}
    write_adapter(folder, config, tensors, force=force)


def _terms(name: str, place: Place) -> list[LoraPair]:
    """The thin products of one adapter, or the reason why it is none."""
    adapter = gathered(place.held[name])
    terms = adapter.terms() if place.stack == 1 else None
    if terms is not None and adapter.magnitude is None:
        return terms
    why = f"changes a stack of {place.stack} matrices at" if place.stack > 1 else "is no thin product of two factors on"
    why = "trained a magnitude of" if adapter.magnitude is not None else why
    raise ValueError(
        f"name: {name} {why} {place.name}, so its change is not scale · B A; merge it and extract the difference"
    )


def _warn_of_others(model: nn.Module, name: str) -> None:
    """Say what the pairs do not hold, as `lora_pairs` does of files."""
    others = [
        f"the bias of {matrix}" for matrix, place in places(model, name).items() if place.held[name].bias is not None
    ]
    others += saved_modules(model, name)
    if others:
        warnings.warn(f"{name} also changes what is no low-rank update, left out: {', '.join(others)}", stacklevel=3)


def _check_fit(name: str, pair: LoraPair, known: Mapping[str, Matrix]) -> None:
    if name not in known:
        raise ValueError(f"changes: the model has no matrix {name!r}; closest: {closest(name, known, whole=True)}")
    matrix, shape = known[name], (pair.B.shape[0], pair.A.shape[-1])
    if shape != matrix.shape or matrix.stack > 1:
        m, n = matrix.shape
        raise ValueError(
            f"changes: the pair of {name} is for a matrix {shape}, and the model's is {matrix.stack}×({m}, {n})"
        )


def _fitting(name: str, pair: LoraPair, known: Mapping[str, Matrix]) -> LoraPair:
    """The pair with a rank that the matrix can have."""
    _check_fit(name, pair, known)
    largest = min(known[name].shape)
    if pair.A.shape[0] <= largest:
        return pair
    return LoraPair(*product_truncate(pair.B, pair.A, rank=largest), pair.scale)


def _check_peft(name: str, matrix: Matrix) -> None:
    why = lora.unfit(name, matrix.kind, matrix.module)
    if matrix.parameter != "weight":
        why = f"{name} is a parameter that no layer of its own applies"
    if why is not None:
        raise ValueError(f"changes: not for PEFT: {why}; leave it out, or attach the pairs and `save` the adapter")
