"""The command line, `eckart`: parse, call, print. The work is done in the layers below."""

import sys

import typer

from .adapt import adapt
from .adapters import adapters
from .bench import bench
from .claims import claims
from .compress import compress
from .demo import demo
from .evaluate import evaluate
from .extract import extract
from .measure import measure
from .merge import merge
from .train import train

app = typer.Typer(
    help="See neural networks through their low-rank structure.",
    epilog="Start with: eckart demo    Then: eckart measure YOUR_MODEL --html report.html",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(measure)
app.command()(adapt)
app.command()(train)
app.command()(merge)
app.command()(extract)
app.command()(compress)
app.command("eval")(evaluate)
app.command()(bench)
app.command()(demo)
app.add_typer(adapters, name="adapters")
app.add_typer(claims, name="claims")


@app.callback()
def eckart() -> None:
    """See neural networks through their low-rank structure."""


def main() -> None:
    """Run the command line; what the user can mend is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
