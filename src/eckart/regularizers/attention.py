"""The products of attention that its function depends on, W_KᵀW_Q and W_OW_V of each head, read out of a live model.

A head scores token y against x as (W_K y)ᵀ(W_Q x) and writes W_O W_V y: with n inputs and d_h dimensions of the head,
both products are n×n of rank at most d_h, and kept as factors. Weight decay on the factors is a nuclear norm of them:

    min ½(‖W_K‖² + ‖W_Q‖²) over factors of W_KᵀW_Q  =  ‖W_KᵀW_Q‖_*            (2410.23819; C1 of the overview)

With grouped queries one W_K (and W_V) serves g heads, and what decay minimises is the nuclear norm of the joint product
W_Kᵀ[W_Q1 … W_Qg] (and [W_O1; …; W_Og] W_V): `grouped=True` gives those.

Where it is not the whole story. A rotary embedding R acts between the factors, so a score is yᵀW_KᵀR W_Q x: the
product here is the one before rotation, and the function allows no change of its factors but within each pair of
dimensions that turns together. So decay reaches ½(‖W_K‖² + ‖W_Q‖²) = Σ_pairs ‖W_K,pair‖‖W_Q,pair‖ (`rotary_norm`),
of which ‖W_KᵀW_Q‖_* is a lower bound. Biases are left out, as are norms of q and k (qk-norm) and whatever else a model
does between the two factors.

Paper: it treats heads with keys of their own and no rotation; groups and `rotary_norm` are derived here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from eckart.linalg import product_nuclear_norm, product_svd
from eckart.nn import Matrix, Role, matrices, roles
from eckart.regularizers._attention_blocks import Block, attention_blocks

KINDS = ("qk", "ov")


@dataclass(frozen=True)
class Part:
    """Rows and columns of a live matrix: what one head owns of it."""

    matrix: Matrix
    rows: slice
    columns: slice
    transposed: bool = False

    def read(self) -> Tensor:
        """The part as it is now, attached to autograd."""
        W = self.matrix.weight()[self.rows, self.columns]
        return W.mT if self.transposed else W

    def write(self, W: Tensor) -> None:
        """Change the live weight in place."""
        if not self.matrix.stored:
            raise ValueError(f"{self.matrix.name} computes its weight at each read, so a part of it cannot be written")
        with torch.no_grad():
            self.read().copy_(W)


@dataclass(frozen=True)
class AttentionProduct:
    """One product left · right of an attention block, read from the live parameters at each access."""

    layer: int | None
    head: int  # of the queries; of the keys where heads are grouped
    kind: str  # "qk": W_Kᵀ · W_Q, "ov": W_O · W_V
    block: str  # the path of the attention's q, k, v
    shared: bool  # whether other products hold one of these factors too
    lefts: tuple[Part, ...] = field(repr=False)  # stacked in rows
    rights: tuple[Part, ...] = field(repr=False)  # stacked in columns

    @property
    def left(self) -> Tensor:  # (m, d_h)
        """W_Kᵀ or W_O; gradients flow into the parameters."""
        return _join([part.read() for part in self.lefts], dim=-2)

    @property
    def right(self) -> Tensor:  # (d_h, n)
        """W_Q or W_V; gradients flow into the parameters."""
        return _join([part.read() for part in self.rights], dim=-1)

    @property
    def frozen(self) -> bool:
        """Whether a part of it is not to be trained."""
        return not all(part.matrix.weight().requires_grad for part in (*self.lefts, *self.rights))

    @property
    def values(self) -> Tensor:  # (≤ d_h,)
        """The singular values of the product, descending."""
        return product_svd(self.left.detach(), self.right.detach())[1]

    def write(self, left: Tensor, right: Tensor) -> None:
        """Put other factors of the same shapes into the live parameters, in place.

        Raises:
            ValueError: a factor is computed by its layer rather than stored.
        """
        for part, W in zip(self.lefts, left.chunk(len(self.lefts), dim=-2), strict=True):
            part.write(W)
        for part, W in zip(self.rights, right.chunk(len(self.rights), dim=-1), strict=True):
            part.write(W)


def attention_products(
    model: nn.Module,
    kinds: Sequence[str] = KINDS,
    *,
    grouped: bool = False,
    interleaved: bool | None = None,
    overrides: Mapping[str, str | Role] | None = None,
) -> list[AttentionProduct]:
    """Read W_KᵀW_Q and W_OW_V of every head out of a transformer, as factors that stay the model's own parameters.

    Args:
        model: any module whose q, k, v, o (or fused qkv) `eckart.nn.roles` can tell.
        kinds: "qk", "ov" or both.
        grouped: one product for each key head, joint over the query heads that share it; the same where none do.
        interleaved: how a fused qkv lays its rows: True for [queries of a key head, its key, its value] head after
            head, False for [all q, all k, all v]; None takes True for names in query_key_value (GPT-NeoX, BLOOM,
            Falcon), False for others (GPT-2, Phi-3, ModernBERT, torch). GPTBigCode without multi-query needs True.
            Other orders (CodeGen's) can't be read, and nothing tells them apart: leave such models out.
        overrides: what `eckart.nn.roles` cannot tell: pattern → kind or Role.

    Returns:
        Layer after layer and head after head; "qk" before "ov".

    Raises:
        ValueError: a kind that is not known, no matrix with a role that is needed, an unknown number of heads, or
            shapes that do not fit it; the message says which matrix and what to override.

    Example:
        >>> attention = nn.MultiheadAttention(8, num_heads=2, bias=False)
        >>> products = attention_products(attention)
        >>> [(p.kind, p.head, tuple(p.left.shape), tuple(p.right.shape)) for p in products][:2]
        [('qk', 0, (8, 4), (4, 8)), ('qk', 1, (8, 4), (4, 8))]
        >>> q, k, _ = attention.in_proj_weight.chunk(3)
        >>> torch.allclose(products[1].left @ products[1].right, k[4:].T @ q[4:])
        True
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ValueError(f"kinds must be one or both of {KINDS}, got {tuple(kinds)}")
    found = roles(model, overrides)
    held = {matrix.name: matrix for matrix in matrices(model)}
    blocks = attention_blocks(found, held, outputs="ov" in kinds)
    readers = [reader for kind, reader in (("qk", _scores), ("ov", _values)) if kind in kinds]
    return [product for block in blocks for reader in readers for product in reader(block, grouped, interleaved)]


def rotary_norm(
    product: AttentionProduct,
    interleaved: bool = False,
    rotated: int | None = None,
) -> Tensor:  # ()
    """Σ ‖W_K,pair‖‖W_Q,pair‖ over the pairs of dimensions that a rotary embedding turns: what weight decay costs there.

    It is the least ½(‖W_K‖² + ‖W_Q‖²) over all factors that give the same rotated scores for every distance of tokens,
    and at least the nuclear norm of the product.

    Args:
        product: a "qk" product, all of whose head's dimensions are rotated.
        interleaved: dimensions 2i and 2i + 1 turn together (GPT-J); else i and i + rotated/2 (Llama, GPT-NeoX).
        rotated: how many dimensions of the head turn, the first ones: 0.25·d_h in Pythia, 0.5·d_h in Phi-1.5, 64 in
            GPT-J. The rest count with the nuclear norm of their product. None: all (Llama, Mistral, Qwen).

    Returns:
        The norm, differentiable.

    Raises:
        ValueError: the product is "ov", which no rotation touches, or `rotated` is odd or more than the head has.

    Example:
        >>> attention = nn.MultiheadAttention(4, num_heads=1, bias=False)
        >>> _ = attention.in_proj_weight.data.copy_(torch.eye(4).repeat(3, 1))
        >>> round(rotary_norm(attention_products(attention)[0]).item(), 4)  # two pairs, ‖·‖ = √2 each
        4.0
    """
    left, right = product.left, product.right
    turned = len(right) if rotated is None else rotated
    if product.kind != "qk" or turned % 2 or not 0 < turned <= len(right):
        raise ValueError(
            f"product must be a qk one and an even number of its head's dimensions turn, "
            f"got kind {product.kind}, d_h = {len(right)} and rotated={rotated}"
        )
    split, axis = ((-1, 2), 1) if interleaved else ((2, -1), 0)
    key, query = (torch.linalg.vector_norm(W[:turned].unflatten(0, split), dim=(axis, -1)) for W in (left.mT, right))
    norm = (key * query).sum()
    if turned == len(right):
        return norm
    return norm + product_nuclear_norm(left[:, turned:], right[turned:]).to(norm.dtype)


def _scores(block: Block, grouped: bool, interleaved: bool | None) -> Iterator[AttentionProduct]:
    """W_Kᵀ (n, d_h) · W_Q (d_h, n) of each head or group."""
    for group, heads in block.groups():
        key = Part(*block.rows("k", group, interleaved), transposed=True)
        queries = tuple(Part(*block.rows("q", head, interleaved)) for head in heads)
        yield from _products(block, "qk", grouped, group, heads, (key,), queries)


def _values(block: Block, grouped: bool, interleaved: bool | None) -> Iterator[AttentionProduct]:
    """W_O (m, d_h) · W_V (d_h, n) of each head or group."""
    for group, heads in block.groups():
        value = Part(*block.rows("v", group, interleaved))
        outputs = tuple(Part(*block.columns("o", head)) for head in heads)
        yield from _products(block, "ov", grouped, group, heads, outputs, (value,))


def _products(
    block: Block,
    kind: str,
    grouped: bool,
    group: int,
    heads: range,
    lefts: tuple[Part, ...],
    rights: tuple[Part, ...],
) -> Iterator[AttentionProduct]:
    """One joint product of a group, or one for each of its heads with the part that they share."""
    if grouped:
        yield AttentionProduct(block.layer, group, kind, block.path, False, lefts, rights)
        return
    for place, head in enumerate(heads):
        left, right = lefts[place % len(lefts)], rights[place % len(rights)]
        yield AttentionProduct(block.layer, head, kind, block.path, len(heads) > 1, (left,), (right,))


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
