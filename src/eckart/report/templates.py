"""A page from its template: one self-contained file with its style, scripts and data inside, which loads nothing."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from eckart.nn.files import atomic_write

from .payload import embedded


def write_page(
    template: str, path: str | Path, data: dict[str, Any], scripts: Sequence[str], *, force: bool, **values: Any
) -> Path:
    """Write a page whole or not at all.

    Args:
        template: a file of `assets/` that extends `base.html`.
        path: where to write; missing parent folders are made.
        data: what the scripts read, as JSON holds it.
        scripts: files of `assets/`, in the order in which they stand inside one function.
        force: replace a file that is already there.
        values: what the template names.

    Returns:
        The path.

    Raises:
        FileExistsError: `path` exists and `force` is false.
    """
    environment = Environment(
        loader=FunctionLoader(_asset), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(template).render(
        **values,
        style=Markup(_asset("page.css")),
        script=Markup("\n".join(map(_asset, scripts))),
        data=Markup(embedded(data)),
    )
    with atomic_write(path, force=force) as beside:
        beside.write_text(page, encoding="utf-8")
    return Path(path)


def described(words: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The words for the columns, as the scripts read them."""
    return {key: {"label": c.label, "words": c.words, "reading": c.reading} for key, c in words.items()}


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")
