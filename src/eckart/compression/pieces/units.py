"""Units of more than one matrix: which matrices of a model are decomposed together.

| unit | together | as |
|---|---|---|
| basis_sharing | the same kind in neighbouring layers, or q, k, v and gate, up of a layer, or both | `BasisPiece` |
| modegpt | the matrices of an MLP; q and k; v and o | `MlpPiece`, `QueryKeyPiece`, `ValueOutputPiece` |
| neurons | the matrices of an MLP | `MlpPiece`, all else pivoted |

What is of no such kind, or not clear, is an ordinary `MatrixPiece`, stored as factors but where the table says pivoted:
the plan's rows tell which. `neurons` keeps what a neuron reads and multiplies as it is, so gate and up bring no errors
that the activation would multiply with each other; on SmolLM2-135M it loses less than products of all matrices
(benchmarks/compress_quality.py).

SliceGPT (arXiv 2401.15024) is none of these units. It turns the hidden states between blocks, x → Qᵀx, and cuts their
last coordinates: so embeddings, norms, the head and every block become narrower at once, by one number. A LayerNorm has
to be made an RMSNorm first, with its scale folded into what follows, and as every block has a Q of its own, each skip
connection gets a matrix Q_iᵀQ_j of its own. That changes the model's code between the matrices; here a layer takes the
place of a matrix and everything else stays, so that any model goes through the same path and its files load.
Paper: Basis Sharing, arXiv 2410.03765; MoDeGPT, arXiv 2408.09632.
"""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from eckart.compression.metrics import Metric
from eckart.compression.pieces.basis_piece import BasisPiece
from eckart.compression.pieces.key_piece import QueryKeyPiece
from eckart.compression.pieces.matrix_piece import MatrixPiece
from eckart.compression.pieces.mlp_piece import MlpPiece
from eckart.compression.pieces.parts import LAYERS, mlps, query_keys, value_outputs
from eckart.compression.pieces.piece import Piece
from eckart.compression.pieces.value_piece import ValueOutputPiece
from eckart.compression.settings import Settings
from eckart.nn import Matrix, locate
from eckart.nn import roles as find_roles

SIBLINGS = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
SHARING = ("q", "k", "v", "qkv", "kv", "gate", "up", "gate_up")  # they read the hidden states of their block


def basis_sharing(model: nn.Module, found: Sequence[Matrix], settings: Settings, metric: Metric) -> list[Piece]:
    """One basis for matrices that read alike.

    Args:
        model: The model.
        found: The matrices to compress.
        settings: Of the options, `neighbours`, over how many layers a basis reaches, at least 1; `siblings`, whether q,
            k and v, and gate and up, of a layer share one too. And its `roles`.
        metric: In which error the bases are best.

    Raises:
        ValueError: `neighbours` is no whole number of at least 1.
    """
    neighbours = settings.options["neighbours"]
    if type(neighbours) is not int or neighbours < 1:
        raise ValueError(f"neighbours: {neighbours!r}; give a whole number of layers, at least 1")
    siblings = bool(settings.options["siblings"])
    families: dict[Any, dict[int | None, list[Matrix]]] = {}
    roles = settings.roles or find_roles(model)
    for matrix in found:
        kind = roles[matrix.name].kind
        if kind in SHARING and matrix.kind in LAYERS:
            layer, path = locate(matrix.name)
            within = path.rpartition(".")[0] if siblings else path
            family = within, SIBLINGS.get(kind, kind) if siblings else kind, matrix.shape[1], matrix.weight().dtype
            families.setdefault(family, {}).setdefault(layer, []).append(matrix)
    groups = []
    for layers in families.values():
        ordered = [layers[layer] for layer in sorted(layers, key=lambda layer: -1 if layer is None else layer)]
        starts = range(0, len(ordered), neighbours)
        groups += [[matrix for layer in ordered[start : start + neighbours] for matrix in layer] for start in starts]
    pieces: list[Piece] = [BasisPiece(group, settings, metric) for group in groups if len(group) > 1]
    return _with_the_rest(pieces, found, settings, metric)


def modegpt(model: nn.Module, found: Sequence[Matrix], settings: Settings, metric: Metric) -> list[Piece]:
    """Fewer neurons in MLPs, fewer dimensions in heads of attention.

    Args:
        model: The model.
        found: The matrices to compress.
        settings: Its `roles` count.
        metric: In which error what stays is best.

    Raises:
        ValueError: It cannot be told how many heads an attention has.

    Warns:
        UserWarning: There is no MLP and no attention.
    """
    roles = settings.roles or find_roles(model)
    pieces: list[Piece] = [MlpPiece(mlp.inner, mlp.down, settings, metric) for mlp in mlps(model, found, roles)]
    pieces += [QueryKeyPiece(*heads, settings, metric) for heads in query_keys(model, found, roles)]
    pieces += [ValueOutputPiece(*heads, settings, metric) for heads in value_outputs(model, found, roles)]
    if not pieces:
        kinds = ", ".join(sorted({roles[matrix.name].kind for matrix in found}))
        warnings.warn(
            f"modegpt: no MLP (up, down) and no attention (q, k or v, o) among {len(found)} matrices, whose roles are "
            f"{kinds}: each is taken alone; say which is which with role={{{found[0].name!r}: 'up', …}}",
            stacklevel=3,
        )
    return _with_the_rest(pieces, found, settings, metric)


def neurons(model: nn.Module, found: Sequence[Matrix], settings: Settings, metric: Metric) -> list[Piece]:
    """Fewer neurons in MLPs; every other matrix alone, pivoted.

    Args:
        model: The model, of any family: without an MLP in it, every matrix is alone.
        found: The matrices to compress.
        settings: Its `roles` count.
        metric: In which error what stays is best.
    """
    parts = mlps(model, found, settings.roles or find_roles(model))
    pieces: list[Piece] = [MlpPiece(mlp.inner, mlp.down, settings, metric) for mlp in parts]
    return _with_the_rest(pieces, found, settings, metric, "pivoted")


def _with_the_rest(
    pieces: Sequence[Piece], found: Sequence[Matrix], settings: Settings, metric: Metric, storage: str = "factors"
) -> list[Piece]:
    """The pieces, and one for every matrix that is in none, in the model's order."""
    taken = {name for piece in pieces for name in piece.names}
    alone = [MatrixPiece([matrix], settings, metric, storage) for matrix in found if matrix.name not in taken]
    place = {matrix.name: index for index, matrix in enumerate(found)}
    return sorted([*pieces, *alone], key=lambda piece: min(place[name] for name in piece.names))
