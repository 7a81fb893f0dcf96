"""Tables on their way through the predictor."""

from collections import Counter
from concurrent.futures import Future
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int64

from skinmm.data.vocabulary import named_patients
from skinmm.predict.images import Seen
from skinmm.predict.reader import Patients

OTHERS: Final = "other images"
"""What a row lacks that is judged alone by models that compare those of a patient."""


class Predicted(NamedTuple):
    """A table's predictions.

    Attributes:
        columns: the predictions.
        cells: the input's canonical rows, by column.
        unknown: how many cells of the input's held no known value, by column.
    """

    columns: dict[str, np.ndarray]
    cells: dict[str, np.ndarray]
    unknown: Counter[str]

    @property
    def table(self) -> pd.DataFrame:
        """The predictions as a table."""
        return pd.DataFrame(self.columns)


class Part:
    """A table that is being predicted.

    Attributes:
        patients: its canonical rows.
        cells: of these, by column.
        size: how many there are.
        start: the place of its first row among those of a job.
        seen: of each row what the members saw, side by side; NaN until they looked.
        keys: which rows of a patient come first, where not all can be compared.
        errors: why a row cannot be predicted.
        missing: what it lacks.
    """

    def __init__(self, patients: Patients, width: int, start: int = 0) -> None:
        """Takes a table's canonical rows, the width of `seen` and the place in the job."""
        self.patients, self.cells, self.start = patients, patients.cells, start
        self.size = len(self.cells["image_id"])
        self.seen = np.full((self.size, width), np.nan)
        self.keys = np.zeros(self.size, np.int64)
        self.errors, self.missing = np.full((2, self.size), "", dtype=object)

    def lack(self, what: str, rows: Int64[np.ndarray, " k"]) -> None:
        """Says what some rows lack, once they were looked at."""
        for row in rows:
            held = self.missing[row]
            self.missing[row] = f"{held}|{what}" if held else what

    @cached_property
    def named(self) -> list[str | None]:
        """Whose each row is, once it was looked at; None where it failed, or is nobody's."""
        columns = ("patient_id", "lesion_id", "image_id")
        names = named_patients(pd.DataFrame({name: self.cells[name] for name in columns}))
        return [None if error else name for name, error in zip(names, self.errors, strict=True)]


class Batch(NamedTuple):
    """Rows of a part that go through the networks together."""

    part: Part
    rows: slice
    seen: list[Future[Seen]]
    last: bool
