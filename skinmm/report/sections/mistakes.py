"""The surest mistakes, with picture and record: what a reader can check by eye."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.evaluation.predictions import find_confident_mistakes
from skinmm.report.blocks import Block, Card, Gallery, Note, Section
from skinmm.report.format import number
from skinmm.report.inputs import Evidence
from skinmm.report.pictures import embedded, thumbnail

_CAPTIONS: Final = {"missed": "Malignant, called benign", "flagged": "Benign, flagged"}
_EXPLAINED: Final = (
    " Below a picture where it speaks for malignancy, the more yellow the more; points are what "
    "each input added to the probability, in percent (Shapley values). They show what moved the "
    "network, not where disease is."
)


def mistakes(evidence: Evidence) -> Section:
    """Malignant lesions called benign, the least suspected first; benign ones, the most."""
    blocks: list[Block] = []
    for kind, chosen in find_confident_mistakes(evidence.predictions, evidence.threshold).items():
        caption = _CAPTIONS[kind]
        if len(chosen):
            blocks.append(Gallery(caption, [_card(evidence, row) for row in chosen.tolist()]))
        else:
            blocks.append(Note(f"{caption}: none."))
    lead = "The mistakes that the model was surest of, at most eight of either kind."
    lead += _EXPLAINED if evidence.explanations else ""
    return Section("mistakes", "Most certain mistakes", blocks, lead)


def _card(evidence: Evidence, row: int) -> Card:
    predictions, records = evidence.predictions, evidence.records
    record = {} if records is None else records.iloc[row].to_dict()
    lines = [f"probability {number(float(predictions.malignancy[row]))}"]
    if not predictions.is_binary:
        called = predictions.classes[predictions.predicted_classes()[row]]
        lines.append(f"{predictions.classes[predictions.target[row]]}, called {called}")
        record.pop("diagnosis", None)
    lines += record_lines(record)
    title = str(predictions.image_id[row])
    said = evidence.explanations.get(title, {})
    if said:
        points = (f"{name} {100 * added:+.1f}" for name, added in said["added"].items())
        lines.append(f"points: {', '.join(points)}")
    if not evidence.pictures:
        return Card(title, lines)
    heat = embedded(Path(said["picture"])) if said else None
    return Card(title, lines, thumbnail(record.get("path")), heat)


def record_lines(record: Mapping[Any, Any]) -> list[str]:
    """Age, sex and site of a canonical row, and its diagnosis; missing ones are left out."""
    known = {name: value for name, value in record.items() if not pd.isna(value)}
    age = [f"{known['age']:.0f} years"] if "age" in known else []
    person = ", ".join([*age, *(str(known[name]) for name in ("sex", "site") if name in known)])
    diagnosis = [f"diagnosis {known['diagnosis']}"] if "diagnosis" in known else []
    return [line for line in (person or "no record", *diagnosis) if line]
