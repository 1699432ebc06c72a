"""`compress` against closed forms, with bad input, and after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eckart
from eckart.compression import Compressed, Plan, compress
from eckart.compression.fitting import learning
from eckart.compression.methods import METHODS
from eckart.compression.selecting import selected
from eckart.linalg import truncated_svd
from families import families


def _layer(m: int = 12, n: int = 10) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(n, m)).double()


def _loss(output: torch.Tensor, batch: Any) -> torch.Tensor:
    return output.square().mean()


def planned(model: nn.Module, batches: list[Any], **options: Any) -> Plan:
    plan = compress(model, batches, dry_run=True, loss=_loss, **options)
    assert isinstance(plan, Plan)
    return plan


def test_svd_gives_the_truncated_svd() -> None:
    model = _layer()
    W = model[0].weight.detach().clone()
    compress(model, method="svd", ranks={"0": 3})
    U, S, Vh = truncated_svd(W, 3)
    torch.testing.assert_close(model[0].weight, U * S @ Vh)


@pytest.mark.parametrize("rows", [200, 6], ids=["many tokens", "fewer tokens than inputs"])
def test_the_error_in_the_inputs_covariance_is_the_closed_form(rows: int) -> None:
    model, X = _layer(), torch.randn(rows, 10, dtype=torch.float64)
    W = model[0].weight.detach().clone()
    plan = planned(model, [X], method="svd-llm", ranks={"0": 4}, shrink=0.0)
    plan.apply()
    S = torch.linalg.svdvals(W @ X.T)
    lost = torch.linalg.norm((W - model[0].weight) @ X.T)
    torch.testing.assert_close(lost, S[4:].norm(), atol=1e-7 * float(S[0]), rtol=1e-6)
    assert plan.rows()[0]["predicted_error"] == pytest.approx(float(S[4:].norm() / S.norm()), abs=1e-7)


@pytest.mark.parametrize("kind", ["rank one", "dead channels", "outliers", "all zero"])
@pytest.mark.parametrize("method", ["svd-llm", "two-sided", "asvd", "aa-svd", "auto"])
def test_odd_covariances_give_finite_layers(kind: str, method: str) -> None:
    model, X = _layer().float(), torch.randn(64, 10)
    if kind == "rank one":
        X = torch.outer(torch.randn(64), torch.randn(10))
    elif kind == "dead channels":
        X[:, :4] = 0
    elif kind == "outliers":
        X[:, 2] *= 100
    else:
        X = torch.zeros(64, 10)
    compress(model, [X], method=method, keep=0.6, loss=_loss, held_out=[X])
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_predicted_and_measured_errors_agree_on_the_calibration_itself() -> None:
    model, X = _layer(), torch.randn(300, 10, dtype=torch.float64)
    done = compress(model, [X], method="svd-llm", keep=0.5, shrink=0.0, held_out=[X])
    assert isinstance(done, Compressed)
    (row,) = done.rows()
    assert row["measured_error"] == pytest.approx(row["predicted_error"], rel=1e-5)


def test_anchored_layers_make_up_for_what_the_prefix_lost() -> None:
    torch.manual_seed(0)
    body = [nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)) for _ in range(4)]
    model = nn.Sequential(*body).double()
    X = torch.randn(400, 16, dtype=torch.float64) @ torch.randn(16, 16, dtype=torch.float64)
    expected = model(X).detach()
    lost = {}
    for method in ("aa-svd", "svd-llm"):
        plan = planned(model, [X], method=method, held_out=[X], ranks={f"{i}.{j}": 8 for i in range(4) for j in (0, 1)})
        with plan.standing(), torch.no_grad():
            lost[method] = float((model(X) - expected).norm() / expected.norm())
    assert lost["aa-svd"] < lost["svd-llm"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = families()["llama"]()
    expected = compress(model, batches, keep=0.7, held_out=batches[:1], dry_run=True)
    assert isinstance(expected, Plan)
    calls = []

    def stop(done: int, total: int, label: str) -> None:
        calls.append(label)
        if label == "calibrating":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, batches, keep=0.7, held_out=batches[:1], work=tmp_path / "work", progress=stop)
    kept = len(list((tmp_path / "work").glob("*.safetensors")))
    assert kept > 0
    resumed = compress(model, batches, keep=0.7, held_out=batches[:1], work=tmp_path / "work", dry_run=True)
    assert isinstance(resumed, Plan)
    assert resumed.sizes == expected.sizes
    for name, layer in expected.layers().items():
        state = resumed.layers()[name].state_dict()
        assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


def test_a_work_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    model = _layer()
    compress(model, method="svd", keep=0.5, work=tmp_path, dry_run=True)
    with pytest.raises(ValueError, match=r"work: .* is of another run"):
        compress(_layer(14), method="svd", keep=0.5, work=tmp_path, dry_run=True)


def test_an_error_in_mid_course_leaves_the_model_as_it_was() -> None:
    model, batches = families()["llama"]()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def stop(done: int, total: int, label: str) -> None:
        if label.startswith("fitting") and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, batches, keep=0.7, method="aa-svd", held_out=batches[:1], progress=stop)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": 0.0}, "keep: 0.0"),
        ({"keep": 1.5}, "keep: 1.5"),
        ({"keep": float("nan")}, "keep: nan"),
        ({"keep": 0.5, "ranks": {"0": 2}}, "keep, ranks"),
        ({"method": "svd", "ranks": {"1": 2}}, "ranks: '1' is not among"),
        ({"method": "svd", "ranks": {"0": 99}}, "ranks: 99 for 0"),
        ({"method": "svdd"}, "method: 'svdd'"),
        ({"allocation": "fair"}, "allocation: 'fair'"),
        ({"method": "svd", "exponent": 2}, "options: exponent unknown"),
        ({"method": "svd-llm"}, "batches: none"),
        ({"method": "svd", "shrink": 2.0}, "shrink: 2.0"),
        ({"method": "svd", "multiple": 0}, "multiple: 0"),
        ({"method": "svd", "targets": "q_proj"}, "q_proj"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(options: dict[str, Any], said: str) -> None:
    model = _layer()
    weight = model[0].weight
    with pytest.raises(ValueError, match=said):
        compress(model, **options)
    assert model[0].weight is weight


def test_a_compressed_model_is_refused_unless_asked_for() -> None:
    model = _layer()
    compress(model, method="svd", keep=0.9)
    with pytest.raises(ValueError, match="compressed already"):
        compress(model, method="svd", keep=0.5)
    before = model[0].rank
    compress(model, method="svd", keep=0.5, again=True)
    assert model[0].rank < before


def test_a_plan_of_a_model_that_has_changed_is_refused() -> None:
    model = nn.Sequential(nn.Linear(10, 10))
    plan = planned(model, [], method="svd", keep=0.5)
    model[0] = nn.Linear(10, 10)
    with pytest.raises(RuntimeError, match="has been replaced"):
        plan.apply()
    model[0] = plan.pieces[0].matrix.module
    plan.apply()
    with pytest.raises(RuntimeError, match="was applied"):
        plan.apply()


def test_too_few_tokens_are_told() -> None:
    plan = planned(_layer(), [torch.randn(4, 10, dtype=torch.float64)], method="svd-llm", keep=0.5)
    assert "fewer tokens than they have inputs" in plan.notes[0]
    assert plan.notes[0] in plan.report()


def test_the_verb_is_at_the_top() -> None:
    assert eckart.compress is compress


def test_an_anchored_fit_belongs_to_the_prefix_that_it_was_made_for() -> None:
    first, last = (f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1))
    ranks = [{first: rank, last: 4} for rank in (1, 20)]
    plans = []
    for _ in range(2):
        model, batches = families()["llama"]()
        plans.append(compress(model, batches, ranks={}, method="aa-svd", dry_run=True))
    plans[0].at(ranks=ranks[0]).layers()
    after, alone = (plan.at(ranks=ranks[1]).layers()[last].weight for plan in plans)
    assert torch.equal(after, alone)


def test_an_anchored_method_says_where_it_finds_no_blocks() -> None:
    plan = planned(_layer(), [torch.randn(64, 10, dtype=torch.float64)], method="aa-svd", keep=0.5)
    with pytest.warns(UserWarning, match="no chain of blocks"):
        plan.layers()


def test_a_resumed_run_knows_how_much_was_read(tmp_path: Path) -> None:
    model, batches = families()["llama"]()
    first, second = (
        compress(model, batches, keep=0.7, method="svd-llm", work=tmp_path, dry_run=True) for _ in range(2)
    )
    assert second.rows() == first.rows()
    assert second.notes == first.notes == ()


def test_what_no_chain_holds_is_observed_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    X = [torch.randn(64, 10)]
    models = [nn.Module() for _ in range(2)]
    for model in models:
        torch.manual_seed(0)
        model.a, model.b = nn.Linear(10, 8), nn.Linear(8, 8)
        model.forward = lambda x, model=model: model.b(model.a(x))
    whole = compress(models[0], X, keep=0.5, method="svd-llm", dry_run=True)
    calls: list[list[str]] = []
    observed = learning.observe

    def counted(model: nn.Module, batches: Any, wanted: Any, *, targets: Any, **options: Any) -> Any:
        calls.append(list(targets))
        return observed(model, batches, wanted, targets=targets, **options)

    monkeypatch.setattr(learning, "observe", counted)
    pieces = METHODS["svd-llm"].unit(models[1], selected(models[1])[0], whole.settings, METHODS["svd-llm"].metric)
    learning.learn(models[1], pieces, ["input_covariance"], learning.Data(X), {}, memory=500)
    assert calls == [["a"], ["b"]]
    for piece, same in zip(pieces, whole.pieces, strict=True):
        torch.testing.assert_close(piece.spectrum, same.spectrum)


def test_an_encoder_s_mask_is_not_taken_for_its_decoder_s() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, decoder_start_token_id=0, **sizes)).eval()
    ids = torch.arange(1, 13).view(2, 6)
    batch = {"input_ids": ids, "attention_mask": (ids < 10).long(), "labels": ids.flip(1)}
    with pytest.warns(UserWarning, match="padding counted too"):
        plan = compress(model, [batch], targets="decoder.block.*.q", keep=0.5, method="svd-llm", dry_run=True)
    assert {row["tokens"] for row in plan.rows()} == {12}


@pytest.mark.parametrize("method", ["svd", "basis-sharing", "modegpt"])
def test_what_was_frozen_stays_frozen(method: str) -> None:
    model, batches = families()["llama"]()
    model.requires_grad_(False)
    compress(model, batches, keep=0.6, method=method)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_layers_that_cannot_all_be_placed_leave_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[2].bias = model[1].bias  # which a new layer would not share
    before = list(model)
    with pytest.raises(ValueError, match="1 shares a parameter"):
        compress(model, method="svd", keep=0.5)
    assert all(module is same for module, same in zip(model, before, strict=True))


def test_compressing_again_counts_what_stands_there_and_never_grows() -> None:
    model, _ = families()["llama"]()
    compress(model, method="svd", keep=0.3)
    before = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert str(compress(model, method="svd", keep=0.5, again=True, dry_run=True)).startswith("svd: 0 of 14")
    plan = compress(model, method="svd", keep=0.2, again=True, dry_run=True)
    plan.apply()
    after = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert plan.kept_of_model == pytest.approx(after / before)


def test_an_mlp_of_fewer_neurons_is_compressed_already() -> None:
    model, batches = families()["llama"]()
    compress(model, batches, keep=0.6, method="modegpt", targets="*mlp*")
    with pytest.raises(ValueError, match=r"compressed already, to fewer neurons: densify"):
        compress(model, keep=0.6, method="svd", targets="*mlp*", again=True)


def test_missing_held_out_batches_are_told_before_anything_is_learned() -> None:
    model, batches = families()["llama"]()

    def stop(done: int, total: int, label: str) -> None:
        raise AssertionError(label)

    with pytest.raises(ValueError, match="held_out: no batches"):
        compress(model, batches[:1], progress=stop)


def test_without_held_out_batches_every_eighth_is_set_aside() -> None:
    batches = [torch.randn(40, 10, dtype=torch.float64) for _ in range(10)]
    plan = planned(_layer(), batches, keep=0.5)
    assert [id(batch) for batch in plan.held_out] == [id(batches[7])]
    assert len(plan.data.batches) == 9
    assert plan.tokens["0"] == 360


def test_a_plan_that_was_applied_holds_no_factors_but_still_tells_all():
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8))
    plan = compress(model, keep=0.5, method="svd", dry_run=True)
    rows, report = plan.rows(), plan.report()
    done = plan.apply()
    assert all(tensor.ndim < 2 for piece in plan.pieces for tensor in piece.learned.values())
    assert plan.store == {}
    with pytest.raises(RuntimeError, match="was applied"):
        plan.at(keep=0.3)
    assert plan.rows() == rows
    assert plan.report() == report
    assert [row["size"] for row in done.rows()] == [row["size"] for row in rows]
