"""Inference of the meaning of a table's columns from their names and cells."""

import re
from collections.abc import Callable, Collection
from typing import Any, Final

import pandas as pd

from skinmm.data.cohorts.targets import BINARY
from skinmm.images.finder import strip_suffix
from skinmm.vocabulary import (
    column_key,
    is_in_months,
    is_missing,
    match_columns,
    parse_age,
    parse_diagnosis,
    parse_sex,
    parse_site,
    parse_truth,
)

MAPPED: Final = ("image_id", "patient_id", "lesion_id", "age", "sex", "site", "diagnosis", "target")
"""Canonical columns, in the order of the search."""
MAX_CELLS: Final = 2000  # distinct cells of a column that are examined
MIN_SHARE: Final = 0.9  # of the cells that must have a meaning
_ID: Final = "([ug]?u?ids?|nr|no|num|nummer|number|code|key|name|identifier|pseudonym|hash|index)"
_PREFIX: Final = "(id|anon(ymi[sz]ed)?|pseudo(nymi[sz]ed)?|study|hospital|clinic)?"
_NAMES: Final = {  # pattern of the key of a column, where cells alone do not decide
    "patient_id": f"{_PREFIX}(patient|patienten|subject|person|case|fall|pat|pid)"
    f"(study)?{_ID}?(anon)?",
    "lesion_id": f"{_PREFIX}(skin)?(lesion|mole|laesion){_ID}?",
    "age": "(approx|patient|person|subject)?(age|alter|eta|edad|years|jahre)"
    "((in|of|at)?(approx|years?|yrs?|y|jahren?|age|(first)?visit|diagnosis|exam|biopsy))*",
    "target": ".*(target|label|class|malig|cancer|melan|outcome|result|positive).*",
}


def infer_columns(table: pd.DataFrame, images: Collection[str]) -> dict[str, str]:
    """Map each canonical column to the column of a table that probably contains it.

    A known name decides; otherwise the cells do, and for patient, lesion and age the name too.
    Several columns that fit equally well are left out.

    Cells are text, None where empty; `images` are names without folder and suffix.
    """
    mapping = {canonical: str(name) for name, canonical in match_columns(table.columns).items()}
    mapping = {canonical: mapping[canonical] for canonical in MAPPED if canonical in mapping}
    meanings: dict[str, Callable[[str], bool]] = {
        "image_id": lambda cell: strip_suffix(re.split(r"[\\/]", cell)[-1]) in images,
        "patient_id": lambda _: True,
        "lesion_id": lambda _: True,
        "age": lambda cell: parse_age(cell) is not None,
        "sex": lambda cell: parse_sex(cell) is not None,
        "site": lambda cell: parse_site(cell) is not None,
        "diagnosis": lambda cell: parse_diagnosis(cell) is not None or cell.lower() in BINARY,
        "target": lambda cell: parse_truth(cell) is not None,
    }
    for canonical in MAPPED:
        is_labelled = canonical == "target" and "diagnosis" in mapping
        if canonical in mapping or is_labelled:
            continue
        pattern = _NAMES.get(canonical, ".*")
        candidates = [
            str(name)
            for name in table.columns
            if name not in mapping.values()
            and (
                (
                    re.fullmatch(pattern, column_key(name))
                    and _has_meaning(table[name], meanings[canonical])
                )
                or (canonical == "age" and is_in_months(name))  # refused with what to do
            )
        ]
        if len(candidates) == 1:
            mapping[canonical] = candidates[0]
    return mapping


def _has_meaning(column: "pd.Series[Any]", has_meaning: Callable[[str], bool]) -> bool:
    distinct = map(str, column.dropna().unique()[:MAX_CELLS])
    cells = [cell for cell in distinct if not is_missing(cell)]
    return bool(cells) and sum(map(has_meaning, cells)) >= MIN_SHARE * len(cells)
