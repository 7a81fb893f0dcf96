"""Section on the data: patients of each part, missing values, and the audit of the split."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from skinmm.errors import format_count
from skinmm.report.blocks import (
    ABSENT,
    TEXTS,
    Block,
    Fold,
    Note,
    Section,
    Table,
    format_number,
    format_percent,
    format_share,
)
from skinmm.report.inputs import ReportInputs
from skinmm.vocabulary import name_units

PARTS: Final[dict[str, str]] = {
    "train": "Training",
    "val": "Validation",
    "calibration": "Calibration",
    "test": "Test",
}
COLUMNS: Final = ("sex", "site", "source")


def build_cohort(inputs: ReportInputs) -> Section | None:
    """Build the section with the patients and images of each part; fold sites, folds and audit."""
    first: list[Block] = [Note(f"{note}.") for note in inputs.notes]
    if parts := split_parts(inputs):
        first.append(characteristics_table("Patients and images by part", parts, COLUMNS[:1]))
    blocks: list[Block] = [*filter(None, [build_characteristics(inputs)])]
    folds = inputs.measured.get("folds") or {}
    if folds:
        names = {fold: f"fold {fold}" for fold in folds}
        if inputs.config.get("data", {}).get("split") == "source":
            tested = pd.Series(inputs.predictions.source, dtype=object)
            sources = tested.groupby(pd.Series(inputs.predictions.fold)).first()
            names = {fold: f"fold {fold}: {sources[int(fold)]}" for fold in folds}
        rows = [(names[fold], format_number(value)) for fold, value in folds.items()]
        blocks.append(Table("AUROC by fold", ("Test part", "AUROC"), rows))
    if inputs.config or inputs.audit:
        audit = build_audit(inputs.audit)
        first += [block for block in audit if isinstance(block, Note) and block.warning]
        blocks += [block for block in audit if block not in first]
    if blocks:
        first.append(Fold("Sites, sources, folds and audit", blocks))
    return Section("data", "Who was in the data", first) if first else None


def image_kinds(inputs: ReportInputs) -> str:
    """Describe the kinds of images in the cohorts."""
    names = [inputs.config.get("data", {}).get("name")]
    if inputs.cohort is not None and "source" in inputs.cohort:
        names = list(inputs.cohort.get("cohort", inputs.cohort["source"]).unique())
    # A cohort that is added to another of the same name has a number: `isic_2019 (2)`.
    kinds = {TEXTS["kinds"].get(str(name).partition(" (")[0], TEXTS["any_kind"]) for name in names}
    return " and ".join(sorted(kinds))


def describe_people(inputs: ReportInputs) -> str:
    """Describe number, ages and sexes of the evaluated rows, as far as they are known."""
    parts = [format_counts(inputs.units, pd.Series(inputs.predictions.patient_id))]
    records = pd.DataFrame() if inputs.records is None else inputs.records
    if "age" in records and len(ages := pd.to_numeric(records["age"], errors="coerce").dropna()):
        suffix = "" if len(ages) == len(records) else ", where known"
        parts.append(
            f"aged {ages.min():.0f} to {ages.max():.0f} (median {ages.median():.0f}{suffix})"
        )
    if "sex" in records and len(sexes := records["sex"].dropna()):
        suffix = "" if len(sexes) == len(records) else " where known"
        parts.append(f"{format_percent(float((sexes == 'female').mean()), 0)} female{suffix}")
    return ", ".join(parts)


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


def resampling_unit(inputs: ReportInputs) -> str:
    """Return the unit to resample for intervals: patient, lesion or image, the most frequent."""
    return str(inputs.units.mode().iloc[0])


def format_counts(units: "pd.Series[str]", patients: "pd.Series[Any]") -> str:
    """Format the numbers of images and of named patients (`units` as from `name_units`)."""
    is_named, images = units == "patient", format_count(len(units), "image")
    if not is_named.any():
        return f"{images} (no patient IDs)"
    count = format_count(patients[is_named].nunique(), "patient")
    if is_named.all():
        return f"{images} of {count}"
    return f"{images}, of which {is_named.sum():,} name a patient ({count})"


def characteristics_table(
    caption: str, parts: Mapping[str, pd.DataFrame], columns: Sequence[str] = COLUMNS
) -> Table:
    """Return a table of counts, ages and the values of `columns`, with one column per part."""
    table = pd.concat(parts.values())
    lines = [("Images", *(f"{len(rows):,}" for rows in parts.values()))]
    is_named = name_units(table) == "patient"
    if is_named.any():
        named = [rows[name_units(rows) == "patient"] for rows in parts.values()]
        lines.append(("Patients", *(f"{rows['patient_id'].nunique():,}" for rows in named)))
        if not is_named.all():
            lines.append(("Images that name a patient", *(f"{len(rows):,}" for rows in named)))
    if "lesion_id" in table and table["lesion_id"].notna().mean() > 0.5:  # noqa: PLR2004 - most
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
    """Return an audit as notes and tables; an empty mapping means that none was made."""
    if not audit:
        return [Note("The cohort and its split were not audited.")]
    leaks = [Note(f"Leak: {leak}.", warning=True) for leak in audit.get("leaks", [])]
    blocks: list[Block] = [*(leaks or [Note(TEXTS["no_leak"])])]
    possible = audit.get("possible_leaks", [])
    blocks += [Note(f"Possible leak: {text}.", warning=True) for text in possible]
    blocks += [Note(f"Not checked: {text}.") for text in audit.get("unchecked", [])]
    blocks += [Note(f"Cohort: {note}.") for note in audit.get("notes", [])]
    blocks += [Note(f"Shortcut: {text}.", warning=True) for text in audit.get("warnings", [])]
    named, rows = audit.get("named", {}), []
    for kind, count in audit.get("across_parts", {}).items():
        is_checked = count is not None and (kind != "near duplicate" or "compared" in audit)
        result = f"{count:,}" if is_checked else "not checked"
        if named.get(kind, audit.get("rows")) != audit.get("rows"):
            result += f" ({named[kind]:,} of {audit['rows']:,} rows name one)"
        rows.append((f"{kind.capitalize()}s in two parts", result))
    if audit.get("size_auroc") is not None:
        label = "AUROC of the image's width and height alone"
        rows.append((label, format_number(audit["size_auroc"])))
    if audit.get("source_auroc") is not None:
        label = "AUROC of the source alone, from training to test rows"
        rows.append((label, format_number(audit["source_auroc"])))
    if rows:
        blocks.append(Table("Audit of cohort and split", ("Check", "Result"), rows))
    groups = audit.get("acquisition", [])
    if len(groups) > 1:
        header = (
            "Image size or source",
            "Images",
            "Malignant",
            "AUROC of membership (0.5 or more)",
        )
        lines = [
            (str(g["group"]), f"{g['rows']:,}", f"{g['malignant']:,}", format_number(g["auroc"]))
            for g in groups
        ]
        blocks.append(Table("Origin of the images", header, lines))
    return blocks
