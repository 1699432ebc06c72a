"""Time a switch between adapters, and one batch whose rows have different adapters, beside peft.

    python benchmarks/adapt_switching.py                        # SmolLM2-135M: about two minutes on two cores
    python benchmarks/adapt_switching.py --rows 16 --tokens 1   # as in decoding

The switch is from one of two adapters to the other, on all 210 decoder linears; the bar is 1 ms per 100 layers. The
mixed batch has as many different adapters as rows: `mixed` in one pass, the rows one after another with `activate`
between them, and peft's `adapter_names`. Ways take turns; the table gives medians, and ratios to `mixed`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from eckart.adapters import activate, adapt, mixed
from eckart.adapters.layers.place import places
from eckart.lm import load

DECODER = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def ours(name: str, count: int, rank: int) -> nn.Module:
    """The model with `count` adapters whose Δ is not zero."""
    model = load(name)[0].eval()
    for index in range(count):
        adapt(model, rank=rank, name=f"a{index}")
        for place in places(model).values():
            nn.init.normal_(place.held[f"a{index}"].B, std=0.02)
    return model


def theirs(name: str, count: int, rank: int) -> nn.Module:
    """The same of peft."""
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=DECODER, init_lora_weights=False)
    model = PeftModel(load(name)[0].eval(), config, "a0")
    for index in range(1, count):
        model.add_adapter(f"a{index}", config)
    return model.eval()


def timed(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median and least milliseconds of each way, taking turns."""
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, call in ways.items():
            start = time.perf_counter()
            call()
            if turn:  # the first is for warming up
                times[way].append(1e3 * (time.perf_counter() - start))
    return {way: (statistics.median(each), min(each)) for way, each in times.items()}


def switch(call: Callable[[str], object]) -> Callable[[], object]:
    """To the other of two adapters, at each call."""
    turn = [0]

    def one() -> object:
        turn[0] ^= 1
        return call(f"a{turn[0]}")

    return one


def main() -> None:
    """Parse the arguments and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, peft = (make(options.model, options.rows, options.rank) for make in (ours, theirs))
    layers = len(places(model))
    print(f"{layers} layers, {options.rows} adapters of rank {options.rank}, torch {torch.__version__}")
    ways: dict[str, Callable[[], object]] = {
        "eckart activate": switch(lambda name: activate(model, name)),
        "peft set_adapter": switch(peft.set_adapter),
    }
    alone = {"eckart activate, alone": ways["eckart activate"]}
    print(f"{'':24} {'median ms':>10} {'fastest':>10} {'median per 100 layers':>22}")
    for way, (median, least) in (timed(ways, 10 * options.repeats) | timed(alone, 10 * options.repeats)).items():
        print(f"{way:24} {median:10.3f} {least:10.3f} {100 * median / layers:22.3f}")

    ids = torch.randint(1000, (options.rows, options.tokens))
    rows = [f"a{index}" for index in range(options.rows)]

    def together() -> torch.Tensor:
        with mixed(model, rows):
            return model(ids).logits

    def apart() -> torch.Tensor:
        outputs = []
        for row, name in enumerate(rows):
            activate(model, name)
            outputs.append(model(ids[row : row + 1]).logits)
        return torch.cat(outputs)

    with torch.no_grad():
        print(f"\n{options.rows} rows of {options.tokens} tokens, each with its own adapter")
        off = float((together() - apart()).abs().max() / apart().abs().max())
        batches: dict[str, Callable[[], object]] = {
            "eckart mixed": together,
            "eckart, row by row": apart,
            "peft adapter_names": lambda: peft(ids, adapter_names=rows),
            "without adapters": lambda: _plain(model, ids),
        }
        found = timed(batches, options.repeats)
    print(f"{'':24} {'median ms':>10} {'fastest':>10} {'median ÷ mixed':>22}")
    for way, (median, least) in found.items():
        print(f"{way:24} {median:10.1f} {least:10.1f} {median / found['eckart mixed'][0]:22.2f}")
    print(f"mixed and row by row differ by {off:.1e} of the largest logit")


def _plain(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with mixed(model, [None] * len(ids)):
        return model(ids).logits


if __name__ == "__main__":
    main()
