"""Compare rank="auto" with one rank for all matrices at the same number of parameters: held-out loss on real English.

    python benchmarks/auto_rank.py            # 5 seeds, about 20 minutes on two cores
    python benchmarks/auto_rank.py --quick    # about a minute; says little
    python benchmarks/auto_rank.py --table    # only what the file already has

SmolLM2-135M, all decoder linears, LoRA, Adam with a linear warm-up and decay, on the help topics of Python. A seed
draws which windows are trained on, in what order, and the A's; both rules get the same. `auto` measures on the first
windows of the training data. The budget is what the uniform rank costs. Every finished run is a line of JSON in the
file, and runs that are there are not made again, so that a broken benchmark goes on where it stopped.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eckart import adapters, lm

RULES = ("uniform", "auto")
HELD_OUT = 24  # batches at the end of the shuffled text, never trained on


def data(options: argparse.Namespace, tokenizer: Any) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Training and held-out batches of full windows, shuffled once, the same for every seed."""
    made = lm.batches(tokenizer, lm.read_text("pydoc"), length=options.length, batch=options.batch)
    made = [each for each in made if each["input_ids"].shape[0] == options.batch and bool(each["attention_mask"].all())]
    random.Random(0).shuffle(made)
    made = [each | {"labels": each["input_ids"]} for each in made]
    held = 4 if options.quick else HELD_OUT
    return made[:-held], made[-held:]


@torch.no_grad()
def mean_loss(model: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    return statistics.fmean(float(model(**batch).loss) for batch in batches)


def run(options: argparse.Namespace, rule: str, seed: int) -> dict[str, Any]:
    """Adapt a fresh model by one rule, train it, and measure the held-out loss."""
    model, tokenizer, _ = lm.load("smollm2-135m")
    train, held = data(options, tokenizer)
    random.Random(seed).shuffle(train)
    targets = ["*_proj"]
    linears = [module for name, module in model.named_modules() if name.endswith("_proj")]
    budget = options.rank * sum(sum(module.weight.shape) for module in linears)
    chosen: dict[str, Any] = {"rank": options.rank}
    if rule == "auto":
        chosen = {"rank": "auto", "budget": budget, "batches": train[: options.measured]}
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    adapted = adapters.adapt(model, targets=targets, generator=generator, **chosen)
    measuring = time.perf_counter() - start
    print(adapted, flush=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.rate, weight_decay=0.0)
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1, (t + 1) / 5) * (1 - t / options.steps))
    for step in range(options.steps):
        model(**train[step % len(train)]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pace.step()
    return key_of(options, rule, seed) | {
        "loss": mean_loss(model, held),
        "parameters": adapted.trained,
        "matrices": len(adapted.settings.ranks),
        "highest": max(adapted.settings.ranks.values()),
        "measuring_s": round(measuring, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def key_of(options: argparse.Namespace, rule: str, seed: int) -> dict[str, Any]:
    """What makes a run the same run."""
    numbers = {
        name: getattr(options, name) for name in ("rank", "steps", "rate", "length", "batch", "measured", "quick")
    }
    return numbers | {"rule": rule, "seed": seed}


def kept(path: Path) -> list[dict[str, Any]]:
    """The finished runs; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"left out of {path}: {line[:60]!r}")
    return rows


def table(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print mean, spread and the paired difference."""
    here = key_of(options, "", 0)
    same = [row for row in rows if all(row.get(k) == v for k, v in here.items() if k not in ("rule", "seed"))]
    losses = {rule: {row["seed"]: row["loss"] for row in same if row["rule"] == rule} for rule in RULES}
    print(
        f"\nSmolLM2-135M, {options.steps} steps of {options.batch}×{options.length} tokens, "
        f"budget of rank {options.rank}"
    )
    print(f"{'rule':9} {'seeds':>5} {'held-out loss':>14} {'spread':>8}  ranks")
    for rule, found in losses.items():
        if found:
            spread = statistics.stdev(found.values()) if len(found) > 1 else float("nan")
            row = next(row for row in same if row["rule"] == rule)
            told = f"{row['matrices']} matrices, up to {row['highest']}, {row['parameters']:,} parameters"
            print(f"{rule:9} {len(found):5} {statistics.fmean(found.values()):14.4f} {spread:8.4f}  {told}")
    both = sorted(losses["uniform"].keys() & losses["auto"].keys())
    apart = [losses["auto"][seed] - losses["uniform"][seed] for seed in both]
    if apart:
        error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else float("nan")
        wins = sum(each < 0 for each in apart)
        print(
            f"auto − uniform, paired: {statistics.fmean(apart):+.4f} ± {error:.4f} (standard error); "
            f"lower for {wins} of {len(apart)} seeds"
        )


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=4, help="the uniform rank, whose cost is the budget")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=64, help="tokens of a window")
    parser.add_argument("--batch", type=int, default=2, help="windows of a batch")
    parser.add_argument("--measured", type=int, default=16, help="batches that auto measures on")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("auto_rank.jsonl"))
    parser.add_argument("--quick", action="store_true", help="one seed, 4 steps, 4 batches of 32 tokens to measure on")
    parser.add_argument("--table", action="store_true", help="run nothing")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.steps, options.length, options.batch, options.measured = 1, 4, 32, 1, 4
    for seed in range(0 if options.table else options.seeds):
        for rule in RULES:
            key = key_of(options, rule, seed)
            if not any(all(row.get(k) == v for k, v in key.items()) for row in kept(options.out)):
                row = run(options, rule, seed)
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row), flush=True)
    table(kept(options.out), options)


if __name__ == "__main__":
    main()
