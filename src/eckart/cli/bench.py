"""`eckart bench`: how fast a model reads and writes, beside another, in one interleaved run."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import dtype_given, progress_bar

if TYPE_CHECKING:
    from eckart.lm.judging.speeds import Bench


def bench(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, a GGUF file, smollm2-135m; compressed or not.")],
    against: Annotated[
        str | None, typer.Option(help="A model to compare with. Default: for a compressed one, its own dense form.")
    ] = None,
    prompt: Annotated[int, typer.Option(help="Tokens that are read at once: prefill.", min=1)] = 256,
    new: Annotated[int, typer.Option(help="Tokens that are written one after another: decode.", min=1)] = 32,
    repeats: Annotated[int, typer.Option(help="Times each; the median counts.", min=1)] = 7,
    batch: Annotated[int, typer.Option(help="Sequences at a time.", min=1)] = 1,
    int8: Annotated[
        bool, typer.Option("--int8", help="Add a copy of --against whose linear layers are in int8.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bf16, fp16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of a table.")] = False,
) -> None:
    """Measure tokens per second at prefill and decode; two models take turns, so that only their ratio counts.

    \b
    eckart bench ./small
    eckart bench ./small --against smollm2-135m --int8 --prompt 1024 --new 64
    """
    if against == model:
        raise ValueError(f"--against: {against} is the model itself; give another, or leave it out")
    if int8 and against is None:
        raise ValueError("--int8 adds a copy of --against; give that too")
    weights = dtype_given(dtype)
    from eckart.lm import bench, load, quantized

    with progress_bar() as progress:
        names = [model] if against is None else [against, model]
        loaded = {name: load(name, dtype=weights, progress=progress).model for name in names}
        if int8 and against is not None:
            loaded[f"{against}, int8"] = quantized(loaded[against])
        measured: Any = loaded if against is not None else loaded[model]
        found = bench(measured, prompt=prompt, new=new, rounds=repeats, batch=batch, progress=progress)
    if as_json:
        print(json.dumps({"rows": found.rows(), "threads": found.threads, "device": found.device}))
    else:
        _render(found)


def _render(found: "Bench") -> None:
    from rich.console import Console
    from rich.table import Table

    from eckart.report.sizes import in_bytes

    where = f"{found.threads} threads, {found.device}"
    table = Table(title=f"tokens per second, batch {found.batch}, {where}", title_justify="left")
    table.add_column("phase")
    table.add_column("model", overflow="fold")
    for head in ("size", "tokens/s", "middle half", "ratio"):
        table.add_column(head, justify="right", no_wrap=True)
    for row in found.speeds:
        low, high = row.quartiles
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f} ×"
        phase = f"{row.phase}, {row.tokens} tokens"
        table.add_row(phase, row.model, in_bytes(row.bytes), f"{row.per_second:.1f}", f"{low:.1f} – {high:.1f}", ratio)
    Console().print(table)
