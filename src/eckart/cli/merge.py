"""`eckart merge`: an adapter and its model as one model, with what rounding takes of each change."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import dtype_given, progress_bar, require_free, tell


def merge(
    model: Annotated[str, typer.Argument(help="The adapter's base: a folder, a hub name, smollm2-135m.")],
    adapter: Annotated[Path, typer.Option(help="The adapter's folder: OUT/adapter of eckart adapt, or PEFT's.")],
    out: Annotated[Path, typer.Option(help="Folder for the merged model.")],
    dtype: Annotated[
        str | None, typer.Option(help="Of the merged model: float32, bf16, fp16. Default: the model's own.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="How large a share of any matrix's change rounding may take.", min=0)
    ] = 0.01,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Round to bf16 stochastically: small changes survive in the mean.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the certificate of every matrix as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a model in --out.")] = False,
) -> None:
    """Merge an adapter into its model, unless rounding would take too much of what was learned.

    In bf16 a change of 1 % of a weight's size loses about a sixth of itself; then nothing is written, exit
    code 2, and the message names the remedies.

    \b
    eckart merge smollm2-135m --adapter tuned/adapter --out merged
    eckart merge ./model --adapter ./adapter --out merged --dtype float32
    """
    require_free(folders=[out], force=force)
    from eckart.lm.whole_models import merge_adapter

    with progress_bar() as progress:
        merged = merge_adapter(
            model, adapter, out, dtype=None if dtype is None else dtype_given(dtype), tolerance=tolerance,
            stochastic=stochastic, force=force, progress=progress,
        )  # fmt: skip
    if as_json:
        rows = {name: each._asdict() for name, each in merged.certificates.items()}
        print(json.dumps({"summary": str(merged), "matrices": rows, "kept": merged.kept}, ensure_ascii=False))
    else:
        typer.echo(str(merged))
    tell(f"wrote {out}")
