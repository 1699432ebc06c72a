"""D3: SmolLM2-135M, fine-tuned on English for a few steps, changes each matrix in a handful of directions."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eckart import linalg
from eckart.claims.claim import Check, Claim, Line, Panel, Result
from eckart.claims.data._digits import Change, change_gradients
from eckart.claims.data._updates import (
    History,
    leading_share,
    noise_share,
    noise_stable_rank,
    random_errors,
    recorded,
    share_panel,
    stable_rank,
)
from eckart.nn import Progress
from eckart.spectra import Recorder


class Size(NamedTuple):
    """Steps; windows of a step and their tokens; learning rate."""

    steps: int = 3
    windows: int = 2
    tokens: int = 320
    rate: float = 0.02


SIZES = {"small": Size(), "paper": Size(steps=20, windows=4)}
TRAINED = 20  # the first decoder layer that trains, of 30: what lies below would only cost time
WATCHED = (
    "model.layers.21.self_attn.q_proj",
    "model.layers.21.self_attn.o_proj",
    "model.layers.25.mlp.up_proj",
    "model.layers.25.mlp.down_proj",
    "model.layers.29.self_attn.v_proj",
    "model.layers.29.mlp.gate_proj",
)
LEADING = 16  # directions, of at least 192
ADAM_EPS = 1e-8
CHARACTERS = 8  # of the text for a token: twice what English takes


def run(seed: int, size: str, *, progress: Progress | None = None, change: Change | None = None) -> Result:
    """Fine-tune the last ten layers with SGD, all their weights, and look at six matrices.

    Args:
        seed: where in the text the training starts.
        size: a key of `SIZES`.
        progress: called with (done, total, label).
        change: what is done to each matrix's gradient before the optimizer's step.
    """
    from eckart import lm

    s = SIZES[size]
    model, tokenizer, _ = lm.load("smollm2-135m")
    text = lm.read_text("pydoc")
    span = CHARACTERS * s.tokens * s.windows * (s.steps + 1)
    begin = seed * span % max(1, len(text) - span)
    *batches, held_out = lm.batches(
        tokenizer, text[begin : begin + span], length=s.tokens, batch=s.windows, count=s.steps + 1
    )
    first: dict[str, Tensor] = {}
    recorder = Recorder(model, targets=list(WATCHED), rank=LEADING)
    before = _loss_of(model, held_out)
    null = {name: float(linalg.stable_rank(S)) for name, S in _null(model, batches[0]).items()}
    course = _train(model, batches, s.rate, change, first)
    history = recorded(recorder, course, set(range(1, s.steps + 1)), progress, "SmolLM2-135M on English")
    after = _loss_of(model, held_out)
    # Adam's first step: both its averages are the gradient's own, so each entry goes to its sign.
    adam = {name: linalg.singular_values(G / (G.abs() + ADAM_EPS)) for name, G in first.items()}
    spread = {name: 1 - float(S[:LEADING].square().sum() / S.square().sum()) for name, S in adam.items()}
    checks = _checks(history, s.tokens * s.windows, before - after, min(spread.values()), null)
    return Result(checks, _panels(history, adam), _note(history, spread, before, after, null))


def _train(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    rate: float,
    change: Change | None,
    first: dict[str, Tensor],
) -> Iterator[int]:
    """SGD on the last layers, one batch a step; `first` receives the first gradients of the watched matrices."""
    model.requires_grad_(False)
    layers = list(model.get_submodule("model.layers").children())[TRAINED:]
    optimizer = torch.optim.SGD([p.requires_grad_() for layer in layers for p in layer.parameters()], lr=rate)
    for t, batch in enumerate(batches, start=1):
        optimizer.zero_grad()
        _loss(model, batch).backward()
        if change is not None:
            change_gradients(model, change)
        if t == 1:
            gradients = {name: model.get_parameter(f"{name}.weight").grad for name in WATCHED}
            first.update({name: G.clone() for name, G in gradients.items() if G is not None})
        optimizer.step()
        yield t


def _loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss: Tensor = model(**batch, labels=labels, use_cache=False).loss
    return loss


@torch.no_grad()
def _loss_of(model: nn.Module, batch: dict[str, Tensor]) -> float:
    return float(_loss(model, batch))


def _null(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return random_errors(model, WATCHED, lambda: _loss_of(model, batch))


def _checks(history: History, tokens: int, fallen: float, adam: float, null: dict[str, float]) -> list[Check]:
    sides = [min(seen[0].shape) for seen in history.values()]
    beside = max(stable_rank(now) / noise_stable_rank(now.shape) for seen in history.values() for now in seen)
    shares = {name: min(leading_share(now, LEADING) for now in seen) for name, seen in history.items()}
    times = min(share / noise_share(history[name][0].shape, LEADING) for name, share in shares.items())
    inputs = min(stable_rank(history[name][0]) / rank for name, rank in null.items())
    return [
        Check("how far the loss on held-out text fell", 0.0, fallen, relation="≥"),
        Check("tokens of one step, beside the most that a rank can be", 1.0, tokens / max(sides), relation="≥"),
        Check("stable rank, beside a random update's, worst matrix and step", 0.05, beside, relation="≤"),
        Check(f"energy in {LEADING} directions, worst matrix and step", 0.5, min(shares.values()), relation="≥"),
        Check("the same, times that of a random update, worst matrix", 3.0, times, relation="≥"),
        Check("stops: stable rank of the first step ÷ that of random errors on the same inputs", 0.3, inputs, 0, "≥"),
        Check(f"stops: energy of Adam's first step outside {LEADING} directions", 0.25, adam, relation="≥"),
    ]


def _panels(history: History, adam: dict[str, Tensor]) -> list[Panel]:
    shown = WATCHED[3]
    ends = {f"SGD, step {now.step}": now for now in (history[shown][0], history[shown][-1])}
    panel = share_panel(f"How many directions hold the update of {_short(shown)}", ends, LEADING)
    energy = adam[shown].square().cumsum(0) / adam[shown].square().sum()
    lines = [*panel.lines, Line("Adam, step 1", list(range(1, LEADING + 1)), energy[:LEADING].tolist())]
    ranks = [
        Line(_short(name), [now.step for now in seen], [stable_rank(now) for now in seen])
        for name, seen in history.items()
    ]
    steps = [now.step for now in history[shown]]
    ranks.append(
        Line(f"random, {_short(shown)}", steps, [noise_stable_rank(history[shown][0].shape)] * len(steps), "dashed")
    )
    return [
        replace(panel, lines=lines),
        Panel("The update's rank, step by step", "step t", "stable rank of W(t) − W(0)", ranks, "y"),
    ]


def _short(name: str) -> str:
    """model.layers.25.mlp.up_proj → 25 up_proj."""
    parts = name.split(".")
    return f"{parts[2]} {parts[-1]}"


def _note(history: History, spread: dict[str, float], before: float, after: float, null: dict[str, float]) -> str:
    ranks = [stable_rank(seen[-1]) for seen in history.values()]
    noise = [noise_stable_rank(seen[0].shape) for seen in history.values()]
    return (
        f"Fine-tuning takes the loss on held-out text from {before:.3f} to {after:.3f}. The updates' stable ranks are "
        f"{min(ranks):.1f} to {max(ranks):.1f}, where random ones of these shapes have {min(noise):.0f} to "
        f"{max(noise):.0f}. A step has more tokens than the matrices have rows, so it is not their number that bounds "
        "the rank. The layers' inputs do most of it: random errors on the same inputs give a first step of stable rank "
        f"{min(null.values()):.1f} to {max(null.values()):.1f}, so a low stable rank alone is no sign of "
        "learning, and no theorem of the overview covers a transformer. Where it stops: Adam's first step, nearly the "
        f"sign of the same gradient, has {min(spread.values()):.0%} to "
        f"{max(spread.values()):.0%} of its energy outside {LEADING} directions."
    )


CLAIM = Claim(
    id="D3",
    title="Updates of SmolLM2-135M",
    statement=(
        "Fine-tuning a language model's last ten layers on English by SGD, all their weights free, changes each matrix "
        "in a handful of directions: its update has a far lower stable rank than a random one."
    ),
    source="arXiv 2503.19859 §2 (why LoRA works), 2106.09685; the measurement is ours",
    half="data",
    regime=(
        "A few steps of SGD. Most of it is owed to the layers' inputs, not to the task; and Adam's first step is "
        "sign-like and spreads over many more directions."
    ),
    run=run,
)
