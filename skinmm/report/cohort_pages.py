"""Pages about a cohort without a model: exploration of the rows, and the audit of their split."""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.errors import InputError, format_count
from skinmm.images.decode import probe
from skinmm.images.source import read_source
from skinmm.report.blocks import (
    TEXTS,
    Block,
    Card,
    Gallery,
    Note,
    Pairs,
    Plot,
    Row,
    Section,
    Table,
    Tile,
    Tiles,
    format_percent,
    format_share,
    thumbnail,
)
from skinmm.report.figures.grids import draw_ages, draw_class_bars
from skinmm.report.sections.cohort import PARTS, build_audit, characteristics_table, format_counts
from skinmm.report.sections.performance import describe_record
from skinmm.report.write import write_page
from skinmm.vocabulary import name_units, resolve_patients

_NOT_KNOWN: Final = "not known"


@dataclass(frozen=True)
class Cohort:
    """Canonical rows with the meaning of their targets.

    Attributes:
        name: name of the dataset.
        table: canonical rows; `target` is an index into `classes`, or a class.
        classes: class names, in order.
        positive: classes that count as malignant.
        columns: record columns of a model.
        notes: lines on the cohort.
    """

    name: str
    table: pd.DataFrame
    classes: Sequence[str]
    positive: Sequence[str]
    columns: Sequence[str] = ()
    notes: Sequence[str] = ()

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Rows of the table with columns `class` and `malignant`."""
        target = self.table["target"]
        if pd.api.types.is_numeric_dtype(target):
            target = target.map(dict(enumerate(self.classes)))
        return self.table.assign(**{"class": target, "malignant": target.isin(self.positive)})

    @property
    def by_class(self) -> dict[str, pd.DataFrame]:
        """Rows of each class that occurs."""
        groups = {name: self.rows[self.rows["class"] == name] for name in self.classes}
        return {name: rows for name, rows in groups.items() if len(rows)}

    @property
    def groups(self) -> dict[str, pd.DataFrame]:
        """All rows, then the rows of each class."""
        return {"All": self.rows, **self.by_class}

    @property
    def facts(self) -> list[str]:
        """Facts for the head of a page."""
        return [
            format_counts(name_units(self.rows), resolve_patients(self.rows)),
            f"{int(self.rows['malignant'].sum()):,} malignant",
        ]


def write_audit_page(cohort: Cohort, findings: Mapping[str, Any], output: Path) -> Path:
    """Write the page of an audit; replace an existing page.

    Args:
        cohort: rows with their `part`.
        findings: result of the audit, and `absent`, a description of missing images; if pixels
            were compared also `compared`, the number of images, and `unreadable`, name -> reason.
        output: page to write.
    """
    sections = [_build_findings(cohort, findings), _build_pairs(cohort, findings)]
    sections.append(_build_unreadable(findings))
    return write_page(
        output, title=f"Audit of {cohort.name}", facts=cohort.facts, sections=sections
    )


def write_cohort_page(cohort: Cohort, output: Path, *, examples: int = 12) -> Path:
    """Write the exploration page of a cohort; replace an existing page.

    Images that are not on disk are counted; `examples` of each class are a fixed random choice.
    """
    builders = (_build_counts, _build_missing, _build_people, _build_sizes)
    sections = [build(cohort) for build in builders]
    if examples:
        sections.append(_build_examples(cohort, examples))
    return write_page(output, title=f"Cohort {cohort.name}", facts=cohort.facts, sections=sections)


def _build_findings(cohort: Cohort, findings: Mapping[str, Any]) -> Section:
    compared = findings.get("compared")
    counted = "" if compared is None else f"{format_count(compared, 'image')} compared by pixels."
    rows = cohort.rows
    parts = {PARTS[part]: rows[rows["part"] == part] for part in PARTS if part in set(rows["part"])}
    blocks = [*build_audit(findings), characteristics_table("The split", parts)]
    return Section("findings", "Findings", blocks, counted)


def _build_pairs(cohort: Cohort, findings: Mapping[str, Any]) -> Section | None:
    blocks: list[Block] = []
    for kind, total in findings["across_parts"].items():
        if not total:
            continue
        pairs = _find_pairs(kind, cohort.rows, findings)[:40]
        image_ids = {image_id for pair in pairs for image_id in pair}
        rows = cohort.rows[cohort.rows["image_id"].isin(image_ids)]
        records = rows.to_dict("records")
        cards = {row["image_id"]: _lesion_card(row, with_part=True) for row in records}
        if pairs:
            caption = f"{kind.capitalize()} in two parts: {len(pairs)} of {total:,}"
            blocks.append(Pairs(caption, [(cards[left], cards[right]) for left, right in pairs]))
    return Section("pairs", "The images", blocks, TEXTS["pairs"]) if blocks else None


def _find_pairs(
    kind: str, rows: pd.DataFrame, findings: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return the image pairs of one kind of leak; for a shared patient, one image of each part."""
    if f"{kind}_id" not in rows:
        return [(p["first"], p["second"]) for p in findings["pairs"] if p["kind"] == kind]
    used = rows[rows["part"].isin(PARTS)].dropna(subset=[f"{kind}_id"])
    by_group = used.drop_duplicates([f"{kind}_id", "part"]).groupby(f"{kind}_id", sort=False)
    images = by_group["image_id"].agg(list)
    return [(names[0], names[1]) for names in images if len(names) > 1]


def _lesion_card(row: Mapping[Hashable, Any], *, with_part: bool = False) -> Card:
    facts = [f"{PARTS[row['part']].lower()}, {row['class']}"] if with_part else []
    if with_part and row["patient_id"] != row["image_id"]:
        facts.append(f"patient {row['patient_id']}")
    return Card(str(row["image_id"]), [*facts, *describe_record(row)], thumbnail(row["path"]))


def _build_unreadable(findings: Mapping[str, Any]) -> Section | None:
    absent, unreadable = findings.get("absent"), findings.get("unreadable")
    blocks: list[Block] = [Note(f"{absent}.", warning=True)] if absent else []
    if unreadable:
        text = f"{format_count(len(unreadable), 'image')} could not be read or compared."
        rows = list(unreadable.items())[:100]
        blocks += [Note(text, warning=True), Table("", ("Image", "Reason"), rows)]
    return Section("unreadable", "Unreadable images", blocks) if blocks else None


def _build_counts(cohort: Cohort) -> Section:
    rows = cohort.rows
    on_disk, malignant = int(rows["path"].notna().sum()), int(rows["malignant"].sum())
    named = rows[name_units(rows) == "patient"]
    patients, lesions = int(named["patient_id"].nunique()), int(rows["lesion_id"].nunique())
    with_patient = f"named by {format_count(len(named), 'image')}"
    with_lesion = f"known for {format_count(int(rows['lesion_id'].notna().sum()), 'image')}"
    share = format_percent(malignant / len(rows))
    tiles = [
        Tile("Images", f"{len(rows):,}", f"{on_disk:,} on disk"),
        Tile("Patients", f"{patients:,}" if patients else _NOT_KNOWN, with_patient),
        Tile("Lesions", f"{lesions:,}" if lesions else _NOT_KNOWN, with_lesion * bool(lesions)),
        Tile("Malignant", share, format_count(malignant, "image")),
    ]
    characteristics = characteristics_table("Characteristics by class", cohort.groups)
    blocks: list[Block] = [Tiles(tiles), *(Note(f"{n}.") for n in cohort.notes), characteristics]
    if rows["diagnosis"].nunique() > len(cohort.classes):
        blocks.append(_crosstab("Diagnoses", rows["diagnosis"], cohort))
    return Section("counts", "Counts", blocks)


def _build_missing(cohort: Cohort) -> Section:
    labels = {"path": "image on disk", "width": "image size in the table"}
    columns = dict.fromkeys((*cohort.columns, "diagnosis", "lesion_id", *labels))
    lines = []
    for name in columns:
        cells = (format_share(rows[name].isna()) for rows in cohort.groups.values())
        lines.append((labels.get(name, name), *cells))
    table = Table("", ("Not known", *cohort.groups), lines)
    return Section("missing", "Missing", [table], TEXTS["missing_columns"])


def _build_people(cohort: Cohort) -> Section | None:
    plots = []
    if cohort.rows["age"].notna().any():
        ages = {name: rows["age"].dropna().to_numpy(float) for name, rows in cohort.groups.items()}
        plots.append(Plot("Age by class", draw_ages(ages), TEXTS["ages"]))
    if cohort.rows["site"].notna().any():
        sites = cohort.rows["site"].fillna(_NOT_KNOWN)
        counts = pd.crosstab(sites, cohort.rows["class"])[list(cohort.by_class)]
        figure = draw_class_bars(counts.loc[sites.value_counts().index])
        plots.append(Plot("Sites by class", figure))
    return Section("people", "Age and site", [Row(plots)]) if plots else None


def _build_sizes(cohort: Cohort) -> Section:
    sides = cohort.rows[["width", "height"]].astype(float)
    blocks: list[Block] = []
    if sides.isna().any(axis=None):
        rows = cohort.rows[sides.isna().any(axis=1) & cohort.rows["path"].notna()]
        rows = rows.sample(min(2000, len(rows)), random_state=0)
        sides.update(_read_sizes(rows))
        blocks.append(Note(TEXTS["sizes_read"].format(format_count(len(rows), "image"))))
    sides = sides.dropna().astype(int)
    sizes = sides["width"].astype(str) + "x" + sides["height"].astype(str)
    if sizes.empty:
        blocks.append(Note("No image size is known."))
    else:
        sizes = sizes.where(sizes.isin(sizes.value_counts().index[:10]), "other")
        blocks.append(_crosstab("Width and height, pixels", sizes, cohort))
    return Section("sizes", "Image sizes", blocks, TEXTS["sizes"])


def _read_sizes(rows: pd.DataFrame) -> pd.DataFrame:
    """Return width and height from the headers of the files; missing if unreadable."""

    def read_size(path: str) -> tuple[int | None, int | None]:
        try:
            info = probe(read_source(path).data)
        except (OSError, InputError):
            return None, None
        return info.width, info.height

    with ThreadPoolExecutor() as pool:
        sides = list(pool.map(read_size, rows["path"]))
    return pd.DataFrame(sides, rows.index, ["width", "height"], dtype=float)


def _crosstab(caption: str, values: "pd.Series[Any]", cohort: Cohort) -> Table:
    """Return count and share of each value, over all rows and by class, most common first."""
    groups = {name: values[values.index.isin(rows.index)] for name, rows in cohort.groups.items()}
    lines = []
    for value in values.value_counts().index:
        cells = (format_share(part == value) if len(part) else "" for part in groups.values())
        lines.append((str(value), *cells))
    return Table(caption, ("", *groups), lines)


def _build_examples(cohort: Cohort, examples: int) -> Section:
    galleries: list[Block] = []
    for name, rows in cohort.by_class.items():
        on_disk = rows[rows["path"].notna()]
        chosen = on_disk.sample(min(examples, len(on_disk)), random_state=0)
        cards = [_lesion_card(row) for row in chosen.to_dict("records")]
        galleries.append(Gallery(f"{name}: {len(chosen):,} of {len(rows):,}", cards))
    return Section("pictures", "Example images", galleries, "Chosen at random.")
