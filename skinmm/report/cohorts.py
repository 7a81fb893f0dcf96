"""A cohort as its pages see it: named rows with their class, and what is said of every one."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from skinmm.report.blocks import Card
from skinmm.report.format import plural
from skinmm.report.pictures import thumbnail
from skinmm.report.sections.cohort import patients_in
from skinmm.report.sections.mistakes import record_lines


@dataclass(frozen=True)
class Cohort:
    """Canonical rows and what their targets mean.

    Attributes:
        name: of the dataset.
        table: the rows; `target` holds an index into `classes`, or one of them.
        classes: names, in order.
        positive: those that count as malignant.
        columns: of the record, that a model would see.
    """

    name: str
    table: pd.DataFrame
    classes: Sequence[str]
    positive: Sequence[str]
    columns: Sequence[str] = ()

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The table with columns `class` and `malignant`."""
        target = self.table["target"]
        if pd.api.types.is_numeric_dtype(target):
            target = target.map(dict(enumerate(self.classes)))
        return self.table.assign(**{"class": target, "malignant": target.isin(self.positive)})

    @property
    def by_class(self) -> dict[str, pd.DataFrame]:
        """The rows of each class that has any."""
        found = {name: self.rows[self.rows["class"] == name] for name in self.classes}
        return {name: rows for name, rows in found.items() if len(rows)}

    @property
    def facts(self) -> list[str]:
        """Short remarks for the head of a page."""
        return [
            f"data {self.name}",
            plural(len(self.rows), "image"),
            plural(patients_in(self.rows), "patient"),
            f"{int(self.rows['malignant'].sum()):,} malignant",
        ]


def lesion_card(row: Mapping[Hashable, Any], *remarks: str) -> Card:
    """A canonical row with its picture; `remarks` stand first."""
    return Card(str(row["image_id"]), [*remarks, *record_lines(row)], thumbnail(row["path"]))
