"""`eckart demo`: the main job on a real model, from nothing to a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .claims_bars import claim_bars
from .compress import MARK
from .console import progress_bar, require_free

if TYPE_CHECKING:
    from eckart.lm.rows import Row

QUICK = ("T1", "T3", "C1", "C4")  # of both halves, a few seconds each
SMALL: dict[str, Any] = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
COMPRESSING: dict[str, Any] = {"keep": 0.8, "length": 256, "held_out": 2}
TIMING: dict[str, Any] = {"prompt": 256, "new": 8, "rounds": 2}


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, the profile and the ranks.")] = Path("eckart-demo"),
    tokens: Annotated[int, typer.Option(help="Tokens of English to run the model on.", min=1)] = 8192,
    steps: Annotated[
        int, typer.Option(help="Optimizer steps of the adapter; the small model makes three times as many.", min=1)
    ] = 24,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier demo left there.")] = False,
) -> None:
    """Look at SmolLM2-135M: every weight matrix, its activations on real English; see why; adapt; train; compress.

    Why low rank appears is told by four of the claims of eckart claims. An adapter of rank 8 then learns
    Python's documentation, and the perplexity of topics that it has not seen falls. A small model of its own
    learns the same from nothing, all of it, with GaLore: its optimizer states beside AdamW's. At last SmolLM2-135M
    itself is made smaller: how well and how fast it still reads, beside dense.
    """
    from eckart.claims import run_many, write_gallery
    from eckart.claims.table import render_outcomes
    from eckart.lm import look
    from eckart.lm.run_folder import RunFolder
    from eckart.nn.files import require_directory, write_json
    from eckart.report import html, render

    page, gallery, kept, ranks = out / "report.html", out / "claims.html", out / "profile", out / "ranks.json"
    adapted, trained, small = out / "adapted", out / "trained", out / "compressed"
    require_free(files=[page, gallery, ranks], folders=[kept], force=force)
    require_directory(small, force=force, mark=MARK)
    for folder in (adapted, trained):
        RunFolder(folder).require_writable(resume=False, force=force)
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
    _train(trained, 3 * steps, force)
    _compress(small, tokens, force)
    typer.echo(f"\nreport   {page}   open it in a browser\nranks    {ranks}   the best ranks at 80 % of the parameters")
    typer.echo(f"profile  {kept}   eckart.Profile.load({str(kept)!r})")
    typer.echo(
        f"adapter  {adapted / 'adapter'}   eckart merge smollm2-135m --adapter {adapted / 'adapter'} --out merged"
    )
    typer.echo(f"trained  {trained / 'model'}   eckart train smollm2-135m --data YOUR.jsonl --out trained")
    typer.echo(f"smaller  {small}   eckart compress smollm2-135m --keep 0.8 --calibrate YOUR.txt --out small")
    typer.echo(f"claims   {gallery}   all of them: eckart claims run all --html gallery.html")


def _adapt(out: Path, steps: int, force: bool) -> None:
    """Let an adapter learn most of Python's topics, and measure on every twentieth, which it does not see."""
    from eckart.adapters import adapt
    from eckart.lm import finetune, load, training_data

    from .learned import render

    typer.echo("Adapting SmolLM2-135M to Python's own documentation ...", err=True)
    rows, kept = _topics()
    with progress_bar() as progress:
        model, tokenizer, _ = load("smollm2-135m", progress=progress)
        data = training_data(tokenizer, rows, held_out=kept, length=128)
        adapt(model, "lora", rank=8)
        done = finetune(
            model, tokenizer, data, out=out, steps=steps, batch=2, lr=1e-3, save_every=steps, force=force,
            progress=progress,
        )  # fmt: skip
    typer.echo("")
    render(done)


def _train(out: Path, steps: int, force: bool) -> None:
    """Let a small model with random weights learn the same topics with GaLore, and show its memory beside AdamW's."""
    from transformers import LlamaConfig

    from eckart.lm import from_scratch, learn_tokenizer, train, training_data

    from .learned import render_training

    typer.echo("Training a small model on Python's own documentation from scratch ...", err=True)
    rows, kept = _topics()
    tokenizer = learn_tokenizer((row.value for row in rows), size=2048)
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **SMALL)
    with progress_bar() as progress:
        data = training_data(tokenizer, rows, held_out=kept, length=128)
        done = train(
            from_scratch(config).model, tokenizer, data, out=out, rank=48, gap=20, steps=steps, batch=4,
            save_every=steps, force=force, progress=progress,
        )  # fmt: skip
    typer.echo("")
    render_training(done)


def _compress(out: Path, tokens: int, force: bool) -> None:
    """Make SmolLM2-135M smaller on some of the topics, and show quality on others and speed beside dense.

    Args:
        out: Folder for the model.
        tokens: A quarter is calibrated on, and another evaluated.
        force: Replace a model there.
    """
    from eckart.lm import compress

    from .compress import show

    typer.echo("Compressing SmolLM2-135M ...", err=True)
    with progress_bar() as progress:
        done = compress(
            "smollm2-135m", text="pydoc", sequences=max(2, tokens // 1024), evaluate={"pydoc": "pydoc"},
            tokens=max(256, tokens // 4), progress=progress, **COMPRESSING,
        )  # fmt: skip
        done.measure_speed(progress=progress, **TIMING)
        done.save(out, force=force)
    typer.echo("")
    show(done, html=None, as_json=False, every=False, force=force)


def _topics() -> "tuple[list[Row], list[Row]]":
    """Most of Python's topics, and the beginnings of every twentieth, which is only measured on."""
    from eckart.lm.rows import read_rows

    rows = read_rows("pydoc")
    learned = [row for i, row in enumerate(rows) if i % 20]
    return learned, [row._replace(value=row.value[:2000]) for row in rows[::20]]
