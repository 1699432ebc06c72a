"""`eckart train`: train all of a model with optimizer states of low rank, from its weights or from scratch."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import dtype_given, listed, progress_bar, tell

if TYPE_CHECKING:
    from eckart.lm import LanguageModel
    from eckart.nn import Progress

TUNED = 0.01  # of a method's learning rate, which is for random weights, where a model is trained already


def train(
    model: Annotated[
        str, typer.Argument(help="A folder, a hub name, a GGUF file, smollm2-135m; with --from-scratch a config.json.")
    ],
    data: Annotated[
        str, typer.Option(help="A .jsonl of text, prompt and completion, or messages; a text file; a dataset; pydoc.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model, checkpoints and the report.")],
    method: Annotated[
        str, typer.Option(help="The optimizer: galore, fira, apollo, ldadam, frugal, ...; all: docs/training.md.")
    ] = "galore",
    rank: Annotated[
        str | None,
        typer.Option(help="r of the subspaces, or a share of the smaller dimension: 0.25. Default: the method's own."),
    ] = None,
    ranks: Annotated[
        Path | None, typer.Option(help="JSON of matrix name → rank, as eckart measure --ranks writes.")
    ] = None,
    targets: Annotated[
        str | None, typer.Option(help="Patterns of the matrices to train in a subspace: q_proj,*.mlp.*.")
    ] = None,
    exclude: Annotated[str | None, typer.Option(help="Patterns of the matrices that get AdamW.")] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Begin with random weights.")] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="For --from-scratch: where the tokenizer is, if not beside the config.")
    ] = None,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Step within the backward pass: one layer's gradient in memory.")
    ] = False,
    eval_data: Annotated[str | None, typer.Option(help="Data to measure on. Default: 5 % of --data, held out.")] = None,
    length: Annotated[int, typer.Option(help="Tokens per sequence, at most.", min=2)] = 512,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps. Default: as --epochs says.", min=1)] = None,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    lr: Annotated[
        float | None,
        typer.Option(help="Largest learning rate. Default: the method's own from scratch, else a hundredth of it."),
    ] = None,
    gap: Annotated[int | None, typer.Option(help="Steps between new subspaces. Default: the method's own.")] = None,
    weight_decay: Annotated[float, typer.Option(help="Of the matrices; vectors have none.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Sequences at a time, in each process.", min=1)] = 4,
    accumulate: Annotated[int, typer.Option(help="Batches for each step.", min=1)] = 1,
    pack: Annotated[bool, typer.Option("--pack/--no-pack", help="Several documents in one sequence.")] = True,
    powersgd: Annotated[
        int | None, typer.Option(help="With torchrun: send gradients at this rank (PowerSGD).", min=1)
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: float32 or bf16 (rounded stochastically).")] = "float32",
    seed: Annotated[int, typer.Option(help="Of random weights and subspaces, the data's order, dropout.")] = 0,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between checkpoints and evaluations. Default: a fifth of the run.", min=1)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead of a table.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier run in --out.")] = False,
) -> None:
    """Train all of a model in the memory of few parameters: optimizer states of low rank.

    The model lies in OUT/model, as save_pretrained writes it. An interrupted run goes on with the same command and
    --resume, and loses at most the steps since its last checkpoint.

    \b
    eckart train smollm2-135m --data pydoc --out trained
    eckart train config.json --from-scratch --tokenizer smollm2-135m --data text.jsonl --method fira --out trained
    eckart train ./model --data train.jsonl --ranks ranks.json --per-layer --dtype bf16 --out trained
    torchrun --nproc-per-node 2 -m eckart.cli train ./model --data train.jsonl --powersgd 64 --out trained
    """
    from eckart.lm.rows import read_rows
    from eckart.lm.run_folder import RunFolder, first_process

    rank_or_ranks = _chosen(rank, ranks, tokenizer, from_scratch)
    options: dict[str, Any] = {"weight_decay": weight_decay} | ({} if gap is None else {"gap": gap})
    rate = _rate(method, lr, from_scratch)
    if first_process():
        RunFolder(out).require_writable(resume=resume, force=force)
    rows = read_rows(data)
    measured = read_rows(eval_data) if eval_data else 0.05
    from eckart.lm import train, training_data

    with progress_bar(shown=first_process()) as progress:
        loaded = _model(model, from_scratch, tokenizer, dtype, seed, progress)
        made = training_data(loaded.tokenizer, rows, held_out=measured, length=length)
        done = train(
            loaded.model, loaded.tokenizer, made, out=out, method=method, rank=rank_or_ranks, targets=listed(targets),
            exclude=listed(exclude), steps=steps, epochs=epochs, lr=rate, batch=batch, accumulate=accumulate,
            packed=pack, per_layer=per_layer, powersgd=powersgd, seed=seed, save_every=save_every, resume=resume,
            force=force, record={"dtype": dtype, "from_scratch": from_scratch}, progress=progress, **options,
        )  # fmt: skip
    if not first_process():
        return
    if as_json:
        print(json.dumps(done.to_json(), ensure_ascii=False))
    else:
        from .learned import render_training

        render_training(done)
    tell(f"wrote {out / 'model'}, {out / 'report.json'}")
    tell(f"next: eckart measure {out / 'model'} --base {out / 'start.safetensors'} --of updates --html learned.html")


def _chosen(rank: str | None, ranks: Path | None, tokenizer: str | None, from_scratch: bool) -> Any:
    """What was said about ranks, as `train` takes it; options that exclude each other are refused."""
    if tokenizer is not None and not from_scratch:
        raise ValueError("--tokenizer is for --from-scratch; a trained model knows its own")
    if ranks is None:
        return None if rank is None else _rank(rank)
    if rank is not None:
        raise ValueError("--ranks names the rank of each matrix; leave out --rank")
    from eckart.nn.files import read_json

    return read_json(ranks)


def _rank(value: str) -> float:
    try:
        return int(value) if value.isdecimal() else float(value)
    except ValueError:
        raise ValueError(f"--rank: {value!r}; give a whole number, or a share such as 0.25") from None


def _rate(method: str, lr: float | None, from_scratch: bool) -> float:
    from eckart.optim.checking import require_known

    usual = require_known(method, {}).lr
    return (usual if from_scratch else usual * TUNED) if lr is None else lr


def _model(
    name: str, from_scratch: bool, tokenizer: str | None, dtype: str, seed: int, progress: "Progress"
) -> "LanguageModel":
    """The model with its weights, or with random ones."""
    from eckart.lm import from_scratch as fresh
    from eckart.lm import load

    if from_scratch:
        return fresh(name, tokenizer=tokenizer, seed=seed, dtype=dtype_given(dtype))
    if name.endswith(".json") and Path(name).is_file():
        raise ValueError(
            f"{name} says how a model is built and holds no weights; --from-scratch begins with random ones"
        )
    return load(name, dtype=dtype_given(dtype), progress=progress)
