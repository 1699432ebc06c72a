"""Time the optimizer's step of a 58 M parameter LLaMA beside its peers, and see what a refresh costs and captures.

    pip install 'eckart[lm,training-peers]'
    python benchmarks/train_step.py                               # some minutes on two cores
    python benchmarks/train_step.py --methods ldadam frugal sumo  # other rows, beside AdamW alone

Hidden 512, 8 layers, intermediate 1376, vocabulary 32000, float32; embedding, head and norms get AdamW, as the peers'
readmes have it. Gradients are set, no model runs. All contestants have one set of weights and gradients and take turns
within a round, so that a busy machine slows them alike; ratios are medians over the rounds. "products" are the two
matrix products (X V and D Vᵀ, 13 Gflop) and fused AdamW of the rest: no step with a subspace does less. In a round of
refreshes each contestant renews all its bases in the one step that is timed.

The energy table follows, through the optimizer, gradients that drift and have full-rank noise (those of refresh.py:
σ_i = i^-0.4 in subspaces that turn at every step), from an exact start: the least share of the optimal energy that a
basis holds before and after a refresh.

Temporaries of a parameter's size are part of what a step costs: the kernel gives fresh pages for them each time. With
`--keep-freed` the program starts itself again with glibc told to keep what was freed, which spares all contestants
those pages, and the peers the most.
"""

import argparse
import importlib
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import glibc
from eckart.linalg.subspace import captured_energy
from eckart.optim import METHODS, LowRankOptimizer, param_groups
from refresh import gradients, leading

RATE = 1e-5  # weights hardly move, whoever steps
PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {  # our row → package, class, settings of their readmes
    "galore": ("galore_torch", "GaLoreAdamW", {"scale": 0.25}),
    "fira": ("fira", "FiraAdamW", {"alpha": 0.25}),
    "apollo": ("apollo_torch", "APOLLOAdamW", {"proj": "random", "scale_type": "channel", "scale": 1}),
}


class Products:
    """What no step in a subspace can leave out: two products for each matrix, fused AdamW for the rest."""

    def __init__(self, matrices: list[nn.Parameter], rest: list[nn.Parameter], rank: int) -> None:
        self.rest = torch.optim.AdamW(rest, lr=RATE, fused=True)
        self.pairs = [(W.data, W.grad) if W.shape[0] >= W.shape[1] else (W.data.mT, W.grad.mT) for W in matrices]  # type: ignore[union-attr]
        self.bases = [torch.linalg.qr(torch.randn(W.shape[1], rank)).Q for W, _ in self.pairs]
        self.param_groups, self.state = self.rest.param_groups, self.rest.state

    def step(self) -> None:
        for (W, X), V in zip(self.pairs, self.bases, strict=True):
            W.addmm_(X @ V, V.mT, alpha=-RATE)  # type: ignore[operator]
        self.rest.step()


def llama() -> nn.Module:
    """The model of 58 M parameters, with gradients."""
    config = LlamaConfig(hidden_size=512, num_hidden_layers=8, intermediate_size=1376, vocab_size=32000,
                         num_attention_heads=8, tie_word_embeddings=False)  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def contestants(model: nn.Module, methods: list[str], rank: int) -> dict[str, Any]:
    """Name → optimizer, all of one model."""
    matrices, rest = ([p for _, p in group["params"]] for group in param_groups(model, rank))
    found: dict[str, Any] = {
        "AdamW, fused": torch.optim.AdamW(model.parameters(), lr=RATE, fused=True),
        "products": Products(matrices, rest, rank),
    }
    for method in methods or PEERS:
        if not methods:
            package, kind, settings = PEERS[method]
            low = {"params": matrices, "rank": rank, "update_proj_gap": 200, "proj_type": "std", **settings}
            try:
                peer = getattr(importlib.import_module(package), kind)
                found[package] = peer([{"params": rest}, low], lr=RATE, no_deprecation_warning=True)
            except ImportError as missing:
                print(f"{package} is left out: {missing}")
        r = 1 if METHODS[method].rank == 1 else rank
        found[f"eckart {method}"] = LowRankOptimizer(param_groups(model, r), lr=RATE, method=method)
    return found


def timed(optimizer: Any, renew: bool) -> float:
    """Seconds of one step; whether it renews every basis."""
    keepers = [(group, "gap") for group in optimizer.param_groups if "gap" in group]
    keepers += [
        (vars(state["projector"]), "update_proj_gap") for state in optimizer.state.values() if "projector" in state
    ]
    before = [keeper[key] for keeper, key in keepers]
    for keeper, key in keepers if renew else []:
        keeper[key] = 1
    start = time.perf_counter()
    optimizer.step()
    taken = time.perf_counter() - start
    for (keeper, key), gap in zip(keepers, before, strict=True):
        keeper[key] = gap
    return taken


def in_turns(optimizers: dict[str, Any], rounds: int, renew: bool) -> dict[str, list[float]]:
    """Seconds of each contestant's step, round by round."""
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(rounds):
        for name, optimizer in optimizers.items():
            times[name].append(timed(optimizer, renew))
    return times


def state_bytes(optimizer: Any) -> int:
    """Bytes that an optimizer's state keeps alive: each storage once and whole, those of its objects included."""
    sizes: dict[int, int] = {}
    for state in optimizer.state.values():
        for value in (
            *state.values(),
            *(v for each in state.values() if hasattr(each, "__dict__") for v in vars(each).values()),
        ):
            if isinstance(value, Tensor) and value.ndim:
                sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sum(sizes.values())


def time_table(optimizers: dict[str, Any], rounds: int, refreshes: int) -> None:
    """Print the time of an ordinary step, of a refresh step, and the state."""
    in_turns(optimizers, 3, renew=False)
    usual, renewing = in_turns(optimizers, rounds, renew=False), in_turns(optimizers, refreshes, renew=True)
    peers = {f"eckart {row}": package for row, (package, _, _) in PEERS.items() if package in optimizers}
    print(f"{'':20} {'step ms':>8} {'÷ AdamW':>8} {'÷ peer':>7} {'quartiles':>14} {'refresh ms':>11} {'÷ step':>7} "
          f"{'state MB':>9} {'÷ peer':>7}")  # fmt: skip
    for name, times in usual.items():
        middle = statistics.median(times)
        line = f"{name:20} {middle * 1e3:8.1f} {ratio(times, usual['AdamW, fused'])[1]:8.2f} "
        rest = f"{statistics.median(renewing[name]) * 1e3:11.1f} {statistics.median(renewing[name]) / middle:7.2f} "
        size = state_bytes(optimizers[name])
        rest += f"{size / 1e6:9.1f}"
        if peer := peers.get(name):
            low, half, high = ratio(times, usual[peer])
            print(
                f"{line}{half:7.3f} {f'{low:.3f} to {high:.3f}':>14} {rest} {size / state_bytes(optimizers[peer]):7.2f}"
            )
        else:
            print(f"{line}{'':7} {'':14} {rest}", flush=True)


def ratio(times: list[float], base: list[float]) -> tuple[float, ...]:
    """Quartiles of the rounds' ratios."""
    return tuple(statistics.quantiles([a / b for a, b in zip(times, base, strict=True)], n=4))


def energy_table(rank: int, drift: float, noise: float, gaps: list[int], refreshes: int) -> None:
    """Print what the bases hold of gradients that drift: before a refresh and after it."""
    shapes = ((512, 512), (1376, 512), (512, 1376))
    print(
        f"\nenergy ÷ optimum at a refresh, before and after; drift {drift} a step, noise {noise}; least of {refreshes}"
    )
    print(f"{'gap':>4} " + " ".join(f"{m}×{n}".rjust(16) for m, n in shapes))
    for gap in gaps:
        cells = []
        for shape in shapes:
            W = nn.Parameter(torch.zeros(shape))
            optimizer = LowRankOptimizer([W], lr=0.0, rank=rank, gap=gap)
            shares = []
            for step, G in zip(range(gap * refreshes + 1), gradients(shape, drift, noise, "cpu"), strict=False):
                W.grad, X = G, G if shape[0] < shape[1] else G.mT
                before = optimizer.state[W]["basis"].clone() if step else torch.empty(0)
                optimizer.step()
                V = optimizer.state[W]["basis"]
                if not step:
                    V.copy_(leading(X, rank)[0])  # an exact start, as in refresh.py
                elif step % gap == 0:
                    best = leading(X, rank)[1]
                    shares.append([float(captured_energy(X, basis)) / best for basis in (before, V)])
            cells.append(" ".join(f"{min(each):.5f}" for each in zip(*shares, strict=True)).rjust(16))
        print(f"{gap:4} " + " ".join(cells), flush=True)


def main() -> None:
    """Parse the arguments and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[], choices=METHODS, help="rows of METHODS to time instead")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15, help="of ordinary steps")
    parser.add_argument("--refreshes", type=int, default=3, help="rounds of refreshes; the peers' take seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gaps", type=int, nargs="*", default=[1, 10, 200], help="of the energy table")
    parser.add_argument("--drift", type=float, default=0.03)
    parser.add_argument("--noise", type=float, default=0.01)
    parser.add_argument("--keep-freed", action="store_true", help="have glibc keep freed memory")
    options = parser.parse_args()
    if options.keep_freed:
        glibc.keep_freed()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = llama()
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{size:.1f} M parameters, float32, rank {options.rank}, {options.threads} threads, torch {torch.__version__}"
          f"{', freed memory kept' if options.keep_freed else ''}")  # fmt: skip
    time_table(contestants(model, options.methods, options.rank), options.rounds, options.refreshes)
    if options.gaps:
        energy_table(options.rank, options.drift, options.noise, options.gaps, 3)


if __name__ == "__main__":
    main()
