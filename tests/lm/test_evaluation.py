"""Several texts at once: each perplexity is that of `perplexity`, and what makes one look too good is said."""

import pytest
from compressible import model, sentence, tokenizer

from eckart.lm import calibration_data, evaluate, perplexity
from eckart.lm.overlap import grams, share, touches


@pytest.fixture
def texts(tmp_path):
    """Two files of one kind, and one of another."""
    for name, seed, step in (("a", 1, 3), ("same", 2, 3), ("other", 3, 11)):
        (tmp_path / f"{name}.txt").write_text(sentence(3000, seed, step))
    return tmp_path


def test_each_text_has_the_perplexity_of_its_first_tokens(texts):
    named = {"first": texts / "a.txt", "second": texts / "other.txt"}
    found = evaluate(model(), tokenizer(), named, context=64, tokens={"first": 2500})
    assert [(each.text, each.tokens) for each in found.texts] == [("first", 2460), ("second", 2953)]
    words = " ".join((texts / "a.txt").read_text().split()[:2500])
    assert found.perplexities["first"] == perplexity(model(), tokenizer(), words, context=64).value
    assert found.perplexities["first"] < found.perplexities["second"]
    assert found.notes == ()
    assert found.rows()[0] | {"perplexity": 0} == {
        "text": "first", "source": str(texts / "a.txt"), "tokens": 2460, "context": 64, "perplexity": 0,
        "domain": None, "shared": None, "seen": None,
    }  # fmt: skip


def test_text_of_the_calibration_s_kind_is_told_from_text_of_another(texts):
    data = calibration_data(tokenizer(), texts / "a.txt", sequences=8, length=128, held_out=1)
    named = {"same": texts / "same.txt", "other": texts / "other.txt"}
    found = evaluate(model(), tokenizer(), named, context=64, calibration=data)
    assert [each.domain for each in found.texts] == ["in", "out"]
    (note,) = found.notes
    assert "text of the kind of same" in note
    found = evaluate(model(), tokenizer(), {"same": texts / "same.txt"}, context=64, calibration=data)
    assert "no text out of the calibration's domain was evaluated" in found.notes[-1]


def test_text_that_was_calibrated_on_and_too_few_tokens_are_said(texts):
    data = calibration_data(tokenizer(), texts / "a.txt", sequences=1, length=40, held_out=0)
    found = evaluate(model(), tokenizer(), {"a": texts / "a.txt"}, context=64, tokens=1000, calibration=data)
    said = " ".join(found.notes)
    assert "a: 984 tokens are few" in said
    assert "of it is in the calibration word for word" in said
    assert "calibrated on 40 tokens, fewer than the 48 inputs of the widest layer" in said


def test_what_is_wrong_with_a_text_is_said_with_its_name(texts, tmp_path):
    (tmp_path / "one.txt").write_text("w1")
    with pytest.raises(ValueError, match=r"none has one before it.*\(text short\)"):
        evaluate(model(), tokenizer(), {"short": tmp_path / "one.txt"}, context=64)
    with pytest.raises(ValueError, match="texts: none"):
        evaluate(model(), tokenizer(), {})
    with pytest.raises(ValueError, match="tokens: 'b' is none of the texts"):
        evaluate(model(), tokenizer(), {"a": texts / "a.txt"}, context=64, tokens={"b": 3})
    with pytest.raises(ValueError, match="tokens: 1 of a"):
        evaluate(model(), tokenizer(), {"a": texts / "a.txt"}, context=64, tokens=1)


def test_n_grams_of_a_short_text_are_the_whole_of_it():
    assert share([1, 2], grams([[1, 2]], 5), 5) == 1
    assert not touches([1, 2, 3], grams([[1, 2]], 2), 3)
    assert share([], grams([[1, 2]], 2), 2) == 0
