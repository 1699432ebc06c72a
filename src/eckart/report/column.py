"""The words for one column of a profile."""

from typing import NamedTuple


class Column(NamedTuple):
    """What one column of `Profile.rows()` is.

    Fields: `label` for a table's head; `unit`; `formula` in plain text; `words`, what it is; `reading`, what it says
    to a person who adapts, trains or compresses the model.
    """

    label: str
    unit: str
    formula: str
    words: str
    reading: str
