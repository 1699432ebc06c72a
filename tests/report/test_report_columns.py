"""The words for the columns are the same set everywhere: the page's glossary and the page of the documentation."""

import re
from pathlib import Path

from eckart.report.columns import COLUMNS

PAGE = Path(__file__).parents[2] / "docs/reading-a-profile.md"


def test_the_documentation_explains_exactly_the_columns_that_there_are() -> None:
    heads = [line.split("|")[1] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert {key for head in heads for key in re.findall(r"`(\w+)`", head)} == set(COLUMNS)
    assert sum(len(re.findall(r"`\w+`", head)) for head in heads) == len(COLUMNS)


def test_every_column_says_what_it_is_and_how_to_read_it() -> None:
    assert not [key for key, c in COLUMNS.items() if not (c.label and c.formula and c.words and c.reading)]
    labels = [column.label for column in COLUMNS.values()]
    assert len(set(labels)) == len(labels)
