"""Rows of training data: plain text, prompt and completion, or a conversation; each knows the line that it came from.

Everything is read and checked before a model is loaded, so that a damaged line costs seconds and not hours.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from eckart.lm.text import BUILT_IN, dataset_rows, topics

FORMS = {"text": ("text",), "pair": ("prompt", "completion"), "chat": ("messages",)}
ASKED = '{"text": …}, {"prompt": …, "completion": …} or {"messages": [{"role": …, "content": …}, …]}'


class Row(NamedTuple):
    """One document, answer or conversation."""

    kind: str  # "text", "pair" or "chat"
    value: Any  # a string; (prompt, completion); a list of messages with role and content
    place: str  # "train.jsonl line 3", for errors


def read_rows(source: str | os.PathLike[str]) -> list[Row]:
    """Read training data.

    Args:
        source: A .jsonl file with one object on each line: {"text": …}, {"prompt": …, "completion": …} or
            {"messages": [{"role": …, "content": …}, …]}, the same kind on all; a text file, which is one document; a
            folder that `datasets.Dataset.save_to_disk` wrote, with columns of those names; or "pydoc" (see
            `read_text`), one document for each topic.

    Returns:
        The rows, in their order.

    Raises:
        FileNotFoundError: There is nothing at `source`.
        ValueError: A line that is not JSON or not of the kind of the others (named with its number), a row without
            text, a conversation in which no assistant speaks, a file that is not UTF-8, or no rows at all.

    Example:
        >>> rows = read_rows("pydoc")
        >>> rows[0].kind, rows[0].value.splitlines()[0], rows[0].place
        ('text', 'The "assert" statement', 'pydoc topic 1')
    """
    path = Path(source)
    if source == BUILT_IN:
        return [Row("text", text, f"{source} topic {i}") for i, text in enumerate(topics(), 1)]
    if not path.exists():
        raise FileNotFoundError(
            f"data: there is nothing at {source}; give a .jsonl file, a text file, a folder that datasets' "
            f"save_to_disk wrote, or {BUILT_IN!r}"
        )
    if path.is_dir():
        found: Iterator[tuple[Any, str]] = (
            (fields, f"{path} row {i}") for i, fields in enumerate(dataset_rows(path), 1)
        )
    elif path.suffix == ".jsonl":
        found = _lines(path)
    else:
        found = iter([({"text": _read(path)}, str(path))])
    rows: list[Row] = []
    for fields, place in found:
        rows.append(_row(fields, place))
        if rows[-1].kind != rows[0].kind:
            raise ValueError(
                f"data: {place} is of the kind {rows[-1].kind} and {rows[0].place} of the kind {rows[0].kind}; "
                "give files of one kind"
            )
    if not rows:
        raise ValueError(f"data: {source} is empty; give lines like {ASKED}")
    return rows


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"data: {path} is not UTF-8 text (byte {error.start}); convert it first") from None


def _lines(path: Path) -> Iterator[tuple[Any, str]]:
    """The objects of a .jsonl file with their places; blank lines are passed over."""
    for number, line in enumerate(_read(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{path} line {number}"
        try:
            yield json.loads(line), place
        except json.JSONDecodeError as error:
            raise ValueError(f"data: {place} is not JSON (column {error.colno}: {error.msg}); mend it") from None


def _row(fields: Any, place: str) -> Row:
    """A row, checked."""
    if not isinstance(fields, dict):
        raise ValueError(f"data: {place} is no object; give lines like {ASKED}")
    kind = next((kind for kind, names in FORMS.items() if all(name in fields for name in names)), None)
    if kind is None:
        raise ValueError(f"data: {place} has the fields {', '.join(fields) or '(none)'}; give lines like {ASKED}")
    if kind == "chat":
        return Row(kind, _messages(fields["messages"], place), place)
    strings = []
    for name in FORMS[kind]:
        value = fields[name]
        if not isinstance(value, str):
            raise ValueError(f'data: "{name}" of {place} is {_shown(value)}; give a string')
        if not value.strip() and name != "prompt":
            raise ValueError(f'data: "{name}" of {place} is empty; fill it, or remove the row')
        strings.append(value)
    return Row(kind, strings[0] if kind == "text" else tuple(strings), place)


def _messages(value: Any, place: str) -> list[dict[str, str]]:
    """The turns of a conversation, checked: strings, and an assistant who says something."""
    if not isinstance(value, list) or not value:
        raise ValueError(f'data: "messages" of {place} is {_shown(value)}; give a list of turns')
    turns = []
    for number, turn in enumerate(value, 1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(
                f'data: turn {number} of {place} is {_shown(turn)}; give {{"role": …, "content": …}}, both strings'
            )
        turns.append({"role": role, "content": content})
    if not any(turn["role"] == "assistant" and turn["content"].strip() for turn in turns):
        raise ValueError(f"data: {place} has no turn of the assistant, so nothing to learn; add one, or remove the row")
    return turns


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"
