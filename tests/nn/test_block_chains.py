"""A model run block by block gives what the model gives, whatever its blocks are given beside their hidden states."""

import torch
from torch import Tensor, nn

from eckart.nn import observe
from eckart.nn.blocks import Chain, find_chain
from families import families


def _walked(model: nn.Module, names: list[str], batches: list[dict[str, Tensor]]) -> list[Tensor]:
    """What the last block gives in a chain, batch by batch."""
    chain = Chain(model, names, batches)
    found = []
    for number, x in enumerate(chain.hidden):
        for block in range(len(names)):
            x = chain.run(block, number, x)
        found.append(x)
    return found


def test_blocks_whose_masks_are_none_alike_in_short_text_get_their_own_in_longer_text() -> None:
    from transformers import Qwen2Config, Qwen2Model

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    window = {"use_sliding_window": True, "sliding_window": 4, "initializer_range": 0.3}
    for kinds in (["sliding_attention", "full_attention"], ["full_attention", "sliding_attention"]):
        torch.manual_seed(0)
        config = Qwen2Config(vocab_size=64, num_hidden_layers=2, layer_types=kinds, **sizes, **window)
        model = Qwen2Model(config).eval()
        batches = [{"input_ids": torch.arange(1, length).unsqueeze(0)} for length in (4, 13, 4, 13)]
        names = find_chain(model, batches[0])
        assert names == ["layers.0", "layers.1"]
        for batch, found in zip(batches, _walked(model, names, batches), strict=True):
            with torch.no_grad():
                torch.testing.assert_close(model.norm(found), model(**batch).last_hidden_state)


class _Adds(nn.Module):
    """A residual block that writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x.add_(self.linear(x))


def test_a_block_that_writes_into_its_input_leaves_the_kept_hidden_states_as_they_are() -> None:
    model, x = nn.Sequential(_Adds(), _Adds()), torch.randn(3, 4)
    chain = Chain(model, ["0", "1"], [x.clone()])
    assert torch.equal(chain.hidden[0], x)
    assert torch.equal(chain.run(0, 0, chain.hidden[0]), chain.run(0, 0, chain.hidden[0]))


def test_output_gradients_are_seen_with_gradient_checkpointing_on() -> None:
    wanted, names = ["output_gradient_covariance"], ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]
    plain, batches = families()["llama"]()
    expected = observe(plain, batches, wanted, targets=names)
    model, _ = families()["llama"]()
    model.train().gradient_checkpointing_enable()  # which makes the embedding's output require a gradient
    seen = observe(model, batches, wanted, targets=names)
    for name in names:
        found, same = (each[name].output_gradient_second_moment for each in (seen, expected))
        torch.testing.assert_close(found, same)
