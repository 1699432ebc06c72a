"""`eckart claims`: the overview's statements, each of which runs and can fail."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .claims_bars import claim_bars
from .console import require_free

if TYPE_CHECKING:
    from eckart.claims import Outcome

claims = typer.Typer(no_args_is_help=False)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@claims.callback(invoke_without_command=True)
def overview(context: typer.Context, as_json: Json = False) -> None:
    """List the statements of the overview (arXiv 2503.19859) that run here, or run them.

    Each claim says in one sentence what theory predicts. Running it computes
    the predicted number, measures it, and holds only if the two agree within a
    stated tolerance.

    \b
    eckart claims                              what there is
    eckart claims show T1                      its source, and where it holds
    eckart claims run T1                       run one and see every number
    eckart claims run all --html gallery.html  run all and see the figures
    """
    if context.invoked_subcommand is not None:
        return
    from eckart.claims import load, names
    from eckart.claims.table import render_claims

    found = [load(id) for id in names()]
    if as_json:
        print(json.dumps([_said(claim) for claim in found], ensure_ascii=False))
    else:
        render_claims(found)
        typer.echo("\nRun one with: eckart claims run T1    All: eckart claims run all --html gallery.html")


@claims.command()
def show(
    id: Annotated[str, typer.Argument(metavar="ID", help="A claim's id, as eckart claims lists it: T1.")],
    as_json: Json = False,
) -> None:
    """Show one claim: its statement, where it comes from, where it holds and where it stops."""
    from eckart.claims import load
    from eckart.claims.table import render_claim

    claim = load(id)
    if as_json:
        print(json.dumps(_said(claim), ensure_ascii=False))
    else:
        render_claim(claim)


@claims.command()
def run(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of claims, T1 C4; or all.")],
    seed: Annotated[int, typer.Option(help="Another seed draws other starts and data; a claim holds for each.")] = 0,
    size: Annotated[
        str, typer.Option(help="small: minutes for all. paper: the paper's sizes, hours for some; use --keep.")
    ] = "small",
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained HTML page of figures and numbers.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Write one SVG for each claim to this folder.")] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep one JSON for each claim in this folder; what it holds already is not run again."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run again what --keep holds, as after a change of code.")
    ] = False,
    as_json: Json = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a page and figures that exist.")] = False,
) -> None:
    """Run claims: what theory predicts, what is measured, and whether the two agree.

    Exit code 0: all hold. 1: some fail, or could not be run. 2: bad input.
    A run with --keep can be interrupted: the same command goes on from there.

    \b
    eckart claims run T1 T2 --seed 3
    eckart claims run all --html gallery.html
    eckart claims run all --size paper --keep results
    """
    from eckart.claims import run_many
    from eckart.claims.registry import select
    from eckart.claims.table import render_outcomes

    chosen = select(ids)
    require_free(files=[html], folders=[figures], force=force)
    require_free(folders=[keep], force=True)
    if fresh and keep is None:
        raise ValueError("--fresh runs again what --keep holds; give --keep too, or leave --fresh out")
    if html or figures:
        from eckart.claims import draw, write_gallery  # noqa: F401  a library that is missing is told now

    outcomes = []
    with claim_bars(keep) as (watch, tell):
        for outcome in run_many(chosen, seed=seed, size=size, keep=keep, fresh=fresh, watch=watch):
            outcomes.append(outcome)
            tell(outcome)
    if as_json:
        print(json.dumps([outcome.to_json() for outcome in outcomes], ensure_ascii=False, allow_nan=False))
    else:
        render_outcomes(outcomes)
    if html or figures:
        _draw(outcomes, html, figures, force)
    if any(outcome.verdict != "holds" for outcome in outcomes):
        raise typer.Exit(1)


def _draw(outcomes: list["Outcome"], html: Path | None, figures: Path | None, force: bool) -> None:
    from eckart.claims import draw, write_gallery

    if html is not None:
        write_gallery(outcomes, html, force=force)
        typer.echo(f"wrote {html}", err=True)
    if figures is not None:
        drawn = {o.claim.id: o.result for o in outcomes if o.result is not None and o.result.panels}
        for id, result in drawn.items():
            draw(result, figures / f"{id}.svg", force=force)
        typer.echo(f"wrote {len(drawn)} figures to {figures}", err=True)


def _said(claim: object) -> dict[str, object]:
    """All that a claim says of itself, as data."""
    return {key: getattr(claim, key) for key in ("id", "title", "statement", "source", "half", "regime")}
