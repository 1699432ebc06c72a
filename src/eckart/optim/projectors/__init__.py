"""Where the basis V (q, r) comes from: how it starts, how it is renewed, and what a step makes of it.

| projector | V | renewed by |
|---|---|---|
| svd | leading right singular vectors of X | an SVD (GaLore's papers) |
| range | the same, nearly | a randomised range finder with two rounds of power |
| power | the same, followed | one warm step orth(Xᵀ (X V)) |
| momentum-power | those of momentum and X | the same on ρ m̂ Vᵀ + (1−ρ) X (LDAdam) |
| grassmann | the same, followed | a geodesic step of rank 1 (SubTrack++) |
| online | the same, learnt | a step of Adam after each step (online subspace descent) |
| dion | right factor of the momentum | a power step at each step (Dion) |
| random | N(0, 1/r) | a draw (APOLLO, Flora) |
| orthonormal | uniform on the Stiefel manifold | a draw (GoLore) |
| coordinates | r columns | a draw (FRUGAL) |
"""

from eckart.optim.projectors import dion, online
from eckart.optim.projectors.drawn import coordinates, orthonormal, random
from eckart.optim.projectors.grassmann import geodesic
from eckart.optim.projectors.power import first_power, momentum_power, power
from eckart.optim.projectors.projector import Projector
from eckart.optim.projectors.spectral import by_range, by_svd

PROJECTORS: dict[str, Projector] = {
    "svd": Projector(by_svd, by_svd, sends="the gradient, whole, at a refresh"),
    "range": Projector(by_range, by_range, sends="the gradient, whole, at a refresh"),
    "power": Projector(first_power, power, sends="q·r at a refresh"),
    "momentum-power": Projector(first_power, momentum_power, sends="q·r at a refresh"),
    "grassmann": Projector(first_power, geodesic, sends="q·r at a refresh"),
    "online": Projector(
        first_power, None, online.descend, orthonormal=False, sends="q·r at each step", state=online.STATE
    ),
    "dion": Projector(
        dion.start, None, dion.factors, orthonormal=False, sends="q·r and p·r at each step", state=dion.STATE
    ),
    "random": Projector(random, random, orthonormal=False, looks=False),
    "orthonormal": Projector(orthonormal, orthonormal, looks=False),
    "coordinates": Projector(coordinates, coordinates, looks=False),
}

__all__ = ["PROJECTORS", "Projector"]
