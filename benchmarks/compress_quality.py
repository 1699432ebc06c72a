"""Compress SmolLM2-135M by every method at equal bytes: perplexity in and out of the calibration's domain, and time.

    python benchmarks/compress_quality.py --data wikitext-2/ --results runs.jsonl
    python benchmarks/compress_quality.py --data wikitext-2/ --results runs.jsonl --methods svd-llm auto --keep 0.8 0.6
    python benchmarks/compress_quality.py --results runs.jsonl --table                       # print only

All 210 matrices of the decoder, the tied embedding and head stay. Calibration: 64 sequences of 512 tokens from all
parts of two texts, three of WikiText-2's validation text to one of pydoc, none of which shares a passage with what is
evaluated: 20,000 tokens of WikiText-2's test text (the tokenised file) and the first 8,000 of pydoc, in windows of
1,024. All are calibrated on four sequences at a time. "baseline" is SVD-LLM written down as its paper has it, apart
from this library: Cholesky whitening of Σ x xᵀ with a jitter, uniform ranks ⌊keep·mn/(m+n)⌋, all covariances held.
"seconds" is calibration and compression together, without evaluation; one ratio a run for the baseline and for methods
with anchored inputs, all the ratios of `--keep` in one run for the others.

A run whose line is in the results is not done again. Two cores; the baseline takes about five minutes.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eckart.lm as lm
from eckart.compression import METHODS, compress
from eckart.lm.look import next_token_loss
from eckart.nn import replace

TOKENS = {"wikitext-2": 20000, "pydoc": 8000}  # that are evaluated
BATCH, GRADIENTS = 4, 16  # sequences: at a time, and for output gradients


class Bench:
    """A fresh model, its calibration batches and its evaluation."""

    def __init__(self, data: Path) -> None:
        self.model, self.tokenizer, _ = lm.load("smollm2-135m")
        self.texts = {"wikitext-2": data / "test.txt", "pydoc": "pydoc"}
        self.text = lm.calibration_data(
            self.tokenizer, {data / "valid.txt": 3, "pydoc": 1}, sequences=64, length=512, held_out=8, batch=BATCH,
            avoid={self.texts[name]: count for name, count in TOKENS.items()},
        )  # fmt: skip

    def perplexities(self) -> dict[str, float]:
        found = lm.evaluate(self.model, self.tokenizer, self.texts, context=1024, tokens=TOKENS)
        return {name: round(value, 3) for name, value in found.perplexities.items()}


def baseline(model: nn.Module, batches: list[dict[str, Tensor]], keep: float) -> None:
    """SVD-LLM, written down plainly."""
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}
    sums: dict[str, Tensor] = {}

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].flatten(0, -2)
            sums[name] = sums[name] + x.T @ x if name in sums else x.T @ x

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"], use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    for name, module in linears.items():
        W, C = module.weight.detach().double(), sums.pop(name).double()
        jitter = 0.0
        while True:
            S, failed = torch.linalg.cholesky_ex(C + jitter * torch.eye(len(C), dtype=C.dtype))
            if not failed:
                break
            jitter = max(10 * jitter, 1e-6 * float(C.diagonal().mean()))
        U, sigma, Vh = torch.linalg.svd(W @ S, full_matrices=False)
        m, n = W.shape
        r = int(keep * m * n / (m + n))
        root = sigma[:r].sqrt()
        A = torch.linalg.solve_triangular(S, root[:, None] * Vh[:r], upper=False, left=False)
        down, up = nn.Linear(n, r, bias=False), nn.Linear(r, m, bias=False)
        down.weight.data, up.weight.data = A.float(), (U[:, :r] * root).float()
        replace(model, name, nn.Sequential(down, up))


def run_baseline(data: Path, keep: float) -> dict[str, Any]:
    bench = Bench(data)
    begin = time.perf_counter()
    baseline(bench.model, bench.text.batches, keep)
    seconds = time.perf_counter() - begin
    return {"method": "baseline", "keep": keep, "seconds": round(seconds, 1), **bench.perplexities()}


def run_dense(data: Path) -> dict[str, Any]:
    return {"method": "dense", "keep": 1.0, "seconds": 0.0, **Bench(data).perplexities()}


def run(data: Path, method: str, keeps: list[float]) -> list[dict[str, Any]]:
    """One method at one or several ratios, from one calibration."""
    bench = Bench(data)
    begin = time.perf_counter()
    plan = compress(
        bench.model, bench.text.batches, keep=1.0, method=method, loss=next_token_loss,
        gradient_loss=lm.SampledLoss(), gradient_batches=GRADIENTS // BATCH, held_out=bench.text.held_out,
        dry_run=True,
    )  # fmt: skip
    learned = time.perf_counter() - begin
    results = []
    for keep in keeps:
        begin = time.perf_counter()
        each = plan.at(keep=keep)
        with each.standing():
            seconds = time.perf_counter() - begin
            told = bench.perplexities()
        results.append({"method": method, "keep": keep, "kept": round(each.kept, 4), "learning": round(learned, 1),
                        "seconds": round(learned + seconds, 1), **told})  # fmt: skip
        if each.losses:
            results[-1]["held_out_losses"] = {name: round(loss, 4) for name, loss in each.losses.items()}
        print(json.dumps(results[-1]), flush=True)
    return results


def table(path: Path) -> None:
    """The results as a markdown table, best first within each ratio."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    print("| keep | method | WikiText-2 | pydoc | seconds |\n|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: (-row["keep"], row["wikitext-2"])):
        english, pydoc = (
            f"{value:.1f}" if value < 1e4 else f"{value:.0e}" for value in (row["wikitext-2"], row["pydoc"])
        )
        print(f"| {row['keep']} | {row['method']} | {english} | {pydoc} | {row['seconds']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of WikiText-2's test.txt and valid.txt")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["dense", "baseline", *METHODS])
    parser.add_argument("--keep", nargs="+", type=float, default=[0.8, 0.6])
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if not given.table:
        lines = given.results.read_text().splitlines() if given.results.is_file() else []
        done = {(row["method"], row["keep"]) for row in map(json.loads, lines)}
        for method in given.methods:
            keeps = [keep for keep in ([1.0] if method == "dense" else given.keep) if (method, keep) not in done]
            if not keeps:
                continue
            if method == "dense":
                results = [run_dense(given.data)]
            elif method == "baseline":
                results = [run_baseline(given.data, keep) for keep in keeps]
            else:
                results = run(given.data, method, keeps)
            with given.results.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in results)
    table(given.results)


if __name__ == "__main__":
    main()
