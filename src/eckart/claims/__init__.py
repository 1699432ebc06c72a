"""The overview (arXiv 2503.19859) as claims that run: each predicts a number, measures it, and can fail.

`names()` lists them, `load("T1")` gives one with its statement and source, `run("T1")` runs it and `run_many` runs
many in a row; `draw(result)` is the figure and `write_gallery(outcomes, path)` a page of all. On the command line:
`eckart claims`. What draws is loaded on first use and is in the extra `claims` (`pip install "eckart[claims]"`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .claim import Check, Claim, Line, Panel, Result
from .outcome import Outcome
from .pace import Moment
from .registry import CLAIMS, load, names
from .running import run, run_many

if TYPE_CHECKING:
    from .figures import draw
    from .gallery import write_gallery

__all__ = [
    "CLAIMS",
    "Check",
    "Claim",
    "Line",
    "Moment",
    "Outcome",
    "Panel",
    "Result",
    "draw",
    "load",
    "names",
    "run",
    "run_many",
    "write_gallery",
]

_HOME = {"draw": "figures", "write_gallery": "gallery"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name in ("matplotlib", "jinja2"):
            raise ModuleNotFoundError(
                f'claims.{name} needs {error.name}: pip install "eckart[claims]"', name=error.name
            ) from error
        raise
