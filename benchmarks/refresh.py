"""Time one warm refresh of a basis against the SVD it replaces, and show how much of the optimum it captures.

    python benchmarks/refresh.py                       # 2048×5461 at rank 256: some minutes on two cores
    python benchmarks/refresh.py --shape 512 1376 --rank 128 --repeats 5
    python benchmarks/refresh.py --device cuda

Methods take turns within a round, so that a busy machine slows them alike; the table gives medians and the ratio to
`torch.linalg.svd`. The energy table follows a gradient that drifts (spectrum σ_i = i^-0.4 in subspaces that turn a
little at every step, plus full-rank noise) from an exact start: the share of the optimal rank-r energy captured.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from eckart.linalg.subspace import captured_energy, find_range, refresh


def gradients(shape: tuple[int, int], drift: float, noise: float, device: str) -> Iterator[Tensor]:
    """Endless (m, n) gradients whose singular subspaces turn by `drift` at every step."""
    generator = torch.Generator(device=device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    m, n = shape
    k = min(m, n) // 2
    U, V = (torch.linalg.qr(normal(size, k)).Q for size in (m, n))
    S = torch.arange(1, k + 1, device=device) ** -0.4
    while True:
        yield U * S @ V.mT + noise * normal(m, n) / n**0.5
        U = torch.linalg.qr(U + drift * normal(m, k) / m**0.5).Q
        V = torch.linalg.qr(V + drift * normal(n, k) / n**0.5).Q


def seconds(function: Callable[[], object], device: str) -> float:
    """Wall time of one call, the device's queue drained."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def leading(G: Tensor, rank: int) -> tuple[Tensor, float]:
    """The best rank-r left basis and its share of the energy, from the float64 Gram matrix."""
    values, vectors = torch.linalg.eigh(G.double() @ G.double().mT)
    return vectors[:, -rank:].flip(-1).to(G.dtype), float(values[-rank:].sum() / values.sum())


def time_table(G: Tensor, Q: Tensor, rank: int, repeats: int, device: str) -> None:
    """Print the median time of each way to a rank-r basis of G."""
    methods: dict[str, Callable[[], object]] = {
        "torch.linalg.svd": lambda: torch.linalg.svd(G, full_matrices=False),
        "eigh(G Gᵀ), float32": lambda: torch.linalg.eigh(G @ G.mT),
        "torch.svd_lowrank, niter 2": lambda: torch.svd_lowrank(G, q=rank, niter=2),
        "find_range, power 1": lambda: find_range(G, rank),
        "refresh, 8 fresh columns": lambda: refresh(G, Q, fresh=8),
        "bare step with Householder QR": lambda: torch.linalg.qr(G @ (G.mT @ Q)).Q,
        "refresh": lambda: refresh(G, Q),
    }
    times: dict[str, list[float]] = {name: [] for name in methods}
    for name, method in methods.items():
        if name != "torch.linalg.svd":
            method()  # warm up; the SVD is too slow to run in vain
    for _ in range(repeats):
        for name, method in methods.items():
            inner = 1 if name in ("torch.linalg.svd", "eigh(G Gᵀ), float32") else 5
            times[name] += [seconds(method, device) for _ in range(inner)]
    slowest = statistics.median(times["torch.linalg.svd"])
    print(f"{'method':32} {'median ms':>10} {'fastest ms':>11} {'svd ÷ this':>11} {'energy ÷ optimum':>17}")
    best = leading(G, rank)[1]
    energies = {
        "find_range, power 1": find_range(G, rank),
        "refresh, 8 fresh columns": refresh(G, Q, fresh=8),
        "refresh": refresh(G, Q),
    }
    for name, measured in times.items():
        median = statistics.median(measured)
        energy = f"{float(captured_energy(G, energies[name])) / best:17.5f}" if name in energies else f"{'':>17}"
        print(f"{name:32} {median * 1e3:10.1f} {min(measured) * 1e3:11.1f} {slowest / median:11.1f} {energy}")


def energy_table(shape: tuple[int, int], rank: int, steps: int, drift: float, noise: float, device: str) -> None:
    """Print what a warm, a stale and a cold basis capture along a drifting sequence."""
    print(f"\nenergy ÷ optimum, drift {drift}, noise {noise}")
    print(f"{'step':>4} {'optimum':>9} {'refresh':>9} {'stale':>9} {'find_range':>11}")
    source = gradients(shape, drift, noise, device)
    warm = stale = leading(next(source), rank)[0]
    lowest = 1.0
    for step in range(1, steps + 1):
        G = next(source)
        warm = refresh(G, warm)
        best = leading(G, rank)[1]
        shares = [float(captured_energy(G, Q)) / best for Q in (warm, stale, find_range(G, rank))]
        lowest = min(lowest, shares[0])
        print(f"{step:4} {best:9.4f} {shares[0]:9.5f} {shares[1]:9.5f} {shares[2]:11.5f}")
    print(f"lowest of refresh: {lowest:.5f}")


def main() -> None:
    """Parse the arguments and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(2048, 5461), metavar=("M", "N"))
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the time table")
    parser.add_argument("--steps", type=int, default=6, help="steps of each energy table; 0 leaves them out")
    parser.add_argument("--drift", type=float, nargs="+", default=[0.03, 0.3], help="one energy table for each")
    parser.add_argument("--noise", type=float, default=0.01, help="full-rank noise; a row of it has about this norm")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    shape, rank = tuple(options.shape), options.rank
    where = f"{options.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{shape[0]}×{shape[1]}, rank {rank}, {where}")
    source = gradients(shape, options.drift[0], options.noise, options.device)
    Q, _ = leading(next(source), rank)
    time_table(next(source), Q, rank, options.repeats, options.device)
    if options.steps:
        for drift in options.drift:
            energy_table(shape, rank, options.steps, drift, options.noise, options.device)


if __name__ == "__main__":
    main()
