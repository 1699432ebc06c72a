"""The results at the paper's sizes that are kept in the repository: whole, of every claim, and what the docs say."""

import json
from pathlib import Path

from eckart.claims import Result, names

KEPT = Path(__file__).parents[2] / "benchmarks" / "claims"


def test_every_claim_is_kept_at_the_papers_size_and_holds_by_its_own_numbers() -> None:
    found = {}
    for path in KEPT.glob("*.json"):
        data = json.loads(path.read_text())
        found[data["id"]] = data
        assert path.name == f"{data['id']}-paper-seed{data['seed']}.json"
        assert data["command"] == f"eckart claims run {data['id']} --seed {data['seed']} --size paper"
        assert Result.from_json(data["result"]).holds, path.name
        assert data["verdict"] == "holds"
    assert set(found) == set(names())
