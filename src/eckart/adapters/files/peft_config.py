"""The part of PEFT's adapter_config.json that all types share: which modules, of which model, for which task.

PEFT adapts a module if its path is in `target_modules` or ends with "." and one of them, and reads the keys of
`rank_pattern` and `alpha_pattern` as regular expressions for the end of a path, the first that matches. So paths are
written whole, and a pattern is anchored ("^model\\.layers\\.0\\.q_proj"): each names one module and nothing else.

Paper: none.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from eckart.adapters.files.identity import base_name
from eckart.adapters.layers.saved_modules import inside, modules_before

CLASSIFIERS = ("classifier", "score")  # PEFT trains modules of these names whole for its classification tasks


def common(model: nn.Module, targets: Sequence[str], modules: Sequence[str]) -> dict[str, Any]:
    """What every type of adapter says of its model.

    Args:
        model: The model, with adapters.
        targets: Names of the adapted layers.
        modules: Names of the modules trained whole.
    """
    return {
        "base_model_name_or_path": base_name(model),
        "task_type": _task(model, modules),
        "inference_mode": True,
        "target_modules": _targets(model, targets),
        "modules_to_save": list(modules) or None,
    }


def refusal(targets: Sequence[str], modules: Sequence[str]) -> str | None:
    """Why PEFT would not adapt all of these layers beside these modules; None where it would."""
    for name in targets:
        for module in modules:
            if re.match(rf"(^|.*\.){re.escape(module)}($|\..*)", name):
                return f"PEFT takes {name} for a part of {module}, which is trained whole"
    return None


def caught(model: nn.Module, modules: Sequence[str]) -> list[str]:
    """Further modules whose path merely ends like one of these, which PEFT would train whole too."""
    paths = [name for name, _ in modules_before(model)]
    hit = [path for path in paths if path.endswith(tuple(modules)) and not inside(path, tuple(modules))]
    return hit if modules else []


def pattern(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """PEFT's pattern for values by layer: those that are not the usual one, each under a key that only it matches."""
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}


def number(value: float) -> float | int:
    """An integer where it is one, as other readers expect."""
    return int(value) if float(value).is_integer() else value


def _targets(model: nn.Module, targets: Sequence[str]) -> list[str] | str:
    """Whole paths; or one regular expression where a path is also the end of another module's."""
    chosen = set(targets)
    endings = tuple(f".{name}" for name in targets)
    if any(path.endswith(endings) for path, _ in modules_before(model) if path not in chosen):
        return f"(?:{'|'.join(map(re.escape, targets))})"
    return list(targets)


def _task(model: nn.Module, modules: Sequence[str]) -> str | None:
    kind = type(model).__name__
    if kind.endswith(("ForCausalLM", "LMHeadModel")):
        return "CAUSAL_LM"
    if kind.endswith("ForConditionalGeneration") and getattr(
        getattr(model, "config", None), "is_encoder_decoder", False
    ):
        return "SEQ_2_SEQ_LM"
    tasks = {"ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS"}
    heads = [path for path, _ in modules_before(model) if path.endswith(CLASSIFIERS)]
    if all(inside(path, tuple(modules)) for path in heads):
        return next((task for ending, task in tasks.items() if kind.endswith(ending)), None)
    return None
