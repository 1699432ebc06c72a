"""Which tokens of a conversation the assistant said, found through the tokenizer's own chat template.

A template that marks what is generated (`{% generation %}`) is believed. Of any other, turn i of the assistant is what

    render(turns[:i + 1])   has beyond   render(turns[:i], with the prompt for a reply)

which holds where rendering a conversation begins with the rendering of its first turns. Where a template breaks that
(one that takes thoughts out of earlier turns, say), the whole conversation counts, and the caller is told.

Paper: none.
"""

import re
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

Turns = list[dict[str, str]]


def read_conversation(tokenizer: Tokenizer, turns: Turns, place: str) -> tuple[list[int], list[bool], bool]:
    """The tokens of a conversation, and which of them the assistant said.

    Args:
        tokenizer: With a chat template.
        turns: Messages with role and content.
        place: Where they come from, for errors.

    Returns:
        The tokens; for each whether it counts; and whether the assistant's turns were found (if not, all count).

    Raises:
        ValueError: The tokenizer has no chat template, or it refuses the conversation (two turns of one role in a
            row, say); the message says why.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            f"data: {place} is a conversation, but the model's tokenizer has no chat template; "
            'give text, or rows of "prompt" and "completion"'
        )
    try:
        if re.search(r"\{%-?\s*generation\s*-?%\}", str(tokenizer.chat_template)):
            made: Any = tokenizer.apply_chat_template(turns, return_dict=True, return_assistant_tokens_mask=True)
            return list(made["input_ids"]), [bool(each) for each in made["assistant_masks"]], True
        whole = _render(tokenizer, turns)
    except Exception as error:  # templates raise whatever they like
        raise ValueError(f"data: the chat template refuses {place} ({_first_line(error)}); mend the turns") from error
    spans = _spans(tokenizer, turns, whole) if tokenizer.is_fast else None
    encoded: Any = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=spans is not None, verbose=False)
    ids = list(encoded["input_ids"])
    if spans is None:
        return ids, [True] * len(ids), False
    return ids, [_within(start, end, spans) for start, end in encoded["offset_mapping"]], True


def _spans(tokenizer: Tokenizer, turns: Turns, whole: str) -> list[tuple[int, int]] | None:
    """From which to which character the assistant speaks; None where the template does not tell."""
    spans = []
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        try:
            before = _render(tokenizer, turns[:i], add_generation_prompt=True)
            after = _render(tokenizer, turns[: i + 1])
        except Exception:  # as above: a template may refuse a conversation that is cut short
            return None
        if not after.startswith(before) or not whole.startswith(after):
            return None
        spans.append((len(before), len(after)))
    return spans


def _render(tokenizer: Tokenizer, turns: Turns, **options: Any) -> str:
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))


def _within(start: int, end: int, spans: list[tuple[int, int]]) -> bool:
    return end > start and any(low <= start and end <= high for low, high in spans)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
