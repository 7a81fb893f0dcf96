"""The data: who is in which part, what is missing, and what the audit of the split found."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from skinmm.report.blocks import Block, Note, Section, Table
from skinmm.report.format import ABSENT, format_count, format_number, format_percent
from skinmm.report.inputs import ReportInputs
from skinmm.vocabulary import resolve_patients

PARTS: Final[dict[str, str]] = {"train": "Training", "val": "Validation", "test": "Test"}
COLUMNS: Final = ("sex", "site", "source")


def cohort(evidence: ReportInputs) -> Section | None:
    """Characteristics by part, results by fold, and the audit."""
    blocks: list[Block] = []
    table = who(evidence)
    if table is not None:
        blocks.append(table)
    folds = evidence.measured.get("folds") or {}
    if folds:
        rows = [(f"fold {fold}", format_number(value)) for fold, value in folds.items()]
        blocks.append(Table("AUROC fold by fold", ("Test part", "AUROC"), rows))
    if evidence.config or evidence.audit:
        blocks += audit_blocks(evidence.audit)
    return Section("data", "Data and split", blocks) if blocks else None


def who(evidence: ReportInputs) -> Table | None:
    """Who is in which part."""
    parts = parts_of(evidence)
    if not parts:
        return None
    classes = [] if evidence.predictions.is_binary else ["target"]
    return characteristics("Who is in which part", parts, (*classes, *COLUMNS))


def parts_of(evidence: ReportInputs) -> dict[str, pd.DataFrame]:
    """The cohort's rows by part with a column `malignant`; of a pooled run all are one part."""
    table = evidence.cohort
    if table is None or not {"part", "target", "image_id"} <= set(table):
        return {}
    positive = {"1", "1.0", *evidence.predictions.positive}
    table = table.assign(malignant=table["target"].astype(str).isin(positive))
    if evidence.predictions.fold is not None:
        return {"All folds": table}
    return {
        label: rows for part, label in PARTS.items() if len(rows := table[table["part"] == part])
    }


def patients_in(rows: pd.DataFrame) -> int:
    """Patients; lesions, then images count where the patient is not known."""
    return int(resolve_patients(rows).nunique())


def unit_in(rows: pd.DataFrame) -> str:
    """What `patients_in` counts: patients, or lesions or images where no patient is known."""
    owners = resolve_patients(rows)
    for unit in ("image", "lesion"):
        if f"{unit}_id" in rows and (owners == rows[f"{unit}_id"]).all():
            return unit
    return "patient"


def unit_of(evidence: ReportInputs) -> str:
    """What intervals resample, as `unit_in`."""
    rows = evidence.predictions
    named = pd.DataFrame({"image_id": rows.image_id, "patient_id": rows.patient_id})
    return unit_in(named if evidence.cohort is None else evidence.cohort)


def counted(images: int, patients: int, unit: str) -> list[str]:
    """How many there are of both, or of images alone where these are the unit."""
    return [
        format_count(images, "image"),
        *([format_count(patients, unit)] if unit != "image" else []),
    ]


def characteristics(
    caption: str, parts: Mapping[str, pd.DataFrame], columns: Sequence[str] = COLUMNS
) -> Table:
    """Counts, age and the values of columns of canonical rows, a column for each part of them."""
    lines: list[tuple[str, ...]] = [
        ("Images", *(f"{len(rows):,}" for rows in parts.values())),
    ]
    everyone = pd.concat(parts.values())
    if unit_in(everyone) == "patient":
        lines.append(("Patients", *(f"{patients_in(rows):,}" for rows in parts.values())))
    if "lesion_id" in everyone and everyone["lesion_id"].notna().any():
        lines.append(("Lesions", *(f"{rows['lesion_id'].nunique():,}" for rows in parts.values())))
    lines.append(("Malignant", *(_share(rows["malignant"]) for rows in parts.values())))
    if "age" in everyone:
        lines.append(("Age, mean (sd), years", *(_mean(rows["age"]) for rows in parts.values())))
        lines.append(("Age not known", *(_share(rows["age"].isna()) for rows in parts.values())))
    for name in columns:
        if name in everyone:
            lines += _values(name, everyone[name], parts)
    return Table(caption, ("", *parts), lines)


def _values(
    name: str, column: "pd.Series[str]", parts: Mapping[str, pd.DataFrame]
) -> list[tuple[str, ...]]:
    label = "Class" if name == "target" else name.capitalize()
    lines = [
        (f"{label}: {value}", *(_share(rows[name] == value) for rows in parts.values()))
        for value in sorted(column.dropna().unique())
    ]
    if column.isna().any():
        lines.append(
            (f"{label} not known", *(_share(rows[name].isna()) for rows in parts.values()))
        )
    return lines


def _share(mask: "pd.Series[bool]") -> str:
    return f"{int(mask.sum()):,} ({format_percent(float(mask.mean()))})"


def _mean(ages: "pd.Series[float]") -> str:
    known = pd.to_numeric(ages, errors="coerce").dropna()
    return f"{known.mean():.1f} ({known.std(ddof=0):.1f})" if len(known) else ABSENT


def audit_blocks(audit: Mapping[str, Any]) -> list[Block]:
    """What an audit found, in words and tables; empty means that there was none."""
    if not audit:
        return [Note("The cohort and its split were not audited.")]
    leaks, warnings = list(audit.get("leaks", [])), list(audit.get("warnings", []))
    blocks: list[Block] = [Note(f"Leak: {leak}.", loud=True) for leak in leaks]
    if not leaks:
        blocks.append(Note("The audit found no leak between the parts."))
    blocks += [Note(f"Shortcut: {warning}.", loud=True) for warning in warnings]
    rows = [
        (f"{kind.capitalize()}s in two parts", f"{count:,}")
        for kind, count in audit.get("across_parts", {}).items()
    ]
    if audit.get("size_auroc") is not None:
        rows.append(
            ("AUROC of the image's width and height alone", format_number(audit["size_auroc"]))
        )
    if rows:
        blocks.append(Table("Audit of cohort and split", ("Check", "Outcome"), rows))
    groups = audit.get("acquisition", [])
    if len(groups) > 1:
        header = ("Image size or source", "Images", "Malignant", "AUROC of belonging to it")
        blocks.append(Table("Where images come from", header, list(map(_acquisition, groups))))
    return blocks


def _acquisition(group: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (f"{group[name]:,}" for name in ("rows", "malignant"))
    return (str(group["group"]), *counts, format_number(group["auroc"]))
