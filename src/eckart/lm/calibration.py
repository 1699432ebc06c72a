"""Calibration text as batches: several sources by weight, with sequences held out, none of them text that is evaluated.

Sources follow one another so that any prefix of the sequences has the mixture, to within one sequence of each source:
the next is always the one that is furthest behind its weight. Within a source the sequences come from all parts of it,
in an order whose prefixes do too (multiples of the golden ratio, modulo 1). Held-out sequences are from its end.

Paper: none; SVD-LLM (arXiv 2403.07378) and others take random windows of one source. A mixture costs little in the
domain and saves the others: see the benchmark of compression.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from eckart.lm.overlap import PASSAGE, grams, touches
from eckart.lm.packing import UNCOUNTED
from eckart.lm.text import batches, needed, read_text, tokenize

Source = str | os.PathLike[str]
Batch = dict[str, Tensor]  # input_ids, attention_mask, labels (B, T)
READ = 256  # characters of a source that are read, at most, for each token that is taken of it
LONGEST_TOKEN = 16  # characters: of a text of which n tokens count, no more than n times this is read
GOLDEN = (math.sqrt(5) - 1) / 2
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `calibration_data` made of some text.

    Args:
        batches: What is calibrated on, ready for `eckart.compress`: input_ids, attention_mask and labels.
        held_out: Other sequences of the same sources, for choices among allocations and for stopping.
        weights: Source → its weight, as given.
        sequences: Source → how many of the sequences are of it.
        length: Tokens in a sequence.
        notes: What was passed over, in sentences.
    """

    batches: list[Batch] = field(repr=False)
    held_out: list[Batch] = field(repr=False)
    weights: dict[str, float]
    sequences: dict[str, int]
    length: int
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """How many tokens are calibrated on."""
        return self.length * sum(self.sequences.values())

    def token_lists(self) -> list[list[int]]:
        """All sequences as tokens, the held-out ones too: what evaluation must not be about."""
        return [row for batch in (*self.batches, *self.held_out) for row in batch["input_ids"].tolist()]

    def rows(self) -> list[dict[str, Any]]:
        """One row for each source: text, weight, sequences, tokens."""
        return [
            {"text": name, "weight": weight, "sequences": self.sequences[name],
             "tokens": self.sequences[name] * self.length}
            for name, weight in self.weights.items()
        ]  # fmt: skip


def calibration_data(
    tokenizer: Tokenizer | None,
    text: Source | Mapping[Source, float] = "pydoc",
    *,
    sequences: int = 64,
    length: int = 512,
    held_out: int = 8,
    batch: int = 1,
    avoid: Mapping[Source, int | None] | None = None,
) -> Calibration:
    """Make calibration batches of text.

    Args:
        tokenizer: The model's.
        text: What `read_text` takes, or several of those with their weights, such as {"wiki.txt": 3, "pydoc": 1}.
        sequences: How many to calibrate on.
        length: Tokens in each, at most what the model takes.
        held_out: How many more to hold out.
        batch: Sequences in a batch.
        avoid: Text that is to be evaluated, with how many of its first tokens are (None: all). No sequence shares
            a passage of 32 tokens with it.

    Returns:
        Calibration: its notes say how many sequences were passed over.

    Raises:
        FileNotFoundError: There is nothing at a source.
        ValueError: No tokenizer, no text, text that makes no tokens or too few of them (as where it is what is
            evaluated), a weight that is not positive, or a number out of its range.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from eckart.lm import checkpoint_path
        >>> tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("minilm"))
        >>> made = calibration_data(tokenizer, "pydoc", sequences=4, length=64, held_out=1, avoid={"pydoc": 1000})
        >>> len(made.batches), tuple(made.batches[0]["labels"].shape), made.tokens
        (4, (1, 64), 256)
    """
    tokenizer = needed(tokenizer)
    weights = _weights(text)
    for name, value, least in (("sequences", sequences, 1), ("held_out", held_out, 0), ("batch", batch, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: {value!r}; give an integer of at least {least}")
    order, spare = mixed(weights, sequences), mixed(weights, held_out)
    counts, held = Counter(order), Counter(spare)
    avoided = {os.fspath(source): count for source, count in (avoid or {}).items()}
    known = grams((first_tokens(tokenizer, each, count) for each, count in avoided.items()), min(PASSAGE, length))
    notes: list[str] = []
    taken, kept = {}, {}
    for name in weights:
        wanted = counts[name] + held[name]
        found = _windows(tokenizer, name, length, READ * length * wanted + LONGEST_TOKEN * (avoided.get(name) or 0))
        free = [each for each in found if not touches(each["input_ids"][0].tolist(), known, PASSAGE)]
        if len(free) < len(found):
            notes.append(
                f"{len(found) - len(free)} of {len(found)} sequences of {name} share a passage of {PASSAGE} tokens "
                "with text that is evaluated; they were passed over"
            )
        if len(free) < wanted:
            raise ValueError(_too_short(name, len(free), len(found), wanted, length))
        end = len(free) * held[name] // wanted if wanted else 0
        taken[name] = iter(_spread(free[: len(free) - end], counts[name]))
        kept[name] = iter(_spread(free[len(free) - end :], held[name]))
    return Calibration(
        _batched([next(taken[name]) for name in order], batch),
        _batched([next(kept[name]) for name in spare], batch),
        weights,
        {name: counts[name] for name in weights},
        length,
        tuple(notes),
    )


def mixed(weights: Mapping[str, float], count: int) -> list[str]:
    """Sources in an order whose every prefix has the mixture.

    Example:
        >>> "".join(mixed({"a": 3, "b": 1}, 8))
        'aabaaaba'
    """
    total, given = sum(weights.values()), dict.fromkeys(weights, 0)
    order = []
    for place in range(1, count + 1):
        behind = max(weights, key=lambda name: weights[name] / total * place - given[name])
        given[behind] += 1
        order.append(behind)
    return order


def first_tokens(tokenizer: Tokenizer, source: Source, count: int | None) -> list[int]:
    """The first tokens of a source; None: all of them."""
    text = read_text(source, limit=None if count is None else LONGEST_TOKEN * count)
    return tokenize(tokenizer, text)[:count]


def _weights(text: Source | Mapping[Source, float]) -> dict[str, float]:
    given: Mapping[Source, float] = text if isinstance(text, Mapping) else {text: 1.0}
    if not given:
        raise ValueError(
            'text: no source; give one, or several with their weights, such as {"wiki.txt": 3, "pydoc": 1}'
        )
    for source, weight in given.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"text: the weight of {source} is {weight!r}; give a number above 0")
    return {os.fspath(source): float(weight) for source, weight in given.items()}


def _windows(tokenizer: Tokenizer, source: str, length: int, limit: int) -> list[Batch]:
    """Whole sequences of a source, in its order."""
    try:
        found = batches(tokenizer, read_text(source, limit=max(1, limit)), length=length)
    except ValueError as error:
        raise ValueError(f"{error} (calibration text {source})") from None
    return [each for each in found if each["input_ids"].shape[1] == length]


def _spread(windows: Sequence[T], count: int) -> list[T]:
    """As many windows from all parts alike, in an order whose prefixes are from all parts too."""
    places = sorted(range(count), key=lambda i: i * GOLDEN % 1)
    return [windows[place * len(windows) // count] for place in places]


def _batched(windows: Sequence[Batch], size: int) -> list[Batch]:
    """Windows of one length, stacked, with labels for the next token."""
    stacked = []
    for start in range(0, len(windows), size):
        group = windows[start : start + size]
        ids, mask = (torch.cat([each[key] for each in group]) for key in ("input_ids", "attention_mask"))
        labels = ids.masked_fill(mask == 0, UNCOUNTED)
        stacked.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return stacked


def _too_short(source: str, free: int, found: int, wanted: int, length: int) -> str:
    passed = f" ({found - free} more are what is evaluated)" if found > free else ""
    return (
        f"text: {source} makes {free} sequences of {length} tokens{passed}, and {wanted} are needed; give more text, "
        "fewer or shorter sequences, or a smaller weight"
    )
