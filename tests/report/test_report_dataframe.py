"""The pandas table keeps every row and number, and splits intervals into two columns."""

import pandas as pd
import pytest

from eckart.report import frame
from eckart.spectra import Profile


def test_the_frame_holds_every_row_and_column_of_the_profile(profile: Profile) -> None:
    table, rows = frame(profile), profile.rows()
    assert len(table) == len(rows)
    assert set(table.columns) == {key for row in rows for key in row}
    assert table["stable_rank"].tolist() == pytest.approx([row["stable_rank"] for row in rows])


def test_whole_numbers_stay_whole_where_some_are_missing(profile: Profile) -> None:
    table = frame(profile)
    assert table["layer"].dtype == "Int64"
    assert table["tokens"].dtype == "Int64"
    assert pd.isna(table.loc[0, "layer"])


def test_an_interval_becomes_two_columns_and_its_column_is_empty(fast_profile: Profile) -> None:
    table = frame(fast_profile)
    low, high = fast_profile.rows()[0]["effective_rank"]
    assert table.loc[0, "effective_rank_low"] == pytest.approx(low)
    assert table.loc[0, "effective_rank_high"] == pytest.approx(high)
    assert pd.isna(table.loc[0, "effective_rank"])
    assert (table["stable_rank_high"] / table["stable_rank_low"] - 1 <= 0.0202).all()
    assert "norm_low" not in table


def test_names_in_a_tuple_are_no_interval(profile: Profile) -> None:
    table = frame(profile)
    assert table["shared_with"].iloc[-1] == ("k", "v")
    assert "shared_with_low" not in table
