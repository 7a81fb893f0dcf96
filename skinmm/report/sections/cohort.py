"""Section on the data: who is in which part, what is missing, and the audit of the split."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from skinmm.report.blocks import (
    ABSENT,
    Block,
    Note,
    Section,
    Table,
    format_count,
    format_number,
    format_share,
)
from skinmm.report.inputs import ReportInputs
from skinmm.vocabulary import resolve_patients

PARTS: Final[dict[str, str]] = {"train": "Training", "val": "Validation", "test": "Test"}
COLUMNS: Final = ("sex", "site", "source")


def build_cohort(inputs: ReportInputs) -> Section | None:
    """Build the section with characteristics by part, results by fold, and the audit."""
    blocks: list[Block] = [*filter(None, [build_characteristics(inputs)])]
    folds = inputs.measured.get("folds") or {}
    if folds:
        rows = [(f"fold {fold}", format_number(value)) for fold, value in folds.items()]
        blocks.append(Table("AUROC by fold", ("Test part", "AUROC"), rows))
    if inputs.config or inputs.audit:
        blocks += build_audit(inputs.audit)
    return Section("data", "Data and split", blocks) if blocks else None


def build_characteristics(inputs: ReportInputs) -> Table | None:
    """Return the table of characteristics by part; None without a cohort."""
    parts = split_parts(inputs)
    if not parts:
        return None
    classes = [] if inputs.predictions.is_binary else ["target"]
    return characteristics_table("Characteristics by part", parts, (*classes, *COLUMNS))


def split_parts(inputs: ReportInputs) -> dict[str, pd.DataFrame]:
    """Return the cohort by part with a column `malignant`; pooled folds are one part."""
    table = inputs.cohort
    if table is None or not {"part", "target", "image_id"} <= set(table):
        return {}
    positive = {"1", "1.0", *inputs.predictions.positive}
    table = table.assign(malignant=table["target"].astype(str).isin(positive))
    if inputs.predictions.fold is not None:
        return {"All folds": table}
    return {
        label: rows for part, label in PARTS.items() if len(rows := table[table["part"] == part])
    }


def patient_unit(rows: pd.DataFrame) -> str:
    """Return what `resolve_patients` identifies: `patient`, or `lesion` or `image`."""
    patients = resolve_patients(rows)
    for unit in ("image", "lesion"):
        if f"{unit}_id" in rows and (patients == rows[f"{unit}_id"]).all():
            return unit
    return "patient"


def resampling_unit(inputs: ReportInputs) -> str:
    """Return the unit that intervals resample: `patient`, `lesion` or `image`."""
    rows = inputs.predictions
    ids = pd.DataFrame({"image_id": rows.image_id, "patient_id": rows.patient_id})
    return patient_unit(ids if inputs.cohort is None else inputs.cohort)


def format_counts(inputs: ReportInputs, images: int, patients: int) -> list[str]:
    """Format numbers of images and patients; images alone if intervals resample them."""
    unit = resampling_unit(inputs)
    units = [] if unit == "image" else [format_count(patients, unit)]
    return [format_count(images, "image"), *units]


def characteristics_table(
    caption: str, parts: Mapping[str, pd.DataFrame], columns: Sequence[str] = COLUMNS
) -> Table:
    """Return counts, age and the values of `columns`, with one column per part."""
    table = pd.concat(parts.values())
    lines = [("Images", *(f"{len(rows):,}" for rows in parts.values()))]
    if patient_unit(table) == "patient":
        patients = (resolve_patients(rows).nunique() for rows in parts.values())
        lines.append(("Patients", *(f"{count:,}" for count in patients)))
    if "lesion_id" in table and table["lesion_id"].notna().any():
        lines.append(("Lesions", *(f"{rows['lesion_id'].nunique():,}" for rows in parts.values())))
    lines.append(("Malignant", *(format_share(rows["malignant"]) for rows in parts.values())))
    if "age" in table:
        ages = (_format_ages(rows["age"]) for rows in parts.values())
        unknown = (format_share(rows["age"].isna()) for rows in parts.values())
        lines += [("Age, mean (sd), years", *ages), ("Age not known", *unknown)]
    for name in filter(table.__contains__, columns):
        label = "Class" if name == "target" else name.capitalize()
        for value in sorted(table[name].dropna().unique()):
            cells = (format_share(rows[name] == value) for rows in parts.values())
            lines.append((f"{label}: {value}", *cells))
        if table[name].isna().any():
            unknown = (format_share(rows[name].isna()) for rows in parts.values())
            lines.append((f"{label} not known", *unknown))
    return Table(caption, ("", *parts), lines)


def _format_ages(ages: "pd.Series[float]") -> str:
    years = pd.to_numeric(ages, errors="coerce").dropna()
    return f"{years.mean():.1f} ({years.std(ddof=0):.1f})" if len(years) else ABSENT


def build_audit(audit: Mapping[str, Any]) -> list[Block]:
    """Return the findings of an audit as notes and tables; empty findings mean no audit."""
    if not audit:
        return [Note("The cohort and its split were not audited.")]
    leaks = [Note(f"Leak: {leak}.", warning=True) for leak in audit.get("leaks", [])]
    blocks: list[Block] = [*(leaks or [Note("The audit found no leak between the parts.")])]
    blocks += [Note(f"Shortcut: {text}.", warning=True) for text in audit.get("warnings", [])]
    rows = [
        (f"{kind.capitalize()}s in two parts", f"{count:,}")
        for kind, count in audit.get("across_parts", {}).items()
    ]
    if audit.get("size_auroc") is not None:
        label = "AUROC of the image's width and height alone"
        rows.append((label, format_number(audit["size_auroc"])))
    if rows:
        blocks.append(Table("Audit of cohort and split", ("Check", "Result"), rows))
    groups = audit.get("acquisition", [])
    if len(groups) > 1:
        header = ("Image size or source", "Images", "Malignant", "AUROC of membership")
        lines = [
            (str(g["group"]), f"{g['rows']:,}", f"{g['malignant']:,}", format_number(g["auroc"]))
            for g in groups
        ]
        blocks.append(Table("Origin of the images", header, lines))
    return blocks
