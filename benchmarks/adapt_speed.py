"""Time one training pass with adapters against the frozen model, beside PEFT, and count what autograd keeps.

    python benchmarks/adapt_speed.py                              # SmolLM2-135M, 4×128 and 1×256: about 8 minutes
    python benchmarks/adapt_speed.py --methods vera loha pissa    # other rows, at their default rank
    python benchmarks/adapt_speed.py --sizes 4x128 --rounds 25
    python benchmarks/adapt_speed.py --profile                    # where LoRA's time goes at r = 8, 4×128

"limit" is the same model, frozen, with the gradient flowing to its inputs: no method that computes a gradient below
these layers does less. "grouped limit" computes q, k and v, and gate and up, in one product each. Contestants take
turns within a round, so that a busy machine slows them alike, and the table gives medians of each round's ratio. Every
adapter's tensors change between passes, as an optimizer would change them, outside the clock. All share one set of
frozen weights, so that none finds its own less at hand than another's.

The program starts itself again with glibc told to keep what it has freed (MALLOC_TRIM_THRESHOLD_ and the like): fresh
pages for temporaries, which every contestant asks for, would drown the differences. `--keep-malloc` leaves that out.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

import eckart
import glibc
from eckart.nn import replace

SIBLINGS = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("mlp", ("gate_proj", "up_proj")))
MODEL = "smollm2-135m"
PROFILED = ("limit", "eckart LoRA r=8")


class Shared(nn.Module):
    """One of several frozen layers whose product the first of them computes for all."""

    def __init__(self, rows: slice, state: dict[str, Any]) -> None:
        super().__init__()
        self.rows, self.state = rows, state
        self.register_buffer("W", state["W"])

    def forward(self, x: Tensor) -> Tensor:
        if self.state.get("x") is not x:
            self.state["x"], self.state["y"] = x, F.linear(x, self.state["W"])
        y = self.state["y"][..., self.rows]
        if self.rows.stop == len(self.state["W"]):
            del self.state["x"], self.state["y"]
        return y


def grouped(model: nn.Module) -> nn.Module:
    """The model with the frozen weights of siblings in one matrix."""
    for index in range(len(model.model.layers)):  # type: ignore[union-attr,arg-type]
        for parent, names in SIBLINGS:
            paths = [f"model.layers.{index}.{parent}.{name}" for name in names]
            weights = [model.get_submodule(path).weight for path in paths]
            state, start = {"W": torch.cat(weights).detach()}, 0  # type: ignore[arg-type]
            for path, W in zip(paths, weights, strict=True):
                replace(model, path, Shared(slice(start, start + len(W)), state))  # type: ignore[arg-type]
                start += len(W)  # type: ignore[arg-type]
    return model


def peft(model: nn.Module, rank: int, magnitude: bool) -> nn.Module:
    """PEFT's way, every layer but the head."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", use_dora=magnitude)
    return get_peft_model(model, config)


def ours(model: nn.Module, method: str, rank: int | None) -> nn.Module:
    """The library's way."""
    eckart.adapt(model, method, rank=rank)
    return model


def contestants(methods: list[str]) -> dict[str, Callable[[nn.Module], nn.Module]]:
    """Name → what is done to the frozen model."""
    first: dict[str, Callable[[nn.Module], nn.Module]] = {"limit": lambda model: model, "grouped limit": grouped}
    if methods:
        return first | {f"eckart {name}": lambda m, name=name: ours(m, name, None) for name in methods}
    for label, method, rank in (("LoRA r=8", "lora", 8), ("LoRA r=64", "lora", 64), ("DoRA r=8", "dora", 8)):
        first[f"PEFT {label}"] = lambda m, rank=rank, dora=method == "dora": peft(m, rank, dora)
        first[f"eckart {label}"] = lambda m, method=method, rank=rank: ours(m, method, rank)
    return first


def one_pass(model: nn.Module, embedded: Tensor, labels: Tensor) -> float:
    """Seconds of one forward and backward pass with the gradient flowing to the inputs."""
    x = embedded.clone().requires_grad_()
    start = time.perf_counter()
    model(inputs_embeds=x, labels=labels, use_cache=False).loss.backward()
    return time.perf_counter() - start


@torch.no_grad()
def touch(model: nn.Module) -> None:
    """Let gradients go, and change what trains, as an optimizer does."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = None
            parameter.mul_(1.0)


def kept_bytes(model: nn.Module, embedded: Tensor, labels: Tensor) -> int:
    """Bytes of what autograd keeps in a forward pass: each storage once, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    sizes: dict[int, int] = {}
    held = []

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(inputs_embeds=embedded.clone().requires_grad_(), labels=labels, use_cache=False)
    return sum(sizes.values())


def table(models: dict[str, nn.Module], batch: int, length: int, rounds: int, width: int, words: int) -> None:
    """Print one size's ratios."""
    generator = torch.Generator().manual_seed(0)
    embedded = torch.randn(batch, length, width, generator=generator) * 0.1
    labels = torch.randint(words, (batch, length), generator=generator)
    times: dict[str, list[float]] = {name: [] for name in models}
    for done in range(rounds + 2):
        for name, model in models.items():
            seconds = one_pass(model, embedded, labels)
            touch(model)
            if done > 1:  # groups are found in the first pass
                times[name].append(seconds)
    kept = {name: kept_bytes(model, embedded, labels) for name, model in models.items()}
    print(f"\n{batch}×{length} tokens, {rounds} rounds")
    print(f"{'':22} {'median ms':>10} {'÷ limit':>8} {'quartiles':>14} {'kept MB':>8} {'extra ÷ limit':>14}")
    for name, measured in times.items():
        ratios = [a / b for a, b in zip(measured, times["limit"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        extra = kept[name] / kept["limit"] - 1
        quartiles = f"{low:.3f} to {high:.3f}"
        median = statistics.median(measured) * 1e3
        print(
            f"{name:22} {median:10.0f} {middle:8.3f} {quartiles:>14} {kept[name] / 1e6:8.0f} {extra:14.2f}", flush=True
        )


def where(models: dict[str, nn.Module], passes: int = 6) -> None:
    """Print what the thin products of LoRA r = 8 take, by torch's profiler, and what the calls of its layers do."""
    embedded = torch.randn(4, 128, 576, generator=torch.Generator().manual_seed(0)) * 0.1
    labels = torch.zeros(4, 128, dtype=torch.long)
    total, thin = dict.fromkeys(models, 0.0), dict.fromkeys(models, 0.0)
    for done in range(passes + 2):
        for name, model in models.items():
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as run:
                one_pass(model, embedded, labels)
            touch(model)
            for event in run.key_averages(group_by_input_shape=True) if done > 1 else ():
                total[name] += event.self_cpu_time_total / passes / 1e3
                sizes = [min(shape) for shape in event.input_shapes if len(shape) == 2]
                if event.key in ("aten::mm", "aten::addmm", "aten::addmm_") and min(sizes) <= 24:  # 8 for each sibling
                    thin[name] += event.self_cpu_time_total / passes / 1e3
    limit, adapted = total.values()
    print(f"profiled: limit {limit:.0f} ms, LoRA r=8 {adapted:.0f} ms; thin products {thin[PROFILED[1]]:.0f} ms, "
          f"{thin[PROFILED[1]] / limit:.1%} of the limit's")  # fmt: skip
    sizes = {"hidden_size": 36, "intermediate_size": 96, "num_attention_heads": 9, "num_key_value_heads": 3}
    narrow = LlamaForCausalLM(LlamaConfig(vocab_size=100, num_hidden_layers=30, **sizes)).requires_grad_(False)
    few = {"limit": narrow.train(), "ours": ours(copy.deepcopy(narrow), "lora", 8).train()}
    x, y = torch.randn(1, 8, 36) * 0.1, torch.zeros(1, 8, dtype=torch.long)
    times = {name: [one_pass(model, x, y) for _ in range(60)] for name, model in few.items()}
    calls = [1e3 * statistics.median(each) for each in times.values()]
    print(
        f"the same layers 36 wide: {calls[0]:.0f} ms and {calls[1]:.0f} ms, so calls take {calls[1] - calls[0]:.0f} ms"
    )


def main() -> None:
    """Parse the arguments, build every contestant and print a table for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=[], help="rows of METHODS to time instead")
    parser.add_argument("--sizes", nargs="+", default=["4x128", "1x256"], help="batch x length")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--profile", action="store_true", help="where the time goes instead")
    parser.add_argument("--keep-malloc", action="store_true", help="use the environment's own allocation")
    options = parser.parse_args()
    if not options.keep_malloc:
        glibc.keep_freed()
    frozen = eckart.lm.load(options.model).model.requires_grad_(False).float()
    models = {}
    chosen = contestants(options.methods)
    for name, change in {name: chosen[name] for name in (PROFILED if options.profile else chosen)}.items():
        shared = {id(parameter): parameter for parameter in frozen.parameters()}  # one set of weights for all
        models[name] = change(copy.deepcopy(frozen, shared)).train()
    config = next(iter(models.values())).config
    print(f"{options.model}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.profile:
        where(models)
        return
    for size in options.sizes:
        batch, length = (int(number) for number in size.split("x"))
        table(models, batch, length, options.rounds, config.hidden_size, config.vocab_size)


if __name__ == "__main__":
    main()
