"""The surest mistakes, with picture and record: what a reader can check by eye."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Int

from skinmm.report.blocks import Block, Card, Gallery, Note, Section
from skinmm.report.evidence import Evidence
from skinmm.report.pictures import thumbnail
from skinmm.report.wording import number

SHOWN: Final = 8


def mistakes(evidence: Evidence) -> Section:
    """Malignant lesions called benign, the least suspected first; benign ones, the most."""
    rows = evidence.predictions
    flagged = rows.malignancy >= evidence.threshold
    missed = _first(np.flatnonzero(rows.malignant & ~flagged), rows.malignancy)
    alarms = _first(np.flatnonzero(~rows.malignant & flagged), -rows.malignancy)
    blocks: list[Block] = []
    for caption, chosen in (("Malignant, called benign", missed), ("Benign, flagged", alarms)):
        if len(chosen):
            blocks.append(Gallery(caption, [_card(evidence, row) for row in chosen.tolist()]))
        else:
            blocks.append(Note(f"{caption}: none."))
    lead = "The mistakes that the model was surest of, at most eight of either kind."
    return Section("mistakes", "Most certain mistakes", blocks, lead)


def _first(rows: Int[np.ndarray, " k"], key: "np.ndarray") -> Int[np.ndarray, " m"]:
    return rows[np.argsort(key[rows], kind="stable")][:SHOWN]


def _card(evidence: Evidence, row: int) -> Card:
    predictions, records = evidence.predictions, evidence.records
    record = {} if records is None else records.iloc[row].to_dict()
    lines = [f"probability {number(float(predictions.malignancy[row]))}"]
    if not predictions.binary:
        likeliest = predictions.classes[int(predictions.probabilities[row].argmax())]
        lines.append(f"{predictions.classes[predictions.target[row]]}, likeliest {likeliest}")
        record.pop("diagnosis", None)
    lines += record_lines(record)
    picture = thumbnail(record.get("path")) if evidence.pictures else None
    return Card(str(predictions.image_id[row]), lines, picture)


def record_lines(record: Mapping[Any, Any]) -> list[str]:
    """Age, sex and site of a canonical row, and its diagnosis; missing ones are left out."""
    known = {name: value for name, value in record.items() if not pd.isna(value)}
    age = [f"{known['age']:.0f} years"] if "age" in known else []
    person = ", ".join([*age, *(str(known[name]) for name in ("sex", "site") if name in known)])
    diagnosis = [f"diagnosis {known['diagnosis']}"] if "diagnosis" in known else []
    return [line for line in (person or "no record", *diagnosis) if line]
