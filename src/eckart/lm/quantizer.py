"""transformers saves and loads compressed models: a quantiser of ours, registered with it when `eckart.lm` is imported.

`save_pretrained` writes ordinary safetensors, and config.json with

    quantization_config = {"quant_method": "eckart", "format": 1, "layers": {matrix name: spec}};

`from_pretrained` builds the layers from the specs on the meta device and loads them as it does all others. Without
`import eckart.lm` transformers only warns of an unknown quant_method, and would fill the places of the compressed
layers with random weights. Two things in the folder make it refuse, for every class:

* config.json asks for a fusion that transformers does not know, whose name says what to import: the error that is seen;
* each compressed layer has beside its own tensors an empty `weight`, whose shape fits no dense layer: a version of
  transformers that knows no fusions stops at that.

A loaded model is an ordinary one: it trains, is adapted, compressed again, and saved again. Paper: none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.utils.quantization_config import QuantizationConfigMixin

from eckart.compression.files.description import FORMAT, Specs, build, describe
from eckart.compression.files.guard import Unregistered, guard, unguard
from eckart.compression.files.loading import METHOD, specs_of
from eckart.compression.files.originals import compressed_layers
from eckart.nn import replace

REFUSAL = "a compressed model, which needs `import eckart.lm` before from_pretrained"
SOURCE = "config.json"


class CompressedConfig(QuantizationConfigMixin):
    """The `quantization_config` of a compressed model.

    Args:
        layers: Matrix name → spec.
        format: Of these words.

    Raises:
        ValueError: They are damaged, or of another format.
    """

    def __init__(self, layers: Any = None, format: int | None = None, **_: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.layers = specs_of({"layers": layers, "format": format}, SOURCE)
        self.format = format


class CompressedQuantizer(HfQuantizer):
    """Puts the compressed layers into a model before its weights are loaded, and says what to write of one."""

    requires_calibration = True  # a dense model cannot be loaded as a compressed one
    is_trainable = is_qat_trainable = is_compileable = True
    quantization_config: Any

    def is_serializable(self) -> bool:
        return True

    def update_attn_implementation(self, config: Any) -> Any:
        """The first sight of the config: what makes others refuse it is taken out."""
        config.fusion_config = _without_refusal(config)
        return config

    update_tp_plan = update_attn_implementation  # what earlier versions of transformers 5 show the config to first

    def _process_model_before_weight_loading(self, model: Any, dtype: Any = None, **kwargs: Any) -> None:
        specs = _here(self.quantization_config.layers, model)
        for name, layer in build(specs, model, SOURCE, dtype).items():
            replace(model, name, layer)
        for name, spec in specs.items():
            if "shares" in spec:
                model.all_tied_weights_keys[f"{name}.A"] = f"{spec['shares']}.A"
        marks = [f"{name}.weight$".replace(".", r"\.") for name, spec in specs.items() if spec["kind"] != "linear"]
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *marks}

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        """Leave an ordinary model, whose layers say what they are when it is saved, and never with random numbers."""
        found = {
            f"{name}.{key}": each for name, layer in compressed_layers(model).items() for key, each in _held(layer)
        }
        lacking = [key for key, each in found.items() if not (each.is_meta or hasattr(each, "_is_hf_initialized"))]
        if lacking:  # what is on the meta device is offloaded
            raise ValueError(
                f"the weights of {type(model).__name__} lack {len(lacking)} tensors of compressed layers "
                f"({', '.join(lacking[:3])}), which would be random; write or download them again"
            )
        self.remove_quantization_config(model)
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                module.config._is_quantized = False
        return model

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What is written: shared bases once, and an empty weight for each compressed layer."""
        specs = self.quantization_config.layers
        state: dict[str, Tensor] = model.state_dict()
        for name, spec in specs.items():
            if "shares" in spec:
                del state[f"{name}.A"]
            if spec["kind"] != "linear":
                state[f"{name}.weight"] = torch.empty(0)
        return state, {}


def _held(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from layer.named_parameters()
    yield from layer.named_buffers()


def _here(specs: Specs, model: Any) -> Specs:
    """The specs under the names that the layers have in this class: with or without the prefix of the base model."""
    prefix, modules = f"{model.base_model_prefix}.", dict(model.named_modules())

    def name_of(name: str) -> str:
        others = name, name.removeprefix(prefix), prefix + name
        return next((each for each in others if each in modules), name)

    found = {name_of(name): dict(spec) for name, spec in specs.items()}
    for spec in found.values():
        if "shares" in spec:
            spec["shares"] = name_of(spec["shares"])
    if type(model).__name__ not in (model.config.architectures or ()):  # its head may be another
        found = {name: spec for name, spec in found.items() if name in modules}
    return found


def _without_refusal(config: Any) -> dict[str, Any] | None:
    fusions = dict(getattr(config, "fusion_config", None) or {})
    fusions.pop(REFUSAL, None)
    return fusions or None


@contextmanager
def _described(model: Any, specs: Specs) -> Iterator[None]:
    """The model and its config as `save_pretrained` is to see them, for the length of a `with` block."""
    other = getattr(model, "hf_quantizer", None)
    if other is not None and not isinstance(other, Unregistered):
        raise ValueError(
            f"model: its other layers are quantised with {other.quantization_config.quant_method}, and transformers "
            "writes one such method; dequantise it first"
        )
    config, before = model.config, dict(model.config.__dict__)
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    model.hf_quantizer = CompressedQuantizer(CompressedConfig(specs, FORMAT))
    config.quantization_config = model.hf_quantizer.quantization_config
    config.fusion_config = {**(_without_refusal(config) or {}), REFUSAL: True}
    if any(f"{name}.weight" in tied for name in specs):
        config.tie_word_embeddings = False  # a compressed head holds the embedding no more
    try:
        yield
    finally:
        del model.hf_quantizer
        guard(model)
        for key in ("quantization_config", "fusion_config", "tie_word_embeddings"):
            config.__dict__.pop(key, None)
            if key in before:
                config.__dict__[key] = before[key]


def _register() -> None:
    """Teach transformers, once in a process."""
    if METHOD in AUTO_QUANTIZER_MAPPING:
        return
    register_quantization_config(METHOD)(CompressedConfig)
    register_quantizer(METHOD)(CompressedQuantizer)
    write = PreTrainedModel.save_pretrained

    @wraps(write)
    def save_pretrained(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        specs = describe(self)
        if not specs:
            unguard(self)  # dense again, as after a merge
            return write(self, *args, **kwargs)
        with _described(self, specs):
            return write(self, *args, **kwargs)

    PreTrainedModel.save_pretrained = save_pretrained  # type: ignore[method-assign]


_register()
