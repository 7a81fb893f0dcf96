"""Tables on their way through the predictor."""

from collections import Counter
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import pandas as pd

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
        values: of each row raw and calibrated probabilities, votes for the classes and
            unfamiliarity, side by side; NaN until it was predicted.
        errors: why a row cannot be.
        missing: what it lacks.
    """

    def __init__(self, table: pd.DataFrame, patients: Patients, classes: int) -> None:
        """Takes a table, its canonical rows and the number of classes."""
        self.table, self.patients = table, patients
        self.values = np.full((len(table), 3 * classes + 1), np.nan)
        self.errors, self.missing = np.full((2, len(table)), "", dtype=object)


class Batch(NamedTuple):
    """Rows of a part that go through the networks together."""

    part: Part
    rows: slice
    seen: list[Future[Seen]]
    last: bool
