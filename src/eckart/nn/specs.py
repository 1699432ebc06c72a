"""What a compressed layer says of itself in a file, read back: an error names the key, what it is, and what fits.

A spec is a plain dict of JSON's types: the layer's kind, its sizes, and whether it has a bias. It holds no tensors and
no names of code: what a kind means is told by `nn.compressed.LAYERS` alone.

Paper: none.
"""

from collections.abc import Collection, Mapping
from typing import Any


def check_keys(spec: Mapping[str, Any], kind: str, keys: Collection[str]) -> None:
    """Raise ValueError unless a spec is of this kind and has these keys, and no other.

    Example:
        >>> check_keys({"kind": "factored", "rank": 2}, "factored", ["rank", "bias"])
        Traceback (most recent call last):
        ...
        ValueError: spec of a factored layer: it lacks bias; it must have kind, rank, bias
    """
    if not isinstance(spec, Mapping):
        raise ValueError(f"spec of a {kind} layer: got {spec!r}; give a dict, as the layer's spec() does")
    must = f"it must have kind, {', '.join(keys)}"
    if spec.get("kind") != kind:
        raise ValueError(f"spec of a {kind} layer: kind is {spec.get('kind')!r}; {must}")
    if missing := [key for key in keys if key not in spec]:
        raise ValueError(f"spec of a {kind} layer: it lacks {', '.join(missing)}; {must}")
    if unknown := [str(key) for key in spec if key not in ("kind", *keys)]:
        raise ValueError(f"spec of a {kind} layer: {', '.join(unknown)} is unknown; {must}")


def whole(spec: Mapping[str, Any], key: str, least: int = 0, most: int | None = None) -> int:
    """A whole number of a spec, between bounds.

    Raises:
        ValueError: it is something else.

    Example:
        >>> whole({"kind": "pivoted", "rank": 9}, "rank", most=4)
        Traceback (most recent call last):
        ...
        ValueError: spec of a pivoted layer: rank is 9; give a whole number from 0 to 4
    """
    value = spec[key]
    if type(value) is not int or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise wrong(spec, key, f"a whole number {bounds}")
    return value


def flag(spec: Mapping[str, Any], key: str) -> bool:
    """A truth value of a spec.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(spec[key], bool):
        raise wrong(spec, key, "true or false")
    return spec[key]


def wrong(spec: Mapping[str, Any], key: str, fits: str) -> ValueError:
    """The error that a key of a spec is not what fits there."""
    return ValueError(f"spec of a {spec['kind']} layer: {key} is {spec[key]!r}; give {fits}")
