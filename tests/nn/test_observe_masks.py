"""Padding changes nothing: a padded batch gives the statistics of its sequences one by one."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eckart.nn import Observation, observe
from eckart.nn.batches import Padding
from eckart.nn.observe import WANTED
from families import TEXT, masked

LENGTHS = (9, 6, 4)


def built(family: str) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """A text family in float64 whose batches are padded on the right."""
    model, batches = masked(family)
    if family == "mixtral":
        model.set_experts_implementation("eager")
    return model.double(), batches


def alone(batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Each sequence of right-padded batches by itself, without its padding."""
    return [
        {name: value[row : row + 1, :length] for name, value in batch.items()}
        for batch in batches
        for row, length in enumerate(LENGTHS)
    ]


def left(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch padded on the left, its positions unchanged."""
    moved = {
        name: torch.stack([row.roll(9 - length) for row, length in zip(value, LENGTHS, strict=True)])
        for name, value in batch.items()
    }
    positions = torch.stack([(torch.arange(9) - (9 - length)).clamp(min=0) for length in LENGTHS])
    return {**moved, "position_ids": positions}


def loss(output: Any, batch: dict[str, Tensor]) -> Tensor:
    """A sum over real tokens, so that sequences add up."""
    return (output.logits.logsumexp(-1).square() * (batch["attention_mask"] != 0)).sum()


def assert_same(padded: dict[str, Observation], expected: dict[str, Observation], passes: int) -> None:
    """Same statistics; the gradient is a mean over batches, of which there were `passes` times fewer."""
    assert list(padded) == list(expected)
    for name, one in expected.items():
        got = padded[name]
        assert got.tokens == one.tokens or one.input_sum is None, name  # positions are looked up once for all rows
        assert got.shared_with == one.shared_with
        torch.testing.assert_close(got.gradient, one.gradient * passes)
        for field in ("input_sum", "input_second_moment", "input_norms", "output_gradient_second_moment"):
            if getattr(one, field) is not None:
                torch.testing.assert_close(getattr(got, field), getattr(one, field), msg=lambda m, n=name: f"{n} {m}")


@pytest.mark.parametrize("family", TEXT)
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(family: str, side: str) -> None:
    model, batches = built(family)
    expected = observe(model, alone(batches), WANTED, loss=loss)
    if side == "left":
        batches = [left(batch) for batch in batches]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(observe(model, batches, WANTED, loss=loss), expected, passes=3)


def test_a_mask_may_be_boolean_or_floating_point() -> None:
    model, batches = built("llama")
    expected = observe(model, batches, ["input_covariance"])
    for dtype in (torch.bool, torch.float64):
        same = [{**batch, "attention_mask": batch["attention_mask"].to(dtype)} for batch in batches]
        got = observe(model, same, ["input_covariance"])
        for name, one in expected.items():
            assert got[name].tokens == one.tokens == 2 * sum(LENGTHS)
            torch.testing.assert_close(got[name].input_second_moment, one.input_second_moment)


def test_grouped_experts_drop_padding_too() -> None:
    model, batches = built("mixtral")
    wanted = ["input_covariance", "output_gradient_covariance"]
    expected = observe(model, batches, wanted, loss=loss, targets="*.experts.*")
    model.float().set_experts_implementation("grouped_mm")
    got = observe(model, batches, wanted, loss=loss, targets="*.experts.*")
    for name, one in expected.items():
        assert got[name].tokens == one.tokens == 2 * 2 * sum(LENGTHS)
        assert got[name].stack_tokens.tolist() == one.stack_tokens.tolist()
        torch.testing.assert_close(
            got[name].input_second_moment.double(), one.input_second_moment, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(
            got[name].output_gradient_second_moment.double(), one.output_gradient_second_moment, rtol=1e-3, atol=1e-3
        )


class Strided(nn.Module):
    """Reads tokens by position, flattened, per head, per sequence, and at every second position."""

    def __init__(self) -> None:
        super().__init__()
        self.by_position, self.flat, self.heads = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(2, 2)
        self.pooled, self.strided = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> None:
        self.by_position(x), self.flat(x.reshape(-1, 4)), self.heads(x.unflatten(-1, (2, 2)))
        self.pooled(x[:, 0]), self.strided(x[:, ::2])


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Two sequences of five, two positions of the second hidden."""
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    return {"x": x, "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]])}


def test_inputs_that_cannot_be_matched_are_counted_whole_and_named(batch: dict[str, Tensor]) -> None:
    with pytest.warns(UserWarning, match=r"padding counted too.*: strided$") as caught:
        seen = observe(Strided(), [batch], ["input_norms"])
    assert len(caught) == 1
    tokens = {name: one.tokens for name, one in seen.items()}
    assert tokens == {"by_position": 8, "flat": 8, "heads": 16, "pooled": 2, "strided": 6}
    real = batch["x"][batch["attention_mask"] == 1]
    for name in ("by_position", "flat"):
        torch.testing.assert_close(seen[name].input_norms, real.square().mean(0).sqrt())
    torch.testing.assert_close(seen["heads"].input_norms, real.view(-1, 2).square().mean(0).sqrt())


def test_output_gradients_at_hidden_positions_are_left_out_and_the_gradient_is_the_loss_s_own(
    batch: dict[str, Tensor],
) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 3)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            return self.a(x)

    model = One()
    seen = observe(model, [batch], WANTED, loss=lambda y, _: y.square().sum() / 2)["a"]  # so that g = y
    g = model.a(batch["x"]).detach()
    real = g[batch["attention_mask"] == 1]
    torch.testing.assert_close(seen.output_gradient_second_moment, real.T @ real / 8)
    torch.testing.assert_close(seen.gradient, g.flatten(0, 1).T @ batch["x"].flatten(0, 1))


def test_a_mask_without_zeros_warns_of_nothing(batch: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen = observe(Strided(), [{**batch, "attention_mask": torch.ones(2, 5)}], ["input_norms"])
    assert seen["by_position"].tokens == 10


def test_hidden_values_that_are_not_finite_do_not_matter(batch: dict[str, Tensor]) -> None:
    batch["x"][1, 0] = float("nan")
    seen = observe(Strided(), [batch], ["input_covariance"], targets=["by_position", "flat", "heads"])
    assert seen["by_position"].input_second_moment.isfinite().all()


def test_a_mask_that_is_not_batch_by_tokens_is_warned_of(batch: dict[str, Tensor]) -> None:
    with pytest.warns(UserWarning, match=r"attention_mask of shape \(2, 1, 5, 5\)"):
        seen = observe(Strided(), [{**batch, "attention_mask": torch.ones(2, 1, 5, 5)}], ["input_norms"])
    assert seen["by_position"].tokens == 10


def test_all_hidden_is_an_error(batch: dict[str, Tensor]) -> None:
    batch["attention_mask"].zero_()
    with pytest.raises(ValueError, match="attention_mask hides every token"):
        observe(Strided(), [batch], ["input_norms"], targets=["flat", "heads"])


def test_a_batch_that_is_all_hidden_adds_nothing_beside_others(batch: dict[str, Tensor]) -> None:
    hidden = {**batch, "attention_mask": torch.zeros(2, 5)}
    one, two = (observe(Strided(), b, ["input_norms"], targets="flat")["flat"] for b in ([batch], [hidden, batch]))
    assert one.tokens == two.tokens == 8
    assert torch.equal(one.input_norms, two.input_norms)


def test_picked_rows_keep_their_padding() -> None:
    padding = Padding({"attention_mask": torch.tensor([[1, 0], [1, 1]])})
    padding.gather(torch.randn(4, 3), torch.tensor([1, 3, 1, 0]))
    assert padding.gathered(4).tolist() == [1, 3]
    assert padding.gathered(3) is None


class TwoSided(nn.Module):
    """An encoder and a decoder that reads what the encoder gives."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.cross = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor, y: Tensor, **_: Any) -> None:
        self.cross(self.encoder(x)), self.decoder(y)


def two_sided(tokens: int, decoder: Tensor | None) -> dict[str, Tensor]:
    """The first mask hides two of ten positions."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, size, 4, generator=generator) for size in (5, tokens))
    masks = {} if decoder is None else {"decoder_attention_mask": decoder}
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]])
    return {"x": x, "y": y, "attention_mask": mask, "decoder_input_ids": torch.ones(2, tokens), **masks}


def tokens_of(batch: dict[str, Tensor]) -> list[int]:
    seen = observe(TwoSided(), [batch], ["input_covariance"])
    real = batch["y"][batch["decoder_attention_mask"] == 1] if "decoder_attention_mask" in batch else batch["y"]
    if seen["decoder"].tokens == len(real):
        torch.testing.assert_close(seen["decoder"].input_sum, real.sum(0))
    return [seen[name].tokens for name in ("encoder", "cross", "decoder")]


def test_an_encoder_and_a_decoder_each_have_their_own_mask() -> None:
    hidden = torch.tensor([[1, 1, 0], [1, 0, 0]])
    same = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokens_of(two_sided(3, hidden)) == [8, 8, 3]
        assert tokens_of(two_sided(3, None)) == [8, 8, 6]
        assert tokens_of(two_sided(5, same)) == [8, 8, 8]


@pytest.mark.parametrize("decoder", [None, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])])
def test_masks_of_an_encoder_and_a_decoder_that_cannot_be_told_apart_leave_nothing_out(decoder: Tensor | None) -> None:
    with pytest.warns(UserWarning, match="padding counted too.*: cross, decoder, encoder"):
        assert tokens_of(two_sided(5, decoder)) == [10, 10, 10]


def test_labels_tell_the_decoder_s_length_of_a_model_that_has_one() -> None:
    batch = two_sided(3, None)
    del batch["decoder_input_ids"]
    batch["labels"] = torch.zeros(2, 3)
    with pytest.warns(UserWarning, match="padding counted too.*: decoder"):
        assert tokens_of(batch) == [8, 8, 6]
    assert not Padding(batch, encoder_decoder=True).misses((2, 3, 4))
    batch["labels"] = torch.zeros(2, 5)
    assert Padding(batch, encoder_decoder=True).misses((2, 5, 4))
    assert Padding(batch).count((2, 5, 4)) == 8
