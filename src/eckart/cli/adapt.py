"""`eckart adapt`: fine-tune a model with few parameters, on text, pairs or conversations."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import dtype_given, listed, progress_bar, rank_given, tell

LOOKED_AT = 16  # sequences that a rank rule or a start sees


def adapt(
    model: Annotated[str, typer.Argument(help="A folder, a hub name, a GGUF file, smollm2-135m.")],
    data: Annotated[
        str, typer.Option(help="A .jsonl of text, prompt and completion, or messages; a text file; a dataset; pydoc.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the adapter, checkpoints and the report.")],
    method: Annotated[str, typer.Option(help="How to adapt: lora, dora, rslora, pissa, ...; all: eckart adapters.")] = (
        "lora"
    ),
    rank: Annotated[str | None, typer.Option(help="A number, or auto: by what the gradients say. Default: 8.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="For --rank auto: parameters to train, as a number or a share. Default: 1%.")
    ] = None,
    ranks: Annotated[
        Path | None, typer.Option(help="JSON of matrix name → rank, as eckart measure --ranks writes.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="α of the scale α/r. Default: twice the rank.")] = None,
    targets: Annotated[
        str | None, typer.Option(help="Patterns of the matrices to adapt, comma-separated: q_proj,*.mlp.*.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="Patterns of the matrices to leave alone.")] = None,
    dropout: Annotated[float, typer.Option(help="Share of the inputs that the adapter drops in training.")] = 0.0,
    eval_data: Annotated[str | None, typer.Option(help="Data to measure on. Default: 5 % of --data, held out.")] = None,
    length: Annotated[int, typer.Option(help="Tokens per sequence, at most.", min=2)] = 512,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps. Default: as --epochs says.", min=1)] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = 2e-4,
    batch: Annotated[int, typer.Option(help="Sequences at a time, in each process.", min=1)] = 4,
    accumulate: Annotated[int, typer.Option(help="Batches for each step.", min=1)] = 1,
    pack: Annotated[bool, typer.Option("--pack/--no-pack", help="Several documents in one sequence.")] = True,
    dtype: Annotated[str, typer.Option(help="Of the frozen weights: float32, bf16, fp16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of the order of the data and of dropout.")] = 0,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints and evaluations. Default: a fifth of the run.", min=1)
    ] = None,
    final_rank: Annotated[
        float | None, typer.Option(help="For adalora: average rank at the end. Default: two thirds of the first.")
    ] = None,
    restart_every: Annotated[
        int | None, typer.Option(help="For relora: steps between restarts. Default: a quarter of the run.", min=1)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in --out.")] = False,
) -> None:
    """Fine-tune a model: train an adapter, and see what was learned.

    The adapter lies in OUT/adapter, in the files that PEFT and vLLM read too. An interrupted run goes on with
    the same command and --resume.

    \b
    eckart adapt smollm2-135m --data pydoc --out tuned
    eckart adapt ./model --data chat.jsonl --method dora --rank 16 --out tuned
    eckart adapt ./model --data train.jsonl --rank auto --budget 1% --out tuned
    torchrun --nproc-per-node 2 -m eckart.cli adapt ./model --data train.jsonl --out tuned
    """
    from eckart.lm.rows import read_rows
    from eckart.lm.run_folder import RunFolder, first_process

    options: dict[str, Any] = _chosen(rank, budget, ranks) | {
        "alpha": alpha, "targets": listed(targets), "exclude": listed(exclude), "dropout": dropout,
    }  # fmt: skip
    record = options | {"method": method, "dtype": dtype}
    if first_process():
        RunFolder(out).require_writable(resume=resume, force=force)
    rows = read_rows(data)
    measured = read_rows(eval_data) if eval_data else 0.05
    from eckart.lm import finetune, load, training_data

    with progress_bar(shown=first_process()) as progress:
        loaded = load(model, dtype=dtype_given(dtype), progress=progress)
        made = training_data(loaded.tokenizer, rows, held_out=measured, length=length)
        if not resume:
            from eckart.adapters import adapt

            looked_at = made.batches(LOOKED_AT, packed=pack)
            adapt(loaded.model, method, **options, batches=looked_at, progress=progress)
        done = finetune(
            loaded.model, loaded.tokenizer, made, out=out, steps=steps, epochs=epochs, lr=lr, batch=batch,
            accumulate=accumulate, packed=pack, seed=seed, save_every=save_every, final_rank=final_rank,
            restart_every=restart_every, resume=resume, force=force, record=record, progress=progress,
        )  # fmt: skip
    if not first_process():
        return
    if as_json:
        print(json.dumps(done.to_json(), ensure_ascii=False))
    else:
        from .learned import render

        render(done)
    tell(f"wrote {out / 'adapter'}, {out / 'report.json'}")
    tell(f"next: eckart merge {model} --adapter {out / 'adapter'} --out merged")


def _chosen(rank: str | None, budget: str | None, ranks: Path | None) -> dict[str, Any]:
    """What was said about ranks, as `adapt` takes it."""
    if ranks is not None:
        from eckart.nn.files import read_json

        if rank is not None or budget is not None:
            raise ValueError("--ranks names the rank of each matrix; leave out --rank and --budget")
        return {"rank": read_json(ranks)}
    if rank == "auto":
        return {"rank": "auto", "budget": _number(budget or "1%")}
    if budget is not None:
        raise ValueError("--budget is what --rank auto may spend; give --rank auto too, or leave it out")
    return {"rank": None if rank is None else rank_given(rank)}


def _number(budget: str) -> str | int:
    return int(budget) if budget.isdecimal() else budget
