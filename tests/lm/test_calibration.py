"""Calibration text: any prefix has the mixture, held-out and evaluated text are apart, drawn labels are the same."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from compressible import model, sentence, tokenizer

from eckart.lm import SampledLoss, calibration_data
from eckart.lm.calibration import mixed
from eckart.lm.compressed.sampled_loss import drawn, uniform
from eckart.lm.overlap import grams, share


@pytest.fixture
def texts(tmp_path):
    """Two files of 4,000 words each: the words of "a" are w0 to w29, those of "b" only unknown ones beside them."""
    for name, step in (("a", 3), ("b", 11)):
        (tmp_path / f"{name}.txt").write_text(sentence(4000, seed=step, step=step))
    return tmp_path / "a.txt", tmp_path / "b.txt"


def _rows(batches):
    return [row for batch in batches for row in batch["input_ids"].tolist()]


def test_every_prefix_of_a_mixture_is_within_one_sequence_of_its_weights():
    weights = {"a": 3.0, "b": 1.0, "c": 0.5}
    order = mixed(weights, 60)
    for count in range(1, 61):
        counts = Counter(order[:count])
        assert all(abs(counts[name] - count * weight / 4.5) <= 1 for name, weight in weights.items())


def test_sources_come_in_their_mixture_from_all_parts_of_each_and_held_out_ones_from_the_end(texts):
    a, b = texts
    made = calibration_data(tokenizer(), {a: 3, b: 1}, sequences=16, length=32, held_out=4, batch=2)
    assert made.sequences == {str(a): 12, str(b): 4}
    assert made.tokens == 16 * 32
    assert [tuple(batch["input_ids"].shape) for batch in made.batches] == [(2, 32)] * 8
    all_a = tokenizer()(a.read_text())["input_ids"]
    places = [
        next((i for i in range(0, len(all_a), 32) if all_a[i : i + 32] == row), None) for row in _rows(made.batches)
    ]
    assert sum(place is None for place in places) == 4  # those of b
    found = [place for place in places if place is not None]
    assert len(set(found)) == 12
    assert max(found[:4]) - min(found[:4]) > 1000  # a prefix is from all parts too
    held = [i for i in range(0, len(all_a), 32) if all_a[i : i + 32] in _rows(made.held_out)]
    assert len(held) == 3
    assert min(held) > max(found)


def test_labels_are_the_tokens_and_what_is_made_is_the_same_every_time(texts):
    first, second = (calibration_data(tokenizer(), texts[0], sequences=3, length=16, held_out=1) for _ in range(2))
    for batch, again in zip(first.batches, second.batches, strict=True):
        assert torch.equal(batch["labels"], batch["input_ids"])
        assert torch.equal(batch["input_ids"], again["input_ids"])


def test_no_sequence_shares_a_passage_with_text_that_is_evaluated(texts):
    a, _ = texts
    made = calibration_data(tokenizer(), a, sequences=8, length=64, held_out=2, avoid={a: 1000})
    evaluated = tokenizer()(a.read_text())["input_ids"][:1000]
    assert share(evaluated, grams(made.token_lists(), 32), 32) == 0
    assert "16 of 62 sequences" in made.notes[0]
    with pytest.raises(ValueError, match=r"makes 0 sequences of 64 tokens \(62 more are what is evaluated\)"):
        calibration_data(tokenizer(), a, sequences=8, length=64, avoid={a: None})


def test_text_that_gives_nothing_is_named(tmp_path, texts):
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    with pytest.raises(ValueError, match=r"short.txt makes 0 sequences of 32 tokens, and 72 are needed"):
        calibration_data(tokenizer(), tmp_path / "short.txt", length=32)

    class Nothing:
        """Knows no word."""

        model_max_length = 64

        def __call__(self, text, **options):
            return {"input_ids": []}

    with pytest.raises(ValueError, match=r"make no tokens.*\(calibration text .*a.txt\)"):
        calibration_data(Nothing(), texts[0], length=8)
    for options, said in (
        ({"text": {}}, "text: no source"),
        ({"text": {"pydoc": 0}}, "the weight of pydoc is 0"),
        ({"sequences": 0}, "sequences: 0"),
        ({"held_out": -1}, "held_out: -1"),
        ({"batch": 1.5}, "batch: 1.5"),
        ({"length": 1000}, "the model takes at most 256"),
    ):
        with pytest.raises(ValueError, match=said):
            calibration_data(tokenizer(), **{"text": texts[0], **options})


def test_labels_follow_the_model_s_own_distribution():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(1, 20000, 4)
    ids = torch.randint(100, (1, 20000), generator=torch.Generator().manual_seed(0))
    labels = drawn(logits, uniform(ids, seed=0))
    shares = torch.bincount(labels.flatten(), minlength=4) / labels.numel()
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.25, 0.125, 0.125]), atol=0.01, rtol=0)


def test_the_numbers_are_uniform_and_depend_on_the_seed_and_all_tokens_before_but_not_on_the_batch():
    ids = torch.randint(50, (64, 512), generator=torch.Generator().manual_seed(0))
    u = uniform(ids, seed=1)
    counts = torch.histc(u, bins=16, min=0, max=1)
    assert (counts / u.numel() * 16 - 1).abs().max() < 0.1
    assert abs(float(torch.corrcoef(torch.stack((u[:, 1:].flatten(), u[:, :-1].flatten())))[0, 1])) < 0.02
    assert torch.equal(uniform(ids[3:4], seed=1), u[3:4])
    assert not torch.equal(uniform(ids, seed=2), u)
    changed = ids.clone()
    changed[:, 100] += 1
    other = uniform(changed, seed=1)
    assert torch.equal(other[:, :100], u[:, :100])
    assert (other[:, 100:] != u[:, 100:]).float().mean() > 0.99


def test_gradients_of_drawn_labels_have_the_true_fisher_as_their_second_moment():
    logits = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    count, p = 20000, logits.softmax(0)
    ids = torch.arange(count).unsqueeze(0)
    z = logits.expand(1, count, 3).clone().requires_grad_()
    (SampledLoss()(SimpleNamespace(logits=z), {"input_ids": ids}) * count).backward()
    g = z.grad[0]
    torch.testing.assert_close(g.T @ g / count, p.diag() - p.outer(p), atol=0.01, rtol=0)


def test_padding_gets_no_label(texts):
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.tensor([[1, 1, 0]])}
    logits = torch.zeros(1, 3, 5, requires_grad=True)
    SampledLoss()(SimpleNamespace(logits=logits), batch).backward()
    assert logits.grad[0].abs().sum(-1).gt(0).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="gave no logits"):
        SampledLoss()(SimpleNamespace(), batch)


def test_the_loss_of_a_model_is_its_entropy_on_average(texts):
    (batch,) = calibration_data(tokenizer(), texts[0], sequences=8, length=128, held_out=0, batch=8).batches
    with torch.no_grad():
        output = model()(**batch)
        entropy = torch.distributions.Categorical(logits=output.logits).entropy().mean()
        assert float(SampledLoss()(output, batch)) == pytest.approx(float(entropy), rel=0.1)
