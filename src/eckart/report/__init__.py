"""Tables, plots and one self-contained HTML page of a profile.

`render(profile)` prints a table, `frame(profile)` is a pandas table, `plot(profile)` a matplotlib figure, and
`html(profile, path)` a page that opens from disk; `trajectory(recorder.rows())` draws a training run. Each is loaded on
first use, so that `import eckart.report` needs none of their libraries; all but the first are in the extra `report`
(`pip install "eckart[report]"`). The words for each column are in `columns.COLUMNS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataframe import frame
    from .figures import plot
    from .page import html
    from .table import render
    from .trajectories import trajectory

__all__ = ["frame", "html", "plot", "render", "trajectory"]

# Where each name lives. No file bears the name of its function: an imported submodule would hide the function.
_HOME = {"frame": "dataframe", "html": "page", "plot": "figures", "render": "table", "trajectory": "trajectories"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if error.name in ("pandas", "matplotlib", "jinja2"):
            raise ModuleNotFoundError(
                f'report.{name} needs {error.name}: pip install "eckart[report]"', name=error.name
            ) from error
        raise
