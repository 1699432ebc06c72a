"""Running claims: the same seed gives the same numbers, what is done is not done again, an error stops nobody else."""

import json
from pathlib import Path

import pytest
import torch

import eckart
from eckart.claims import Claim, Moment, run, run_many
from eckart.claims.pace import Pace
from toy_claims import BROKEN, FALSE, LONG, RUNS, TOYS, TRUE


@pytest.fixture(autouse=True)
def _no_runs_yet() -> None:
    RUNS.clear()


def test_the_verdicts_are_holds_fails_and_error_and_one_error_stops_nobody() -> None:
    outcomes = list(run_many([BROKEN, *TOYS]))
    assert [o.verdict for o in outcomes] == ["error", "holds", "fails", "error"]
    assert outcomes[0].error.startswith("RuntimeError: there are no digits (toy_claims.py, line ")
    assert outcomes[0].result is None


def test_a_claim_that_returns_no_result_is_an_error() -> None:
    [outcome] = run_many([Claim("X1", "", "", "", "data", lambda seed, size, progress: None)])  # type: ignore[arg-type, return-value]
    assert outcome.verdict == "error"


def test_a_missing_library_is_an_error_with_the_remedy() -> None:
    def needy(seed: int, size: str, *, progress: object = None) -> None:
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401

    [outcome] = run_many([Claim("X1", "", "", "", "data", needy)])  # type: ignore[arg-type]
    assert 'pip install "eckart[claims]"' in outcome.error


def test_the_seed_decides_the_numbers_and_torchs_generator_is_left_as_it_was() -> None:
    def drawn(seed: int) -> float:
        return float(run(TRUE, seed=seed).checks[1].measured)

    torch.manual_seed(7)
    first = drawn(0)
    after = torch.rand(())
    torch.manual_seed(7)
    assert torch.rand(()) == after
    assert drawn(0) == first != drawn(1)


@pytest.mark.parametrize(("options", "words"), [({"size": "huge"}, "size must be"), ({"seed": -1}, "seed must be")])
def test_bad_input_stops_the_run_before_it_begins(options: dict, words: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=words):
        run(TRUE, **options)
    with pytest.raises(ValueError, match=words):
        list(run_many([TRUE], keep=tmp_path / "kept", **options))
    assert (RUNS, (tmp_path / "kept").exists()) == ([], False)


def test_each_outcome_is_a_file_that_says_how_it_was_made(tmp_path: Path) -> None:
    list(run_many(TOYS, seed=3, keep=tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i}-small-seed3.json" for i in ("C1", "D1", "T1")]
    text = (tmp_path / "T1-small-seed3.json").read_text()
    data = json.loads(text)
    assert (data["id"], data["seed"], data["size"], data["verdict"]) == ("T1", 3, "small", "holds")
    assert data["versions"]["eckart"] == eckart.__version__
    assert data["versions"].keys() == {"eckart", "torch", "python"}
    assert data["threads"] == 1
    assert data["command"] == "eckart claims run T1 --seed 3 --size small"
    assert len(text.splitlines()) < 250, "a list of numbers takes one line"


def test_what_is_kept_is_not_run_again_unless_it_is_an_error_or_fresh_is_asked_for(tmp_path: Path) -> None:
    first = list(run_many(TOYS, keep=tmp_path))
    again = list(run_many(TOYS, keep=tmp_path))
    assert RUNS == ["T1", "C1", "D1", "D1"]
    assert [o.to_json() for o in again[:2]] == [o.to_json() for o in first[:2]]
    list(run_many(TOYS, keep=tmp_path, fresh=True))
    assert RUNS[4:] == ["T1", "C1", "D1"]


def test_another_seed_size_or_version_is_run_and_another_seeds_result_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options in ({}, {"seed": 1}, {"size": "paper"}, {}):
        list(run_many([TRUE], keep=tmp_path, **options))  # type: ignore[arg-type]
    assert (len(RUNS), len(list(tmp_path.iterdir()))) == (3, 3)
    monkeypatch.setattr(eckart, "__version__", "99")
    list(run_many([TRUE], keep=tmp_path))
    assert (len(RUNS), len(list(tmp_path.iterdir()))) == (4, 3)


def test_an_interrupted_claim_goes_on_from_its_state_which_goes_when_it_is_done(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        list(run_many([FALSE, LONG], keep=tmp_path))
    assert len(list(tmp_path.glob("D2*"))) == 1
    [false, long] = run_many([FALSE, LONG], keep=tmp_path)
    assert (false.verdict, long.verdict, RUNS) == ("fails", "holds", ["C1", "D2", "D2"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["C1-small-seed0.json", "D2-small-seed0.json"]


def test_fresh_forgets_the_state_too(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            list(run_many([LONG], keep=tmp_path, fresh=True))


@pytest.mark.parametrize("text", ["{", '{"id": "T2"}', "[]"])
def test_a_kept_file_that_is_broken_or_anothers_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "T1-small-seed0.json").write_text(text)
    with pytest.raises(ValueError, match="T1"):
        list(run_many([TRUE], keep=tmp_path))
    assert RUNS == []


def test_progress_counts_the_claims_that_are_run_and_the_steps_within_each(tmp_path: Path) -> None:
    list(run_many([FALSE], keep=tmp_path))
    seen: list[Moment] = []
    list(run_many([FALSE, TRUE, BROKEN], keep=tmp_path, watch=seen.append))
    assert [(m.claim.id, m.finished, m.count, m.done, m.total) for m in seen] == [
        ("T1", 0, 2, 0, 0), *(("T1", 0, 2, step, 4) for step in (1, 2, 3, 4)), ("D1", 1, 2, 0, 0),
    ]  # fmt: skip


def test_the_time_left_is_the_rest_of_this_claim_and_the_mean_for_each_to_come() -> None:
    now = iter([0.0, 4.0, 10.0, 10.0, 12.0])
    pace, seen = Pace(3, clock=lambda: next(now)), list[Moment]()
    pace.begin(TRUE, seen.append)
    assert seen[-1].left is None
    pace.report(1, 2, "")  # 4 s for a half: 4 more, and 8 for each of two
    assert seen[-1].left == 4 + 2 * 8
    pace.end()  # it took 10
    pace.begin(FALSE, seen.append)
    assert seen[-1].left == 2 * 10
    pace.report(1, 3, "")  # 2 s for a third: 4 more, and the mean of 10 and 6 for the last
    assert seen[-1].left == pytest.approx(4 + 8)


def test_a_kept_file_that_is_damaged_says_how_to_go_on(tmp_path: Path) -> None:
    list(run_many(TOYS[:1], keep=tmp_path))
    [kept] = tmp_path.glob("*.json")
    kept.write_text('{"id":', encoding="utf-8")
    with pytest.raises(ValueError, match=r"not valid JSON .*; remove it, or run with --fresh"):
        list(run_many(TOYS[:1], keep=tmp_path))
    assert len(list(run_many(TOYS[:1], keep=tmp_path, fresh=True))) == 1
