"""`eckart compress`: a smaller model from a dense one, with what that loses and what it is good for."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import dtype_given, listed, progress_bar, require_free, tell

if TYPE_CHECKING:
    from eckart.lm import CompressedLM

MARK = "config.json"  # by which --force knows a model's folder
CALIBRATION = "pydoc"
RECOVERIES = ("blocks", "lora")


def compress(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, a GGUF file, smollm2-135m.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the compressed model and the report.")] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of the selected matrices' bytes to keep, 0 to 1. Default: 0.8.")
    ] = None,
    ranks: Annotated[
        Path | None, typer.Option(help="Instead: JSON of matrix name → rank, as eckart measure --ranks writes.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="How to compress: auto, svd, fwsvd, asvd, svd-llm, two-sided, ...")
    ] = "auto",
    calibrate: Annotated[
        list[str] | None,
        typer.Option(help="Text to calibrate on, TEXT or TEXT:WEIGHT: a file, or pydoc; repeatable. Default: pydoc."),
    ] = None,
    sequences: Annotated[int, typer.Option(help="Sequences to calibrate on.", min=1)] = 64,
    length: Annotated[int, typer.Option(help="Tokens in each of them.", min=2)] = 512,
    targets: Annotated[
        str | None, typer.Option(help="Patterns of the matrices to compress, comma-separated: q_proj,*.mlp.*.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="Patterns of the matrices to leave dense.")] = None,
    recover: Annotated[
        str | None, typer.Option(help="Fit what is left afterwards, by gradients: blocks, or lora.")
    ] = None,
    evaluate: Annotated[
        list[str] | None, typer.Option(help="Text to measure perplexity on, before and after; repeatable.")
    ] = None,
    context: Annotated[int, typer.Option(help="Tokens of context in that.", min=2)] = 1024,
    tokens: Annotated[int | None, typer.Option(help="Tokens of each text to measure on. Default: all.", min=2)] = None,
    speed: Annotated[bool, typer.Option("--speed", help="Measure tokens per second beside the dense model's.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Evaluate and time plain int8 of the dense model too.")] = False,
    curve: Annotated[
        str | None, typer.Option(help="Budgets whose losses to show too, comma-separated: 0.9,0.8,0.6.")
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Show what would become of each matrix, and write no model.")
    ] = False,
    work: Annotated[
        Path | None, typer.Option(help="Keep what calibration learned in this folder: an interrupted run goes on.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bf16, fp16.")] = "float32",
    html: Annotated[Path | None, typer.Option(help="Write one self-contained HTML page.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
    every: Annotated[
        bool, typer.Option("--all", help="A line for every matrix instead of every kind of matrix.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a model in --out, and the page.")] = False,
) -> None:
    """Compress a model: low-rank layers in the places of its matrices, chosen by what text says of them.

    The model lies in OUT as save_pretrained writes it, loads with from_pretrained after import eckart.lm, and
    can be adapted, trained or measured as the dense one.

    \b
    eckart compress smollm2-135m --keep 0.8 --calibrate pydoc --evaluate wiki.txt --out small
    eckart compress ./model --calibrate wiki.txt:3 --calibrate code.txt:1 --keep 0.6 --work work --out small
    eckart compress ./model --plan-only --curve 0.9,0.8,0.6 --html plan.html
    """
    options = _checked(out, keep, ranks, recover, curve, plan_only, html, force)
    if plan_only and (evaluate or speed or int8):
        raise ValueError("--plan-only compresses nothing to measure; leave out --evaluate, --speed and --int8")
    if int8 and not (evaluate or speed):
        raise ValueError("--int8 is measured beside the model; give --evaluate or --speed too")
    text, texts = weighted(calibrate or [CALIBRATION]), list(dict.fromkeys(evaluate or ()))
    from eckart.lm import compress

    with progress_bar() as progress:
        done = compress(
            model, text=text, method=method, sequences=sequences, length=length, context=context, tokens=tokens,
            evaluate={each: each for each in texts} or None, dry_run=plan_only, dtype=dtype_given(dtype), work=work,
            int8=int8 and bool(texts), targets=listed(targets), exclude=listed(exclude), progress=progress, **options,
        )  # fmt: skip
        if speed and not plan_only:
            done.measure_speed(int8=int8, progress=progress)
        if out is not None:
            done.save(out, force=force)
    show(done, html=html, as_json=as_json, every=every, force=force)
    if out is not None:
        tell(f"wrote {out}")
        tell(f"next: eckart bench {out}    eckart eval {out} --text pydoc --against {model}")


def show(done: "CompressedLM", *, html: Path | None, as_json: bool, every: bool, force: bool) -> None:
    """Write the page and print the report."""
    summary, rows, curve = done.summary(), done.rows(), done.curve
    if html is not None:
        from eckart.report import compression

        compression(rows, html, summary=summary, curve=curve, force=force)
    if as_json:
        print(json.dumps(done.to_json(), ensure_ascii=False))
    else:
        from eckart.report import render_compression

        render_compression(rows, summary=summary, curve=curve, every=every)
    if html is not None:
        tell(f"wrote {html}")


def weighted(given: list[str]) -> dict[str | os.PathLike[str], float]:
    """Texts with their weights, from TEXT or TEXT:WEIGHT; a file whose name ends so is a file."""
    found: dict[str | os.PathLike[str], float] = {}
    for each in given:
        name, _, weight = each.rpartition(":")
        if not name or Path(each).exists():
            name, weight = each, "1"
        try:
            number = float(weight)
        except ValueError:
            name, number = each, 1.0
        if name in found:
            raise ValueError(f"--calibrate: {name} is given twice; give it once, with a weight: {name}:2")
        found[name] = number
    return found


def _checked(
    out: Path | None,
    keep: float | None,
    ranks: Path | None,
    recover: str | None,
    curve: str | None,
    plan_only: bool,
    html: Path | None,
    force: bool,
) -> dict[str, Any]:
    """What does not fit together is refused before anything is loaded; what was said about sizes."""
    if plan_only == (out is not None):
        raise ValueError("--out: give a folder for the model; or --plan-only, which writes none")
    require_free(files=[html], folders=[out], force=force)
    from eckart.nn.files import read_json, require_directory

    if out is not None:
        require_directory(out, force=force, mark=MARK)
    if keep is not None and ranks is not None:
        raise ValueError("--ranks names the rank of each matrix; leave out --keep")
    if recover is not None and (recover not in RECOVERIES or plan_only):
        raise ValueError(f"--recover: {recover!r}; give blocks or lora, and no --plan-only")
    budgets = [budget(part, "--curve") for part in listed(curve) or ()]
    share = None if keep is None else budget(str(keep), "--keep")
    return {"keep": share, "ranks": ranks and read_json(ranks), "recover": recover, "curve": budgets}


def budget(value: str, option: str) -> float:
    """A share of the bytes from the command line."""
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise ValueError(f"{option}: {value!r}; give a share of the bytes above 0 and at most 1, such as 0.8")
    return number
