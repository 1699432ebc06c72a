"""`eckart extract`: the adapter that lies between two models."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import listed, progress_bar, require_free, tell


def extract(
    base: Annotated[str, typer.Argument(help="The model before tuning: a folder, a hub name, smollm2-135m.")],
    tuned: Annotated[str, typer.Argument(help="The model after it.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter.")],
    rank: Annotated[int | None, typer.Option(help="Rank of each matrix.", min=1)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Instead: the share of each change to hold, 0 to 1.", min=0, max=1)
    ] = None,
    calibrate: Annotated[
        str | None, typer.Option(help="Text whose activations weigh the change: a file, or pydoc.")
    ] = None,
    targets: Annotated[str | None, typer.Option(help="Patterns of the matrices, comma-separated.")] = None,
    exclude: Annotated[str | None, typer.Option(help="Patterns of those to leave out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a row for every matrix as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter in --out.")] = False,
) -> None:
    """Extract an adapter from two models: the best low-rank form of what tuning changed.

    \b
    eckart extract ./original ./tuned --rank 32 --out adapter
    eckart extract ./original ./tuned --energy 0.9 --calibrate text.txt --out adapter
    """
    require_free(folders=[out], force=force)
    if (rank is None) == (energy is None):
        raise ValueError("--rank: give one of --rank and --energy")
    from eckart.lm.whole_models import extract_adapter

    with progress_bar() as progress:
        found = extract_adapter(
            base, tuned, out, rank=rank, energy=energy, calibrate=calibrate, targets=listed(targets),
            exclude=listed(exclude), force=force, progress=progress,
        )  # fmt: skip
    if as_json:
        rows = {name: each._asdict() for name, each in found.matrices.items()}
        print(json.dumps({"summary": str(found), "matrices": rows, "others": found.others}, ensure_ascii=False))
    else:
        typer.echo(str(found))
    tell(f"wrote {out}")
