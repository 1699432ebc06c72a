"""See through modules that stand in another's place, as adapted layers do: names and weights as without them.

Such a module has an attribute `acts_through`: the path, below it, of the module that it calls; and, where it changes
that module's weight W on the way, `changes_weight` = True and an attribute of the weight's name that gives W + Δ.

Paper: none.
"""

from typing import Any

from torch import nn


class StandIns:
    """The modules of a model that stand in another's place.

    Args:
        model: any module.

    Example:
        >>> class Doubled(nn.Module):
        ...     acts_through, changes_weight = "base", True
        ...     def __init__(self, base):
        ...         super().__init__()
        ...         self.base, self.spare = base, nn.Linear(2, 2)
        >>> model = nn.Sequential(Doubled(nn.Linear(2, 2)))
        >>> seen = StandIns(model)
        >>> seen.outer("0.base")[0], seen.outer("0.base")[1] is model[0], seen.outer("0.spare")
        ('0', True, None)
    """

    def __init__(self, model: nn.Module) -> None:
        named: list[tuple[str, Any]] = list(model.named_modules(remove_duplicate=False))
        self._modules = [(path, module) for path, module in named if hasattr(type(module), "acts_through")]

    def outer(self, name: str) -> tuple[str, nn.Module | None] | None:
        """The name without what stands in its way, and who changes the weight; None where another module acts."""
        changed_by = None
        for path, module in reversed(self._modules):  # the inner ones first
            if not name.startswith(f"{path}." if path else ""):
                continue
            through = f"{path}.{module.acts_through}".lstrip(".")
            if name != through and not name.startswith(through + "."):
                return None
            if module.changes_weight and name == through:
                changed_by = module
            name = (path + name[len(through) :]).lstrip(".")
        return name, changed_by
