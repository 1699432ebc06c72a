"""The family, one row for each method: its choice on every axis. `METHODS` drives the optimizer, the CLI, docs, tests.

Adding a method: one row; or one file for a new rule, and one row; its test against the paper's equations.
Rates and scales are those of the papers' pretraining of 60 M parameters; above 1 B Fira takes α = 1/16, GaLore half the
rate. APOLLO's rates are GaLore's and were not tuned: its paper has Mini a little better at twice of that.
Paper: Q-GaLore also keeps weights in INT8 and looks at cosines of five refreshes; here weights keep their type
(bfloat16 is rounded at random) and a gap doubles by captured energy (`refreshing`).
Where a paper takes an SVD (GaLore, Fira, SUMO, the first basis of all) the rows take warm power steps;
`projector="svd"` is the paper's. GoLore's paper begins with SVDs and draws later: set the groups' `projector` then.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """One method of training with low-rank states.

    Args:
        projector: Where the basis comes from (`PROJECTORS`).
        source: arXiv id.
        says: What sets it apart, in a few words.
        inner: What makes a direction of the projected gradient (`INNER`).
        residual: What becomes of the gradient outside the subspace (`RESIDUALS`).
        transport: What becomes of the moments when the basis changes (`TRANSPORTS`).
        limiter: How far an update may go (`LIMITERS`).
        rank: Default r, or a share of each matrix's smaller dimension: a quarter in most papers' pretraining.
        lr: The paper's learning rate.
        settings: Further options that differ from `DEFAULTS`.

    Example:
        >>> METHODS["fira"].residual, METHODS["fira"].limiter
        ('norm-scaled', 'growth')
    """

    projector: str
    source: str
    says: str
    inner: str = "adamw"
    residual: str = "drop"
    transport: str = "keep"
    limiter: str = "none"
    rank: float = 0.25
    lr: float = 1e-2
    settings: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """What a parameter group of this method holds, the defaults of all included."""
        axes = {name: getattr(self, name) for name in AXES}
        return DEFAULTS | axes | dict(self.settings)


AXES = ("projector", "inner", "residual", "transport", "limiter")
DEFAULTS: dict[str, Any] = {
    "side": None,  # the smaller one, or the one that is not shared out between processes
    "gap": 200,  # steps between refreshes
    "schedule": "fixed",  # or adaptive, staggered
    "adapt_above": 0.9,  # adaptive: the gap doubles where the old basis still holds this share of what the new one does
    "scale": 1.0,  # α
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "basis_lr": 1.0,  # how far a step moves the basis: grassmann's angle for each unit of σ, online's learning rate
    "residual_scale": 1.0,  # of sgd and sign
    "limit": 1.01,  # γ of growth; the root mean square of clip
    "moments": "float32",  # or 8bit
    "basis": "float32",  # or 4bit; or seed: drawn anew at each step and not kept
    "seed": 0,
    "stack": False,  # whether dimension 0 of a 3-D parameter counts matrices
}

METHODS: dict[str, Method] = {
    "galore": Method("power", "2403.03507", "Adam in the gradient's leading subspace", settings={"scale": 0.25}),
    "galore-8bit": Method(
        "power", "2403.03507", "the same with moments of 8 bits", settings={"scale": 0.25, "moments": "8bit"}
    ),
    "q-galore": Method(
        "power", "2407.08296", "a basis of 4 bits that is renewed less often where it stays", lr=1.5e-2,
        settings={"scale": 0.25, "moments": "8bit", "basis": "4bit", "schedule": "adaptive"},
    ),
    "fira": Method(
        "power", "2410.01623", "and the rest of the gradient, scaled as Adam scales the part", residual="norm-scaled",
        limiter="growth", settings={"scale": 0.25},
    ),
    "apollo": Method(
        "random", "2412.05270", "the whole gradient; Adam in a random sketch says how far each row goes",
        residual="whole", limiter="growth", settings={"basis": "seed"},
    ),
    "apollo-mini": Method(
        "random", "2412.05270", "one scale for a whole matrix, from a sketch of rank 1", residual="tensor",
        limiter="growth", rank=1, settings={"scale": 128**0.5, "basis": "seed"},
    ),
    "flora": Method(
        "random", "2402.03293", "momentum kept in a random sketch that is drawn anew", inner="sketched-adafactor",
        transport="rotate", limiter="clip", lr=1e-3, settings={"gap": 1000, "basis": "seed", "limit": 1.0},
    ),
    "golore": Method(
        "orthonormal", "2410.11289", "a random subspace: converges where the gradient is mostly noise",
        transport="rotate", settings={"scale": 0.25},
    ),
    "ldadam": Method(
        "momentum-power", "2410.16103", "a new subspace each step, moments that turn with it, what is lost is fed back",
        residual="feedback", transport="ldadam", rank=16, lr=1e-3, settings={"gap": 1, "betas": (0.908, 0.99)},
    ),
    "subtrack++": Method(
        "grassmann", "2502.01586", "the basis turns towards the gradient; moments turn with it; Fira's rest",
        residual="norm-scaled", transport="ldadam", limiter="growth", lr=1e-3,
        settings={"scale": 0.25, "basis_lr": 10.0},
    ),
    "osd": Method(
        "online", "2408.12857", "online subspace descent: the basis is trained beside the weights",
        settings={"scale": 0.25, "basis_lr": 5e-3},
    ),
    "frugal": Method(
        "coordinates", "2411.07837", "Adam on a quarter of the columns, the sign of the gradient on the others",
        residual="sign", transport="reset", rank=0.25, lr=1e-3,
    ),
    "sumo": Method(
        "power", "2505.24749", "the momentum's polar factor, all directions alike", inner="orthogonal",
        residual="sgd", transport="rotate", lr=1e-3, settings={"betas": (0.95, 0.999)},
    ),
    "dion": Method(
        "dion", "2504.05295", "both factors of the momentum's leading part, made orthonormal; the rest stays in it",
        inner="orthonormal", rank=0.25, lr=1e-2, settings={"side": "right", "betas": (0.95, 0.999)},
    ),
}  # fmt: skip
