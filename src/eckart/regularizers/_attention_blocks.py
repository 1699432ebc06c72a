"""The attention blocks of a model: which matrices make one up, and the rows and columns that each head owns."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

from eckart.nn import Matrix, Role, require

Owned = tuple[Matrix, slice, slice]  # a matrix, and the rows and columns of one head


@dataclass(frozen=True)
class Block:
    """The matrices of one attention, by role ("q" "k" "v" "qkv" "kv" "o"), and its heads."""

    path: str
    layer: int | None
    heads: int
    kv_heads: int
    head_dim: int
    held: Mapping[str, Matrix]

    def groups(self) -> Iterator[tuple[int, range]]:
        """Each key head with the query heads that share it."""
        size = self.heads // self.kv_heads
        return ((group, range(group * size, (group + 1) * size)) for group in range(self.kv_heads))

    def rows(self, kind: str, head: int, interleaved: bool | None) -> Owned:
        """Where a query head's q, or a key head's k or v, stands: a matrix of its own, or rows of a fused one."""
        d, all_rows = self.head_dim, slice(None)
        if kind in self.held:
            return self.held[kind], slice(head * d, (head + 1) * d), all_rows
        if "kv" in self.held:
            start = head + (self.kv_heads if kind == "v" else 0)
            return self.held["kv"], slice(start * d, (start + 1) * d), all_rows
        fused = self._get("qkv", kind)
        if fused.name.endswith("query_key_value") if interleaved is None else interleaved:
            size = self.heads // self.kv_heads
            group, place = divmod(head, size) if kind == "q" else (head, {"k": size, "v": size + 1}[kind])
            start = group * (size + 2) + place
        else:
            start = head + {"q": 0, "k": self.heads, "v": self.heads + self.kv_heads}[kind]
        return fused, slice(start * d, (start + 1) * d), all_rows

    def columns(self, kind: str, head: int) -> Owned:
        """The columns of the output projection that read a head."""
        return self._get(kind, kind), slice(None), slice(head * self.head_dim, (head + 1) * self.head_dim)

    def check(self) -> "Block":
        """Itself, if every matrix has as many rows or columns as its heads need."""
        wanted = {
            "q": self.heads,
            "k": self.kv_heads,
            "v": self.kv_heads,
            "kv": 2 * self.kv_heads,
            "qkv": self.heads + 2 * self.kv_heads,
            "o": self.heads,
        }
        for kind, matrix in self.held.items():
            size = matrix.shape[1 if kind == "o" else 0]
            if size != wanted[kind] * self.head_dim or self.heads % self.kv_heads:
                raise ValueError(
                    f"{matrix.name} {matrix.shape} does not fit {self.heads} heads and {self.kv_heads} key heads of "
                    f"{self.head_dim} dimensions; say how many with overrides={{{matrix.name!r}: Role(...)}}"
                )
        return self

    def _get(self, kind: str, meant: str) -> Matrix:
        if kind not in self.held:
            raise ValueError(
                f"the attention {self.path or '(the model itself)'} has no {meant}: roles found there are "
                f"{sorted(self.held)}; say which matrix it is with overrides={{name: {meant!r}}}"
            )
        return self.held[kind]


def attention_blocks(found: Mapping[str, Role], held: Mapping[str, Matrix], outputs: bool) -> list[Block]:
    """The attention blocks in the model's order.

    Args:
        found: what `eckart.nn.roles` gave.
        held: name → matrix, each storage once.
        outputs: whether output projections are needed.

    Raises:
        ValueError: no matrix has the role of a query or (if needed) of an output, heads are unknown or do not fit.
    """
    if all(role.kind != "qkv" for role in found.values()):
        require(found, "q")
    parts: dict[str, dict[str, str]] = {}
    for name in held:
        if found[name].kind in ("q", "k", "v", "qkv", "kv"):
            parts.setdefault(name.rpartition(".")[0], {})[found[name].kind] = name
    readers = {path: dict(names) for path, names in parts.items() if not {"q", "qkv"}.isdisjoint(names)}
    for name in require(found, "o") if outputs else ():
        if name in held:
            path = _nearest(name, readers)
            if "o" in readers[path]:
                raise ValueError(
                    f"{path} has two output projections, {readers[path]['o']} and {name}; name one by overrides"
                )
            readers[path]["o"] = name
    return [_block(path, names, found, held) for path, names in readers.items()]


def _nearest(name: str, paths: Mapping[str, object]) -> str:
    """The block whose path shares most leading components with a name, as in `eckart.nn.roles`."""

    def shared(path: str) -> int:
        pairs = zip(path.split("."), name.split("."), strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    return max(paths, key=shared)


def _block(path: str, names: Mapping[str, str], found: Mapping[str, Role], held: Mapping[str, Matrix]) -> Block:
    name = names.get("q") or names["qkv"]
    role = found[name]
    if not (role.heads and role.kv_heads and role.head_dim):
        raise ValueError(
            f"the heads of {name} {held[name].shape} are unknown (heads={role.heads}, kv_heads={role.kv_heads}, "
            f"head_dim={role.head_dim}); say them with "
            f"overrides={{{name!r}: Role(kind, heads=…, kv_heads=…, head_dim=…)}}"
        )
    block = {kind: held[each] for kind, each in names.items()}
    return Block(path, role.layer, role.heads, role.kv_heads, role.head_dim, block).check()
