"""Speeds of several models, as `lm.bench` measures them: medians, quartiles, and ratios to the first.

Paper: none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eckart.nn.sizes import model_bytes

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Speed:
    """How fast one model is in one phase.

    Args:
        model: What it is called.
        phase: "prefill" or "decode".
        tokens: In one measurement: prompt or new tokens of all sequences.
        per_second: Tokens per second, the median of the rounds.
        quartiles: Of the same.
        ratio: How many times as fast as the first model, the median of the rounds' ratios; None for one model alone.
        ratio_quartiles: Of the same.
        bytes: What the model's parameters and buffers take.
    """

    model: str
    phase: str
    tokens: int
    per_second: float
    quartiles: tuple[float, float]
    ratio: float | None
    ratio_quartiles: tuple[float, float] | None
    bytes: int


@dataclass(frozen=True)
class Bench:
    """How fast some models are; the first is what the others are compared with.

    Args:
        speeds: For each phase, one entry for each model.
        prompt: Tokens of the prompt of each sequence.
        new: Tokens written after it.
        batch: Sequences at a time.
        rounds: How often each model was measured.
        threads: That torch used.
        device: On which the models were.

    Example:
        >>> seconds = {"dense": [(2.0, 4.0)], "small": [(1.0, 4.0)]}  # prefill and decode, of one round
        >>> speeds = tuple(speeds_of(dict.fromkeys(seconds, nn.Linear(2, 2)), seconds, (100, 10)))
        >>> print(Bench(speeds, prompt=100, new=10, batch=1, rounds=1, threads=2, device="cpu"))
        prompt 100, 10 new tokens, batch 1, 1 rounds, 2 threads, cpu
        prefill  dense       50.0 tokens/s (50.0 to 50.0)  1.00 ×
        prefill  small      100.0 tokens/s (100.0 to 100.0)  2.00 ×
        decode   dense        2.5 tokens/s (2.5 to 2.5)  1.00 ×
        decode   small        2.5 tokens/s (2.5 to 2.5)  1.00 ×
    """

    speeds: tuple[Speed, ...]
    prompt: int
    new: int
    batch: int
    rounds: int
    threads: int
    device: str

    def rows(self) -> list[dict[str, Any]]:
        """As plain data."""
        return [asdict(each) for each in self.speeds]

    def __str__(self) -> str:
        width = max(len(each.model) for each in self.speeds)
        lines = [
            f"prompt {self.prompt}, {self.new} new tokens, batch {self.batch}, {self.rounds} rounds, {self.threads} "
            f"threads, {self.device}"
        ]
        for each in self.speeds:
            low, high = each.quartiles
            line = f"{each.phase:7}  {each.model:{width}}  {each.per_second:9.1f} tokens/s ({low:.1f} to {high:.1f})"
            lines.append(line + ("" if each.ratio is None else f"  {each.ratio:.2f} ×"))
        return "\n".join(lines)


def speeds_of(
    models: Mapping[str, nn.Module], taken: Mapping[str, list[tuple[float, float]]], tokens: tuple[int, int]
) -> Iterator[Speed]:
    """What the rounds' seconds say.

    Args:
        models: Name → model; the first is what the others are compared with.
        taken: Name → seconds of both phases, round by round.
        tokens: How many tokens each phase is of.
    """
    first = next(iter(models))
    for phase, count in enumerate(tokens):
        reference = torch.tensor([times[phase] for times in taken[first]], dtype=torch.float64)
        for name, model in models.items():
            times = torch.tensor([each[phase] for each in taken[name]], dtype=torch.float64)
            low, middle, high = _quartiles(count / times)
            ratio = None if len(models) == 1 else _quartiles(reference / times)
            yield Speed(
                name,
                PHASES[phase],
                count,
                middle,
                (low, high),
                ratio and ratio[1],
                ratio and (ratio[0], ratio[2]),
                model_bytes(model),
            )


def _quartiles(values: Tensor) -> tuple[float, float, float]:
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)).tolist()
    return low, middle, high
