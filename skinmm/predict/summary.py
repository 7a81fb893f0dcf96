"""What is made of a finished output: a row per patient, and the competition's file."""

import os
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.files import whole
from skinmm.predict.images import bare

Rows = Iterable[pd.DataFrame]
LISTED: Final = 20
"""Lesions of a patient that are named, those of the highest risk first."""


@dataclass
class _Patient:
    """What a patient's rows say.

    `lesions` holds (malignancy, image) of the highest risks, `decisions` the reasons for each
    decision that any row had.
    """

    lesions: list[tuple[float, str]] = field(default_factory=list)
    decisions: dict[str, list[str]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    images: int = 0

    def row(self) -> dict[str, Any]:
        """Decided by the worst: malignant before refer, and what was not predicted is referred."""
        decisions = {*self.decisions} | ({"refer"} if self.failures else set())
        decided = next(name for name in ("malignant", "refer", "benign") if name in decisions)
        reasons = self.decisions.get(decided, [])
        return {
            "decision": decided,
            "malignancy": self.lesions[0][0] if self.lesions else None,
            "images": self.images,
            "lesions": "|".join(lesion[1] for lesion in self.lesions),
            "reasons": "; ".join([*reasons, *self.failures][:LISTED]),
        }


def write_patients(rows: Rows, path: Path) -> None:
    """Writes a row per patient, the highest risk first; a row of nobody's is a patient's own.

    `decision` is malignant if any lesion is, else refer if any is or could not be predicted;
    `malignancy` is the highest; `lesions` names the images, the highest risk first; `reasons` says
    what speaks for the decision, lesion by lesion.

    Args:
        rows: an output, in parts, as text.
        path: CSV to write.
    """
    patients: dict[str, _Patient] = {}
    for table in rows:
        for row in table.to_dict("records"):
            patient = patients.setdefault(row["patient_id"] or row["image_id"], _Patient())
            patient.images += 1
            if row["error"]:
                patient.failures.append(row["error"])
                continue
            lesion = (float(row["malignancy"]), row["image_id"])
            patient.lesions = sorted([*patient.lesions, lesion], key=lambda one: -one[0])[:LISTED]
            reasons = patient.decisions.setdefault(row["decision"], [])
            if (reason := _reason(row)) and len(reasons) < LISTED:
                reasons.append(reason)
    made = pd.DataFrame({"patient_id": name, **each.row()} for name, each in patients.items())
    ordered = made.sort_values("malignancy", ascending=False, kind="stable", na_position="last")
    _write(ordered, path)


def write_submission(rows: Rows, path: Path) -> None:
    """Writes `image_name,target`: the probability of malignancy of every image.

    Args:
        rows: an output, in parts, as text.
        path: CSV to write.
    """
    _write((_submitted(table) for table in rows), path)


def _submitted(table: pd.DataFrame) -> pd.DataFrame:
    names = [bare(os.path.basename(cell)) for cell in table["image_id"]]  # noqa: PTH119
    return pd.DataFrame({"image_name": names, "target": table["malignancy"]})


def _reason(row: Mapping[Hashable, Any]) -> str:
    """Why a lesion was decided as it was; nothing where it is plainly benign."""
    malignancy, threshold = float(row["malignancy"]), float(row["threshold"])
    reasons = []
    if malignancy >= threshold:
        reasons.append(f"malignancy {malignancy:.3g} reaches {threshold:.3g}")
    if row["decision"] == "refer" and row["prediction_set"]:
        reasons.append(f"prediction set {row['prediction_set']}")
    if row["ood"] and float(row["ood"]) > 1:
        reasons.append(f"unlike validation ({float(row['ood']):.3g})")
    if reasons and row["missing"]:
        reasons.append(f"without {row['missing'].replace('|', ', ')}")
    return f"{row['image_id']}: {', '.join(reasons)}" if reasons else ""


def _write(tables: pd.DataFrame | Iterator[pd.DataFrame], path: Path) -> None:
    """Under a temporary name, then renamed."""
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        parts = [tables] if isinstance(tables, pd.DataFrame) else tables
        for number, table in enumerate(parts):
            table.to_csv(
                file, index=False, header=number == 0, float_format="%.9g", lineterminator="\n"
            )
