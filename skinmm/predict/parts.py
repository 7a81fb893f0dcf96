"""Tables on their way through the predictor."""

from collections import Counter
from concurrent.futures import Future
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from skinmm.data.vocabulary import named_patients
from skinmm.predict.images import Seen
from skinmm.predict.reader import Patients


class Predicted(NamedTuple):
    """A table's predictions, and how many cells, by column, held no known value."""

    table: pd.DataFrame
    unknown: Counter[str]


class Part:
    """A table that is being predicted.

    Attributes:
        table: as it was given.
        patients: its canonical rows.
        start: the place of its first row among those of a job.
        seen: of each row what the members saw, side by side; NaN until they looked.
        keys: which rows of a patient come first, where not all can be compared.
        errors: why a row cannot be predicted.
        missing: what it lacks.
    """

    def __init__(self, table: pd.DataFrame, patients: Patients, width: int, start: int = 0) -> None:
        """Takes a table, its canonical rows, the width of `seen` and the place in the job."""
        self.table, self.patients, self.start = table, patients, start
        self.seen = np.full((len(table), width), np.nan)
        self.keys = np.zeros(len(table), np.int64)
        self.errors, self.missing = np.full((2, len(table)), "", dtype=object)

    @cached_property
    def named(self) -> list[str | None]:
        """Whose each row is, once it was looked at; None where it failed, or is nobody's."""
        names = named_patients(self.patients.table)
        return [None if error else name for name, error in zip(names, self.errors, strict=True)]


class Batch(NamedTuple):
    """Rows of a part that go through the networks together."""

    part: Part
    rows: slice
    seen: list[Future[Seen]]
    last: bool
