"""Time the compressed deep completion against the full one, and compare its errors on real data with softImpute's.

    python benchmarks/completion.py                      # some minutes on two cores
    python benchmarks/completion.py --dimension 300 --seeds 1 --per-step 0

Table 1: the full and the compressed network (T4, γ = 0.01) are trained in turns of a few steps, so that a busy machine
slows them alike, each until ‖P − Φ‖ ≤ 1e-3 ‖Φ‖; wall time of each network's own turns. Table 2: wall time of a step at
d = 1000, in turns too. Table 3: scikit-learn's digits (1797×64) with a share of the entries hidden at random; both
methods standardise the columns and choose on the same held-out tenth of the others.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import islice

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from eckart.theory import (
    complete_matrix,
    completion,
    compress,
    compressed_rates,
    descend,
    first_gradient,
    orthogonal_weights,
    product,
    tuned_soft_impute,
)

RECOVERED, DEPTH, OUTER = 1e-3, 3, 0.01


class Network:
    """A network on its way, and the wall time of its own steps."""

    def __init__(self, weights: list[Tensor], rates: list[float]) -> None:
        self.weights, self.rates, self.steps, self.seconds = [W.float() for W in weights], rates, 0, 0.0

    def advance(self, slope: Callable, steps: int) -> None:
        start = time.perf_counter()
        *_, (self.weights, _) = islice(descend(self.weights, slope, rate=self.rates), steps + 1)
        self.seconds += time.perf_counter() - start
        self.steps += steps

    def error(self, target: Tensor) -> float:
        return float(torch.linalg.norm(product(self.weights) - target) / torch.linalg.norm(target))


def problem(d: int, rank: int, seen: float, eps: float, seed: int) -> tuple[Tensor, Callable, Network, Network]:
    """A rank-r target with ‖Φ‖_F = 0.14 d, its loss, and the two networks at a rate that is stable for both."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(d, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    target = left @ right.mT
    target *= 0.14 * d / torch.linalg.norm(target)
    mask = torch.rand(d, d, generator=generator) < seen
    rate = 1.2 / (DEPTH * seen * float(torch.linalg.matrix_norm(target, 2)) ** (2 - 2 / DEPTH))
    full = orthogonal_weights([d] * (DEPTH + 1), eps, generator=generator)
    small = compress(full, first_gradient(full, completion(target, mask)), rank=rank, eps=eps)
    networks = Network(full, [rate] * DEPTH), Network(small, compressed_rates(DEPTH, rate, OUTER))
    return target.float(), completion(target.float(), mask), *networks


def recovery_table(d: int, rank: int, seen: float, eps: float, limit: int) -> None:
    """Print the wall time of both networks to the same recovery."""
    target, slope, full, small = problem(d, rank, seen, eps, seed=0)
    going = [full, small]
    while going and max(network.steps for network in going) < limit:
        for network in going:
            network.advance(slope, 20)
        going = [network for network in going if network.error(target) > RECOVERED]
    print(f"to ‖P − Φ‖ ≤ {RECOVERED:g} ‖Φ‖: d = {d}, r = {rank}, {seen:.0%} seen, ε = {eps:g}")
    print(f"{'network':12} {'error':>9} {'steps':>7} {'seconds':>9} {'ms a step':>10}")
    for name, each in (("full", full), ("compressed", small)):
        print(
            f"{name:12} {each.error(target):9.1e} {each.steps:7} {each.seconds:9.2f} "
            f"{1e3 * each.seconds / each.steps:10.2f}"
        )
    print(f"full ÷ compressed: {full.seconds / small.seconds:.1f} in time, {full.steps / small.steps:.2f} in steps\n")


def step_table(d: int, rank: int, seen: float, rounds: int) -> None:
    """Print the wall time of a step."""
    _, slope, full, small = problem(d, rank, seen, 1e-3, seed=0)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for kept, network, steps in zip(times, (full, small), (2, 20), strict=True):
            before = network.seconds
            network.advance(slope, steps)
            kept.append((network.seconds - before) / (steps + 1 / 3))  # the last look costs about a third of a step
    medians = [1e3 * statistics.median(kept) for kept in times]
    print(f"a step at d = {d}, r = {rank}: full {medians[0]:.1f} ms, compressed {medians[1]:.2f} ms, "
          f"full ÷ compressed {medians[0] / medians[1]:.1f}\n")  # fmt: skip


def digits_table(hidden: float, seeds: int, rank: int) -> None:
    """Print hidden entries' errors and times of both methods."""
    data = torch.tensor(load_digits().data, dtype=torch.float32)
    rows: dict[str, list[tuple[float, float, str]]] = {}
    for seed in range(seeds):
        mask = torch.rand(data.shape, generator=torch.Generator().manual_seed(seed)) >= hidden

        def soft(mask: Tensor = mask, seed: int = seed) -> tuple[Tensor, str]:
            found = tuned_soft_impute(
                data, mask, ranks=(8, 10, 12, 16, 24, None), generator=torch.Generator().manual_seed(seed)
            )
            return found.matrix, f"rank {found.rank}, λ {found.share:.2f}"

        def deep(mask: Tensor = mask, seed: int = seed) -> tuple[Tensor, str]:
            found = complete_matrix(data, mask, rank, generator=torch.Generator().manual_seed(seed))
            return found.matrix, f"decay {found.phases[0][0]:g}, {found.phases[0][1]} steps"

        for name, method in (("softImpute, tuned", soft), ("complete_matrix", deep)):
            start = time.perf_counter()
            matrix, chosen = method()
            seconds = time.perf_counter() - start
            error = float((matrix - data)[~mask].square().mean().sqrt())
            rows.setdefault(name, []).append((error, seconds, chosen))
    print(f"digits 1797×64, {hidden:.0%} hidden, {seeds} seeds; complete_matrix with rank={rank}")
    print(f"{'method':18} {'median error':>12} {'median s':>9}   errors, and what was chosen")
    for name, found in rows.items():
        errors, times = ([each[index] for each in found] for index in (0, 1))
        told = "; ".join(f"{error:.3f} ({chosen})" for error, _, chosen in found)
        print(f"{name:18} {statistics.median(errors):12.3f} {statistics.median(times):9.1f}   {told}")
    soft, deep = (statistics.median(each[0] for each in found) for found in rows.values())
    print(f"complete_matrix's error is {1 - deep / soft:.1%} lower\n")


def main() -> None:
    """Parse the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimension", type=int, default=500, help="d of the race to recovery; 0 leaves it out")
    parser.add_argument("--rank", type=int, default=5)
    parser.add_argument("--seen", type=float, default=0.2, help="share of the entries that is observed")
    parser.add_argument("--eps", type=float, default=1e-2, help="start; 1e-3 as in the paper takes ten times as long")
    parser.add_argument("--limit", type=int, default=100_000, help="steps of the race at most")
    parser.add_argument("--per-step", type=int, default=1000, help="d of the step's time; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=7, help="of the step's time")
    parser.add_argument("--seeds", type=int, default=5, help="of the digits; 0 leaves them out")
    parser.add_argument("--hidden", type=float, default=0.7, help="share of the digits' entries that is hidden")
    parser.add_argument("--width", type=int, default=20, help="complete_matrix's rank on digits")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    if options.dimension:
        recovery_table(options.dimension, options.rank, options.seen, options.eps, options.limit)
    if options.per_step:
        step_table(options.per_step, options.rank, options.seen, options.rounds)
    if options.seeds:
        digits_table(options.hidden, options.seeds, options.width)


if __name__ == "__main__":
    main()
