"""A state dict before it is loaded: whether it is of this model, this method and these processes.

What says which numbers are kept, and what they stand for, must be as it was; rates, decay, gap and the like are taken
over from the state dict. Tensors come in as they are: torch's own gives each the parameter's type.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from eckart.linalg import working_dtype
from eckart.optim.checking import in_subspace
from eckart.optim.inner import INNER
from eckart.optim.methods import AXES
from eckart.optim.projectors import PROJECTORS
from eckart.optim.residuals import FEEDBACK
from eckart.optim.sharding import Shards
from eckart.optim.step.shapes import SHAPES
from eckart.optim.step.state import HOST
from eckart.optim.step.view import as_matrix_shape, is_left, rank_of

SAME = (*AXES, "schedule", "moments", "basis", "stack")  # of groups that are trained in a subspace
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.", "module.")
REMEDY = "torch.distributed.checkpoint with its state_dict functions loads it for any number of processes"


@contextmanager
def tensors_as_kept(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """While a state dict is loaded: check it first, and copy its tensors in place of torch's cast."""
    saved: dict[str, Any] = {}

    def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
        require_same_model(optimizer.param_groups, given)
        saved.update(given)
        return {**given, "state": {}}

    def fill(_: torch.optim.Optimizer) -> None:
        for group, other in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            for p, key in zip(group["params"], other["params"], strict=True):
                if key in saved["state"]:
                    optimizer.state[p] = {name: _moved(name, each, p) for name, each in saved["state"][key].items()}

    hooks = (  # the last before and the first after: the caller's hooks see what torch shows them
        optimizer.register_load_state_dict_pre_hook(check),
        optimizer.register_load_state_dict_post_hook(fill, prepend=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def require_same_model(groups: Sequence[Mapping[str, Any]], saved: Mapping[str, Any]) -> None:
    """Fail where a state dict is of another model, another method or other processes, before anything is loaded.

    Raises:
        ValueError: With the first difference.
    """
    if absent := {"state", "param_groups"} - set(saved):
        raise ValueError(f"state_dict: it has no {min(absent)!r}; give what the optimizer's state_dict() gave")
    if len(groups) != len(saved["param_groups"]):
        raise ValueError(f"state_dict: {len(saved['param_groups'])} groups, and this optimizer has {len(groups)}")
    for group, other in zip(groups, saved["param_groups"], strict=True):
        names = _require_same_parameters(group, other)
        _require_same_method(group, other, names[0] if names else "")
        for name, p, key in zip(names, group["params"], other["params"], strict=True):
            state = saved["state"].get(key)
            if state:
                _require_same_processes(p, state, name)
                (_require_fits if in_subspace(p, group) else _require_dense)(p, state, group, name)


def _require_same_parameters(group: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    names = list(group.get("param_names", [f"params[{i}]" for i in range(len(group["params"]))]))
    if len(names) != len(other["params"]):
        raise ValueError(f"state_dict: a group has {len(other['params'])} parameters, this optimizer's {len(names)}")
    if "param_names" in group and "param_names" in other:
        for mine, its in zip(names, other["param_names"], strict=True):
            if _bare(mine) != _bare(its):
                raise ValueError(f"state_dict: it is of another model or in another order: {its!r} where {mine!r} is")
    return names


def _bare(name: str) -> str:
    """A name without what torch.compile, DDP and the like put into it."""
    for wrapper in WRAPPERS:
        name = name.replace(f".{wrapper}", ".").removeprefix(wrapper)
    return name


def _require_same_method(group: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    for key in ("rank", *(SAME if group["rank"] is not None else ())):
        if key in other and other[key] != group[key]:
            raise ValueError(
                f"state_dict: it is of {key}={other[key]!r}, and this optimizer has {group[key]!r} for {name} and its "
                "group; make the optimizer as it was, load, and change what can change in its param_groups"
            )


def _require_same_processes(p: Tensor, state: Mapping[str, Any], name: str) -> None:
    mine = getattr(p, "device_mesh", None)
    for key, value in state.items():
        its = getattr(value, "device_mesh", None)
        if isinstance(value, Tensor) and value.ndim and its != mine:
            raise ValueError(f"state_dict: {key} of {name} is {_over(its)}, and {name} here is {_over(mine)}; {REMEDY}")


def _over(mesh: Any) -> str:
    return "in one piece" if mesh is None else f"shared out over {mesh.size()} processes"


def _require_dense(p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], name: str) -> None:
    _require_shapes(p, state, {"exp_avg": tuple(p.shape), "exp_avg_sq": tuple(p.shape)}, name)


def _require_fits(p: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], name: str) -> None:
    if "side" not in state:
        raise ValueError(
            f"state_dict: {name} was not trained in a subspace there, and its rank is {group['rank']} here"
        )
    left, dim = bool(state["side"]), Shards(p, group["stack"]).dim
    is_left(tuple(p.shape), "left" if left else "right", dim, group["stack"], name)  # which refuses what can't be
    *batch, m, n = as_matrix_shape(p.shape, group["stack"])
    rows, q = (n, m) if left else (m, n)
    r = rank_of(group["rank"], p.shape, group["stack"])
    kinds = {**INNER[group["inner"]].moments, **PROJECTORS[group["projector"]].state}
    kinds |= {"error": "gradient"} if group["residual"] in FEEDBACK else {}
    shapes = {key: (*batch, *SHAPES[kind](rows, q, r)) for key, kind in kinds.items()}
    if group["basis"] == "float32":
        shapes["basis"] = (r,) if group["projector"] == "coordinates" else (*batch, q, r)
    _require_shapes(p, state, shapes, name)


def _require_shapes(p: Tensor, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    dtype = working_dtype(p.dtype)
    for key, shape in shapes.items():
        if key not in state:
            raise ValueError(f"state_dict: {name} has no {key!r} there; it is of another method")
        kept = state[key]
        if tuple(kept.shape) != shape:
            raise ValueError(
                f"state_dict: {key} of {name} is {tuple(kept.shape)}, and {shape} is needed for {tuple(p.shape)}; it "
                f"is of another model, or of one part of a sharded one: {REMEDY}"
            )
        if kept.is_floating_point() and kept.dtype != dtype:
            raise ValueError(
                f"state_dict: {key} of {name} is {kept.dtype}, and {dtype} is needed for {p.dtype}: it was cast on the "
                "way, or is of a model of another type"
            )


def _moved(key: str, value: Any, p: Tensor) -> Any:
    """A copy where it belongs: on the parameter's device, or on the host."""
    return value.detach().to("cpu" if key in HOST else p.device, copy=True) if isinstance(value, Tensor) else value
