"""`lm.compress`: calibration, decomposition, recovery and evaluation in one call, and all of it as plain data."""

import copy
import json

import pytest
import torch
from compressible import model, sentence, tokenizer

from eckart.compression import METHODS
from eckart.lm import compress, load
from eckart.nn.compressed import is_compressed


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two files of the language that the model knows, and one of another."""
    folder = tmp_path_factory.mktemp("texts")
    for name, seed, step in (("a", 5, 3), ("test", 6, 3), ("other", 7, 11)):
        (folder / f"{name}.txt").write_text(sentence(3000, seed, step))
    return folder


def _options(texts, **more):
    sizes = {"sequences": 8, "length": 64, "held_out": 2, "batch": 2, "context": 64}
    return {"text": {texts / "a.txt": 3, texts / "other.txt": 1}, **sizes, **more}


def test_one_call_gives_a_smaller_model_its_losses_and_what_it_was_made_from(texts, tmp_path):
    named = {"test": texts / "test.txt", "other": texts / "other.txt"}
    dense = model()
    done = compress(
        dense,
        tokenizer(),
        **_options(texts, keep=0.6, method="two-sided", evaluate=named, tokens=600, curve=[0.9, 0.3]),
    )
    summary = done.summary()
    assert json.loads(json.dumps(done.to_json())) == json.loads(json.dumps(summary | {
        "rows": done.rows(), "curve": done.curve,
    }))  # fmt: skip
    assert done.model is dense
    assert summary["kept"] <= 0.6
    assert summary["matrices"] == 21
    assert summary["parameters"] < summary["dense_parameters"]
    assert summary["bytes"] == sum(t.nbytes for t in dense.parameters()) + sum(t.nbytes for t in dense.buffers())
    assert [(row["text"], row["tokens"]) for row in summary["calibration"]] == [
        (str(texts / "a.txt"), 6 * 64), (str(texts / "other.txt"), 2 * 64),
    ]  # fmt: skip
    found = {row["text"]: row for row in summary["perplexities"]}
    assert found["test"]["dense"] < found["test"]["compressed"]
    assert any("share a passage of 32 tokens with text that is evaluated" in note for note in summary["notes"])
    near, far = done.curve
    assert near["error"] < far["error"]
    assert near["perplexities"]["test"] < far["perplexities"]["test"]
    assert "perplexity" in done.report()
    done.save(tmp_path / "small")
    again = load(tmp_path / "small")
    ids = torch.arange(12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, dense(ids).logits)
    assert json.loads((tmp_path / "small" / "report.json").read_text())["kept"] == summary["kept"]
    with pytest.raises(FileExistsError):
        done.save(tmp_path / "small")


def test_a_plan_leaves_the_model_as_it_is(texts):
    dense = model()
    old = copy.deepcopy(dense.state_dict())
    planned = compress(dense, tokenizer(), **_options(texts, keep=0.5, method="svd-llm", dry_run=True, curve=[0.7]))
    assert planned.summary()["parameters"] is None
    assert planned.summary()["bytes"] < planned.summary()["dense_bytes"]
    assert planned.curve[0]["perplexities"] == {}
    assert dense.state_dict().keys() == old.keys()
    assert not any(is_compressed(module) for module in dense.modules())
    with pytest.raises(ValueError, match="it was only planned"):
        planned.save("nowhere")
    json.dumps(planned.to_json())


def test_how_many_batches_give_gradients_may_be_said(texts):
    planned = compress(model(), tokenizer(), **_options(texts, keep=0.5, dry_run=True, gradient_batches=1))
    assert planned.plan.data.gradient_batches == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_said_as_plain_data(method, texts):
    done = compress(model(), tokenizer(), **_options(texts, keep=0.7, method=method, curve=[0.8]))
    summary = json.loads(json.dumps(done.to_json()))
    assert 0 < summary["kept"] <= 0.7 + 1e-9
    assert summary["curve"][0]["error"] >= 0


@pytest.mark.parametrize("how", ["blocks", "lora"])
def test_recovery_is_part_of_the_call_and_says_what_it_was_fitted_on(how, texts):
    recovery = {"passes": 1, "lr": 1e-2} if how == "blocks" else {"steps": 8, "every": 4, "lr": 3e-3}
    done = compress(model(), tokenizer(), **_options(texts, keep=0.5, method="svd", recover=how, recovery=recovery))
    assert done.recovery.after <= done.recovery.before
    assert "fitted on 384 tokens of" in done.summary()["recovery"]
    assert done.to_json()["recovered"]["how"] == how


def test_the_seed_s_labels_make_two_runs_alike(texts):
    runs = [compress(model(), tokenizer(), **_options(texts, keep=0.5, method="two-sided")) for _ in range(2)]
    first, second = (each.model.state_dict() for each in runs)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    other = compress(model(), tokenizer(), **_options(texts, keep=0.5, method="two-sided", labels="text"))
    assert any(row != again for row, again in zip(runs[0].rows(), other.rows(), strict=True))


def test_speed_is_measured_beside_the_dense_form(texts):
    done = compress(model(), tokenizer(), **_options(texts, keep=0.5, method="svd"))
    done.measure_speed(prompt=4, new=2, rounds=1)
    assert [(row["phase"], row["ratio"] > 0) for row in done.summary()["speeds"]] == [
        ("prefill", True),
        ("decode", True),
    ]


def test_what_does_not_fit_together_is_refused_before_anything_is_done(texts):
    for options, said in (
        ({"labels": "mine"}, "labels: 'mine'"),
        ({"recover": "magic"}, "recover: 'magic'"),
        ({"recover": "lora", "dry_run": True}, "dry_run compresses nothing"),
        ({"recovery": {"steps": 3}}, "recovery: steps, but nothing is recovered"),
        ({"keep": 0.0}, "keep: 0.0"),
        ({"method": "magic"}, "method: 'magic'"),
        ({"text": texts / "a.txt", "evaluate": {"a": texts / "a.txt"}}, "are what is evaluated"),
    ):
        with pytest.raises(ValueError, match=said):
            compress(model(), tokenizer(), **_options(texts, **options))
    with pytest.raises(ValueError, match="the model has none"):
        compress(model(), **_options(texts))


def test_plain_int8_is_evaluated_and_timed_beside_the_compressed_model(texts):
    options = _options(texts, keep=0.6, method="svd-llm", evaluate={"test": texts / "test.txt"}, tokens=300)
    done = compress(model(), tokenizer(), int8=True, **options)
    done.measure_speed(int8=True, prompt=8, new=2, rounds=1)
    (row,) = done.summary()["perplexities"]
    assert row["int8"] == pytest.approx(row["dense"], rel=0.02)
    assert row["int8"] < row["compressed"]
    assert all(each["int8"] > 0 for each in done.summary()["speeds"])
    assert [each["name"] for each in done.summary()["beside_codes"]] == ["this plan", "int8", "int4"]
    assert any("plain int8 of these matrices" in note for note in done.notes)


@pytest.mark.parametrize("more", [{}, {"dry_run": True, "evaluate": {"test": "pydoc"}}])
def test_int8_without_anything_to_measure_is_refused(texts, more):
    with pytest.raises(ValueError, match=r"int8: .* give evaluate="):
        compress(model(), tokenizer(), **_options(texts, keep=0.5, int8=True, **more))


def test_speed_of_a_model_of_which_nothing_was_compressed_is_its_own(texts):
    done = compress(model(), tokenizer(), **_options(texts, keep=1.0, method="svd-llm"))
    assert {each.model for each in done.measure_speed(prompt=8, new=2, rounds=1).speeds} == {"dense"}
    assert done.summary()["speeds"] == []
