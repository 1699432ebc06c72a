"""The rule that turns a projected gradient R into a direction D: which moments it keeps, and how it uses them.

A rule is an `Inner`: the names and shapes of its moments, and a function over lists, so that many small matrices are
one call. Moments come in float32, whatever they are stored as, and are updated in place.

| rule | D | moments |
|---|---|---|
| adamw | m̂ / (√v̂ + ε) | 2 p r |
| adafactor | m of R / √(row ∘ column), clipped at a root mean square of 1 | p r + p + r |
| lion | sign(β₁ m + (1−β₁) R), then m ← β₂ m + (1−β₂) R | p r |
| momentum | m ← β₁ m + (1−β₁) R | p r |
| sketched-adafactor | m of U V, U what Adafactor makes of the whole X (Flora) | p r + p + q |
| orthogonal | polar factor of m (SUMO, Muon) | p r |
| orthonormal | Q of R = Q T, T triangular (Dion) | 0 |
| sign | sign(R) | 0 |
"""

from eckart.optim.inner.adafactor import adafactor
from eckart.optim.inner.adamw import adamw
from eckart.optim.inner.inner import Inner
from eckart.optim.inner.orthogonal import orthogonal
from eckart.optim.inner.orthonormal import orthonormal
from eckart.optim.inner.plain import lion, momentum, sign
from eckart.optim.inner.sketched import sketched_adafactor

INNER: dict[str, Inner] = {
    "adamw": Inner(adamw, {"exp_avg": "full", "exp_avg_sq": "full"}),
    "adafactor": Inner(adafactor, {"exp_avg": "full", "row": "row", "column": "column"}),
    "sketched-adafactor": Inner(sketched_adafactor, {"exp_avg": "full", "row": "row", "column": "wide"}, looks=True),
    "lion": Inner(lion, {"exp_avg": "full"}),
    "momentum": Inner(momentum, {"exp_avg": "full"}),
    "orthogonal": Inner(orthogonal, {"exp_avg": "full"}),
    "orthonormal": Inner(orthonormal, {}),
    "sign": Inner(sign, {}),
}

__all__ = ["INNER", "Inner"]
