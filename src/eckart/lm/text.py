"""Text from files, datasets and the standard library, and batches of tokens made from it."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

BUILT_IN = "pydoc"


def read_text(source: str | os.PathLike[str], *, limit: int | None = None) -> str:
    """Read a text.

    Args:
        source: "pydoc" (the help topics of Python itself, in sorted order: real English that every Python has, though
            it differs a little from version to version); a text file; a .jsonl file; or a folder that
            `datasets.Dataset.save_to_disk` wrote. Rows of the latter two are joined by blank lines; a row's text is its
            "text" field, or its only field of type string.
        limit: How many characters to read at most; None reads all.

    Returns:
        The text.

    Raises:
        FileNotFoundError: There is nothing at `source`.
        ValueError: No text in it, not UTF-8, rows without one clear field of text, or a dataset of several splits.

    Example:
        >>> read_text("pydoc", limit=23)
        'The "assert" statement\\n'
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit: {limit} characters; give a positive number, or None for all of the text")
    path = Path(source)
    if source == BUILT_IN:
        text = _joined(topics(), limit)
    elif path.is_dir():
        text = _joined(_dataset(path), limit)
    elif not path.is_file():
        raise FileNotFoundError(
            f"source: there is nothing at {source}; give {BUILT_IN!r}, a text file, a .jsonl file, or a folder that "
            "datasets' save_to_disk wrote"
        )
    else:
        text = _file(path, limit)
    if not text.strip():
        raise ValueError(f"source: {source} holds no text; give one that does, such as {BUILT_IN!r}")
    return text


def batches(
    tokenizer: Tokenizer | None,
    text: str,
    *,
    length: int = 512,
    batch: int = 1,
    count: int | None = None,
    stride: int | None = None,
) -> list[dict[str, Tensor]]:
    """Cut a text into windows of tokens, stacked into batches.

    Args:
        tokenizer: The model's; the marks that it puts around a text ([CLS] and [SEP], say) go around every window.
        text: What to cut.
        length: Tokens in a window, its marks included. The last window may be shorter.
        batch: Windows in a batch. The last batch may hold fewer.
        count: How many batches at most; None makes all.
        stride: Tokens of text from one window's start to the next's; None: windows do not overlap.

    Returns:
        Dicts of input_ids and attention_mask, both (batch, length) int64; the mask is 0 where a short window is padded.

    Raises:
        ValueError: There is no tokenizer, the text has no tokens, `length` is more than the model can take or leaves no
            room between the marks, or another number is not positive.

    Example:
        >>> from transformers import AutoTokenizer
        >>> from eckart.lm import checkpoint_path
        >>> tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("minilm"))
        >>> (made,) = batches(tokenizer, "one two three four", length=5, batch=2)
        >>> made["attention_mask"].tolist()
        [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    """
    for name, value in (("batch", batch), ("count", count), ("stride", stride)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: {value}; give a positive number")
    tokenizer = needed(tokenizer)
    if length > tokenizer.model_max_length:
        raise ValueError(
            f"length: {length} tokens, but the model takes at most {tokenizer.model_max_length}; give fewer"
        )
    before, after = marks(tokenizer)
    room = length - len(before) - len(after)
    if room < 1:
        raise ValueError(f"length: {length} leaves no room between the {len(before) + len(after)} marks; give more")
    ids = tokenize(tokenizer, text)
    starts = range(0, len(ids), stride or room)
    starts = starts[: count * batch] if count else starts
    windows = [before + ids[start : start + room] + after for start in starts]
    pad = tokenizer.pad_token_id or 0
    return [_stack(windows[i : i + batch], pad) for i in range(0, len(windows), batch)]


def needed(tokenizer: Tokenizer | None) -> Tokenizer:
    """A tokenizer that is there."""
    if tokenizer is None:
        raise ValueError("tokenizer: the model has none; text is only for models whose folder holds a tokenizer")
    return tokenizer


def tokenize(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text without any marks.

    Raises:
        ValueError: There are none.
    """
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not ids:
        raise ValueError(f"text: {len(text)} characters make no tokens; give a text with words in it")
    return ids


def marks(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What a tokenizer puts before and after a text: ([CLS], [SEP]), a token that begins all texts, or nothing."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return whole[:start], whole[start + len(bare) :]


def _stack(windows: list[list[int]], pad: int) -> dict[str, Tensor]:
    longest = max(len(window) for window in windows)
    ids = torch.full((len(windows), longest), pad)
    mask = torch.zeros_like(ids)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.tensor(window)
        mask[row, : len(window)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _joined(rows: Iterable[str], limit: int | None) -> str:
    """Rows with a blank line between them, read no further than the limit."""
    parts, size = [], 0
    for row in rows:
        parts.append(row)
        size += len(row) + 2
        if limit is not None and size >= limit + 2:
            break
    return "\n\n".join(parts)[:limit]


def topics() -> Iterator[str]:
    """The help topics of Python itself, in sorted order."""
    from pydoc_data.topics import topics

    return (topics[name] for name in sorted(topics))


def _file(path: Path, limit: int | None) -> str:
    try:
        with path.open(encoding="utf-8") as handle:
            if path.suffix == ".jsonl":
                return _joined(
                    (_row(line, number, path) for number, line in enumerate(handle, 1) if line.strip()), limit
                )
            return handle.read(-1 if limit is None else limit)
    except UnicodeDecodeError as error:
        raise ValueError(f"source: {path} is not UTF-8 text (byte {error.start}); convert it first") from None


def _row(line: str, number: int, path: Path) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"source: {path} line {number} is not JSON ({error.msg}); mend it") from None
    if not isinstance(row, dict):
        raise ValueError(f'source: {path} line {number} is not an object; give lines like {{"text": "…"}}')
    return row[_text_field({key for key, value in row.items() if isinstance(value, str)}, f"{path} line {number}")]


def _dataset(folder: Path) -> Iterator[str]:
    rows = dataset_rows(folder)
    strings = {
        name for name, kind in rows.features.items() if getattr(kind, "dtype", None) in ("string", "large_string")
    }
    field = _text_field(strings, str(folder))
    return (row[field] for row in rows.select_columns([field]))


def dataset_rows(folder: Path) -> Any:
    """What `datasets.Dataset.save_to_disk` wrote, opened.

    Raises:
        ValueError: It holds several splits, or is another kind of folder.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        raise ValueError(f"source: {folder} holds several splits ({', '.join(splits)}); give one: {folder / splits[0]}")
    if not (folder / "dataset_info.json").is_file():
        raise ValueError(
            f"source: {folder} is a folder that datasets' save_to_disk did not write; give a text file in it"
        )
    import datasets

    return datasets.load_from_disk(str(folder))


def _text_field(strings: set[str], place: str) -> str:
    """The field that holds a row's text."""
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        held = ", ".join(sorted(strings)) or "none"
        raise ValueError(
            f'source: {place} has no "text" field and not one field of strings (it has {held}); rename one'
        )
    return next(iter(strings))
