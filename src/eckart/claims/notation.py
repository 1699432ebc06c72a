"""Indices and powers in a claim's words: σ_1 and (1 − ηλ)^t as they are written down, σ₁ or raised where there is room.

Claims use plain text, σ_i, G_t, D_(l+1), ‖P‖_F, ε^{L−1}. Names of code keep their underscores: q_proj is no product.
"""

import re

from markupsafe import Markup

_PART = r"(?:\{([^{}]*)\}|\(([^()]*)\)|(\d+|[A-Za-z]|max|min|\+|\*))(?![A-Za-z0-9_])"
_BELOW, _ABOVE = re.compile(rf"(?<=\S)_{_PART}"), re.compile(rf"(?<=\S)\^{_PART}")
_SMALL = dict(zip("0123456789+−()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))


def typeset(text: str) -> Markup:
    """The words for a page, with indices lowered and powers raised.

    Example:
        >>> typeset("σ_1 & ρ_l(t) of q_proj, D_(l+1), (1 − ηλ)^t")
        Markup('σ<sub>1</sub> &amp; ρ<sub>l</sub>(t) of q_proj, D<sub>l+1</sub>, (1 − ηλ)<sup>t</sup>')
    """
    lowered = _BELOW.sub(lambda found: f"<sub>{_inside(found)}</sub>", str(Markup.escape(text)))
    return Markup(_ABOVE.sub(lambda found: f"<sup>{_inside(found)}</sup>", lowered))


def lower(text: str) -> str:
    """The words for a figure: indices as small letters where Unicode has them all.

    Example:
        >>> lower("σ_1, ρ_l(t), D_(l+1), ‖P‖_F, q_proj")
        'σ₁, ρₗ(t), Dₗ₊₁, ‖P‖_F, q_proj'
    """
    return _BELOW.sub(_small, text)


def _inside(found: re.Match[str]) -> str:
    return next(part for part in found.groups() if part is not None)


def _small(found: re.Match[str]) -> str:
    index = _inside(found)
    return "".join(_SMALL[c] for c in index) if index and set(index) <= _SMALL.keys() else found[0]
