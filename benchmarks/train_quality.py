"""Train a small language model with every method and compare held-out loss, bytes of state and time of a step.

    python benchmarks/train_quality.py --data shakespeare=tinyshakespeare.txt wikitext-2=valid.txt --results runs.jsonl
    python benchmarks/train_quality.py --data … --results runs.jsonl --methods fira apollo --seeds 5    # more of some
    python benchmarks/train_quality.py --results runs.jsonl --table                                     # print only

A LLaMA of 1.9 M parameters (hidden 192, 4 layers) reads bytes; the last tenth of a text is held out. Every method makes
the same number of steps on the same batches at rank d/4 = 48 (APOLLO-Mini's is 1), with a warm-up of a tenth and a
cosine down to a tenth. Its learning rate is tuned, AdamW's included: three rates on the first seed, up to two more
where the best is the lowest or the highest, and the best one on the other seeds. That is the rate of the matrices;
embedding, head and norms have AdamW at 3e-3 with all methods. Runs are short, so bases are renewed every 50 steps where
a paper says 200 or more.

Every run is one line of the results file, and a run whose line is there is not done again: stop it when you like. One
thread; a run takes about half a minute, all of them two hours for two texts. "step" is the optimizer's alone.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from eckart.optim import METHODS, LowRankOptimizer, param_groups

HIDDEN, LENGTH, BATCH, WINDOWS = 192, 128, 4, 200  # windows of held-out text
REST, GAP = 3e-3, 50  # the rate of all but the matrices; most steps between refreshes
# The middle one of three rates; an orthogonal factor's norm does not grow with the matrix, as that of Adam's step does.
RATES = {"adamw": 3e-3, "ldadam": 5e-3, "flora": 3e-3, "frugal": 2e-3, "sumo": 5e-2, "dion": 5e-2}
USUAL_RATE, FACTORS, MOST = 1e-2, (1 / 3, 1.0, 3.0), 5  # most rates that are tried


def llama(seed: int) -> nn.Module:
    """A model with weights that hang on the seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(hidden_size=HIDDEN, num_hidden_layers=4, intermediate_size=512, vocab_size=256,
                         num_attention_heads=6, max_position_embeddings=LENGTH, tie_word_embeddings=False)  # fmt: skip
    return LlamaForCausalLM(config)


def optimizer_of(model: nn.Module, method: str, rate: float) -> torch.optim.Optimizer:
    """The optimizer of a run; only the matrices' rate is the run's."""
    row = METHODS.get(method)
    rank = 1 if row is not None and row.rank == 1 else HIDDEN // 4
    matrices, rest = param_groups(model, rank)
    if row is None:
        sorted_out = [{"params": matrices["params"], "lr": rate}, {"params": rest["params"], "lr": REST}]
        return torch.optim.AdamW(sorted_out, weight_decay=0.0, fused=True)
    gap = min(row.options()["gap"], GAP)
    return LowRankOptimizer([{**matrices, "lr": rate}, {**rest, "lr": REST}], method=method, gap=gap)


def schedule(step: int, steps: int) -> float:
    """Warm-up over a tenth, then a cosine down to a tenth."""
    warm = max(steps // 10, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def train(spec: dict[str, Any], path: Path) -> dict[str, Any]:
    """One run."""
    begin = time.perf_counter()
    text = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    training, held_out = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    model = llama(spec["seed"])
    optimizer = optimizer_of(model, spec["method"], spec["rate"])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, spec["steps"]))
    generator = torch.Generator().manual_seed(spec["seed"])
    times = []
    for _ in range(spec["steps"]):
        starts = torch.randint(len(training) - LENGTH, (BATCH,), generator=generator)
        batch = torch.stack([training[i : i + LENGTH] for i in starts.tolist()]).long()
        optimizer.zero_grad()
        loss = model(input_ids=batch, labels=batch).loss
        if not loss.isfinite():
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        start = time.perf_counter()
        optimizer.step()
        times.append(time.perf_counter() - start)
        scheduler.step()
    return {**spec, "loss": held_out_loss(model, held_out), "state_bytes": state_bytes(optimizer),
            "step_ms": statistics.median(times) * 1e3, "seconds": time.perf_counter() - begin}  # fmt: skip


@torch.no_grad()
def held_out_loss(model: nn.Module, text: Tensor) -> float:
    """Mean over windows that are spread over the text, in nats a byte; infinite where training left the numbers."""
    starts = torch.linspace(0, len(text) - LENGTH, WINDOWS).long().tolist()
    batches = torch.stack([text[i : i + LENGTH] for i in starts]).long().split(50)
    loss = statistics.mean(float(model(input_ids=batch, labels=batch).loss) for batch in batches)
    return loss if math.isfinite(loss) else math.inf


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors in the optimizer's state."""
    return sum(
        t.numel() * t.element_size() for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)
    )


def rates(method: str) -> list[float]:
    """The three rates of a method."""
    return [float(f"{RATES.get(method, USUAL_RATE) * factor:.2g}") for factor in FACTORS]


def next_rate(tried: list[dict[str, Any]]) -> float | None:
    """The rate to try next: beyond the best where that is at an end; None where it lies between others."""
    known, best = sorted(line["rate"] for line in tried), best_rate(tried)
    if len(known) >= MOST or known[0] < best < known[-1]:
        return None
    return float(f"{best * (FACTORS[2] if best == known[-1] else FACTORS[0]):.2g}")


def key(line: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a run this one."""
    return tuple(line[name] for name in ("data", "method", "rate", "seed", "steps"))


class Runs:
    """The results file: runs that are there, and how to add one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self.done = {key(line): line for line in map(json.loads, lines)}

    def get(self, spec: dict[str, Any], text: Path) -> dict[str, Any]:
        """The line of a run, done now if it is not there."""
        if key(spec) not in self.done:
            line = self.done[key(spec)] = train(spec, text)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(", ".join(f"{name} {value:.4g}" for name, value in line.items() if isinstance(value, int | float)),
                  line["data"], line["method"], flush=True)  # fmt: skip
        return self.done[key(spec)]


def best_rate(lines: list[dict[str, Any]]) -> float:
    """The rate with the least loss on the first seed."""
    return min((line for line in lines if line["seed"] == 0), key=lambda line: line["loss"])["rate"]


def table(lines: list[dict[str, Any]]) -> None:
    """Print each text's methods, the best first."""
    for data in dict.fromkeys(line["data"] for line in lines):
        of: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            if line["data"] == data:
                of.setdefault(line["method"], []).append(line)
        best = {name: [line for line in runs if line["rate"] == best_rate(runs)] for name, runs in of.items()}
        mean = {name: statistics.mean(line["loss"] for line in runs) for name, runs in best.items()}
        base = mean.get("adamw", math.nan)
        print(f"\n{data}: held-out loss, nats a byte, after {lines[0]['steps']} steps of {BATCH}×{LENGTH} bytes")
        print(f"{'':14} {'loss':>8} {'±':>7} {'÷ AdamW':>8} {'rate':>8} {'of rates':>9} {'state kB':>9} {'step ms':>8} "
              f"{'seeds':>6}")  # fmt: skip
        for name in sorted(mean, key=mean.__getitem__):
            runs, rate = best[name], best[name][0]["rate"]
            spread = statistics.stdev(line["loss"] for line in runs) if len(runs) > 1 else math.nan
            known = sorted({line["rate"] for line in of[name]})
            place = f"{known.index(rate) + 1} of {len(known)}"
            print(f"{name:14} {mean[name]:8.4f} {spread:7.4f} {mean[name] / base:8.3f} {rate:8.2g} {place:>9} "
                  f"{runs[0]['state_bytes'] / 1e3:9.0f} {statistics.median(line['step_ms'] for line in runs):8.2f} "
                  f"{len(runs):6}")  # fmt: skip


def main() -> None:
    """Parse the arguments, do the runs that are missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path("../shared/data")
    usual = [f"shakespeare={shared / 'tinyshakespeare.txt'}", f"wikitext-2={shared / 'wikitext-2/valid.txt'}"]
    parser.add_argument("--data", nargs="+", default=usual, metavar="NAME=PATH", help="texts")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/train_quality.jsonl"))
    parser.add_argument("--methods", nargs="+", choices=("adamw", *METHODS), default=["adamw", *METHODS])
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = Runs(options.results)
    if not options.table:
        for name, _, path in (text.partition("=") for text in options.data):
            for method in options.methods:
                spec = {"data": name, "method": method, "steps": options.steps}
                tried = [runs.get({**spec, "rate": rate, "seed": 0}, Path(path)) for rate in rates(method)]
                while (rate := next_rate(tried)) is not None:
                    tried.append(runs.get({**spec, "rate": rate, "seed": 0}, Path(path)))
                for seed in range(1, options.seeds):
                    runs.get({**spec, "rate": best_rate(tried), "seed": seed}, Path(path))
    table([line for line in runs.done.values() if line["steps"] == options.steps])


if __name__ == "__main__":
    main()
