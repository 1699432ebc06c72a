"""The fused step: exact slopes, one shared x, and what it keeps for the backward pass, beside PEFT."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from eckart.adapters import adapt
from eckart.adapters.layers.fused import Parts, fused


def parts(
    rank: int, factor: bool, bias: bool, layers: int = 2, terms: int = 2
) -> tuple[Tensor, list[Parts], list[Tensor]]:
    """x, some layers with all that a layer can have, and everything that trains."""
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    made, trained = [], []
    for m in range(3, 3 + layers):
        B, A = [normal(m, rank) for _ in range(terms)], [normal(rank, 6) for _ in range(terms)]
        c, b = (normal(m) if factor else None), (normal(m) if bias else None)
        trained += [t.requires_grad_() for t in (*B, *A, c, b) if t is not None]
        made.append(Parts(normal(m, 6), b, c, B, A, tuple(0.5 + t for t in range(terms))))
    x = normal(2, 4, 6).requires_grad_()
    return x, made, [x, *trained]


@pytest.mark.parametrize("rank", [2, 40])
@pytest.mark.parametrize("factor", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_the_slopes_are_those_of_finite_differences(rank: int, factor: bool, bias: bool, rate: float) -> None:
    x, made, trained = parts(rank, factor, bias)
    seed = torch.tensor([7], dtype=torch.int32) if rate else None
    assert torch.autograd.gradcheck(lambda *_: fused(x, made, rate, seed), trained, fast_mode=True)


def test_an_output_that_is_not_used_gives_no_slopes() -> None:
    x, made, _ = parts(2, True, True)
    fused(x, made)[1].sum().backward()
    assert made[0].A[0].grad is None
    assert made[0].factor.grad is None  # type: ignore[union-attr]
    assert made[1].A[0].grad is not None


@pytest.mark.parametrize("used", [(0, 1, 2), (1,)])
def test_a_frozen_A_that_siblings_share_is_multiplied_once_with_the_same_slopes(used: tuple[int, ...]) -> None:
    flops, slopes = [], []
    for shared in (True, False):
        x, made, _ = parts(3, False, False, layers=3, terms=1)
        A = made[0].A[0].detach()
        made = [part._replace(A=[A[:] if shared else A.clone()]) for part in made]
        with FlopCounterMode(display=False) as counter:
            outputs = fused(x, made)
            sum(outputs[i].sin().sum() for i in used).backward()  # type: ignore[union-attr]
        flops.append(counter.get_total_flops())
        slopes.append([x.grad, *(part.B[0].grad for part in made)])
    for got, expected in zip(*slopes, strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected)
    assert flops[1] - flops[0] == 2 * (2 * 8 * 3 * 6)  # x Aᵀ of two layers; products added in place are not counted


def test_an_input_of_another_dtype_is_refused_as_the_layer_refuses_it() -> None:
    x, made, _ = parts(2, False, False)
    with pytest.raises(RuntimeError, match=r"x is torch.float32 and the layer's weight torch.float64: cast one"):
        fused(x.detach().float(), made)


def test_half_precision_never_reads_memory_that_was_not_written() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        junk = [torch.full((64, 64), float("nan"), dtype=dtype) for _ in range(50)]
        del junk
        x, made, trained = parts(2, True, False)
        cast = [p._replace(W=p.W.to(dtype)) for p in made]
        sum(y.float().sum() for y in fused(x.detach().to(dtype).requires_grad_(), cast)).backward()  # type: ignore[union-attr]
        assert all(torch.isfinite(t.grad).all() for t in trained[1:] if t.grad is not None)


class Kept:
    """Bytes of what autograd keeps in one forward pass, each storage once, parameters and buffers left out."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self.sizes: dict[int, int] = {}
        self.held: list[Tensor] = []

    def pack(self, t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.sizes[storage.data_ptr()] = storage.nbytes()
            self.held.append(t)
        return t


def kept_bytes(model: nn.Module, dtype: torch.dtype) -> int:
    """What one pass with a gradient at the inputs keeps; the second one, when groups are known."""
    for _ in range(2):
        kept = Kept(model)
        x = torch.randn(2, 128, 144, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda t: t):
            output = model(inputs_embeds=x, labels=torch.ones(2, 128, dtype=torch.long), use_cache=False).loss
        output.backward()
    return sum(kept.sizes.values())


def llama(dtype: torch.dtype = torch.float32) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 144, "intermediate_size": 384, "num_attention_heads": 9, "num_key_value_heads": 3}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=4, vocab_size=1024)).to(dtype)
    return model.requires_grad_(False).train()


def ours(method: str, dtype: torch.dtype = torch.float32, **options: Any) -> int:
    model = llama(dtype)
    adapt(model, method, **options)
    return kept_bytes(model, dtype)


def pefts(dtype: torch.dtype = torch.float32, **options: Any) -> int:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=8, target_modules="all-linear", **options)
    return kept_bytes(peft.get_peft_model(llama(dtype), config), dtype)


def test_float32_adapters_keep_no_more_than_pefts() -> None:
    limit = kept_bytes(llama(), torch.float32)
    extra, theirs = (ours("lora", rank=8) - limit) / limit, (pefts() - limit) / limit
    print(f"LoRA keeps {extra:.3f} of the limit more, PEFT's {theirs:.3f}")
    assert extra <= theirs


def test_a_magnitude_keeps_at_most_nine_tenths_of_the_limit_more() -> None:
    limit = kept_bytes(llama(), torch.float32)
    extra, theirs = (ours("dora", rank=8) - limit) / limit, (pefts(use_dora=True) - limit) / limit
    print(f"DoRA keeps {extra:.3f} of the limit more, PEFT's {theirs:.3f}")
    assert extra <= 0.9


def test_float32_adapters_of_a_bfloat16_base_keep_a_third_of_pefts() -> None:
    limit = kept_bytes(llama(torch.bfloat16), torch.bfloat16)
    extra, theirs = ours("lora", torch.bfloat16, rank=8) - limit, pefts(torch.bfloat16) - limit
    print(f"bfloat16 base: LoRA keeps {extra / limit:.3f} of the limit more, {extra / theirs:.3f} of PEFT's")
    assert extra <= 0.35 * theirs


def test_dropout_keeps_no_mask() -> None:
    assert ours("lora", rank=8, dropout=0.1) <= 1.01 * ours("lora", rank=8)


def test_factors_that_do_not_train_keep_no_input() -> None:
    limit = kept_bytes(llama(), torch.float32)
    assert ours("lora-fa", rank=8) - limit < 0.2 * (ours("lora", rank=8) - limit)
