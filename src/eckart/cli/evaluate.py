"""`eckart eval`: how well a model predicts text, beside another."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import dtype_given, progress_bar, tell

if TYPE_CHECKING:
    from eckart.lm import Evaluation


def evaluate(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, a GGUF file, smollm2-135m; compressed or not.")],
    text: Annotated[list[str], typer.Option(help="A text file, a .jsonl, a dataset, or pydoc; repeatable.")],
    against: Annotated[str | None, typer.Option(help="A model to compare with, such as the dense one.")] = None,
    context: Annotated[int, typer.Option(help="Tokens in a window; windows do not overlap.", min=2)] = 1024,
    tokens: Annotated[int | None, typer.Option(help="Tokens of each text to use. Default: all.", min=2)] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32, bf16, fp16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON instead of a table.")] = False,
) -> None:
    """Measure the perplexity of a model on texts: exp of the mean negative log-likelihood of a token.

    \b
    eckart eval ./small --text wiki.txt --text pydoc --tokens 20000 --against smollm2-135m
    """
    texts, weights = list(dict.fromkeys(text)), dtype_given(dtype)
    from eckart.lm import evaluate, load

    def measured(name: str) -> "Evaluation":
        loaded = load(name, dtype=weights, progress=progress)
        named = {each: each for each in texts}
        return evaluate(loaded.model, loaded.tokenizer, named, context=context, tokens=tokens, progress=progress)

    with progress_bar() as progress:
        found = measured(model)
        other = None if against is None else measured(against)
    rows = _beside(found.rows(), None if other is None else other.rows())
    if as_json:
        print(json.dumps({"model": model, "against": against, "texts": rows, "notes": list(found.notes)}))
    else:
        _render(rows, model, against)
    for note in found.notes if not as_json else ():
        tell(f"note: {note}")


def _beside(rows: list[dict[str, Any]], others: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Each row with the other model's perplexity, and how many times it the model's own is."""
    if others is None:
        return rows
    return [
        row | {"against": other["perplexity"], "ratio": row["perplexity"] / other["perplexity"]}
        for row, other in zip(rows, others, strict=True)
    ]


def _render(rows: list[dict[str, Any]], model: str, against: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"perplexity, context {rows[0]['context']}", title_justify="left")
    table.add_column("text", overflow="fold")
    for head in ("tokens", model, *((against, "ratio") if against else ())):
        table.add_column(head, justify="right", overflow="fold")
    for row in rows:
        values = [f"{row['perplexity']:.2f}"]
        values += [f"{row['against']:.2f}", f"{row['ratio']:.3f}"] if against else []
        table.add_row(row["text"], f"{row['tokens']:,}", *values)
    Console().print(table)
