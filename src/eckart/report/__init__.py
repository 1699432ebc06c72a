"""Tables, plots and one self-contained HTML page of a profile.

`render(profile)` prints a table, `frame(profile)` is a pandas table, `plot(profile)` a matplotlib figure, and
`html(profile, path)` a page that opens from disk; `trajectory(recorder.rows())` draws a training run;
`render_compression(rows)` and `compression(rows, path)` are the table and the page of a compressed model, or of a plan.
Each is loaded on first use, so that `import eckart.report` needs none of their libraries; all but the tables are in the
extra `report` (`pip install "eckart[report]"`). The words for each column are in `columns.COLUMNS`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compression_page import compression
    from .compression_table import render_compression
    from .dataframe import frame
    from .figures import plot
    from .page import html
    from .table import render
    from .trajectories import trajectory

__all__ = ["compression", "frame", "html", "plot", "render", "render_compression", "trajectory"]

# Where each name lives. No file bears the name of its function: an imported submodule would hide the function.
_HOME = {
    "compression": "compression_page", "frame": "dataframe", "html": "page", "plot": "figures", "render": "table",
    "render_compression": "compression_table", "trajectory": "trajectories",
}  # fmt: skip


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
