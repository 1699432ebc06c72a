"""Several short documents in one sequence, none of which sees another.

Documents are laid into sequences by best fit, longest first: each goes where it leaves the least room. Positions begin
anew with each document, by which transformers' attention masks tell them apart (no token attends across a border), and
the first token of a document is not asked for. Whether a model keeps them apart is not believed but tried, by
`keeps_apart`: changing one document must not change what the model says of the next.

Paper: best fit decreasing for packing, 2404.10830; theirs leaves masking to the reader.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from eckart.nn.modes import evaluating

UNCOUNTED = -100  # the label that cross-entropy passes over
Example = dict[str, list[int]]  # input_ids and labels, of one length; position_ids where documents are packed


def pack(examples: Sequence[Example], length: int) -> list[Example]:
    """Lay examples into as few sequences as best fit finds.

    Args:
        examples: Each with input_ids and labels, at most `length` long.
        length: Tokens in a sequence, at most.

    Returns:
        Sequences with input_ids, labels and position_ids.

    Example:
        >>> short = [{"input_ids": [1] * n, "labels": [1] * n} for n in (3, 6, 5, 4)]
        >>> [sequence["position_ids"] for sequence in pack(short, 9)]
        [[0, 1, 2, 3, 4, 5, 0, 1, 2], [0, 1, 2, 3, 4, 0, 1, 2, 3]]
    """
    sequences: list[list[Example]] = []
    room: list[tuple[int, int]] = []  # what is left of a sequence, and its number; sorted
    for example in sorted(examples, key=lambda each: -len(each["input_ids"])):
        size = len(example["input_ids"])
        found = bisect_left(room, (size, 0))
        left, number = room.pop(found) if found < len(room) else (length, len(sequences))
        if number == len(sequences):
            sequences.append([])
        sequences[number].append(example)
        insort(room, (left - size, number))
    return [_joined(documents) for documents in sequences]


def collate(pad: int = 0) -> Callable[[Sequence[Example]], dict[str, Any]]:
    """A function that stacks examples, padded on the right, into a batch.

    Args:
        pad: The token to pad with; it is never counted.

    Returns:
        Examples → input_ids and labels (batch, longest), with position_ids for packed sequences, whose padding is one
        more document, and use_cache false (with a cache transformers does not look for borders); attention_mask for
        others.

    Example:
        >>> batch = collate()([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7], "labels": [7]}])
        >>> batch["labels"].tolist(), batch["attention_mask"].tolist()
        ([[-100, 6], [7, -100]], [[1, 1], [1, 0]])
    """

    def stack(examples: Sequence[Example]) -> dict[str, Any]:
        longest = max(len(example["input_ids"]) for example in examples)
        filled: dict[str, list[list[int]]] = {}
        for example in examples:
            size = len(example["input_ids"])
            spare = longest - size
            rows = {
                "input_ids": example["input_ids"] + [pad] * spare,
                "labels": example["labels"] + [UNCOUNTED] * spare,
            }
            if "position_ids" in example:
                rows["position_ids"] = example["position_ids"] + list(range(spare))
            else:
                rows["attention_mask"] = [1] * size + [0] * spare
            for key, row in rows.items():
                filled.setdefault(key, []).append(row)
        batch: dict[str, Any] = {key: torch.tensor(rows) for key, rows in filled.items()}
        return batch | ({"use_cache": False} if "position_ids" in batch else {})

    return stack


@torch.no_grad()
def keeps_apart(model: nn.Module, words: int) -> bool:
    """Whether a model that is given two documents in one sequence reads the second as if the first were not there.

    Args:
        model: A causal language model.
        words: How many tokens it knows, at least 2.

    Returns:
        Whether what it says of the second document is the same after another first one.
    """
    device = next(model.parameters()).device
    first, second = torch.arange(8) % words, torch.arange(5, 13) % words
    positions = torch.arange(8).repeat(2).unsqueeze(0).to(device)
    said = []
    with evaluating(model):
        for start in (first, (first + 1) % words):
            ids = torch.cat((start, second)).unsqueeze(0).to(device)
            try:
                output: Any = model(input_ids=ids, position_ids=positions, use_cache=False)
            except TypeError:  # it takes no positions, or has no cache
                return False
            said.append(output.logits[0, 8:].float())
    return torch.allclose(said[0], said[1], rtol=1e-4, atol=1e-4 * said[0].abs().max().item())


def _joined(documents: list[Example]) -> Example:
    """Documents as one sequence; the first token of each follows nothing, so it is not asked for."""
    return {
        "input_ids": [token for each in documents for token in each["input_ids"]],
        "labels": [label for each in documents for label in (UNCOUNTED, *each["labels"][1:])],
        "position_ids": [position for each in documents for position in range(len(each["input_ids"]))],
    }
