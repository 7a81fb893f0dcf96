"""Tables on their way through the predictor."""

from collections import Counter
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import pandas as pd

from skinmm.predict.images import LoadedRow
from skinmm.predict.reader import Patients


class PredictionTable(NamedTuple):
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


class TableBatch:
    """A table that is being predicted.

    Attributes:
        patients: its canonical rows.
        cells: of these, by column.
        size: how many there are.
        seen: of each row what the members saw, side by side; NaN until they looked.
        errors: why a row cannot be predicted.
        missing: what it lacks.
    """

    def __init__(self, patients: Patients, width: int) -> None:
        """Takes a table's canonical rows and the width of `seen`."""
        self.patients, self.cells = patients, patients.cells
        self.size = len(self.cells["image_id"])
        self.seen = np.full((self.size, width), np.nan)
        self.errors, self.missing = np.full((2, self.size), "", dtype=object)


class Batch(NamedTuple):
    """Rows of a part that go through the networks together."""

    part: TableBatch
    rows: slice
    seen: list[Future[LoadedRow]]
    last: bool
