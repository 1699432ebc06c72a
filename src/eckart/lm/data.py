"""Training data: rows of text, pairs or conversations as tokens with labels, cut, held out and packed."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from eckart.lm.conversations import read_conversation
from eckart.lm.packing import UNCOUNTED, Example, collate, pack
from eckart.lm.rows import Row, read_rows
from eckart.lm.text import marks, needed


@dataclass(frozen=True)
class TrainingData:
    """What `training_data` made of some rows.

    Args:
        train: What is learned from: documents of at most `length` tokens.
        held_out: What is only measured on; never trained.
        length: Tokens in a sequence, at most.
        pad: The token to pad with.
        notes: What was cut, left out or counted otherwise than expected, in sentences.
    """

    train: list[Example]
    held_out: list[Example]
    length: int
    pad: int
    notes: list[str] = field(default_factory=list)

    def sequences(self, *, packed: bool = True, held_out: bool = False) -> list[Example]:
        """The examples as they go to the model: packed to `length`, or each alone."""
        chosen = self.held_out if held_out else self.train
        return pack(chosen, self.length) if packed else list(chosen)

    def batches(self, count: int, batch: int = 1, *, packed: bool = True) -> list[dict[str, Any]]:
        """Batches of the training sequences, from all parts alike, for what looks at data first (ranks, starts)."""
        found, stack = self.sequences(packed=packed), collate(self.pad)
        found = found[:: max(1, len(found) // (count * batch))]
        return [stack(found[i : i + batch]) for i in range(0, len(found), batch)][:count]


def training_data(
    tokenizer: Tokenizer | None,
    source: str | os.PathLike[str] | Sequence[Row],
    *,
    held_out: str | os.PathLike[str] | Sequence[Row] | float = 0.05,
    length: int = 512,
) -> TrainingData:
    """Read, tokenise and cut training data.

    A text ends with the tokenizer's end-of-text token where there is one, and a long one becomes several documents.
    Of a pair the completion counts, of a conversation what the assistant says (see `lm.conversations`); where one is
    longer than `length`, what is beyond is cut off.

    Args:
        tokenizer: The model's.
        source: What `read_rows` takes, or gave.
        held_out: Data to measure on, or the share of the documents, the last ones, that is kept for that.
        length: Tokens in a sequence, at most.

    Returns:
        TrainingData: its `notes` say what was cut or left out.

    Raises:
        FileNotFoundError: There is nothing at `source` or `held_out`.
        ValueError: A malformed row (named with its line), no tokenizer, a length that the model cannot take, a share
            outside [0, 1), or nothing left to learn from.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from eckart.lm import checkpoint_path
        >>> tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("minilm"))
        >>> data = training_data(tokenizer, [Row("pair", ("two and two is", " four"), "here")], held_out=0.0)
        >>> data.train[0]["labels"].count(-100), len(data.train[0]["labels"])
        (5, 7)
    """
    tokenizer = needed(tokenizer)
    if not 2 <= length <= tokenizer.model_max_length:
        raise ValueError(f"length: {length}; give from 2 to {tokenizer.model_max_length} tokens")
    if isinstance(held_out, float | int) and not 0 <= held_out < 1:
        raise ValueError(f"held_out: {held_out}; give a share of at least 0 and below 1, or data to measure on")
    rows = _rows(source)
    notes: list[str] = []
    examples = _examples(tokenizer, rows, length, notes)
    if isinstance(held_out, float | int):
        count = round(held_out * len(examples)) or int(held_out > 0 and len(examples) > 1)
        kept = examples[len(examples) - count :]
        examples = examples[: len(examples) - count]
        if count:
            notes.append(f"the last {count} of {len(examples) + count} documents are held out, to measure on")
    else:
        kept = _examples(tokenizer, _rows(held_out), length, notes)
    pad = tokenizer.pad_token_id
    return TrainingData(examples, kept, length, 0 if pad is None else pad, notes)


def _rows(source: str | os.PathLike[str] | Sequence[Row]) -> Sequence[Row]:
    return read_rows(source) if isinstance(source, str | os.PathLike) else source


def _examples(tokenizer: Tokenizer, rows: Sequence[Row], length: int, notes: list[str]) -> list[Example]:
    """All rows as documents of at most `length` tokens with something that counts."""
    made: list[Example] = []
    cut, empty, unmarked = [], [], []
    for row in rows:
        ids, labels, marked = _tokens(tokenizer, row)
        pieces = _pieces(ids, labels, length, row.kind == "text")
        if row.kind != "text" and len(ids) > length:
            cut.append(row.place)
        good = [each for each in pieces if any(label != UNCOUNTED for label in each["labels"][1:])]
        if not good:
            empty.append(row.place)
        unmarked += [] if marked else [row.place]
        made += good
    if cut:
        notes.append(f"{_named(cut)} longer than {length} tokens, the rest cut off")
    if empty:
        notes.append(f"{_named(empty)} left out: no token to learn within {length} (give a greater length, or more)")
    if unmarked:
        notes.append(
            f"{_named(unmarked)} learned whole: the chat template does not tell the assistant's turns from the others"
        )
    if not made:
        raise ValueError(f"data: nothing to learn is left ({'; '.join(notes) or 'no rows'}); give more")
    return made


def _tokens(tokenizer: Tokenizer, row: Row) -> tuple[list[int], list[int], bool]:
    """A row's tokens and labels, and whether what counts was found."""
    if row.kind == "chat":
        ids, counts, marked = read_conversation(tokenizer, row.value, row.place)
        return ids, [token if count else UNCOUNTED for token, count in zip(ids, counts, strict=True)], marked
    before, after = marks(tokenizer)
    end = after or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])
    if row.kind == "text":
        ids = [*before, *_encode(tokenizer, row.value), *end]
        return ids, [UNCOUNTED] * len(before) + ids[len(before) :], True
    prompt, completion = row.value  # apart, as the completion will be written after a prompt that is tokenised alone
    start = [*before, *_encode(tokenizer, prompt)]
    answer = [*_encode(tokenizer, completion), *end]
    return start + answer, [UNCOUNTED] * len(start) + answer, True


def _pieces(ids: list[int], labels: list[int], length: int, all_of_it: bool) -> list[Example]:
    starts = range(0, len(ids), length) if all_of_it else [0]
    return [{"input_ids": ids[i : i + length], "labels": labels[i : i + length]} for i in starts]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _named(places: list[str]) -> str:
    said = ", ".join(places[:3])
    return f"{len(places)} {'row' if len(places) == 1 else 'rows'} ({said}{', …' if len(places) > 3 else ''})"
