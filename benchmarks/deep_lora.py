"""Deep LoRA against LoRA with few examples, and at growing rank: a bound for one, a risk for the other.

    pip download --no-deps --no-binary :all: vaderSentiment==0.5    # 10 605 rated sentences, MIT
    python benchmarks/deep_lora.py --data vaderSentiment-0.5.zip --results deep_lora.jsonl
    python benchmarks/deep_lora.py --data vaderSentiment-0.5.zip --results quick.jsonl --quick     # about a minute

The task is regression, as the paper's is: sentences of film reviews, each rated from −4 to 4 by twenty people (Hutto
and Gilbert, ICWSM 2014, in the package's hutto_ICWSM_2014.tar.gz); the figure is Pearson's correlation on 500 other
sentences. MiniLM's upper three layers are adapted (18 matrices; what the lower three give is computed once), with a
new linear head on the mean. A seed draws the examples, the head, the factors and the order of batches, the same for
all methods. Every run is one line of the results file, and a run whose line is there is not done again.

"lora" is A uniform in ±1/√n with α = 2r; "lora, N(0,1)" is the baseline of the paper's code: A standard normal, B = 0,
no α/r; "head" trains the head alone. Adam with eps 1e-6, as in the paper's code, which also leaves the head random
(`--frozen-head`). `--search` tries the rates on other seeds.
"""

import argparse
import io
import json
import statistics
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import eckart.lm
from eckart.adapters import adapt
from eckart.adapters.layers.place import adapters
from eckart.adapters.optimizers import param_groups
from eckart.linalg import product_svd

LOWER, TOKENS, HELD_OUT, BATCH, HEAD_RATE = 3, 24, 500, 16, 1e-3
RATES = {"head": 1e-4, "lora": 1e-4, "lora, N(0,1)": 1e-4, "deep-lora": 1e-4, "deep-lora-compressed": 1e-2}


class Examples(NamedTuple):
    """Sentences as the lower layers give them."""

    hidden: Tensor  # (N, T, n)
    mask: Tensor  # (N, T)
    ratings: Tensor  # (N,) divided by 2, close to unit variance

    def at(self, index: Tensor) -> "Examples":
        return Examples(self.hidden[index], self.mask[index], self.ratings[index])


class Upper(nn.Module):
    """The upper layers with a linear head on the mean of the tokens."""

    def __init__(self, layers: nn.ModuleList, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = layers
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            self.head.weight.normal_(std=0.02, generator=generator)
            self.head.bias.zero_()

    def forward(self, hidden: Tensor, mask: Tensor, ratings: Tensor | None = None) -> Tensor:  # (N,)
        for layer in self.layers:
            hidden = layer(hidden, mask[:, None, None, :])
        weights = mask.to(hidden.dtype).unsqueeze(-1)
        return self.head((hidden * weights).sum(1) / weights.sum(1)).squeeze(-1)


def read(path: Path) -> list[tuple[str, float]]:
    """Sentences of 4 to 16 words and their ratings, from the package's archive."""
    with zipfile.ZipFile(path) as package:
        inner = next(name for name in package.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(package.read(inner))) as archive:
            member = next(name for name in archive.getnames() if name.endswith("movieReviewSnippets_GroundTruth.txt"))
            lines = archive.extractfile(member).read().decode("latin-1").splitlines()  # type: ignore[union-attr]
    rows = [line.split("\t") for line in lines if line.strip()]
    return [(text, float(rating)) for _, rating, text in rows if 4 <= len(text.split()) <= 16]


@torch.no_grad()
def encode(rows: list[tuple[str, float]]) -> Examples:
    """All sentences through the embedding and the lower layers."""
    model, tokenizer, _ = eckart.lm.load("minilm")
    parts = []
    for start in range(0, len(rows), 100):
        texts = [text for text, _ in rows[start : start + 100]]
        batch = tokenizer(texts, return_tensors="pt", padding="max_length", truncation=True, max_length=TOKENS)  # type: ignore[misc]
        mask = batch["attention_mask"].bool()
        hidden = model.embeddings(batch["input_ids"])
        for layer in model.encoder.layer[:LOWER]:
            hidden = layer(hidden, mask[:, None, None, :])
        parts.append((hidden, mask))
    hidden, mask = (torch.cat(each) for each in zip(*parts, strict=True))
    return Examples(hidden, mask, torch.tensor([rating / 2 for _, rating in rows]))


def adapted(spec: dict[str, Any], few: Examples) -> Upper:
    """The model that a run trains, its head included."""
    generator = torch.Generator().manual_seed(spec["seed"])
    model = eckart.lm.load("minilm").model
    upper = Upper(model.encoder.layer[LOWER:], model.config.hidden_size, generator)
    if spec["method"] == "head":
        upper.requires_grad_(False)
        upper.head.requires_grad_(True)
        return upper
    method, rank = spec["method"].partition(",")[0], spec["rank"]
    more: dict[str, Any] = {"alpha": rank} if "N(0,1)" in spec["method"] else {}
    if "compressed" in method:
        more = {"batches": [few.at(torch.arange(min(BATCH, len(few.ratings))))], "loss": squared_error}
    adapt(upper, method, rank=rank, targets="layers.*", modules_to_save=None if spec["frozen"] else "head",
          generator=generator, **more)  # fmt: skip
    if "N(0,1)" in spec["method"]:
        with torch.no_grad():
            for _, adapter in adapters(upper, "default"):
                adapter.A.normal_(generator=generator)  # type: ignore[operator, union-attr]
    return upper


def squared_error(output: Tensor, batch: Any) -> Tensor:
    """The loss of a batch, whose last part are the ratings."""
    return (output - batch[2]).square().mean()


def train(spec: dict[str, Any], few: Examples, held_out: Examples) -> dict[str, Any]:
    """One run: what it reached on the held-out sentences, and the ranks that it learned."""
    begin = time.perf_counter()
    model = adapted(spec, few)
    groups = param_groups(model, spec["rate"], outer=0.01)
    for group in groups:
        group["lr"] = HEAD_RATE if group["name"] == "saved" else group["lr"]
    optimizer = torch.optim.Adam(groups, eps=spec["eps"])
    order = torch.Generator().manual_seed(spec["seed"])
    losses: list[float] = []
    while len(losses) < spec["steps"]:
        for index in torch.randperm(len(few.ratings), generator=order).split(BATCH)[: spec["steps"] - len(losses)]:
            optimizer.zero_grad()
            loss = squared_error(model(*few.at(index)), few.at(index))
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    with torch.no_grad():
        guess = torch.cat([model(*held_out.at(index)) for index in torch.arange(HELD_OUT).split(100)])
    pearson = float(torch.corrcoef(torch.stack((guess, held_out.ratings)))[0, 1])
    return {**spec, "pearson": pearson, "loss": statistics.mean(losses[-10:]), "seconds": time.perf_counter() - begin,
            "spectra": spectra(model)}  # fmt: skip


@torch.no_grad()
def spectra(model: nn.Module) -> list[list[float]]:
    """The singular values of each matrix's Δ."""
    found = []
    for _, adapter in adapters(model, "default"):
        term = adapter.terms()[0]  # type: ignore[index]
        found.append([float(f"{x:.3g}") for x in (term.scale * product_svd(term.B, term.A)[1]).tolist()])
    return found


def learned(line: dict[str, Any]) -> dict[str, float]:
    """What Δ is: directions above 1 % of the largest anywhere, matrices without any, stable rank of the others."""
    largest = max((S[0] for S in line["spectra"]), default=0.0)
    counts = [sum(x > 0.01 * largest for x in S) for S in line["spectra"]]
    stable = [sum(x * x for x in S) / S[0] ** 2 for S, count in zip(line["spectra"], counts, strict=True) if count]
    return {"rank": statistics.mean(counts or [0]), "untouched": sum(count == 0 for count in counts),
            "stable": statistics.median(stable or [0]), "largest": largest}  # fmt: skip


def plan(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The runs, one seed after another: few examples at rank 8, and growing rank with the fewest."""
    shots, ranks, seeds = options.shots, options.ranks, range(options.seeds)
    for seed in seeds:
        for method in [name for name in options.methods if not (options.frozen_head and name == "head")]:
            pairs = [(few, ranks[0]) for few in shots]
            pairs += [(shots[0], rank) for rank in ranks[1:] if method != "head"]
            rates = [RATES[method] * (options.rate / 1e-4)] if not options.search else [
                factor * RATES[method] for factor in (1.0, 3.0, 10.0, 30.0)]  # fmt: skip
            for few, rank in pairs:
                for rate in rates:
                    yield {"method": method, "shots": few, "rank": rank, "seed": seed + 1000 * options.search,
                           "rate": rate, "steps": options.steps, "eps": options.eps,
                           "frozen": options.frozen_head}  # fmt: skip


def results(path: Path, specs: list[dict[str, Any]], rows: list[tuple[str, float]]) -> list[dict[str, Any]]:
    """The lines of these runs: read where they are in the file, run and added where not."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found: dict[str, dict[str, Any]] = {json.dumps({key: line.get(key) for key in specs[0]}): line for line in done}
    missing = [spec for spec in specs if json.dumps(spec) not in found]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    held_out = encode([rows[i] for i in order[:HELD_OUT]]) if missing else None
    pool = [rows[i] for i in order[HELD_OUT:]]
    for number, spec in enumerate(missing, 1):
        drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(spec["seed"]))
        line = train(spec, encode([pool[i] for i in drawn[: spec["shots"]].tolist()]), held_out)
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        found[json.dumps(spec)] = line
        print(f"{number}/{len(missing)} {line['method']}, {line['shots']} examples, rank {line['rank']}, "
              f"seed {line['seed']}, rate {line['rate']:.0e}: {line['pearson']:.3f} "
              f"(loss {line['loss']:.3f}, mean rank {learned(line)['rank']:.1f}, {line['seconds']:.0f} s)",
              flush=True)  # fmt: skip
    return [found[json.dumps(spec)] for spec in specs]


def table(lines: list[dict[str, Any]]) -> None:
    """Mean and spread over the seeds, and the difference from LoRA with the same seed."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        cells.setdefault((line["shots"], line["rank"], line["method"], line["rate"]), []).append(line)
    print(f"\n{'examples':>8} {'rank':>4} {'method':22} {'rate':>7} {'Pearson':>15} {'against lora':>16} "
          f"{'train loss':>10} {'rank':>5} {'untouched':>9} {'stable':>6} {'largest σ':>8}")  # fmt: skip
    for (shots, rank, method, rate), found in sorted(cells.items(), key=lambda cell: cell[0][:2]):
        base = {line["seed"]: line["pearson"] for line in lines
                if (line["shots"], line["rank"], line["method"]) == (shots, rank, "lora")}  # fmt: skip
        gains = [line["pearson"] - base[line["seed"]] for line in found if line["seed"] in base]
        told = [{"loss": line["loss"], **learned(line)} for line in found]
        mean = {key: statistics.mean(each[key] for each in told) for key in told[0]}
        print(f"{shots:8} {rank:4} {method:22} {rate:7.0e} {spread([line['pearson'] for line in found]):>15} "
              f"{spread(gains, sign='+') if method != 'lora' else '':>16} {mean['loss']:10.3f} "
              f"{mean['rank']:5.1f} {mean['untouched']:9.1f} {mean['stable']:6.2f} {mean['largest']:8.3f}")  # fmt: skip


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± standard deviation."""
    if not values:
        return ""
    return f"{statistics.mean(values):{sign}.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


def main() -> None:
    """Parse the arguments, do what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="vaderSentiment-0.5.zip")
    parser.add_argument("--results", type=Path, required=True, help="file of runs, one JSON line each")
    parser.add_argument("--shots", type=int, nargs="+", default=[16, 64, 256])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 16, 32, 64], help="all but the first: fewest shots")
    parser.add_argument("--methods", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument(
        "--rate", type=float, default=1e-4, help="of all methods; the compressed one's is 100 times this"
    )
    parser.add_argument("--eps", type=float, default=1e-6, help="of Adam")
    parser.add_argument(
        "--frozen-head", action="store_true", help="leave the new head random, as the paper's code does"
    )
    parser.add_argument("--search", action="store_true", help="several rates, on other seeds")
    parser.add_argument("--quick", action="store_true", help="two methods, one seed, 16 examples, 60 steps")
    options = parser.parse_args()
    if options.quick:
        options.shots, options.ranks, options.seeds, options.steps = [16], [8, 64], 1, 60
        options.methods, options.rate = ["lora", "deep-lora"], 3e-4
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    table(results(options.results, list(plan(options)), read(options.data)))


if __name__ == "__main__":
    main()
