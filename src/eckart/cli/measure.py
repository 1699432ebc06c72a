"""`eckart measure`: the spectra of a model, as a table, JSON, an HTML page, a choice of ranks."""

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import listed, progress_bar, require_free


def measure(
    model: Annotated[
        str, typer.Argument(help="A safetensors file or folder, a hub name, a GGUF file, smollm2-135m, minilm.")
    ],
    base: Annotated[str | None, typer.Option(help="The model before fine-tuning: measure the updates W − W₀.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="A PEFT adapter folder: measure its update of MODEL.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Text to run on, for activations and gradients: a file, or pydoc.")
    ] = None,
    of: Annotated[
        str | None, typer.Option(help="Any of weights,updates,gradients,activations. Default: what the inputs allow.")
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="The largest 16 values and the exact energy, in less than half the time.")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Tokens of the text to run on.", min=1)] = 16384,
    length: Annotated[int, typer.Option(help="Tokens per sequence.", min=2)] = 512,
    targets: Annotated[
        str | None, typer.Option(help="Patterns of the matrices to measure, comma-separated: *.mlp.*,q_proj.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="Patterns of the matrices to leave out.")] = None,
    ranks: Annotated[
        Path | None, typer.Option(help="Write the suggested ranks, name → rank, to this JSON file.")
    ] = None,
    budget: Annotated[float, typer.Option(help="Share of the parameters that the suggested ranks may keep.")] = 0.8,
    save: Annotated[Path | None, typer.Option(help="Keep the profile in this folder, for Profile.load.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one self-contained HTML page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of a table.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="A line for every matrix instead of every kind of matrix.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Measure where a model is low-rank, and how low.

    The weights come straight from disk, one matrix at a time; with --text the model runs on it, and the activations
    of its layers are measured too.

    \b
    eckart measure smollm2-135m --html report.html
    eckart measure ./tuned --base ./original --of updates
    eckart measure ./checkpoint --fast --json
    eckart measure ./checkpoint --ranks ranks.json --budget 0.8
    """
    from eckart.lm import look
    from eckart.nn.files import write_json
    from eckart.report import html as write_page
    from eckart.report import render

    require_free(files=[ranks, html], folders=[save], force=force)
    if fast and ranks:
        raise ValueError("--ranks needs every singular value; leave out --fast")
    if not 0 < budget <= 1:
        raise ValueError(f"--budget must be in (0, 1], the kept share of the parameters, got {budget}")
    with progress_bar() as progress:
        profile = look(
            model,
            of=listed(of),
            mode="fast" if fast else "full",
            base=base,
            adapter=adapter,
            text=text,
            tokens=tokens,
            length=length,
            targets=listed(targets),
            exclude=listed(exclude),
            progress=progress,
        )
        rows = profile.rows()
    suggested = profile.suggest_ranks(budget) if ranks else None
    if ranks:
        write_json(ranks, suggested, force=force)
    if save:
        profile.save(save, force=force)
    if html:
        write_page(profile, html, force=force)
    if as_json:
        head = {"source": profile.source, "mode": profile.mode, "details": profile.details}
        print(json.dumps(head | {"rows": rows}, allow_nan=False))
    else:
        render(profile, every=every)
    for path in (ranks, save, html):
        if path:
            typer.echo(f"wrote {path}", err=True)
    for key, reason in profile.details["left_out"].items():
        if not reason.startswith("not chosen"):
            typer.echo(f"left out {key}: {reason}", err=True)
