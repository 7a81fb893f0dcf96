"""A cohort as its pages see it: named rows with their class, and what is said of every one."""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.errors import InputError
from skinmm.images.decode import probe
from skinmm.images.source import read_source
from skinmm.report.blocks import (
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
    thumbnail,
)
from skinmm.report.figures import grids
from skinmm.report.format import format_count, format_percent
from skinmm.report.sections.cohort import PARTS, audit_blocks, characteristics, patients_in
from skinmm.report.sections.performance import record_lines
from skinmm.report.write import write_page


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
            format_count(len(self.rows), "image"),
            format_count(patients_in(self.rows), "patient"),
            f"{int(self.rows['malignant'].sum()):,} malignant",
        ]


def lesion_card(row: Mapping[Hashable, Any], *remarks: str) -> Card:
    """A canonical row with its picture; `remarks` stand first."""
    return Card(str(row["image_id"]), [*remarks, *record_lines(row)], thumbnail(row["path"]))


PAIRS_PER_KIND: Final = 40  # pairs of each kind
UNREADABLE_LISTED: Final = 100  # unreadable images
NOT_COMPARED: Final = (
    "Pixels were not compared: near=true also looks for images that are nearly the same."
)


def write_audit_page(cohort: Cohort, findings: Mapping[str, Any], output: Path) -> Path:
    """Writes the page, in place of an earlier one.

    Args:
        cohort: the rows with their `part`.
        findings: what `audit` returned, and `absent`, what was said of images that are not there;
            where pixels were compared also `compared`, how many images, and `unreadable`,
            name -> reason.
        output: the page to write.

    Returns:
        The page.
    """
    sections = [_findings(cohort, findings), _pair_section(cohort, findings), _unreadable(findings)]
    made = [section for section in sections if section is not None]
    return write_page(output, title="Audit", facts=cohort.facts, sections=made)


def _findings(cohort: Cohort, findings: Mapping[str, Any]) -> Section:
    compared = findings.get("compared")
    lead = (
        NOT_COMPARED
        if compared is None
        else f"{format_count(compared, 'image')} compared by pixels."
    )
    rows = cohort.rows
    parts = {label: rows[rows["part"] == part] for part, label in PARTS.items()}
    parts = {label: part for label, part in parts.items() if len(part)}
    blocks = [*audit_blocks(findings), characteristics("The split", parts)]
    return Section("findings", "Findings", blocks, lead)


def _pair_section(cohort: Cohort, findings: Mapping[str, Any]) -> Section | None:
    blocks: list[Block] = []
    for kind, total in findings["across_parts"].items():
        pairs = _pairs_of(kind, cohort.rows, findings)[:PAIRS_PER_KIND]
        rows = cohort.rows[cohort.rows["image_id"].isin({name for pair in pairs for name in pair})]
        cards = {row["image_id"]: _pair_card(row) for row in rows.to_dict("records")}
        if pairs:
            caption = f"{kind.capitalize()} in two parts: {len(pairs)} of {total:,}"
            blocks.append(
                Pairs(caption, [(cards[first], cards[second]) for first, second in pairs])
            )
    lead = "Left and right are in different parts: a model would be asked what it has seen before."
    return Section("pairs", "The images", blocks, lead) if blocks else None


def _pairs_of(kind: str, rows: pd.DataFrame, findings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The found pairs of a kind; of every torn patient or lesion an image of either part."""
    if f"{kind}_id" not in rows:
        return [(one["first"], one["second"]) for one in findings["pairs"] if one["kind"] == kind]
    used = rows[rows["part"].isin(PARTS)].dropna(subset=[f"{kind}_id"])
    by_group = used.drop_duplicates([f"{kind}_id", "part"]).groupby(f"{kind}_id", sort=False)
    images = by_group["image_id"].agg(list)
    return [(names[0], names[1]) for names in images if len(names) > 1]


def _pair_card(row: Mapping[Hashable, Any]) -> Card:
    patient = [] if row["patient_id"] == row["image_id"] else [f"patient {row['patient_id']}"]
    return lesion_card(row, f"{PARTS[row['part']].lower()}, {row['class']}", *patient)


def _unreadable(findings: Mapping[str, Any]) -> Section | None:
    absent, unreadable = findings.get("absent"), findings.get("unreadable")
    blocks: list[Block] = [Note(f"{absent}.", loud=True)] if absent else []
    if unreadable:
        said = f"{format_count(len(unreadable), 'image')} could not be read or compared."
        rows = list(unreadable.items())[:UNREADABLE_LISTED]
        blocks += [Note(said, loud=True), Table("", ("Image", "Reason"), rows)]
    return Section("unreadable", "Unreadable", blocks) if blocks else None


SIZES_READ: Final = 2000  # images whose header is read where the table does not say their size
SIZES: Final = 10
ALL: Final = "All"
_NOT_KNOWN: Final = "not known"


def write_cohort_page(cohort: Cohort, output: Path, *, examples: int = 12) -> Path:
    """Writes the page, in place of an earlier one.

    Args:
        cohort: the rows; images that are not on disk are counted.
        output: the page to write.
        examples: pictures of each class, chosen by chance but the same every time.

    Returns:
        The page.
    """
    made = [_counts(cohort), _missing_section(cohort), _people(cohort), _sizes(cohort)]
    if examples:
        made.append(_contact_sheets(cohort, examples))
    sections = [section for section in made if section is not None]
    return write_page(output, title="Cohort", facts=cohort.facts, sections=sections)


def _counts(cohort: Cohort) -> Section:
    rows = cohort.rows
    there, malignant = int(rows["path"].notna().sum()), int(rows["malignant"].sum())
    patients, lesions = patients_in(rows), int(rows["lesion_id"].nunique())
    named = f"named for {format_count(int(rows['lesion_id'].notna().sum()), 'image')}"
    per_patient = f"{len(rows) / patients:.1f} images each"
    tiles = Tiles(
        [
            Tile("Images", f"{len(rows):,}", f"{there:,} on disk"),
            Tile(
                "Patients",
                f"{patients:,}",
                per_patient,
                "lesions, then images, where no patient is named",
            ),
            Tile("Lesions", f"{lesions:,}" if lesions else _NOT_KNOWN, named if lesions else ""),
            Tile(
                "Malignant", format_percent(malignant / len(rows)), format_count(malignant, "image")
            ),
        ]
    )
    parts = {ALL: rows, **cohort.by_class}
    blocks: list[Block] = [tiles, characteristics("Who is in which class", parts)]
    if rows["diagnosis"].nunique() > len(cohort.classes):
        blocks.append(_crosstab("Diagnoses", rows["diagnosis"], cohort))
    return Section("counts", "Counts", blocks)


def _missing_section(cohort: Cohort) -> Section:
    """By class, because what is missing more often in one class gives it away."""
    parts = {ALL: cohort.rows, **cohort.by_class}
    named = {"path": "image on disk", "width": "image size in the table"}
    columns = dict.fromkeys((*cohort.columns, "diagnosis", "lesion_id", *named))
    lines = [
        (named.get(name, name), *(_share(rows[name].isna()) for rows in parts.values()))
        for name in columns
    ]
    lead = "A column that is missing more often in one class than in another gives the class away."
    return Section("missing", "Missing", [Table("", ("Not known", *parts), lines)], lead)


def _people(cohort: Cohort) -> Section | None:
    plots = []
    if cohort.rows["age"].notna().any():
        parts = {ALL: cohort.rows, **cohort.by_class}
        ages = {name: rows["age"].dropna().to_numpy(float) for name, rows in parts.items()}
        text = "Diamond: median; thick: the middle half; thin: the middle 90 %."
        plots.append(Plot("Age by class", grids.ages(ages), text))
    if cohort.rows["site"].notna().any():
        sites = cohort.rows["site"].fillna(_NOT_KNOWN)
        counts = pd.crosstab(sites, cohort.rows["class"])[list(cohort.by_class)]
        counts = counts.loc[sites.value_counts().index]
        drawn = grids.shares(counts.to_numpy("int64"), list(counts.index), list(counts.columns))
        plots.append(Plot("Sites by class", drawn))
    return Section("people", "Age and site", [Row(plots)]) if plots else None


def _sizes(cohort: Cohort) -> Section:
    known = cohort.rows[["width", "height"]].astype(float)
    blocks: list[Block] = []
    if known.isna().any(axis=None):
        asked = cohort.rows[known.isna().any(axis=1) & cohort.rows["path"].notna()]
        asked = asked.sample(min(SIZES_READ, len(asked)), random_state=0)
        known.update(_measured(asked))
        text = (
            f"The table lacks sizes; those of {format_count(len(asked), 'image')} were looked up."
        )
        blocks.append(Note(text))
    known = known.dropna().astype(int)
    sizes = known["width"].astype(str) + "x" + known["height"].astype(str)
    if sizes.empty:
        blocks.append(Note("No size is known."))
    else:
        common = sizes.value_counts().index[:SIZES]
        sizes = sizes.where(sizes.isin(common), "other")
        blocks.append(_crosstab("Width and height, pixels", sizes, cohort))
    lead = "Where sizes differ between classes, a model can tell cameras instead of lesions."
    return Section("sizes", "Image sizes", blocks, lead)


def _measured(rows: pd.DataFrame) -> pd.DataFrame:
    """Width and height as the files' headers say; missing where there is none to read."""

    def measure(path: str) -> tuple[int | None, int | None]:
        try:
            info = probe(read_source(path).data)
        except (OSError, InputError):
            return None, None
        return info.width, info.height

    with ThreadPoolExecutor() as pool:
        sides = list(pool.map(measure, rows["path"]))
    return pd.DataFrame(sides, rows.index, ["width", "height"], dtype=float)


def _crosstab(caption: str, values: "pd.Series[Any]", cohort: Cohort) -> Table:
    """How often each value occurs, in all and as a share of each class; the common ones first."""
    groups = cohort.by_class.items()
    parts = {ALL: values, **{name: values[values.index.isin(rows.index)] for name, rows in groups}}
    lines = [
        (str(value), *(_share(part == value) if len(part) else "" for part in parts.values()))
        for value in values.value_counts().index
    ]
    return Table(caption, ("", *parts), lines)


def _contact_sheets(cohort: Cohort, examples: int) -> Section:
    galleries: list[Block] = []
    for name, rows in cohort.by_class.items():
        there = rows[rows["path"].notna()]
        chosen = there.sample(min(examples, len(there)), random_state=0)
        caption = f"{name}: {len(chosen):,} of {len(rows):,}"
        galleries.append(Gallery(caption, [lesion_card(row) for row in chosen.to_dict("records")]))
    return Section("pictures", "Contact sheets", galleries, "Chosen by chance.")


def _share(mask: "pd.Series[bool]") -> str:
    return f"{int(mask.sum()):,} ({format_percent(float(mask.mean()))})"
