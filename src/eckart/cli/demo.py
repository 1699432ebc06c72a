"""`eckart demo`: the main job on a real model, from nothing to a report."""

from pathlib import Path
from typing import Annotated

import typer

from .console import progress_bar, require_free


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the profile and the ranks.")] = Path("eckart-demo"),
    tokens: Annotated[int, typer.Option(help="Tokens of English to run the model on.", min=1)] = 8192,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier demo left there.")] = False,
) -> None:
    """Look at SmolLM2-135M: every weight matrix, and the activations of its layers on real English."""
    from eckart.lm import look
    from eckart.nn.files import write_json
    from eckart.report import html, render

    page, kept, ranks = out / "report.html", out / "profile", out / "ranks.json"
    require_free(files=[page, ranks], folders=[kept], force=force)
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
    typer.echo(f"\nreport   {page}   open it in a browser\nranks    {ranks}   the best ranks at 80 % of the parameters")
    typer.echo(f"profile  {kept}   eckart.Profile.load({str(kept)!r})")
