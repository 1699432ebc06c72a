"""`eckart demo`: the main job on a real model, from nothing to a report."""

from pathlib import Path
from typing import Annotated

import typer

from .claims_bars import claim_bars
from .console import progress_bar, require_free

QUICK = ("T1", "T3", "C1", "C4")  # of both halves, a few seconds each


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the profile and the ranks.")] = Path("eckart-demo"),
    tokens: Annotated[int, typer.Option(help="Tokens of English to run the model on.", min=1)] = 8192,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier demo left there.")] = False,
) -> None:
    """Look at SmolLM2-135M: every weight matrix, and the activations of its layers on real English; then see why.

    Why low rank appears is told by four of the claims of eckart claims.
    """
    from eckart.claims import run_many, write_gallery
    from eckart.claims.table import render_outcomes
    from eckart.lm import look
    from eckart.nn.files import write_json
    from eckart.report import html, render

    page, gallery, kept, ranks = out / "report.html", out / "claims.html", out / "profile", out / "ranks.json"
    require_free(files=[page, gallery, ranks], folders=[kept], force=force)
    typer.echo(
        "Measuring SmolLM2-135M: all its weights, and its activations on Python's own documentation ...", err=True
    )
    with progress_bar() as progress:
        profile = look("smollm2-135m", text="pydoc", tokens=tokens, progress=progress)
        profile.rows()
    out.mkdir(parents=True, exist_ok=True)
    profile.save(kept, force=force)
    write_json(ranks, profile.suggest_ranks(0.8), force=force)
    html(profile, page, title="SmolLM2-135M", force=force)
    render(profile)
    typer.echo("Running four claims about why networks are low-rank ...", err=True)
    outcomes = []
    with claim_bars(None) as (watch, tell):
        for outcome in run_many(QUICK, watch=watch):
            outcomes.append(outcome)
            tell(outcome)
    write_gallery(outcomes, gallery, force=force)
    render_outcomes(outcomes)
    typer.echo(f"\nreport   {page}   open it in a browser\nranks    {ranks}   the best ranks at 80 % of the parameters")
    typer.echo(f"profile  {kept}   eckart.Profile.load({str(kept)!r})")
    typer.echo(f"claims   {gallery}   all of them: eckart claims run all --html gallery.html")
