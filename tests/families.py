"""Tiny deterministic models of every family that eckart treats, each with two batches; no network."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 64
Built = tuple[nn.Module, list[Any]]


class ConvNet(nn.Module):
    """A small image classifier with plain, grouped, depthwise and pointwise convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.pointwise = nn.Conv2d(12, 10, 1, bias=False)
        self.head = nn.Linear(10, 5)

    def forward(self, images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, 5)
        x = self.grouped(self.stem(images).relu()).relu()
        return self.head(self.pointwise(self.depthwise(x)).relu().mean((-2, -1)))


def _sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4))


def _conv1d_net() -> nn.Module:
    return nn.Sequential(nn.Conv1d(4, 8, 5, stride=2), nn.GELU(), nn.Conv1d(8, 6, 3, dilation=2, groups=2))


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_decoder_sizes(), tie_word_embeddings=True))


def _mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**_decoder_sizes(), num_local_experts=4, num_experts_per_tok=2))


def _decoder_sizes() -> dict[str, int]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    }


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(BertConfig(**_encoder_sizes(), vocab_size=VOCABULARY, max_position_embeddings=32))


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**_encoder_sizes(), image_size=16, patch_size=4, num_labels=5))


def _encoder_sizes() -> dict[str, int]:
    return {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}


def _rows(generator: torch.Generator) -> Tensor:
    return torch.randn(7, 12, generator=generator)


def _signals(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 4, 24, generator=generator)


def _images(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=generator)


def _vectors(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 9, 16, generator=generator)


def _pixels(generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": _images(generator), "labels": torch.randint(5, (3,), generator=generator)}


def _text(generator: torch.Generator) -> dict[str, Tensor]:
    ids = torch.randint(1, VOCABULARY, (3, 9), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


TEXT = ("gpt2", "llama", "mixtral", "bert")
_PARTS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Any]]] = {
    "sequential": (_sequential, _rows),
    "conv1d": (_conv1d_net, _signals),
    "conv2d": (ConvNet, _images),
    "encoder": (_encoder, _vectors),
    "gpt2": (_gpt2, _text),
    "llama": (_llama, _text),
    "mixtral": (_mixtral, _text),
    "bert": (_bert, _text),
    "vit": (_vit, _pixels),
}


def families() -> dict[str, Callable[[], Built]]:
    """Family name → a function giving (model in eval mode, two batches), the same numbers each time."""
    return {name: lambda parts=parts: _build(*parts) for name, parts in _PARTS.items()}


def stir(model: nn.Module) -> None:
    """Give everything that trains other values."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def masked(name: str) -> Built:
    """A text family (one of TEXT) whose batches are padded on the right: `attention_mask` has zeros, labels −100."""
    model, batches = families()[name]()
    for batch in batches:
        for row, length in enumerate((9, 6, 4)):
            batch["attention_mask"][row, length:] = 0
            batch["input_ids"][row, length:] = 0
            batch["labels"][row, length:] = -100
    return model, batches


def _build(model: Callable[[], nn.Module], batch: Callable[[torch.Generator], Any]) -> Built:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = model().eval()
        for parameter in built.parameters():
            if parameter.ndim < 2:  # norms at one and biases at zero would hide a bug
                with torch.no_grad():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            elif parameter.std() < 0.05:  # transformers starts at 0.02: too small to see in the logits
                with torch.no_grad():
                    parameter.mul_(4)
    generator = torch.Generator().manual_seed(1)
    return built, [batch(generator), batch(generator)]
