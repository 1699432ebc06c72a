"""Names of matrices: choose them by glob pattern, read a layer's number out of them, name the members of a stack."""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

Patterns = str | Sequence[str] | None
"""Glob patterns on names of matrices; None stands for all, or for none to leave out."""

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, label) during long work."""


def select(
    names: Iterable[str],
    targets: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
) -> list[str]:
    """Choose names by glob patterns.

    A pattern matches a whole name or whole trailing components of it: "q_proj" and "self_attn.q_proj" both match
    "model.layers.0.self_attn.q_proj"; "*.mlp.*" matches everything inside an MLP. "experts.down_proj[3]" is one member
    of a stack, "experts.down_proj" all of them.

    Args:
        names: the names to choose from.
        targets: one pattern or several; None chooses every name.
        exclude: one pattern or several whose matches are dropped; None drops nothing.

    Returns:
        The chosen names, in the order of `names`.

    Raises:
        TypeError: a pattern is not a string.
        ValueError: a pattern matches nothing; the message gives the closest names.

    Example:
        >>> names = ["layers.0.attn.q_proj", "layers.0.mlp.up_proj", "head"]
        >>> select(names, targets=["q_proj", "head"])
        ['layers.0.attn.q_proj', 'head']
        >>> select(names, exclude="*.mlp.*")
        ['layers.0.attn.q_proj', 'head']
    """
    names = list(names)
    chosen = set(names) if targets is None else _matches(names, targets, "targets")
    dropped = set() if exclude is None else _matches(names, exclude, "exclude")
    return [name for name in names if name in chosen and name not in dropped]


def locate(name: str) -> tuple[int | None, str]:
    """Split a matrix's name into its layer and its kind.

    Args:
        name: a dotted path, as `matrices` gives it.

    Returns:
        The layer (the first component that is an integer, or None), and the kind: what follows the integer, or what
        stands before it when nothing follows ("layer" when nothing does either); the whole name without an integer.

    Example:
        >>> locate("model.layers.3.self_attn.q_proj")
        (3, 'self_attn.q_proj')
        >>> locate("features.0"), locate("0"), locate("lm_head")
        ((0, 'features'), (0, 'layer'), (None, 'lm_head'))
    """
    parts = split_member(name)[0].split(".")
    for position, part in enumerate(parts):
        if part.isdecimal():
            return int(part), ".".join(parts[position + 1 :] or parts[:position]) or "layer"
    return None, ".".join(parts)


def member_name(name: str, index: int) -> str:
    """The name of one matrix of a stack (an expert, a group of a convolution).

    Example:
        >>> member_name("layers.0.experts.down_proj", 3)
        'layers.0.experts.down_proj[3]'
    """
    return f"{name}[{index}]"


def split_member(name: str) -> tuple[str, int | None]:
    """Undo `member_name`: the name of the stack and the index, None where the name is not a member's.

    Example:
        >>> split_member("layers.0.experts.down_proj[3]"), split_member("head")
        (('layers.0.experts.down_proj', 3), ('head', None))
    """
    found = re.fullmatch(r"(.*)\[(\d+)\]", name)
    return (found[1], int(found[2])) if found else (name, None)


def _matches(names: list[str], patterns: str | Sequence[str], argument: str) -> set[str]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    found: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{argument} holds {pattern!r} of type {type(pattern).__name__}; give glob patterns as strings"
            )
        hits = {name for name in names if _hits(name, pattern)}
        if not hits:
            raise ValueError(
                f"{argument}: {pattern!r} matches none of {len(names)} names; closest: {closest(pattern, names)}"
            )
        found |= hits
    return found


def _hits(name: str, pattern: str) -> bool:
    """Whether a pattern names a matrix, or the stack of which it is a member; "x[3]" itself comes before globbing."""
    stack, _ = split_member(name)
    if name == pattern or name.endswith(f".{pattern}"):
        return True
    return any(fnmatchcase(each, form) for each in (name, stack) for form in (pattern, f"*.{pattern}"))


def closest(name: str, names: Iterable[str], *, whole: bool = False) -> str:
    """Up to three names that look like one that is not there, for the message of an error.

    Args:
        name: a name or a pattern.
        names: those that are there.
        whole: give whole names only; else trailing parts of them too, which a pattern can be.

    Example:
        >>> closest("k_porj", ["layers.0.q_proj", "layers.0.k_proj", "head"])
        'k_proj, 0.k_proj, q_proj'
    """
    names = list(names)
    starts = {each: range(1 if whole else each.count(".") + 1) for each in names}
    ends = {".".join(each.split(".")[start:]): None for each in names for start in starts[each]}
    close = get_close_matches(name.strip("*."), list(ends), n=3, cutoff=0.3)
    return ", ".join(close or names[:3]) or "(there are no names)"
