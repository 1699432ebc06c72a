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
    steps: Annotated[int, typer.Option(help="Optimizer steps of the adapter.", min=1)] = 24,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier demo left there.")] = False,
) -> None:
    """Look at SmolLM2-135M: every weight matrix, and the activations of its layers on real English; see why; adapt it.

    Why low rank appears is told by four of the claims of eckart claims. An adapter of rank 8 then learns
    Python's documentation, and the perplexity of topics that it has not seen falls.
    """
    from eckart.claims import run_many, write_gallery
    from eckart.claims.table import render_outcomes
    from eckart.lm import look
    from eckart.lm.run_folder import RunFolder
    from eckart.nn.files import write_json
    from eckart.report import html, render

    page, gallery, kept, ranks = out / "report.html", out / "claims.html", out / "profile", out / "ranks.json"
    adapted = out / "adapted"
    require_free(files=[page, gallery, ranks], folders=[kept], force=force)
    RunFolder(adapted).require_writable(resume=False, force=force)
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
    _adapt(adapted, steps, force)
    typer.echo(f"\nreport   {page}   open it in a browser\nranks    {ranks}   the best ranks at 80 % of the parameters")
    typer.echo(f"profile  {kept}   eckart.Profile.load({str(kept)!r})")
    typer.echo(
        f"adapter  {adapted / 'adapter'}   eckart merge smollm2-135m --adapter {adapted / 'adapter'} --out merged"
    )
    typer.echo(f"claims   {gallery}   all of them: eckart claims run all --html gallery.html")


def _adapt(out: Path, steps: int, force: bool) -> None:
    """Let an adapter learn most of Python's topics, and measure on every twentieth, which it does not see."""
    from eckart.adapters import adapt
    from eckart.lm import finetune, load, training_data
    from eckart.lm.rows import read_rows

    from .learned import render

    typer.echo("Adapting SmolLM2-135M to Python's own documentation ...", err=True)
    rows = read_rows("pydoc")
    kept = [row._replace(value=row.value[:2000]) for row in rows[::20]]
    with progress_bar() as progress:
        model, tokenizer, _ = load("smollm2-135m", progress=progress)
        data = training_data(tokenizer, [row for row in rows if row not in rows[::20]], held_out=kept, length=128)
        adapt(model, "lora", rank=8)
        done = finetune(
            model, tokenizer, data, out=out, steps=steps, batch=2, lr=1e-3, save_every=steps, force=force,
            progress=progress,
        )  # fmt: skip
    typer.echo("")
    render(done)
