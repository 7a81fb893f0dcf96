"""A page that may leave the building: no picture, and no name of an image, patient or lesion."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from skinmm.report.evidence import Evidence, read_run
from skinmm.report.write import write_evidence


def shared_report(run: Path, output: Path) -> Path:
    """Writes a run's page with numbers in place of names.

    Raises:
        InputError: as `write_report`.
    """
    return write_evidence(_nameless(read_run(run, pictures=False)), output)


def _nameless(evidence: Evidence) -> Evidence:
    rows, cohort = evidence.predictions, evidence.cohort
    given = pd.Series(rows.image_id)
    everyone = given if cohort is None else pd.concat([given, cohort["image_id"]])
    images = {name: f"image {place}" for place, name in enumerate(everyone.unique(), start=1)}
    if cohort is not None:
        others = {
            column: _numbered(cohort[column])
            for column in ("patient_id", "lesion_id")
            if column in cohort
        }
        cohort = cohort.assign(image_id=cohort["image_id"].map(images), path=None, **others)
    audit = dict(evidence.audit)
    if audit.get("leaks"):  # each names its rows
        audit["leaks"] = [f"{len(audit['leaks'])} links between parts"]
    return replace(
        evidence,
        predictions=replace(
            rows,
            image_id=given.map(images).to_numpy(),
            patient_id=_numbered(pd.Series(rows.patient_id)).to_numpy(),
        ),
        cohort=cohort,
        audit=audit,
        explanations={},
    )


def _numbered(names: "pd.Series[Any]") -> "pd.Series[Any]":
    codes, _ = pd.factorize(names)
    return pd.Series(codes, index=names.index).astype(str).where(codes >= 0)
