"""Profiles for the report's tests: small, of every shape of name, with values that are known."""

import pytest
import torch

from eckart.spectra import Entry, Profile

LAYERS = 3
SHAPES = {"self_attn.q_proj": (24, 24), "self_attn.k_proj": (8, 24), "mlp.up_proj": (48, 24)}
HOSTILE = "</script><img src=x onerror=alert(1)>&\"'\u2028"


def spectrum(count: int, decay: float) -> torch.Tensor:
    """Singular values that fall as a power of the index."""
    return 3.0 * torch.arange(1, count + 1, dtype=torch.float64) ** -decay


def entry(name: str, of: str, shape: tuple[int, int], decay: float, known: int | None = None, **extra: object) -> Entry:
    S = spectrum(min(shape), decay)
    return Entry(name, of, shape, S[:known].clone(), float(S.square().sum()), rounding=1e-12, extra=extra)


def entries(of: str, known: int | None = None) -> list[Entry]:
    found = [entry("model.embed_tokens", of, (200, 24), 0.4, known)]
    for layer in range(LAYERS):
        for i, (kind, shape) in enumerate(SHAPES.items()):
            found.append(entry(f"model.layers.{layer}.{kind}", of, shape, 0.2 + 0.2 * i + 0.1 * layer, known))
    return found


@pytest.fixture(scope="session")
def profile() -> Profile:
    """Weights and activations of a model of three layers, every singular value known."""
    inputs = [
        entry(f"model.layers.{i}.self_attn.q_proj", "activations", (900, 24), 0.9, tokens=900, shared_with=("k", "v"))
        for i in range(LAYERS)
    ]
    details = {"created": "2026-01-01", "left_out": {"model.norm.weight": "a vector"}}
    return Profile([*entries("weights"), *inputs], "full", "somewhere/tiny-model", details)


@pytest.fixture(scope="session")
def fast_profile() -> Profile:
    """The same weights, of which only the four largest values and the energy are known."""
    return Profile(entries("weights", known=4), "fast", "tiny-model", {})


@pytest.fixture(scope="session")
def hostile_profile() -> Profile:
    """A model whose names try to leave the page's script, with a zero matrix and a single value."""
    zero = Entry("0.zero", "weights", (4, 4), torch.zeros(4, dtype=torch.float64), 0.0, 0.0)
    return Profile(
        [entry(HOSTILE, "weights", (12, 12), 0.5), zero, entry("1", "weights", (1, 9), 0.5)], "full", HOSTILE, {}
    )
