"""`eckart adapters`: the methods, what is in an adapter's folder, and sums of adapters."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import require_free, tell

adapters = typer.Typer(no_args_is_help=False)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@adapters.callback(invoke_without_command=True)
def overview(context: typer.Context, as_json: Json = False) -> None:
    """List the methods of eckart adapt, look into an adapter's folder, or combine adapters.

    \b
    eckart adapters                                             the methods
    eckart adapters info tuned/adapter                          what is in a folder
    eckart adapters combine one two --weights 0.5,0.5 --out sum
    """
    if context.invoked_subcommand is not None:
        return
    from eckart.adapters import METHODS

    rows = {name: {"says": row.says, "source": row.source, "rank": row.rank} for name, row in METHODS.items()}
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    width = max(map(len, rows))
    for name, row in rows.items():
        typer.echo(f"{name:{width}}  {row['source']:10}  {row['says']}")


@adapters.command()
def info(
    folder: Annotated[Path, typer.Argument(help="An adapter's folder.")],
    as_json: Json = False,
) -> None:
    """What an adapter is: method, base, ranks, size, and the ranks that it really uses."""
    from eckart.lm.adapter_folders import describe

    told = describe(folder)
    if as_json:
        print(json.dumps(told, ensure_ascii=False))
        return
    ranks = sorted(set(told["ranks"].values())) or [0]
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    typer.echo(f"{told['method']} of {told['base'] or 'an unnamed base'}; PEFT reads it as {told['peft_type']}")
    typer.echo(f"{len(told['ranks'])} matrices of {span}, {told['parameters']:,} parameters, {told['bytes']:,} bytes")
    if told["used"]:
        used, given = sum(told["used"].values()), sum(told["ranks"].values())
        typer.echo(f"of {given} directions, {used} hold 99 % of each matrix's change")
    for sentence in told["notes"]:
        typer.echo(f"note: {sentence}")


@adapters.command()
def combine(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="LoRA adapters of one base.")],
    out: Annotated[Path, typer.Option(help="Folder for the sum.")],
    weights: Annotated[
        str | None, typer.Option(help="One for each, comma-separated; negative ones subtract. Default: ones.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="Cut the sum to this rank. Default: exact.", min=1)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Cut it to this share of each matrix's change.", min=0, max=1)
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Their model, needed for convolutions, embeddings and GPT-2's layers.")
    ] = None,
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an adapter in --out.")] = False,
) -> None:
    """Add adapters up, exactly or at the best lower rank: not the factors apart, but the changes they make.

    \b
    eckart adapters combine law code --weights 0.5,0.5 --out both
    eckart adapters combine tuned toxic --weights=1,-0.5 --rank 16 --out clean
    """
    require_free(folders=[out], force=force)
    from eckart.lm.adapter_folders import combine_folders

    total = combine_folders(folders, _weights(weights), out, rank=rank, energy=energy, base=base, force=force)
    said: dict[str, Any] = {"ranks": {name: int(pair.A.shape[0]) for name, pair in total.items()}}
    if as_json:
        print(json.dumps(said, ensure_ascii=False))
    else:
        found = sorted(said["ranks"].values())
        typer.echo(f"{len(folders)} adapters as one: {len(found)} matrices of ranks {found[0]} to {found[-1]}")
    tell(f"wrote {out}")


def _weights(given: str | None) -> list[float] | None:
    if given is None:
        return None
    try:
        return [float(part) for part in given.split(",")]
    except ValueError:
        raise ValueError(f"--weights: {given!r}; give numbers with commas between them, such as 0.5,0.5") from None
