"""Time the spectra of every matrix of a real model against weightwatcher and torch, and check their exactness.

    python benchmarks/spectra.py                                   # SmolLM2-135M: about five minutes on two cores
    python benchmarks/spectra.py --rounds 1 --repeats 2 --methods full fast weightwatcher
    python benchmarks/spectra.py --model path/to/folder --json

Each method runs in a process of its own on the same weights (LAPACK of scipy and of torch slow each other down in one
process), and the processes take turns, so that a busy machine slows all of them. The tied embedding counts once. The
table gives medians, the ratio to weightwatcher's `analyze()`, and the largest relative error of any singular value (of
the 16 largest for the fast ways) against torch's float64 SVD.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Spectra = dict[str, Tensor]


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Name → weight of every matrix of the model, each storage once."""
    from eckart.nn import matrices

    return {matrix.name: matrix.weight().detach() for matrix in matrices(model)}


def side_by_side(function: Callable[[Tensor], Tensor], model: nn.Module) -> Spectra:
    """`function` of every matrix by `map_side_by_side`."""
    from eckart.linalg import map_side_by_side

    named = weights(model)
    return dict(zip(named, map_side_by_side(function, named.values()), strict=True))


def linalg_full(model: nn.Module) -> Spectra:
    from eckart.linalg import singular_values

    return side_by_side(singular_values, model)


def linalg_fast(model: nn.Module) -> Spectra:
    from eckart.linalg import top_singular_values

    return side_by_side(lambda W: top_singular_values(W)[0], model)


def measure(mode: str) -> Callable[[nn.Module], Spectra]:
    def run(model: nn.Module) -> Spectra:
        import eckart

        return {entry.name: entry.values for entry in eckart.measure(model, of="weights", mode=mode).entries}

    return run


def one_by_one(dtype: torch.dtype) -> Callable[[nn.Module], Spectra]:
    return lambda model: {name: torch.linalg.svdvals(W.to(dtype)) for name, W in weights(model).items()}


def weightwatcher(model: nn.Module) -> Spectra:
    import logging

    logging.disable(logging.WARNING)
    from weightwatcher import WeightWatcher

    WeightWatcher(model=model).analyze()
    return {}  # its spectra stay inside


REFERENCE = "svdvals float64"
METHODS: dict[str, Callable[[nn.Module], Spectra]] = {
    "full": measure("full"),
    "fast": measure("fast"),
    "linalg full": linalg_full,
    "linalg fast": linalg_fast,
    "svdvals float32": one_by_one(torch.float32),
    REFERENCE: one_by_one(torch.float64),
    "weightwatcher": weightwatcher,
}
LABELS = {
    "full": 'eckart.measure(mode="full")',
    "fast": 'eckart.measure(mode="fast")',
    "linalg full": "  singular_values alone, side by side",
    "linalg fast": "  top_singular_values alone, side by side",
    "svdvals float32": "torch.linalg.svdvals, float32",
    REFERENCE: "torch.linalg.svdvals, float64",
    "weightwatcher": "weightwatcher 0.7.7 analyze()",
}


def child(method: str, folder: Path, repeats: int) -> None:
    """Run one method in this process: print its seconds as JSON, leave its spectra in the folder."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder)
    run, seconds = METHODS[method], []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        spectra = run(model)
        seconds.append(time.perf_counter() - start)
    save_file({name: S.double().contiguous() for name, S in spectra.items()}, folder / f"{method}.spectra")
    print(json.dumps(seconds[1:]))


def relative_error(spectra: Spectra, reference: Spectra) -> float | None:
    """The largest relative error of any value that the method gave."""
    if not spectra or not reference:
        return None
    if spectra.keys() != reference.keys():
        raise RuntimeError(f"not the same matrices: {sorted(spectra.keys() ^ reference.keys())}")
    errors = (((S - reference[name][: len(S)]) / reference[name][: len(S)]).abs().max() for name, S in spectra.items())
    return float(max(errors))


def rounds(methods: list[str], folder: Path, count: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each method, its processes taking turns with the others'."""
    times: dict[str, list[float]] = {method: [] for method in methods}
    for _ in range(count):
        for method in methods:
            command = [sys.executable, __file__, "--child", method, str(folder), str(repeats)]
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            times[method] += json.loads(output.splitlines()[-1])
    return times


def rows(times: dict[str, list[float]], folder: Path) -> list[dict[str, Any]]:
    """One row a method: its median, fastest, ratio to weightwatcher and error."""
    spectra = {method: load_file(folder / f"{method}.spectra") for method in times}
    peer = statistics.median(times["weightwatcher"]) if "weightwatcher" in times else None
    return [
        {
            "method": LABELS[method],
            "median": statistics.median(seconds),
            "fastest": min(seconds),
            "ratio": statistics.median(seconds) / peer if peer else None,
            "error": relative_error(spectra[method], spectra.get(REFERENCE, {})),
        }
        for method, seconds in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder that eckart.lm.load knows")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=2, help="processes of each method")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs in each process, after a warm-up")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "FOLDER", "REPEATS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        method, folder, repeats = options.child
        child(method, Path(folder), int(repeats))
        return
    from transformers.utils import logging

    from eckart.lm import load

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        model = load(options.model).model
        model.save_pretrained(name)
        shapes = [tuple(W.shape) for W in weights(model).values()]
        del model
        table = rows(rounds(options.methods, Path(name), options.rounds, options.repeats), Path(name))
    if options.json:
        print("\n".join(json.dumps(row) for row in table))
        return
    largest = max(shapes, key=lambda shape: shape[0] * shape[1])
    print(f"{options.model}: {len(shapes)} matrices, the largest {largest}")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'method':42} {'median s':>9} {'fastest s':>9} {'÷ weightwatcher':>16} {'largest error':>14}")
    for row in table:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3f}"
        error = "" if row["error"] is None else f"{row['error']:.1e}"
        print(f"{row['method']:42} {row['median']:9.2f} {row['fastest']:9.2f} {ratio:>16} {error:>14}")


if __name__ == "__main__":
    main()
