"""Peak memory of a training step: steps in the backward pass against ordinary ones and AdamW.

    python benchmarks/train_memory.py                    # 58 M parameters, float32: a minute or two on two cores
    python benchmarks/train_memory.py --layers 2 --vocabulary 4000
    python benchmarks/train_memory.py --device cuda --dtype bfloat16

A LLaMA-like model of hidden size 512. For each contestant one backward pass and step, after two to warm up: bytes that
are allocated at the peak beyond weights and states, by torch's allocator, and the bytes of gradients at a time. `lower
by` is what the peak loses against ordinary steps of the same method, as a share of all gradients: 1 where gradients
take nothing at all, and more where the workspace of one matrix is smaller than that of all, too.
"""

import argparse
import gc

import torch
from torch import Tensor, nn

from eckart.optim import LowRankOptimizer, memory, peak, step_in_backward


class Block(nn.Module):
    """Attention of eight heads and a gated layer, as in LLaMA."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, width)
        h = self.norms[0](x)
        q, k, v = (each(h).unflatten(-1, (8, -1)).transpose(1, 2) for each in (self.q, self.k, self.v))
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(seen.transpose(1, 2).flatten(-2))
        h = self.norms[1](x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


class Model(nn.Module):
    """A table, blocks, a head."""

    def __init__(self, layers: int, vocabulary: int, width: int = 512, inner: int = 1376) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T) -> ()
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), tokens.flatten())

    def get_output_embeddings(self) -> nn.Module:
        """The head, which is trained by AdamW."""
        return self.head


def measure(options: argparse.Namespace, method: str, layered: bool) -> tuple[int, int, int]:
    """Bytes at the peak of a step beyond what stays, of gradients at a time, and of states."""
    torch.manual_seed(0)
    model = Model(options.layers, options.vocabulary).to(options.device, getattr(torch, options.dtype))
    tokens = torch.randint(options.vocabulary, (1, options.tokens), device=options.device)
    if method == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    else:
        optimizer = LowRankOptimizer(model, lr=1e-4, rank=options.rank, method=method)
    if layered:
        step_in_backward(optimizer)

    def step() -> None:
        model(tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        step()
    most = peak(step)
    states = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))
    every = sum(p.nbytes for p in model.parameters())
    return most, memory(model, optimizer).measured.gradients if layered else every, states


def main() -> None:
    """Parse the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["galore", "fira", "apollo", "q-galore"])
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--tokens", type=int, default=64, help="of the one sequence; activations grow with it")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    model = Model(options.layers, options.vocabulary)
    every = sum(p.numel() for p in model.parameters()) * getattr(torch, options.dtype).itemsize
    largest = max(p.numel() for p in model.parameters()) * getattr(torch, options.dtype).itemsize
    print(f"{options.device}, {options.dtype}, torch {torch.__version__}, rank {options.rank}, {options.tokens} tokens")
    print(f"gradients {every / 1e6:.1f} MB, the largest {largest / 1e6:.1f} MB")
    print(f"{'method':<10} {'step in':>9} {'states':>8} {'gradients':>10} {'peak':>8} {'÷ adamw':>8} {'lower by':>9}")
    ordinary, adamw = 0, 0
    for method, layered in [("adamw", False), *((m, layered) for m in options.methods for layered in (False, True))]:
        gc.collect()
        most, gradients, states = measure(options, method, layered)
        adamw = adamw or states + most
        ordinary = most if not layered else ordinary
        lower = f"{(ordinary - most) / every:9.2f}" if layered else f"{'':>9}"
        print(
            f"{method:<10} {'backward' if layered else 'step':>9} {states / 1e6:8.1f} {gradients / 1e6:10.1f} "
            f"{most / 1e6:8.1f} {(states + most) / adamw:8.2f} {lower}",
            flush=True,
        )


if __name__ == "__main__":
    main()
