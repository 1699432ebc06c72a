"""Who is q, k, v, o, gate, up or down in a model, and how many heads: from names and shapes, no architecture named.

A name's last component decides (q_proj, query, wq → "q"); where that is ambiguous (dense, c_proj, wo, proj), whether it
stands inside attention does. The shapes give the heads: with head_dim d, q has heads · d rows, k has kv_heads · d, a
fused qkv (heads + 2 kv_heads) · d; d, or else the number of heads, is an attribute of the attention module, of a module
around it, or of their `config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import takewhile

from torch import nn

from eckart.nn.matrices import Matrix, matrices
from eckart.nn.patterns import closest, locate, select

_ANYWHERE = {
    "q": "q_proj query q_lin wq to_q q_attn query_proj",
    "k": "k_proj key k_lin wk to_k key_proj",
    "v": "v_proj value v_lin wv to_v value_proj",
    "qkv": "qkv_proj qkv c_attn query_key_value wqkv to_qkv",
    "o": "o_proj out_lin to_out",
    "gate": "gate_proj wi_0",
    "up": "up_proj fc1 c_fc dense_h_to_4h fc_in lin1 linear1 wi wi_1 w3 intermediate.dense",
    "down": "down_proj fc2 dense_4h_to_h fc_out lin2 linear2 w2",
    "gate_up": "gate_up_proj",
    "head": "lm_head embed_out classifier score qa_outputs head",
}
_IN_ATTENTION = {"q": "q", "k": "k", "v": "v", "qkv": "in_proj", "o": "o out_proj wo c_proj dense proj"}
_ELSEWHERE = {"up": "w1", "down": "c_proj wo output.dense", "head": "decoder", "router": "gate router"}
_READS_INPUT = ("q", "k", "v", "qkv", "kv")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead")
_HEAD_DIM = ("head_dim", "attention_head_size", "head_size", "d_kv", "key_value_proj_dim")

Heads = tuple[int | None, int | None, int | None]  # heads, kv_heads, head_dim


@dataclass(frozen=True)
class Role:
    """What a matrix does, where, and for how many heads; None is not known or does not apply."""

    kind: str  # q k v o qkv kv gate up down gate_up router embedding head other
    layer: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None


def roles(model: nn.Module, overrides: Mapping[str, str | Role] | None = None) -> dict[str, Role]:
    """Say what each matrix of a model does.

    Args:
        model: any module with matrices.
        overrides: glob pattern → kind, or → a Role whose fields that are not None replace what was found.

    Returns:
        Matrix name → role, in the model's order; a tied weight stands under each of its names. A matrix whose role
        cannot be told has kind "other": `require` makes that an error where the role is needed.

    Raises:
        ValueError: the model has no matrices, or an override's pattern matches nothing.

    Example:
        >>> found = roles(nn.TransformerEncoderLayer(16, nhead=4, dim_feedforward=32))
        >>> {name: role.kind for name, role in found.items()}
        {'self_attn.in_proj_weight': 'qkv', 'self_attn.out_proj': 'o', 'linear1': 'up', 'linear2': 'down'}
        >>> found["self_attn.out_proj"]
        Role(kind='o', layer=None, heads=4, kv_heads=4, head_dim=4)
    """
    shapes = {name: matrix for matrix in matrices(model) for name in (matrix.name, *matrix.tied)}
    given = {name: how for pattern, how in (overrides or {}).items() for name in select(shapes, pattern)}
    siblings: dict[str, set[str]] = {}
    for name in shapes:
        siblings.setdefault(_parent(name), set()).add(_words(name)[-1])
    kinds = {name: _kind(name, model, matrix, siblings[_parent(name)]) for name, matrix in shapes.items()}
    kinds |= {name: how if isinstance(how, str) else how.kind for name, how in given.items()}
    heads = _all_heads(model, shapes, kinds)
    found = {name: Role(kind, locate(name)[0], *heads.get(name, ())) for name, kind in kinds.items()}
    for name, how in given.items():
        if isinstance(how, Role):
            found[name] = replace(found[name], **{key: value for key, value in vars(how).items() if value is not None})
    return found


def require(found: Mapping[str, Role], wanted: str) -> dict[str, Role]:
    """Give the matrices of a role, or one matrix that must have a role.

    Args:
        found: what `roles` gave.
        wanted: a kind ("q"), or a matrix's name.

    Returns:
        Name → role of every matrix of that kind, or of that one matrix; never empty.

    Raises:
        ValueError: nothing has that kind or name, or that matrix's role is unknown.

    Example:
        >>> found = roles(nn.Sequential(nn.Linear(4, 4)), overrides={"0": "up"})
        >>> list(require(found, "up"))
        ['0']
    """
    if wanted in found:
        if found[wanted].kind == "other":
            raise ValueError(
                f"the role of {wanted} is unknown; say it with roles(model, overrides={{{wanted!r}: kind}})"
            )
        return {wanted: found[wanted]}
    matching = {name: role for name, role in found.items() if role.kind == wanted}
    if not matching:
        kinds = sorted({role.kind for role in found.values()})
        unknown = [name for name, role in found.items() if role.kind == "other"]
        close = closest(wanted, sorted(found, key=lambda name: found[name].kind != "other"), whole=True)
        raise ValueError(
            f"no matrix has the role or name {wanted!r}; roles found: {kinds}; {len(unknown)} of unknown role; "
            f"closest names: {close}; say which it is with roles(model, overrides={{pattern: {wanted!r}}})"
        )
    return matching


def _kind(name: str, model: nn.Module, matrix: Matrix, siblings: set[str]) -> str:
    if matrix.kind == "embedding":  # a tied name that is no embedding itself reads the width and gives the words
        owner = model if name == "weight" else model.get_submodule(name)
        return "embedding" if isinstance(owner, nn.Embedding | nn.EmbeddingBag) else "head"
    parts = _words(name)
    attention = any("attn" in part or "attention" in part for part in parts[:-1])
    attention |= not siblings.isdisjoint(f"{_ANYWHERE['q']} {_ANYWHERE['qkv']} in_proj".split())
    if parts[-1] == "w1" and "w3" in siblings:
        return "gate"
    ends = (".".join(parts[-2:]), parts[-1])
    for table in (_ANYWHERE, _IN_ATTENTION if attention else _ELSEWHERE):
        for kind, known in table.items():
            if not set(ends).isdisjoint(known.split()):
                return "kv" if kind == "qkv" and not siblings.isdisjoint(_ANYWHERE["q"].split()) else kind
    return "other"


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _words(name: str) -> list[str]:
    """The components of a name in lower case, numbers left out, never empty."""
    return [part for part in name.lower().removesuffix("_weight").split(".") if not part.isdecimal()] or [""]


def _all_heads(model: nn.Module, shapes: Mapping[str, Matrix], kinds: Mapping[str, str]) -> dict[str, Heads]:
    """Heads of all matrices of attention; an output projection has those of the nearest block that reads the input."""
    blocks: dict[str, dict[str, Matrix]] = {}
    for name, kind in kinds.items():
        if kind in _READS_INPUT:
            blocks.setdefault(_parent(name), {})[kind] = shapes[name]
    heads = {path: _block_heads(block, *_read(model, path)) for path, block in blocks.items()}
    found = {name: heads[_parent(name)] for name, kind in kinds.items() if kind in _READS_INPUT}
    for name in (name for name, kind in kinds.items() if kind == "o"):
        nearest = max(heads, key=lambda path: _shared(path, name), default=None)
        if nearest is not None and locate(f"{nearest}.o")[0] == locate(name)[0]:
            found[name] = heads[nearest]
    return found


def _shared(path: str, other: str) -> int:
    """How many leading components two names share."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(path.split("."), other.split("."), strict=False))
    )


def _block_heads(block: Mapping[str, Matrix], heads: int | None, head_dim: int | None) -> Heads:
    """Heads from the shapes of one attention block and the number of heads or head_dim that its modules tell."""
    fused, query, key = block.get("qkv"), block.get("q"), block.get("k") or block.get("v")
    if head_dim is None and heads is not None:
        width = query.shape[0] if query else fused.shape[1] if fused else 0
        head_dim = width // heads or None
    if head_dim is None:
        return heads, None, None
    heads = query.shape[0] // head_dim if query else heads
    kv_heads = key.shape[0] // head_dim if key else None
    if fused and heads:
        kv_heads = (fused.shape[0] // head_dim - heads) // 2
    elif "kv" in block:
        kv_heads = block["kv"].shape[0] // head_dim // 2
    return heads, kv_heads, head_dim


def _read(model: nn.Module, path: str) -> tuple[int | None, int | None]:
    """The number of heads and head_dim that the module, or else the nearest one around it, or their configs tell."""
    parts = path.split(".") if path else []
    around = [model.get_submodule(".".join(parts[:count])) for count in range(len(parts), -1, -1)]
    holders: list[object] = [holder for module in around for holder in (module, getattr(module, "config", None))]
    return _first(holders, _HEADS), _first(holders, _HEAD_DIM)


def _first(holders: list[object], keys: tuple[str, ...]) -> int | None:
    """The first positive integer that a holder has under one of the keys."""
    values = (getattr(holder, key, None) for holder in holders for key in keys)
    return next((value for value in values if isinstance(value, int) and value > 0), None)
