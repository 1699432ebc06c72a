"""Fixtures shared by all tests: the menagerie of matrices that every linear-algebra function must survive."""

import os

import pytest
import torch
from hypothesis import settings

# The same examples every time, so that a red run is about the change; `--hypothesis-profile=explore` looks further.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=2000, deadline=None)
settings.load_profile("same")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # several workers, each with all the threads, would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    torch.set_num_threads(1)


def _with_spectrum(m: int, n: int, values: torch.Tensor, seed: int) -> torch.Tensor:
    """An (m, n) float64 matrix whose leading singular values are `values`, the rest zero."""
    generator = torch.Generator().manual_seed(seed)
    k = len(values)
    U = torch.linalg.qr(torch.randn(m, k, dtype=torch.float64, generator=generator))[0]
    V = torch.linalg.qr(torch.randn(n, k, dtype=torch.float64, generator=generator))[0]
    return (U * values) @ V.T


def _menagerie() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    gaussian = torch.randn(40, 24, dtype=torch.float64, generator=generator)
    return {
        "tall": gaussian,
        "wide": gaussian.T.contiguous(),
        "square": torch.randn(24, 24, dtype=torch.float64, generator=generator),
        "rank_deficient": _with_spectrum(30, 20, torch.tensor([5.0, 3.0, 2.0, 1.0], dtype=torch.float64), 1),
        "zero": torch.zeros(16, 12, dtype=torch.float64),
        "repeated": _with_spectrum(20, 20, torch.tensor([2.0] * 5 + [1.0] * 15, dtype=torch.float64), 2),
        "ill_conditioned": _with_spectrum(25, 20, torch.logspace(0, -10, 20, dtype=torch.float64), 3),
        "power_law": _with_spectrum(48, 32, torch.arange(1, 33, dtype=torch.float64) ** -1.0, 4),
        "single_row": torch.randn(1, 9, dtype=torch.float64, generator=generator),
        "single_entry": torch.tensor([[3.0]], dtype=torch.float64),
    }


MENAGERIE = _menagerie()


@pytest.fixture(params=sorted(MENAGERIE))
def matrix(request: pytest.FixtureRequest) -> torch.Tensor:
    """Each matrix of the menagerie in turn, float64."""
    return MENAGERIE[request.param].clone()


@pytest.fixture
def menagerie() -> dict[str, torch.Tensor]:
    """The whole menagerie, name → float64 matrix."""
    return {name: W.clone() for name, W in MENAGERIE.items()}


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    """Modules start from torch's global generator: seed it, so that a failing test fails again."""
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator, so that a failing test fails again."""
    return torch.Generator().manual_seed(1234)
