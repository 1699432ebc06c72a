"""The family, one row for each method: its choice on every axis. `METHODS` drives `adapt`, the CLI, docs, tests.

Adding a method: one row; or one file for a new shape or start, and one row; its test.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eckart.adapters.adapter import Adapter
from eckart.adapters.shapes.core import Core
from eckart.adapters.shapes.deep import CompressedDeep, Deep
from eckart.adapters.shapes.hadamard import Hadamard
from eckart.adapters.shapes.kronecker import Kronecker
from eckart.adapters.shapes.triplets import Triplets
from eckart.adapters.shapes.two_factor import TwoFactor
from eckart.adapters.shapes.vectors import Vectors
from eckart.adapters.starts import activations, deep, gradients, loftq, plain, shapes, spectral, triplets
from eckart.adapters.starts.start import Prepare, Start


@dataclass(frozen=True)
class Method:
    """One adapter method.

    Args:
        shape: What P is made of.
        start: How its factors start.
        source: arXiv id.
        says: What sets it apart, in a few words.
        scaling: "alpha/r", "alpha/sqrt(r)" or "none".
        magnitude: Whether a magnitude trains (DoRA).
        trains: Names of the factors that train; empty for all of the shape's.
        rank: Default r.
        alpha: Default α; None is twice the rank.
        wanted: What `nn.observe` has to collect for the start; empty for starts that look at no data.
        options: What the method alone knows, name → default; `adapt` takes them as keywords.
        prepare: What is computed for all matrices together before any starts: equal inputs once, ranks shared out anew.
        moves: Whether the start changes the model on purpose (Δ ≠ 0).
        peft: How PEFT reads it: its own peft_type, or "LORA" for what is written as an exact low-rank form.

    Example:
        >>> METHODS["lora"].shape.factors, METHODS["lora"].scaling
        (('B', 'A'), 'alpha/r')
    """

    shape: type[Adapter]
    start: Start
    source: str
    says: str
    scaling: str = "alpha/r"
    magnitude: bool = False
    trains: tuple[str, ...] = ()
    rank: int = 8
    alpha: float | None = None
    wanted: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    peft: str = "LORA"
    prepare: Prepare | None = None
    moves: bool = False


METHODS: dict[str, Method] = {
    "lora": Method(TwoFactor, plain.kaiming, "2106.09685", "B = 0, A uniform"),
    "rslora": Method(
        TwoFactor, plain.kaiming, "2312.03732", "scaled by α/√r: high ranks learn too", "alpha/sqrt(r)", alpha=16.0
    ),
    "lora-fa": Method(TwoFactor, plain.kaiming, "2308.03303", "A stays as drawn: x is not kept", trains=("B",)),
    "dora": Method(TwoFactor, plain.kaiming, "2402.09353", "the length of each row trains apart", magnitude=True),
    "lora-gaussian": Method(TwoFactor, plain.gaussian, "2106.09685", "B = 0, A Gaussian"),
    "lora-orthogonal": Method(TwoFactor, plain.orthogonal, "2106.09685", "B = 0, A with orthonormal rows"),
    "pissa": Method(TwoFactor, spectral.largest, "2404.02948", "starts from the largest directions of W"),
    "milora": Method(TwoFactor, spectral.smallest, "2406.09044", "starts from the smallest directions of W"),
    "mica": Method(
        TwoFactor, spectral.unused_outputs, "2604.01694", "writes where W writes least: B stays", trains=("A",)
    ),
    "olora": Method(TwoFactor, spectral.first_rows, "2406.01775", "starts from the QR of W"),
    "eva": Method(
        TwoFactor,
        activations.principal,
        "2410.07170",
        "A reads where the inputs vary; ranks follow the variance",
        wanted=("input_covariance",),
        options={"rho": 2.0},
        prepare=activations.components,
    ),
    "corda": Method(
        TwoFactor,
        activations.oriented,
        "2406.05223",
        "starts from W as its inputs see it",
        wanted=("input_covariance",),
        options={"mode": "ipm"},
    ),
    "lora-ga": Method(
        TwoFactor,
        gradients.approximation,
        "2407.05000",
        "the first step is full training's best of rank 2r",
        "alpha/sqrt(r)",
        alpha=16.0,
        wanted=("gradient",),
        options={"gamma": 16.0},
    ),
    "lora-one": Method(
        TwoFactor,
        gradients.one_step,
        "2502.01235",
        "starts one step of full training ahead",
        "alpha/sqrt(r)",
        alpha=16.0,
        wanted=("gradient",),
        options={"gamma": 128.0},
        moves=True,
    ),
    "lora-xs": Method(
        Core, spectral.core, "2405.17604", "r² numbers between the largest directions of W", trains=("R",)
    ),
    "lora-sb": Method(
        Core,
        gradients.update,
        "2411.19557",
        "r² numbers in the directions of the first step",
        "none",
        trains=("R",),
        wanted=("gradient",),
        options={"eta": 1e-5},
        moves=True,
    ),
    "loftq": Method(
        TwoFactor,
        loftq.residual,
        "2310.08659",
        "starts from what quantisation lost",
        options={"original": None},
        prepare=loftq.originals,
        moves=True,
    ),
    "adalora": Method(
        Triplets, triplets.gaussian, "2303.10512", "triplets that a RankSchedule prunes", rank=12, peft="ADALORA"
    ),
    "relora": Method(
        TwoFactor, plain.kaiming, "2307.05695", "restarts: finished pairs are kept frozen, the next begins"
    ),
    "deep-lora": Method(
        Deep,
        deep.orthogonal,
        "2406.04112",
        "three factors, all tiny: finds its own rank",
        "none",
        options={"eps": 1e-3},
    ),
    "deep-lora-compressed": Method(
        CompressedDeep,
        deep.invariant,
        "2406.04112",
        "three small factors in the subspaces of one gradient",
        "none",
        wanted=("gradient",),
        options={"eps": 1e-3},
    ),
    "vera": Method(
        Vectors,
        shapes.vectors,
        "2310.11454",
        "two vectors train around a random pair that all matrices share",
        "none",
        rank=256,
        options={"d": 0.1, "seed": 0},
        peft="VERA",
    ),
    "loha": Method(
        Hadamard, shapes.hadamard, "2108.06098", "entrywise product of two pairs: rank up to r²", alpha=8.0, peft="LOHA"
    ),
    "lokr": Method(
        Kronecker,
        shapes.kronecker,
        "2309.14859",
        "Kronecker product: full rank from few parameters",
        alpha=8.0,
        options={"factor": -1, "both": False},
        peft="LOKR",
    ),
}
